"""Runs requests: owns the model, its drafter and the cache, and turns rounds into token events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from paceline.cache import MAX_TENTATIVE, KVCache, Storage
from paceline.control.policy import Policy
from paceline.drafters import Drafter, NoDrafter, bounded
from paceline.errors import PromptError, UsageError
from paceline.models.gemma4 import Target
from paceline.sampling import Sampler
from paceline.speculate import Round, speculate, start
from paceline.steering import Asked, Steered, kind_of
from paceline.structure import Constraint, Ids, Structure
from paceline.text import Detokenizer, StopStrings
from paceline.types import AUTO, Completion, DraftLength, SamplingParams, Stats, TokenEvent, TokenLogprobs

MAX_DRAFT = MAX_TENTATIVE - 1


@dataclass
class Engine:
    """One target with one drafter. `end_ids` end a text; `suppress` never come out; `structure` compiles grammars.

    policy: chooses draft lengths where k is "auto"; it lives across requests. asked_confidence: where a user bounds how
    unsure the drafter may be, that holds for it too.
    """

    target: Target
    drafter: Drafter
    end_ids: frozenset[int] = frozenset()
    suppress: tuple[int, ...] = ()
    structure: Structure | None = None
    storage: Storage | None = field(default=None, repr=False)
    policy: Policy | None = None
    asked_confidence: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    requests: int = field(default=0, init=False)

    @property
    def drafts(self) -> bool:
        """Whether there is a drafter."""
        return not isinstance(self.drafter, NoDrafter)

    def run(
        self, prompt: Sequence[int], params: SamplingParams, k: DraftLength, writer: Writer
    ) -> Iterator[TokenEvent]:  # fmt: skip
        """Generates until an end token, a stop string or the length limit; one event for each token.

        The text depends on weights, prompt and `params` only: never on the drafter or on k. With accept "rejection" or
        "block" that holds of its law.
        """
        check_bias(params, self.target)
        steering = self._steering(params, check_draft_length(k))
        cache = self.cache_for(check_prompt(prompt, params, self.target), steering.longest)
        drafter = self.drafter if k else NoDrafter()
        sampler = Sampler(self.target.ops, params, self.suppress, writer.end_ids, self.constraint(params))
        writer.logprobs, writer.choice = sampler.logprobs, lambda: steering.describe(writer.stats)
        try:
            with bounded(drafter, self.asked_confidence) if k == AUTO else nullcontext():
                last = start(self.target, drafter, cache, sampler, prompt)
                yield from writer.take(Round([last], 0), first=True)
                while not writer.finish_reason:
                    # The bonus token comes anyway: never draft past the last token that is wanted.
                    room = params.max_tokens - len(writer.token_ids) - 1
                    wanted = steering.before(cache.length, room)
                    done = speculate(self.target, drafter, cache, sampler, last, wanted)
                    steering.after(done)
                    last = done.tokens[-1]
                    yield from writer.take(done)
        finally:
            cache.release()

    def constraint(self, params: SamplingParams) -> Constraint | None:
        """What json_schema, regex or grammar make of the text, or None. Raises UsageError for what cannot be used."""
        if self.structure is None:
            ids = Ids(self.target.config.vocab, self.end_ids, self.suppress)
            return Structure(None, ids).constraint(params)
        return self.structure.constraint(params)

    def _steering(self, params: SamplingParams, k: DraftLength) -> Asked | Steered:
        """Who says how many tokens each round of a new request drafts."""
        self.requests += 1
        if k != AUTO:
            return Asked(k)
        if self.policy is None:
            raise UsageError("k='auto' needs a policy; give the engine one, or a number")
        return Steered(self.policy, self.drafter, f"{self.requests}", kind_of(params), self.clock)

    def cache_for(self, tokens: int, k: int) -> KVCache:
        """A cache for one sequence; the storage is kept between requests and grows when it must."""
        if self.storage is None or self.storage.capacity < tokens + k:
            self.storage = Storage(self.target.config, self.target.ops, tokens + k)
        return KVCache(self.storage)


class Writer:
    """Turns rounds into events and a completion: text, stop rules and statistics of one request.

    logprobs: of the tokens that rounds brought so far, where they are asked for; the engine fills it before `take`.
    choice: says how draft lengths were chosen, asked when the text ends.
    """

    def __init__(
        self, end_ids: frozenset[int], params: SamplingParams, detokenizer: Detokenizer | None, prompt: int
    ) -> None:
        self.params, self.detokenizer = params, detokenizer
        self.end_ids = frozenset[int]() if params.ignore_eos else end_ids
        self.stops = StopStrings(params.stop)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.pieces: list[str] = []
        self.finish_reason = ""
        self.stats = Stats(prompt_tokens=prompt)
        self.choice: Callable[[], str] = str
        self.started = time.perf_counter()

    def take(self, done: Round, first: bool = False) -> Iterator[TokenEvent]:
        """The events of a round, all of which `put` wrote."""
        begun = len(self.token_ids)
        self.put(done, first)
        for i in range(begun, len(self.token_ids)):
            reason = self.finish_reason if i == len(self.token_ids) - 1 else ""
            logprobs = self.logprobs[i] if self.logprobs else None
            yield TokenEvent(self.token_ids[i], self.pieces[i], self.stats.from_draft[i], reason or None, logprobs)

    def put(self, done: Round, first: bool = False) -> None:
        """Writes a round, cut where plain decoding would have stopped."""
        now, begun = time.perf_counter() - self.started, len(self.token_ids)
        for token in done.tokens:
            self.token_ids.append(token)
            self.pieces.append(self._text(token))
            if self.finish_reason:
                break
        count, stats = len(self.token_ids) - begun, self.stats
        kept = min(count, done.accepted)
        stats.token_times_s += [now] * count
        stats.from_draft += [True] * kept + [False] * (count - kept)
        if not first:
            stats.count_round(done.drafted, done.accepted)
        if self.finish_reason:
            stats.draft_choice = self.choice()
        stats.seconds = time.perf_counter() - self.started

    def _text(self, token: int) -> str:
        """What the token adds to the visible text; sets the finish reason where it ends it."""
        if token in self.end_ids:
            self.finish_reason = "stop"
            return self._flush()
        text, stopped = self.stops.push(self.detokenizer.push(token) if self.detokenizer else "")
        if stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.params.max_tokens:
            self.finish_reason = "length"
            text += self._flush()
        return text

    def _flush(self) -> str:
        """The text held back by an unfinished character or a possible stop string."""
        text, stopped = self.stops.push(self.detokenizer.flush() if self.detokenizer else "")
        if stopped:
            self.finish_reason = "stop"
            return text
        return text + self.stops.flush()

    def completion(self) -> Completion:
        """The finished text."""
        # The last round may have brought more than the text took.
        logprobs = None if self.params.logprobs is None else self.logprobs[: len(self.token_ids)]
        return Completion("".join(self.pieces), self.token_ids, self.finish_reason, self.stats, logprobs)


def check_prompt(prompt: Sequence[int], params: SamplingParams, target: Target) -> int:
    """Tokens the request may come to; refuses prompts that are empty, foreign or too long for the context."""
    if not prompt:
        raise PromptError("the prompt is empty; give at least one token")
    config = target.config
    wrong = next((t for t in prompt if not 0 <= t < config.vocab), None)
    if wrong is not None:
        raise PromptError(f"token id {wrong} is outside the vocabulary of {config.vocab}")
    total = len(prompt) + params.max_tokens
    if total > config.max_positions:
        raise PromptError(
            f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} exceed the context of"
            f" {config.max_positions}; shorten the prompt or lower max_tokens"
        )
    return total


def check_bias(params: SamplingParams, target: Target) -> None:
    """Refuses logit_bias for tokens that the model does not have."""
    wrong = next((token for token, _ in params.biases if token >= target.config.vocab), None)
    if wrong is not None:
        raise UsageError(f"logit_bias names token id {wrong}, outside the vocabulary of {target.config.vocab}")


def check_draft_length(k: DraftLength) -> DraftLength:
    """k itself, or a UsageError."""
    if k == AUTO:
        return k
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= MAX_DRAFT:
        raise UsageError(f"the draft length k must be 'auto' or a whole number from 0 to {MAX_DRAFT}, not {k!r}")
    return k
