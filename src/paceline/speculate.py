"""One round of speculative decoding with target-chosen tokens. Plain decoding is the same round with no drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.cache import KVCache
from paceline.drafters import Drafter
from paceline.models.gemma4 import Target
from paceline.sampling import Sampler


@dataclass(frozen=True, slots=True)
class Round:
    """What a round emitted: `tokens` = the accepted drafts, then the bonus token."""

    tokens: list[int]
    drafted: int

    @property
    def accepted(self) -> int:
        """How many of the drafts stayed."""
        return len(self.tokens) - 1


def start(target: Target, drafter: Drafter, cache: KVCache, sampler: Sampler, prompt: Sequence[int]) -> int:
    """Reads the prompt and returns the first token."""
    sampler.begin(prompt, target.config.vocab)
    drafter.begin(prompt, cache, sampler)
    hidden = target.prefill(prompt, cache)
    logits = target.logits(hidden)
    first = sampler.verify(logits, cache.length)
    sampler.extend(first, logits)
    drafter.observe(hidden, first)
    return first[0]


def speculate(target: Target, drafter: Drafter, cache: KVCache, sampler: Sampler, last: int, k: int) -> Round:
    """Drafts at most k tokens, verifies them in one pass, and emits those that stay and the token after them.

    Coupled: the target chooses at every position, given the drafts before it; the matching prefix and the first choice
    that differs are exactly what plain decoding would have emitted. Greedy: Leviathan et al. 2022 (arXiv 2211.17192)
    at temperature 0; sampled: see `paceline.sampling`. With accept "rejection" and "block" the law is plain decoding's.
    """
    draft = sampler.legal(drafter.propose(k))
    hidden = target.forward([last, *draft], cache)  # [1 + drafts, D]
    logits = target.logits(hidden)
    tokens = sampler.verify(logits, cache.length - len(draft), draft)
    kept = len(tokens) - 1
    cache.rollback(len(draft) - kept)  # `last` and the accepted drafts stay
    sampler.extend(tokens, logits)
    drafter.observe(target.ops.rows(hidden, kept, kept + 1), tokens)
    return Round(tokens, len(draft))
