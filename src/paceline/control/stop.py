"""Where a draft ends before its full length: at the first guess that makes it too unlikely that all of it is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SUREST = 12.0  # logits of confidence beyond this say no more


class Stop(NamedTuple):
    """A guess is dropped where the chance that the draft is kept whole falls below `keep`; below `go` it is the last.

    The chance of one guess is its confidence, recalibrated: sigmoid(slope * logit(confidence) + offset + depth * i).
    This looks at the laws that guesses are drawn from, never at the guesses.
    """

    keep: float = 0.0
    go: float = 0.0
    slope: float = 1.0
    offset: float = 0.0
    depth: float = 0.0

    def chance(self, index: int, confidence: float) -> float:
        """How likely guess `index` (from 0) is kept, given that all before it are."""
        z = self.slope * surety(confidence) + self.offset + self.depth * index
        return 1.0 / (1.0 + math.exp(-z)) if z > -30.0 else 0.0

    def length(self, confidences: Sequence[float], k: int) -> tuple[int, int]:
        """(drafts handed out, draft steps made) of at most k, where the drafter is so sure of each."""
        whole = 1.0
        for n in range(min(k, len(confidences))):
            whole *= self.chance(n, confidences[n])
            if whole < self.keep:
                return n, n + 1
            if whole < self.go:
                return n + 1, n + 1
        return k, k


def surety(confidence: float) -> float:
    """The confidence in logits, within +-12."""
    if not 6.2e-6 < confidence < 1.0 - 6.2e-6:
        return SUREST if confidence > 0.5 else -SUREST
    return math.log(confidence / (1.0 - confidence))
