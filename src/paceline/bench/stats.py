"""What the timings say: speed-ups with intervals, and acceptance. Pure functions of the raw rows.

A speed-up is a ratio of sums: all seconds of one arm over all seconds of the other, for the same texts. A mean of
ratios would let short texts, and noise, count as much as long ones. Intervals resample prompts, not pairs: the repeats
of one prompt resemble each other, and counting them as independent makes an interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.bench.measurement import OFF, OFF_AGAIN, ON, Measurement, StepRecord

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
    tail = _tail(clusters)
    return np.asarray(np.quantile(ratios, [tail, 1 - tail], axis=0), dtype=np.float64)


def _resample_counts(clusters: int, draws: int, seed: int) -> Floats:
    """How often each cluster was drawn, with replacement: [draws, clusters]."""
    picked = np.random.default_rng(seed).integers(clusters, size=(draws, clusters))
    flat = picked + np.arange(draws)[:, None] * clusters
    return np.bincount(flat.ravel(), minlength=draws * clusters).reshape(draws, clusters).astype(np.float64)


def _tail(clusters: int) -> float:
    """The quantile to cut at: percentile intervals are too narrow for few clusters, so widen them as Student's t does.

    Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3 (expanded percentile interval).
    """
    z, degrees = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), clusters - 1
    # Cornish-Fisher expansion of Student's t quantile: within 0.5% of the true one from 4 degrees of freedom on.
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return NormalDist().cdf(-t * math.sqrt(clusters / degrees))


def compare(pairs: list[Pair]) -> tuple[float | None, list[float] | None]:
    """Speed-up of the second arm over the first, and its 95% interval; None where there is too little to tell."""
    numerator, denominator = seconds_by_prompt(pairs)
    if not pairs or not denominator.sum() > 0:
        return None, None
    interval = ratio_interval(numerator, denominator)
    return float(numerator.sum() / denominator.sum()), None if interval is None else interval.tolist()


def equal_fraction(pairs: list[Pair]) -> float | None:
    """Fraction of pairs whose two texts have the same token ids."""
    return sum(a.token_sha256 == b.token_sha256 for a, b in pairs) / len(pairs) if pairs else None


def acceptance_length(rows: Iterable[Measurement]) -> float | None:
    """Mean tokens per round after the first token, the bonus token counted; 1.0 would be plain decoding."""
    rows = list(rows)
    rounds = sum(row.rounds for row in rows)
    return 1.0 + sum(sum(row.accepted) for row in rows) / rounds if rounds else None


def survival_by_position(rows: Iterable[Measurement]) -> list[float]:
    """[k] of the drafts made at a position, the fraction accepted (so all before them were accepted too)."""
    rows = list(rows)
    drafted, accepted = _sum_ragged(row.drafted for row in rows), _sum_ragged(row.accepted for row in rows)
    return [a / d for a, d in zip(accepted, drafted, strict=True) if d]


def acceptance_by_position(rows: Iterable[Measurement]) -> list[float]:
    """[k] of the drafts made at a position after all earlier ones were accepted, the fraction accepted.

    Rounds cut short near the end of a text draft fewer positions, so rates are divided, not counts.
    """
    survival = survival_by_position(rows)
    return [min(1.0, now / before) for before, now in zip([1.0, *survival], survival, strict=False) if before]


def _sum_ragged(lists: Iterable[list[int]]) -> list[int]:
    total: list[int] = []
    for values in lists:
        total += [0] * (len(values) - len(total))
        for i, value in enumerate(values):
            total[i] += value
    return total


def spread(values: Iterable[float]) -> dict[str, float | None]:
    """Median and 90th percentile, in the unit of the values; None for both without values."""
    data = np.array(list(values), dtype=np.float64)
    if not data.size:
        return {"median": None, "p90": None}
    return {"median": float(np.median(data)), "p90": float(np.quantile(data, 0.9))}


def tokens_per_second(rows: Iterable[Measurement]) -> float | None:
    """All tokens over all seconds, prompt processing included."""
    rows = list(rows)
    seconds = sum(row.seconds for row in rows)
    return sum(row.tokens for row in rows) / seconds if seconds > 0 else None


def summarise(rows: list[Measurement], steps: list[StepRecord]) -> dict[str, Any]:
    """The numbers of a report, overall and by category and temperature. Times in seconds; None where unknown.

    Speed is that of the first temperature measured: nobody runs a mixture of temperatures. The others stand in
    `by_temperature`; equality of the texts is over all of them.
    """
    everything, temperature = rows, rows[0].temperature if rows else None
    rows = [row for row in rows if row.temperature == temperature]
    off_again = pair_up(rows, OFF, OFF_AGAIN)
    noise, noise_interval = compare(off_again)
    paired = [row for pair in pair_up(rows) for row in pair]
    arms = {arm: [row for row in paired if row.arm == arm] for arm in (OFF, ON)}
    return {
        **_block(rows),
        "equal_outputs": equal_fraction(pair_up(everything)),
        "pairs": len(pair_up(everything)),
        "timed_pairs": len(pair_up(rows)),
        "temperature": temperature,
        "k": next((row.k for row in rows if row.arm == ON), None),
        "acceptance_by_position": acceptance_by_position(arms[ON]),
        "survival_by_position": survival_by_position(arms[ON]),
        "off_vs_off": noise,
        "off_vs_off_ci95": noise_interval,
        "off_vs_off_equal_outputs": equal_fraction(off_again),
        "tokens_per_s": {arm: tokens_per_second(own) for arm, own in arms.items()},
        "ttft_s": {arm: spread(row.ttft_s for row in own) for arm, own in arms.items()},
        "tpot_s": {arm: spread(row.tpot_s for row in own if row.tokens > 1) for arm, own in arms.items()},
        "ended_naturally": sum(row.finish_reason == "stop" for row in paired) / len(paired) if paired else None,
        "by_category": _grouped(rows, lambda row: row.category),
        "by_temperature": _grouped(everything, lambda row: str(row.temperature)),
    }


def _grouped(rows: list[Measurement], key: Callable[[Measurement], str]) -> dict[str, dict[str, Any]]:
    names = sorted({key(row) for row in rows})
    return {name: _block([row for row in rows if key(row) == name]) for name in names}


def _block(rows: list[Measurement]) -> dict[str, Any]:
    pairs = pair_up(rows)
    speedup, interval = compare(pairs)
    return {
        "speedup": speedup,
        "speedup_ci95": interval,
        "equal_outputs": equal_fraction(pairs),
        "acceptance_length": acceptance_length(on for _, on in pairs),
        "prompts": len({off.prompt_id for off, _ in pairs}),
        "pairs": len(pairs),
    }
