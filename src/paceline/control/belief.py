"""How well a text is guessed: what earlier texts were like, and what its own rounds say, as odds over a few levels.

A level is a shift in logits of what is usual at every draft position. One that was not seen yet is like one of the
earlier texts, with the odds of how many were so: where some are hopeless and others are not, few rounds tell which,
and until they do, the chance that a whole draft is kept is that of the mixture, and not that of its mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVELS = np.arange(-6.0, 3.7, 0.6)
STEADY = 1.0  # standard deviation in logits of most texts, before any was seen
STRANGE = 0.15  # of the texts are then taken to be like nothing in particular
TEXTS, FADE = 24, 0.88  # the last so many count, each less than the one after it
UNSEEN = 0.2  # what is thought before any was seen counts as the oldest of them does, or so much of a text
CONVINCED = 2.0  # rounds with drafts after which a text counts for a half
CHANGE, RESTED = 0.01, 0.1  # chance that the text has become another since the last round, and since a rest
SETTLE, LEAST = 8, 1e-9  # rounds told of in a row, and a likelihood: their product must not vanish
TEMPER = 0.8  # of what a round says: rounds beside one another are alike, and say less than as many apart


def _before_any() -> Floats:
    bell = np.exp(-0.5 * (LEVELS / STEADY) ** 2)
    return np.asarray((1.0 - STRANGE) * bell / bell.sum() + STRANGE / len(LEVELS))


BEFORE = _before_any()


class Belief:
    """Odds over LEVELS that one text is so; `usual`: those of earlier texts, [len(LEVELS)] each. rounds: heard of."""

    __slots__ = ("_odds", "_same", "_told", "level", "rounds", "usual")

    def __init__(self, usual: Floats) -> None:
        self.usual, self._odds, self.rounds = usual, usual, 0
        self._told: Floats | None = None
        self._same = 1.0  # the chance that the text is still the same after what was told since odds were asked for
        self.level = float(usual @ LEVELS)  # the mean shift in logits when odds were last asked for

    def hear(self, likelihood: Floats, rested: bool = False) -> None:
        """A round was verified: how likely its outcome is at each level, `tempered`, [len(LEVELS)]."""
        self._told = likelihood if self._told is None else self._told * likelihood
        self._same *= 1.0 - (RESTED if rested else CHANGE)
        self.rounds += 1
        if self.rounds % SETTLE == 0:
            self._settle()

    @property
    def odds(self) -> Floats:
        """Of each level, with all that was heard."""
        self._settle()
        return self._odds

    def _settle(self) -> None:
        if self._told is not None:
            self._odds, self.level = settled(self._odds, self.usual, self._told, self._same)
            self._told, self._same = None, 1.0


# Compiled, since a round of a small model takes as long as ten calls of NumPy that find the caches swept.


@njit(cache=True)
def settled(odds: Floats, usual: Floats, told: Floats, same: float) -> tuple[Floats, float]:
    """Odds after what was told, of a text that is still the same with so much chance; and the mean level."""
    new = (same * odds + (1.0 - same) * usual) * told
    new /= new.sum()
    return new, (new * LEVELS).sum()


@njit(cache=True)
def survival(weights: Floats, fast: float, slow: float) -> Floats:
    """The chance at each level that so many drafts are kept, [k + 1, levels], by the laws' weights [k, 3]."""
    whole = np.ones((len(weights) + 1, len(LEVELS)))
    for j, w in enumerate(weights):
        logit = w[0] + w[1] * fast + w[2] * slow
        for i, level in enumerate(LEVELS):
            whole[j + 1, i] = whole[j, i] / (1.0 + np.exp(-logit - level))
    return whole


@njit(cache=True)
def conditional(whole: Floats, odds: Floats) -> Floats:
    """Conditional acceptance by position, [k]: of what reaches it in the mean, how much passes."""
    law = np.empty(len(whole) - 1)
    before = 1.0
    for j in range(len(law)):
        after = (whole[j + 1] * odds).sum()
        law[j], before = after / before, after
    return law


@njit(cache=True)
def tempered(likelihood: Floats) -> Floats:
    """What a round says, less what rounds beside it say as well."""
    return np.maximum(likelihood, LEAST) ** TEMPER


def usual(earlier: Iterable[Belief], before: Floats = BEFORE) -> Floats:
    """Odds for a new text: those of earlier ones, the latest first, as far as their rounds have shown what they are."""
    total, odds, fade = 0.0, np.zeros(len(LEVELS)), 1.0
    for text in islice(earlier, TEXTS):
        weight = fade * text.rounds / (text.rounds + CONVINCED)
        odds += weight * text.odds
        total, fade = total + weight, fade * FADE
    unseen = max(fade, UNSEEN)
    return np.asarray((odds + unseen * before) / (total + unseen))
