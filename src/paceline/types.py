"""The nouns of Paceline, as plain data. Imports nothing else of the package but its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict

from paceline.errors import UsageError


class ChatMessage(TypedDict):
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | list[int] | list[ChatMessage]
"""A raw string, token ids, or chat messages (rendered with the checkpoint's chat template)."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What decides the text, together with weights and prompt: nothing else does.

    temperature 0 is greedy (ties go to the lowest id). top_k 0 and top_p 1.0 mean no cut.
    `seed` and the token's position select the noise, so equal seeds give equal texts with any drafter.
    `stop` strings are left out of the text; the end-of-turn token is kept in the ids but not in the text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 64
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_types()
        checks = (
            (0.0 <= self.temperature < math.inf, "temperature must be 0 (greedy) or greater", self.temperature),
            (self.top_k >= 0, "top_k must be 0 (off) or greater", self.top_k),
            (0.0 < self.top_p <= 1.0, "top_p must lie in (0, 1]", self.top_p),
            (0 <= self.seed < 2**64, "seed must lie in 0 .. 2^64-1", self.seed),
            (self.max_tokens >= 1, "max_tokens must be at least 1", self.max_tokens),
            (all(self.stop), "stop strings must not be empty", self.stop),
        )
        for good, rule, value in checks:
            if not good:
                raise UsageError(f"{rule}, not {value!r}")

    def _check_types(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), int | float):
                raise UsageError(f"{name} must be a number, not {getattr(self, name)!r}")
        for name in ("top_k", "seed", "max_tokens"):
            if not isinstance(getattr(self, name), int):
                raise UsageError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        # A plain string would be taken for many stop strings of one character.
        if isinstance(self.stop, str) or not all(isinstance(s, str) for s in self.stop):
            raise UsageError(f"stop must be a sequence of strings, not {self.stop!r}")


@dataclass(slots=True)
class Stats:
    """What one completion cost. Positions are draft positions: index 0 is the first drafted token of a round.

    `token_times_s[i]` is when token i became available, in seconds since the request started;
    the tokens of one round share a time. The first entry is the time to first token (TTFT).
    """

    rounds: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    from_draft: list[bool] = field(default_factory=list)
    prompt_tokens: int = 0
    seconds: float = 0.0

    def count_round(self, drafted: int, accepted: int) -> None:
        """Adds one round that drafted and accepted so many tokens (the bonus token is in neither)."""
        self.rounds += 1
        while len(self.drafted) < drafted:
            self.drafted.append(0)
            self.accepted.append(0)
        for i in range(drafted):
            self.drafted[i] += 1
            self.accepted[i] += i < accepted

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
class TokenEvent:
    """One emitted token. `text` is what it adds to the visible text (often empty inside a character or stop string)."""

    token_id: int
    text: str
    from_draft: bool
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished text. `finish_reason` is "stop" (end token or stop string) or "length"."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats
