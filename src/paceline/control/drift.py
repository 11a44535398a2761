"""What served rounds differ by from a table of their times, by draft length: learnt of all lengths from each round.

A Gaussian process over k, in logarithms. What all rounds have in common varies most (a slower machine), then what
drafts add to a round, and last what is one length's own, which it shares with those beside it. So rounds of any two
lengths tell of all others; one alone cannot tell the machine from the drafts, and then nearly all counts as the
machine's: no other k must look cheap for not being in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numba import njit

from paceline.control.logistic import Floats

MACHINE, DRAFTS = 0.15, 0.05  # standard deviations in logarithms where a table was measured
VAGUE = 8.0  # times as much where it was only predicted
OWN, ALIKE = 0.04, 0.8  # of one length beside both, and how much of it the next one shares
NOISE = 0.03  # of each round
YOUNG, SLOWED = 8, 0.5  # of so many first rounds, share of what they are slower by that counts for noise: any may stall
WALK, SLOW_WALK = 0.005**2, 0.001**2  # variance that each round adds to the machine's, and to one length's own
# Nothing makes a round faster than it is: of so many first ones, one that surprises by being so, by so many standard
# deviations, shows that those before it had stalled, and tells of the machine and not of drafts.
SETTLING, SURPRISE = 64, 3.0
MOST = math.log(1.5)  # a round slower by more is a stall, unless no more was known
STALLED = 0.09  # of such a one, cut down to MOST, is believed
DOUBTED = 0.1**2  # variance that it adds: many of them are no stalls


class Drift:
    """Logarithms of served over expected times, [k_max + 1], and their covariance."""

    __slots__ = ("_covariance", "factors", "offsets", "rounds")

    def __init__(self, times: Sequence[float], vague: bool, offsets: Floats | None = None) -> None:
        """times: as the table has them; offsets: what to start from, as if nothing was known for sure."""
        share, k = 1.0 - times[0] / np.array(times), np.arange(len(times))
        width = VAGUE**2 if vague else 1.0
        apart = np.abs(k[:, None] - k)
        self._covariance = width * (MACHINE**2 + DRAFTS**2 * np.outer(share, share)) + OWN**2 * ALIKE**apart
        self.offsets = np.zeros(len(times)) if offsets is None else offsets.copy()
        self.factors: list[float] = np.exp(self.offsets).tolist()
        self.rounds = 0

    def learn(self, k: int, off: float) -> bool:
        """A round of k drafts was off by so much, in logarithms; whether it counted for one that did not stall."""
        self.rounds += 1
        if self.rounds <= SETTLING and off < -SURPRISE * math.sqrt(self._covariance[k, k] + NOISE**2):
            self._covariance += off * off
        slowed = SLOWED if self.rounds <= YOUNG else 0.0
        counted = bool(learn(self.offsets, self._covariance, k, off, slowed))
        self.factors = np.exp(self.offsets).tolist()
        return counted

    def doubts(self, k: int) -> Floats:
        """Standard deviation, [k_max + 1], of what a round of each length takes over one of k drafts, in logarithms."""
        own = self._covariance.diagonal()
        return np.asarray(np.sqrt(np.maximum(own + own[k] - 2.0 * self._covariance[k], 0.0)))


@njit(cache=True)
def learn(offsets: Floats, covariance: Floats, k: int, off: float, slowed: float) -> bool:
    """As `Drift.learn`: offsets [K] and their covariance [K, K] after one more round (a Kalman filter's step)."""
    if off > max(MOST, 3.0 * math.sqrt(covariance[k, k] + NOISE**2)):
        offsets += STALLED * MOST
        covariance += DOUBTED
        return False
    noise = NOISE**2 + (slowed * max(0.0, off)) ** 2
    total, along, count = covariance[k, k] + noise, covariance[k].copy(), len(offsets)
    for i in range(count):
        offsets[i] += along[i] / total * off
        for j in range(count):
            covariance[i, j] += WALK - along[i] * along[j] / total
        covariance[i, i] += SLOW_WALK
    return True


@cache
def warm_up() -> None:
    """Compiles it, or loads it: else the first round would wait for it."""
    learn(np.zeros(2), np.eye(2), 0, 0.0, 0.0)
