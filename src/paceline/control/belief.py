"""How well a text is guessed: what earlier texts were like, and what its own rounds say, as odds over a few levels.

A level is a shift in logits of what is usual at every draft position. One that was not seen yet is like one of the
earlier texts, with the odds of how many were so: where some are hopeless and others are not, few rounds tell which,
and until they do, the chance that a whole draft is kept is that of the mixture, and not that of its mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np

from paceline.control.logistic import Floats, settled

LEVELS = np.arange(-6.0, 3.7, 0.6)
STEADY = 1.0  # standard deviation in logits of most texts, before any was seen
STRANGE = 0.15  # of the texts are then taken to be like nothing in particular
TEXTS, FADE = 24, 0.88  # the last so many count, each less than the one after it
UNSEEN = 0.2  # what is thought before any was seen counts as the oldest of them does, or so much of a text
CONVINCED = 2.0  # rounds with drafts after which a text counts for a half
CHANGE, RESTED = 0.01, 0.1  # chance that the text has become another since the last round, and since a rest
SETTLE = 8  # rounds told of in a row: the product of their likelihoods must not vanish


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
            self._odds, self.level = settled(self._odds, self.usual, (self._told, self._same), LEVELS)
            self._told, self._same = None, 1.0


def usual(earlier: Iterable[Belief], before: Floats = BEFORE) -> Floats:
    """Odds for a new text: those of earlier ones, the latest first, as far as their rounds have shown what they are."""
    texts = list(islice(earlier, TEXTS))
    weights = [FADE**i * text.rounds / (text.rounds + CONVINCED) for i, text in enumerate(texts)]
    weights.append(max(FADE ** len(texts), UNSEEN))
    odds = np.array([*(text.odds for text in texts), before])
    return np.asarray(weights @ odds / sum(weights))
