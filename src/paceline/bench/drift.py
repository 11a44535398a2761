"""Did the machine stay the same over the run? A slope of seconds per token over time, reported, never averaged away."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from paceline.bench.measurement import OFF, OFF_AGAIN, Measurement
from paceline.bench.stats import MIN_PROMPTS, Floats, effective, student_t

LEAST = 0.01  # a change of less than this over the whole run is steady, however surely it is known
SPREAD_WITHIN = 0.05  # of the variance in time, when a prompt's own visits are far enough apart to compare


def drift(rows: Sequence[Measurement]) -> dict[str, Any]:
    """{"ratio": seconds per token at the end of the run over those at its start, "ci95", "steady", "why"}.

    A regression of log TPOT on time (log seconds per token where single tokens were not timed) within each arm and
    setting, and within each prompt where it came again later; else the random order of the prompts keeps them apart
    from time. Quieter arms weigh more. The interval is clustered by prompt (Liang and Zeger 1986), with Student's t at
    the effective number of clusters. `steady` is None where there is too little to tell.
    """
    timed = [row for row in rows if row.tpot_s > 0]
    by_token = len(timed) >= 0.8 * len(rows)
    timed = timed if by_token else [row for row in rows if row.tokens and row.seconds > 0]
    if len({row.prompt_id for row in timed}) < MIN_PROMPTS:
        return _unknown(f"fewer than {MIN_PROMPTS} prompts")
    y = np.log([row.tpot_s if by_token else row.seconds / row.tokens for row in timed])
    found = _slope(timed, y)
    if found is None:
        return _unknown("no arm was measured at different times")
    what = "TPOT" if by_token else "seconds per token"
    return _report(*found, f"slope of log {what} over time within each arm, clustered by prompt")


def _slope(rows: Sequence[Measurement], y: Floats) -> tuple[float, float] | None:
    """Change of log seconds per token over the run, and half the width of its interval."""
    time = np.array([row.started_s + row.seconds / 2 for row in rows])
    x, y, weight = _centred((time - time.min()) / max(float(np.ptp(time)), 1e-9), y, rows)
    pull = weight * x * x
    if not pull.sum() > 0:
        return None
    slope = float((weight * x * y).sum() / pull.sum())
    prompts = _codes(rows, lambda row: row.prompt_id)
    share = np.bincount(prompts, pull) / pull.sum()
    # As if each prompt had been left out in turn: the slope follows a prompt that pulls hard, and hides its residuals.
    scores = np.bincount(prompts, weight * x * (y - slope * x)) / np.maximum(1 - share, 0.1)
    clusters = effective(share)
    spread = math.sqrt(float((scores**2).sum()) * len(scores) / (len(scores) - 1)) / float(pull.sum())
    return slope, float(student_t(clusters - 1)) * spread


def _centred(x: Floats, y: Floats, rows: Sequence[Measurement]) -> tuple[Floats, Floats, Floats]:
    """x and y less the means of what is compared with itself, and the weight of each row."""
    x, y, weight = x.copy(), y.copy(), np.zeros_like(y)
    arms = _codes(rows, _arm)
    prompts = _codes(rows, lambda row: row.prompt_id)
    for arm in range(arms.max() + 1):
        own = np.flatnonzero(arms == arm)
        within = x[own] - _means(x[own], prompts[own])
        apart = float((within**2).sum()) > SPREAD_WITHIN * float(((x[own] - x[own].mean()) ** 2).sum())
        groups = prompts[own] if apart else np.zeros(len(own), dtype=np.int64)
        x[own] -= _means(x[own], groups)
        y[own] -= _means(y[own], groups)
        weight[own] = _precision(x[own], y[own], len(own) - len(np.unique(groups)) - 1)
    return x, y, weight


def _precision(x: Floats, y: Floats, degrees: int) -> float:
    """One over the variance around the arm's own slope; 0 where that cannot be estimated."""
    across = float((x * x).sum())
    if degrees < 1 or across <= 0:
        return 0.0
    rest = y - x * float((x * y).sum()) / across
    return degrees / max(float((rest**2).sum()), 1e-12 * len(y))


def _means(values: Floats, groups: np.ndarray[Any, np.dtype[np.int64]]) -> Floats:
    """For each value the mean of its group."""
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    return np.asarray(sums[groups] / counts[groups], dtype=np.float64)


def _arm(row: Measurement) -> Hashable:
    """Drafting off and off again are one arm here; so are on and on again."""
    return row.arm in (OFF, OFF_AGAIN), row.k, row.temperature, row.concurrency


def _codes(rows: Sequence[Measurement], key: Callable[[Measurement], Hashable]) -> np.ndarray[Any, np.dtype[np.int64]]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key(row), len(numbers)) for row in rows], dtype=np.int64)


def _report(slope: float, half: float, why: str) -> dict[str, Any]:
    ratio, low, high = (math.exp(min(value, 50.0)) for value in (slope, slope - half, slope + half))
    steady = low <= 1.0 <= high or abs(ratio - 1.0) < LEAST
    return {"ratio": ratio, "ci95": [low, high], "steady": steady, "why": why}


def _unknown(why: str) -> dict[str, Any]:
    return {"ratio": None, "ci95": None, "steady": None, "why": why}
