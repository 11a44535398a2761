"""Drafters guess the next tokens. They decide nothing: one that is always wrong only costs time.

A new drafter is one class with the three methods of `Drafter`; `speculate` needs no change for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from paceline.cache import KVCache
from paceline.control.stop import Stop
from paceline.errors import UsageError
from paceline.kernels import Array
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.sampling import Sampler


class Drafter(Protocol):
    """Proposes tokens for one sequence."""

    def begin(self, tokens: Sequence[int], cache: KVCache, sampler: Sampler) -> None:
        """A new sequence starts: its prompt, the target's cache of it, and how tokens are chosen."""

    def observe(self, hidden: Array, tokens: Sequence[int]) -> None:
        """The target chose `tokens`; hidden [1, D] is the state that chose the last of them (the bonus token)."""

    def propose(self, k: int) -> list[int]:
        """At most k guesses for what follows the last observed token. May be fewer, or none."""


class NoDrafter:
    """Plain decoding."""

    def begin(self, tokens: Sequence[int], cache: KVCache, sampler: Sampler) -> None:
        """Nothing to remember."""

    def observe(self, hidden: Array, tokens: Sequence[int]) -> None:
        """Nothing to learn."""

    def propose(self, k: int) -> list[int]:
        """No guess."""
        return []


class MtpDraft:
    """Gemma 4's MTP assistant: steps from the target's last hidden state, over the target's keys and values.

    The position is constant within a round. Runtimes disagree whether it is the bonus token's index n or the last
    processed one, n - 1; `position` is "n" or "n-1". Drafting stops where the drafter's own probability of the whole
    draft would fall below `min_confidence`: a token that is rarely reached still costs a draft step and a row. It also
    ends where `stop` says so. `confidences` are the drafter's probabilities of the last draft's steps, a dropped one
    included, where either of them listens.
    """

    def __init__(self, model: MtpDrafter, target: Target, position: str = "n", min_confidence: float = 0.0) -> None:
        if position not in ("n", "n-1"):
            raise UsageError(f"the drafter's position is 'n' or 'n-1', not {position!r}")
        self.model, self.target, self.back = model, target, int(position == "n-1")
        self.min_confidence = min_confidence
        self.stop: Stop | None = None
        self.confidences: list[float] = []

    def begin(self, tokens: Sequence[int], cache: KVCache, sampler: Sampler) -> None:
        self.cache, self.sampler = cache, sampler

    def observe(self, hidden: Array, tokens: Sequence[int]) -> None:
        self.hidden, self.last = hidden, tokens[-1]

    def propose(self, k: int) -> list[int]:
        """At most k guesses, each from the hidden state of the step before, with the target's noise of its position."""
        self.confidences = []
        if not k:
            return []
        n, hidden, token, draft = self.cache.length, self.hidden, self.last, list[int]()
        rows, sure, whole, stop = self.model.rows(self.target, self.cache, n - self.back), 1.0, 1.0, self.stop
        for j in range(k):
            embedded = self.target.embed(self.model.ops.indices([token]))
            state, hidden = self.model.step(embedded, hidden, rows, self.cache)
            logits, ids = self.model.logits(state)
            # Looks at the drafter's law, not at the token drawn from it: what is drafted cannot bend what is kept.
            if stop or self.min_confidence:
                confidence = self._hear(logits)
                self.confidences.append(confidence)
                sure *= confidence
                whole *= stop.chance(j, confidence) if stop else 1.0
                if sure < self.min_confidence or (stop and whole < stop.keep):
                    break
            token = self.sampler.guess(logits, ids, n + 1 + j, draft)
            draft.append(token)
            if stop and whole < stop.go:
                break
        return draft

    def _hear(self, logits: Array) -> float:
        """The drafter's own probability of its likeliest guess; logits [1, m]."""
        return self.model.ops.confidence(logits)


@contextmanager
def bounded(drafter: Drafter, min_confidence: float) -> Iterator[None]:
    """Another least confidence for a while, and no stop but those set meanwhile; nothing where nobody listens."""
    if not isinstance(drafter, MtpDraft):
        yield
        return
    before = drafter.min_confidence, drafter.stop
    drafter.min_confidence, drafter.stop = min_confidence, None
    try:
        yield
    finally:
        drafter.min_confidence, drafter.stop = before


class NgramDraft:
    """Prompt lookup: what followed the last time these tokens were seen (Saxena 2023).

    Remembers where every run of `shortest` .. `longest` tokens last ended; the longest match wins.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise UsageError(f"n-gram lengths must satisfy 1 <= shortest <= longest, not {shortest} and {longest}")
        self.longest, self.shortest = longest, shortest

    def begin(self, tokens: Sequence[int], cache: KVCache, sampler: Sampler) -> None:
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, ...], int] = {}
        self._extend(tokens)

    def observe(self, hidden: Array, tokens: Sequence[int]) -> None:
        self._extend(tokens)

    def propose(self, k: int) -> list[int]:
        for n in range(self.longest, self.shortest - 1, -1):
            end = self.ends.get(tuple(self.tokens[-n:]))
            if end is not None and len(self.tokens) >= n:
                return self.tokens[end : end + k]
        return []

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            # Index what ends before `token`, so that a run never finds itself.
            for n in range(self.shortest, self.longest + 1):
                if len(self.tokens) >= n:
                    self.ends[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)
