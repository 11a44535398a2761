"""A quantity of one run over that of another, with an interval: paired by prompt, or of two samples of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from paceline.bench.measurement import Measurement
from paceline.bench.stats import DRAWS, MIN_PROMPTS, Floats, ratio_interval

SPEED, ACCEPTANCE = "tokens_per_s", "acceptance_length"
QUANTITIES = (SPEED, "ttft_s", "tpot_s", ACCEPTANCE)
Interval = list[float] | None
Quotient = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A value of the other run over the first's. paired: on how many prompts they were paired, 0 for unpaired."""

    first: float | None
    other: float | None
    ratio: float | None = None
    ci95: Interval = None
    paired: int = 0


@dataclass(frozen=True, slots=True)
class Sums:
    """Over the texts of one arm, by prompt: a value of each quantity is the sum of `over` by the sum of `under`.

    ids: the prompts; texts, tokens: [prompts]; over, under: by quantity, [prompts] each.
    """

    ids: list[str]
    texts: Floats
    tokens: Floats
    over: dict[str, Floats]
    under: dict[str, Floats]

    def value(self, name: str) -> float | None:
        """The quantity over all prompts; None where it is unknown."""
        under = float(self.under[name].sum())
        return float(self.over[name].sum()) / under if under > 0 else None

    def parts(self, name: str) -> Quotient:
        """[known] what a quantity is the quotient of, for the prompts where it is known."""
        known = self.under[name] > 0
        return self.over[name][known], self.under[name][known]


def sums_of(rows: Iterable[Measurement]) -> Sums:
    """The sums of these rows, of which there must be one."""
    totals: dict[str, Floats] = {}
    for row in rows:
        totals[row.prompt_id] = totals.get(row.prompt_id, 0.0) + _summands(row)
    texts, tokens, seconds, ttft_s, tpot_s, later, out, rounds = np.array(list(totals.values())).T
    over, under = (tokens, ttft_s, tpot_s, out), (seconds, texts, later, rounds)
    named = (dict(zip(QUANTITIES, values, strict=True)) for values in (over, under))
    return Sums(list(totals), texts, tokens, *named)


def _summands(row: Measurement) -> Floats:
    accepted = sum(row.accepted) or row.accepted_tokens or 0
    # Drafts accepted beyond the end of a text, which some engines count, are not in it.
    out = min(row.rounds + accepted, row.tokens - 1) if row.rounds else 0
    later = row.tpot_s > 0
    return np.array([1, row.tokens, row.seconds, row.ttft_s, row.tpot_s, later, out, row.rounds], dtype=np.float64)


def ratio_of(name: str, first: Sums, other: Sums, same_prompts: bool) -> Ratio:
    """One quantity of two runs; paired by prompt where the prompts are the same and texts of equal length allow it."""
    one, two = first.value(name), other.value(name)
    if one is None or two is None or one <= 0:
        return Ratio(one, two)
    if same_prompts and name != ACCEPTANCE:
        top, bottom = _pairable(name, first, other)
        if len(top) >= MIN_PROMPTS and 2 * len(top) >= len(first.ids):
            return Ratio(one, two, float(top.sum() / bottom.sum()), as_list(ratio_interval(top, bottom)), len(top))
    return Ratio(one, two, two / one, as_list(ratio_of_ratios(other.parts(name), first.parts(name))))


def _pairable(name: str, first: Sums, other: Sums) -> Quotient:
    """[prompts] of both runs, for the prompts that both have, whose sums are to be divided.

    Of most quantities the means, the other run's first. Of tokens/s the seconds of texts that are equally long in both,
    the first run's first: for the same tokens, fewer seconds are a higher speed.
    """
    at = {prompt: i for i, prompt in enumerate(other.ids)}
    pairs = [(i, at[prompt]) for i, prompt in enumerate(first.ids) if prompt in at]
    mine, theirs = np.array(pairs, dtype=int).reshape(-1, 2).T
    if name == SPEED:
        good = first.tokens[mine] * other.texts[theirs] == other.tokens[theirs] * first.texts[mine]
        mine, theirs = mine[good], theirs[good]
        return first.under[name][mine] / first.texts[mine], other.under[name][theirs] / other.texts[theirs]
    good = (first.under[name][mine] > 0) & (other.under[name][theirs] > 0)
    mine, theirs = mine[good], theirs[good]
    return other.over[name][theirs] / other.under[name][theirs], first.over[name][mine] / first.under[name][mine]


def ratio_of_ratios(top: Quotient, bottom: Quotient, draws: int = DRAWS) -> Floats | None:
    """Interval (95%) of (sum / sum) / (sum / sum) of two independent samples of prompts: [2, ...], None with too few.

    Each side's bootstrap interval, combined on the logarithm by the squares of its arms: Zou and Donner 2008,
    "Construction of confidence limits about effect measures: a general approach". Of prompts that both have in common
    it knows nothing, which makes it wider than need be, not narrower.
    """
    above, below = (ratio_interval(*side, draws=draws, seed=seed) for seed, side in enumerate((top, bottom)))
    if above is None or below is None or min(above.min(), below.min()) <= 0:
        return None
    point, point_2 = (np.log(over.sum(0) / under.sum(0)) for over, under in (top, bottom))
    (low, high), (low_2, high_2) = np.log(above), np.log(below)
    middle = point - point_2
    down, up = np.hypot(point - low, high_2 - point_2), np.hypot(high - point, point_2 - low_2)
    return np.asarray(np.exp([middle - down, middle + up]), dtype=np.float64)


def as_list(interval: Floats | None) -> Interval:
    """An interval as JSON data."""
    return None if interval is None else [float(end) for end in interval]
