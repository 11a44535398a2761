"""What the controller would do at a given acceptance, in words: for `paceline explain`, before anything is drafted."""

from __future__ import annotations

from paceline.control.cost import CostTable
from paceline.control.predict import expected_tokens

ACCEPTANCES = (0.9, 0.75, 0.6)


def outlook(table: CostTable, k_max: int) -> str:
    """Where drafting begins to pay, and the k of most tokens a millisecond for a few acceptances, at batch 1."""
    times = table.times()[: k_max + 1]
    least = min(_least(times, k) for k in range(1, len(times)))
    parts = [f"guesses kept {p:.0%} of the time: {_best(times, p)}" for p in ACCEPTANCES if p > least]
    floor = f"none below {least:.0%}" if least < 1 else "never drafts: a round of drafts takes too long to pay"
    return "; ".join([*parts, floor])


def _best(times: list[float], p: float) -> str:
    tokens = expected_tokens([p] * (len(times) - 1))
    rates = [won / ms for won, ms in zip(tokens, times, strict=True)]
    k = rates.index(max(rates))
    return f"k = {k}, {rates[k] / rates[0]:.2f}x"


def _least(times: list[float], k: int) -> float:
    """The acceptance at which k drafts break even, by bisection; 1 where they never do."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        pays = expected_tokens([middle] * k)[-1] * times[0] > times[k]
        low, high = (low, middle) if pays else (middle, high)
    return high
