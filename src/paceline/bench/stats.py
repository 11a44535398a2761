"""What the timings say: speed-ups with intervals. Pure functions of the raw rows.

A speed-up is a ratio of sums: all seconds of one arm over all seconds of the other, for the same texts. A mean of
ratios would let short texts, and noise, count as much as long ones. Intervals resample prompts, not pairs: the repeats
of one prompt resemble each other, and counting them as independent makes an interval too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from paceline.bench.measurement import OFF, ON, Measurement

Floats = NDArray[np.float64]
Pair = tuple[Measurement, Measurement]
DRAWS = 10_000
CONFIDENCE = 0.95
# With fewer clusters no bootstrap interval covers what it says; none is better than a false one.
MIN_PROMPTS = 5


def pair_up(rows: Iterable[Measurement], first: str = OFF, second: str = ON) -> list[Pair]:
    """Pairs of measurements of two arms with the same prompt, temperature and repeat; the unpaired are left out."""
    rows = list(rows)
    partner = {row.pair_key: row for row in rows if row.arm == second}
    return [(row, partner[row.pair_key]) for row in rows if row.arm == first and row.pair_key in partner]


def seconds_by_prompt(pairs: Iterable[Pair]) -> tuple[Floats, Floats]:
    """Seconds of both arms summed over each prompt's pairs: [prompts], [prompts]."""
    totals: dict[str, list[float]] = {}
    for first, second in pairs:
        total = totals.setdefault(first.prompt_id, [0.0, 0.0])
        total[0] += first.seconds
        total[1] += second.seconds
    both = np.array(list(totals.values()), dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def ratio_interval(numerator: Floats, denominator: Floats, draws: int = DRAWS, seed: int = 0) -> Floats | None:
    """Bootstrap interval (95%) of sum(numerator) / sum(denominator), resampling the first axis: [2, ...].

    numerator, denominator: [clusters, ...]; trailing axes are independent data sets. None below MIN_PROMPTS clusters.
    """
    clusters = len(numerator)
    if clusters < MIN_PROMPTS:
        return None
    counts = _resample_counts(clusters, draws, seed)
    ratios = np.tensordot(counts, numerator, 1) / np.tensordot(counts, denominator, 1)
    tail = _tail(np.minimum(effective(numerator), effective(denominator)))
    return np.stack([_quantile(ratios, tail), _quantile(ratios, 1 - tail)])


@lru_cache(maxsize=2)  # a summary asks for many intervals over the same number of prompts
def _resample_counts(clusters: int, draws: int, seed: int) -> Floats:
    """How often each cluster was drawn, with replacement: [draws, clusters]."""
    picked = np.random.default_rng(seed).integers(clusters, size=(draws, clusters))
    flat = picked + np.arange(draws)[:, None] * clusters
    return np.bincount(flat.ravel(), minlength=draws * clusters).reshape(draws, clusters).astype(np.float64)


def effective(weights: Floats) -> Floats:
    """How many equal clusters carry as much: (sum w)^2 / sum w^2 over the first axis (Kish 1965, section 11.7).

    All of them where every weight is 0: no cluster then counts for more than another.
    """
    squares = np.asarray((weights**2).sum(0), dtype=np.float64)
    return np.where(squares > 0, weights.sum(0) ** 2 / np.where(squares > 0, squares, 1.0), float(len(weights)))


def _tail(clusters: Floats) -> Floats:
    """The quantile to cut at: percentile intervals are too narrow for few clusters, so widen them as Student's t does.

    Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3 (expanded percentile interval). A few
    long texts among short ones count as fewer clusters than there are: `effective` ones, which keeps the coverage.
    """
    clusters = np.maximum(clusters, 3.0)
    cut = -student_t(clusters - 1) * np.sqrt(clusters / (clusters - 1))
    return np.asarray(np.vectorize(NormalDist().cdf)(cut), dtype=np.float64)


def student_t(degrees: Floats) -> Floats:
    """Student's t at 97.5%, by the Cornish-Fisher expansion: within 0.5% of the true one from 4 degrees of freedom on.

    Fewer than 2 degrees count as 2.
    """
    z, degrees = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), np.maximum(degrees, 2.0)
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return np.asarray(t + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3), dtype=np.float64)


def _quantile(draws: Floats, at: Floats) -> Floats:
    """The quantile of the first axis, another one for each data set of the trailing axes."""
    place = at * (len(draws) - 1)
    below = np.floor(place).astype(np.int64)
    values = np.sort(draws, axis=0)
    low, high = (np.take_along_axis(values, np.minimum(i, len(draws) - 1)[None], axis=0)[0] for i in (below, below + 1))
    return np.asarray(low + (place - below) * (high - low), dtype=np.float64)


def compare(pairs: list[Pair]) -> tuple[float | None, list[float] | None]:
    """Speed-up of the second arm over the first, and its 95% interval; None where there is too little to tell."""
    numerator, denominator = seconds_by_prompt(pairs)
    if not (numerator.sum() > 0 and denominator.sum() > 0):
        return None, None
    interval = ratio_interval(numerator, denominator)
    return float(numerator.sum() / denominator.sum()), None if interval is None else interval.tolist()


def equal_fraction(pairs: list[Pair]) -> float | None:
    """Fraction of pairs whose two texts have the same token ids."""
    return sum(a.token_sha256 == b.token_sha256 for a, b in pairs) / len(pairs) if pairs else None


def spread(values: Iterable[float]) -> dict[str, float | None]:
    """Median and 90th percentile, in the unit of the values; None for both without values."""
    data = np.array(list(values), dtype=np.float64)
    if not data.size:
        return {"median": None, "p90": None}
    return {"median": float(np.median(data)), "p90": float(np.quantile(data, 0.9))}
