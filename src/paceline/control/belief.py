"""How well a text is guessed: what earlier texts were like, and what its own rounds say, as odds over a few levels.

A level is a shift in logits of what is usual at every draft position. One that was not seen yet is like one of the
earlier texts, with the odds of how many were so: where some are hopeless and others are not, few rounds tell which,
and until they do, the chance that a whole draft is kept is that of the mixture, and not that of its mean.

Compiled, as `logistic` is. Shapes: marks [MARKS] and odds [3, L] of one text; those of many are [N, MARKS] and
[N, 3, L], of which `at` int [n] are meant.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from paceline.control.logistic import (
    FEATURES,
    LEVELS,
    WINDOW,
    Floats,
    Ints,
    counted,
    least_wasted,
    mark,
    newton,
    note,
    note_round,
    outcome,
    reach,
)

STEADY = 1.0  # standard deviation in logits of most texts, before any was seen
STRANGE = 0.15  # of the texts are then taken to be like nothing in particular
TEXTS, FADE = 24, 0.88  # the last so many count, each less than the one after it
UNSEEN = 0.2  # what is thought before any was seen counts as the oldest of them does, or so much of a text
CONVINCED = 2.0  # rounds with drafts after which a text counts for a half
CHANGE, RESTED = 0.01, 0.1  # chance that the text has become another since the last round, and since a rest
SETTLE = 8  # rounds told of in a row: the product of their likelihoods must not vanish
# Marks of a text after its certainty of late and over all: the mean shift in logits when odds were last asked for, the
# chance that it is still the same after what was told since then, and how many rounds were heard of.
LEVEL, SAME, ROUNDS, MARKS = 2, 3, 4, 5
USUAL, NOW, TOLD = 0, 1, 2  # odds of earlier texts, its own, and the likelihood of what was told since


def _before_any() -> Floats:
    bell = np.exp(-0.5 * (LEVELS / STEADY) ** 2)
    return np.asarray((1.0 - STRANGE) * bell / bell.sum() + STRANGE / len(LEVELS))


BEFORE = _before_any()


def blank(count: int) -> tuple[Floats, Floats]:
    """Marks and odds of so many texts."""
    return np.zeros((count, MARKS)), np.zeros((count, 3, len(LEVELS)))


class Belief:
    """Odds over LEVELS that one text is so; `usual`: those of earlier texts, [L]. rows: its marks and odds."""

    __slots__ = ("marks", "table")

    def __init__(self, usual: Floats, rows: tuple[Floats, Floats] | None = None) -> None:
        self.marks, self.table = rows or tuple(one[0] for one in blank(1))
        begin(self.marks, self.table, usual)

    def hear(self, likelihood: Floats, rested: bool = False) -> None:
        """A round was verified: how likely its outcome is at each level, `tempered`, [L]."""
        hear(self.marks, self.table, likelihood, rested)

    @property
    def odds(self) -> Floats:
        """Of each level, with all that was heard."""
        settle(self.marks, self.table)
        now: Floats = self.table[NOW]
        return now


@njit(cache=True)
def begin(marks: Floats, odds: Floats, usual: Floats) -> None:
    """A text that nothing was heard of."""
    marks[:], odds[:], odds[TOLD] = 0.0, usual, 1.0
    marks[LEVEL], marks[SAME] = (usual * LEVELS).sum(), 1.0


@njit(cache=True)
def settle(marks: Floats, odds: Floats) -> None:
    """Odds and level after what was told, of a text that is still the same with so much chance."""
    same = marks[SAME]
    if same == 1.0:
        return
    new = (same * odds[NOW] + (1.0 - same) * odds[USUAL]) * odds[TOLD]
    odds[NOW] = new / new.sum()
    odds[TOLD] = 1.0
    marks[LEVEL], marks[SAME] = (odds[NOW] * LEVELS).sum(), 1.0


@njit(cache=True)
def hear(marks: Floats, odds: Floats, likelihood: Floats, rested: bool) -> None:
    """As `Belief.hear`."""
    odds[TOLD] *= likelihood
    marks[SAME] *= 1.0 - (RESTED if rested else CHANGE)
    marks[ROUNDS] += 1.0
    if marks[ROUNDS] % SETTLE == 0.0:
        settle(marks, odds)


@njit(cache=True)
def usual(book: tuple[Floats, Floats], at: Ints, before: Floats) -> Floats:
    """Odds for a new text: those of TEXTS earlier ones, the latest first, as far as their rounds have shown what they
    are, and what was thought before any.
    """
    marks, odds = book
    share = max(FADE ** len(at), UNSEEN)
    total, found = share, share * before
    for age in range(len(at)):
        i = at[age]
        settle(marks[i], odds[i])
        share = FADE**age * marks[i, ROUNDS] / (marks[i, ROUNDS] + CONVINCED)
        total += share
        found += share * odds[i, NOW]
    return found / total


@njit(cache=True)
def pooled_law(weights: Floats, book: tuple[Floats, Floats], at: Ints) -> Floats:
    """Conditional acceptance by position, [k], of texts together: of what reaches it in the mean of them and of their
    levels, how much passes.
    """
    marks, odds = book
    reached = np.zeros(len(weights) + 1)
    for i in at:
        settle(marks[i], odds[i])
        reach(weights, marks[i], odds[i, NOW], reached)
    return reached[1:] / reached[:-1]


@njit(cache=True)
def hear_round(
    laws: tuple[Floats, Floats, Ints], text: tuple[Floats, Floats], of: tuple[int, int, float, bool]
) -> None:
    """A verified round of a text: drafts kept and made, what is known of one more (see `outcome`), and whether it comes
    after a rest. laws: weights, and the rings of rows and how many were written to each, which learn from it.
    """
    (weights, rows, seen), (marks, odds), (kept, drafted, further, rested) = laws, text, of
    hear(marks, odds, outcome(weights, marks, kept, further), rested)
    note_round(rows[:drafted], seen, marks, marks[LEVEL], kept)


@njit(cache=True)
def hear_rounds(
    laws: tuple[Floats, Floats, Ints], book: tuple[Floats, Floats], at: Ints, of: tuple[Ints, int, bool]
) -> None:  # fmt: skip
    """A round of many texts: drafts kept of each, [n], how many were made, and whether it comes after a rest."""
    kept, drafted, rested = of
    for n in range(len(at)):
        text, full = (book[0][at[n]], book[1][at[n]]), kept[n] == drafted
        hear_round(laws, text, (kept[n], drafted, -1.0 if full else 0.0, rested))


@njit(cache=True)
def mark_rounds(marks: Floats, at: Ints, scale: Floats, certainty: Floats, kept: Ints) -> None:
    """Certainties [n, k] of the drafts of many texts, as far as they were verified; see `mark`."""
    for n in range(len(at)):
        if certainty[n].any():
            mark(marks[at[n]], scale, certainty[n, : kept[n] + 1])


@cache
def warm_up() -> None:
    """Compiles all that rounds are told to, or loads it: else the first of them would wait for it."""
    weights, two, one = np.zeros((1, FEATURES)), np.ones(2), np.zeros(1, np.int64)
    rows, seen = np.zeros((1, WINDOW, FEATURES + 2)), np.zeros(1, np.int64)
    laws, book = (weights, rows, seen), blank(1)
    text = Belief(BEFORE, (book[0][0], book[1][0]))
    text.hear(counted(weights, text.marks, 1, 1))
    usual(book, one, BEFORE)
    pooled_law(weights, book, one)
    hear_round(laws, (text.marks, text.table), (0, 1, 0.0, False))
    hear_rounds(laws, book, one, (one, 1, False))
    mark_rounds(book[0], one, np.zeros(3), np.ones((1, 1)), one)
    mark(text.marks, np.zeros(3), two)
    least_wasted(weights, text.marks, text.odds, two)
    note(rows, seen, 0, (0.0, 0.0, 0.0, True))
    newton(rows[0, : seen[0]], np.zeros(FEATURES), np.ones(FEATURES))
