"""The nouns of Paceline, as plain data. Imports nothing else of the package but its errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, get_args

from paceline.errors import UsageError


class ChatMessage(TypedDict):
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | list[int] | list[ChatMessage]
"""A raw string, token ids, or chat messages (rendered with the checkpoint's chat template)."""

AUTO: Literal["auto"] = "auto"
DraftLength = int | Literal["auto"]
"""Tokens to draft in a round: a number, or "auto" for what the controller chooses round by round."""

Biases = Mapping[int, float] | tuple[tuple[int, float], ...]
"""Token ids with what is added to their logits; a mapping is kept as pairs by ascending id, which can be hashed."""

AcceptMode = Literal["coupled", "rejection", "block"]
"""How a round decides which drafts stay; `paceline.verification` has the laws, docs/sampling.md the choice."""

ACCEPT_MODES: tuple[AcceptMode, ...] = get_args(AcceptMode)
STRUCTURES = ("json_schema", "regex", "grammar")
MOST_LOGPROBS = 20
STREAM_STEP = 0x9E3779B97F4A7C15  # odd, so no two of 2^64 streams share a seed; far from the seeds people write


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What decides the text, together with weights and prompt: nothing else does.

    temperature 0 is greedy (ties go to the lowest id). top_k 0 and top_p 1.0 mean no cut.
    `seed` and the token's position select the noise, so equal seeds give equal texts with any drafter.
    `stop` strings are left out of the text; the end-of-turn token is kept in the ids but not in the text.

    min_p 0 means no cut; else tokens below min_p times the likeliest one's probability are dropped. repetition_penalty
    (1 is off) counts prompt and text; presence_penalty and frequency_penalty (0 is off) count the text alone. End
    tokens cannot come before `min_tokens` tokens; stop strings can. `paceline.processors` has the order of these rules.
    logprobs n asks for the log-probability of every emitted token and of the n likeliest there, by the model itself:
    of softmax over its soft-capped logits, before any rule, suppressed token or temperature.
    n texts come of one prompt, each with the seed of its own that `streams` gives; of best_of texts, where that is
    greater, the n whose mean log-probability is greatest, best first.

    accept "coupled": equal seeds give equal texts, drafting or not. "rejection" and "block" keep more drafts: the law
    of the text is the same, but one seed gives another text for another drafter or draft length. Greedy texts are
    equal in all three. At most one of json_schema (text or mapping), regex and grammar (Lark) says what the text must
    be; an end token comes only where that is complete. Like any other text it is cut at max_tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 64
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Biases = ()
    min_tokens: int = 0
    logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    accept: AcceptMode = "coupled"
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        object.__setattr__(self, "json_schema", _schema(self.json_schema))
        self._check_types()
        self._check_rules()
        self._check_structure()
        checks = (
            (0.0 <= self.temperature < math.inf, "temperature must be 0 (greedy) or greater", self.temperature),
            (self.top_k >= 0, "top_k must be 0 (off) or greater", self.top_k),
            (0.0 < self.top_p <= 1.0, "top_p must lie in (0, 1]", self.top_p),
            (0 <= self.seed < 2**64, "seed must lie in 0 .. 2^64-1", self.seed),
            (self.max_tokens >= 1, "max_tokens must be at least 1", self.max_tokens),
            (all(self.stop), "stop strings must not be empty", self.stop),
            (self.n >= 1, "n must be at least 1", self.n),
            (self.best_of is None or self.best_of >= self.n, "best_of must be at least n", self.best_of),
            (self.accept in ACCEPT_MODES, f"accept must be one of {', '.join(ACCEPT_MODES)}", self.accept),
        )
        _refuse_first(checks)

    @property
    def structure(self) -> tuple[str, str] | None:
        """The name and the text of the one field that says what the text must be."""
        return next(((name, getattr(self, name)) for name in STRUCTURES if getattr(self, name) is not None), None)

    def streams(self) -> list[SamplingParams]:
        """The parameters of each of the n (or best_of) texts: text i has seed (seed + i * 0x9E3779B97F4A7C15) mod 2^64.

        Text 0 is the one that n = 1 gives. Seeds of all texts differ; greedy texts are equal all the same.
        """
        # Which texts are best is told by their log-probabilities.
        logprobs = self.logprobs if self.best_of is None else self.logprobs or 0
        one = replace(self, n=1, best_of=None, logprobs=logprobs)
        return [replace(one, seed=(self.seed + i * STREAM_STEP) % 2**64) for i in range(self.best_of or self.n)]

    def _check_rules(self) -> None:
        """The ranges of what reshapes logits before the cuts, and of what is reported."""
        worst = next((pair for pair in self.biases if not -100.0 <= pair[1] <= 100.0 or pair[0] < 0), None)
        checks = (
            (0.0 <= self.min_p <= 1.0, "min_p must lie in [0, 1]", self.min_p),
            (0.01 <= self.repetition_penalty <= 100.0, "repetition_penalty must lie in [0.01, 100]",
             self.repetition_penalty),
            (-2.0 <= self.presence_penalty <= 2.0, "presence_penalty must lie in [-2, 2]", self.presence_penalty),
            (-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty must lie in [-2, 2]", self.frequency_penalty),
            (worst is None, "logit_bias must map token ids from 0 on to numbers in [-100, 100]", worst),
            (0 <= self.min_tokens <= self.max_tokens, "min_tokens must lie in 0 .. max_tokens", self.min_tokens),
            (0 <= (self.logprobs or 0) <= MOST_LOGPROBS, f"logprobs must be None or 0 .. {MOST_LOGPROBS}",
             self.logprobs),
        )  # fmt: skip
        _refuse_first(checks)

    def _check_structure(self) -> None:
        """What the text must be, and what contradicts it; whether it compiles is `paceline.structure`'s to say."""
        given = [name for name in STRUCTURES if getattr(self, name) is not None]
        for name in given:
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise UsageError(f"{name} must be a string that is not empty, not {value!r}")
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other; give one of them")
        # The grammar alone decides when a text may and must end.
        for name, on in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens)):
            if given and on:
                raise UsageError(f"{name} does not go with {given[0]}, which says where the text ends; leave one out")

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs by ascending id."""
        return self.logit_bias  # type: ignore[return-value]

    def _check_types(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            if not isinstance(getattr(self, name), int | float):
                raise UsageError(f"{name} must be a number, not {getattr(self, name)!r}")
        whole = ["top_k", "seed", "max_tokens", "min_tokens", "n"]
        for name in whole + [name for name in ("logprobs", "best_of") if getattr(self, name) is not None]:
            if not isinstance(getattr(self, name), int):
                raise UsageError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        # A plain string would be taken for many stop strings of one character.
        if isinstance(self.stop, str) or not all(isinstance(s, str) for s in self.stop):
            raise UsageError(f"stop must be a sequence of strings, not {self.stop!r}")


def _refuse_first(checks: tuple[tuple[bool, str, object], ...]) -> None:
    for good, rule, value in checks:
        if not good:
            raise UsageError(f"{rule}, not {value!r}")


def _pairs(biases: Biases) -> tuple[tuple[int, float], ...]:
    """Biases as pairs by ascending id, each id once; refuses what is no such thing."""
    try:
        given = dict(biases)
    except (TypeError, ValueError):
        given = {None: biases}  # type: ignore[dict-item]
    for token, bias in given.items():
        if type(token) is not int or isinstance(bias, bool) or not isinstance(bias, int | float):
            raise UsageError(f"logit_bias must map token ids to numbers, not {biases!r}")
    return tuple(sorted((token, float(bias)) for token, bias in given.items()))


def _schema(schema: object) -> object:
    """A mapping as JSON text, which can be hashed; anything else as it is."""
    if not isinstance(schema, Mapping):
        return schema
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"json_schema must hold nothing but JSON: {error}") from None


@dataclass(slots=True)
class Stats:
    """What one completion cost. Positions are draft positions: index 0 is the first drafted token of a round.

    `token_times_s[i]` is when token i became available, in seconds since the request started;
    the tokens of one round share a time. The first entry is the time to first token (TTFT).
    Of the drafts made at a position, `judged` are those before which none was rejected in its round: the others say
    nothing of it. draft_choice: how many tokens the rounds drafted, and why, in words.
    """

    rounds: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    from_draft: list[bool] = field(default_factory=list)
    prompt_tokens: int = 0
    seconds: float = 0.0
    draft_choice: str = ""

    def count_round(self, drafted: int, accepted: int) -> None:
        """Adds one round that drafted and accepted so many tokens (the bonus token is in neither)."""
        self.rounds += 1
        while len(self.drafted) < drafted:
            self.drafted.append(0)
            self.accepted.append(0)
            self.judged.append(0)
        for i in range(drafted):
            self.drafted[i] += 1
            self.accepted[i] += i < accepted
            self.judged[i] += i <= accepted

    @property
    def ttft_s(self) -> float:
        """Seconds from the request to its first token."""
        return self.token_times_s[0] if self.token_times_s else self.seconds

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the last."""
        return self.token_times_s[-1] - self.token_times_s[0] if self.token_times_s else 0.0

    @property
    def tpot_s(self) -> float:
        """Mean seconds per output token after the first (TPOT); 0 when there was only one."""
        later = len(self.token_times_s) - 1
        return self.decode_s / later if later > 0 else 0.0

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per round after the first token, the bonus token counted; 1.0 is plain decoding."""
        return 1.0 + sum(self.accepted) / self.rounds if self.rounds else 1.0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at one position: of the emitted token, and of the likeliest (id, its own), best first.

    By the model itself, before any sampling rule; ties go to the lowest id.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One emitted token. `text` is what it adds to the visible text (often empty inside a character or stop string)."""

    token_id: int
    text: str
    from_draft: bool
    finish_reason: str | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished text. `finish_reason` is "stop" (end token or stop string) or "length".

    logprobs: one entry for each token, where the parameters ask for them.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats
    logprobs: list[TokenLogprobs] | None = None

    @property
    def mean_logprob(self) -> float | None:
        """Mean natural log-probability of the tokens, by the model itself; None where the parameters ask for none."""
        return sum(entry.chosen for entry in self.logprobs) / len(self.logprobs) if self.logprobs else None
