"""Logistic laws of acceptance: what they predict, how likely they make an outcome, and how they are fitted.

Compiled, since a round of a small model takes as long as ten calls of NumPy that find the caches swept. Shapes: weights
[k, FEATURES], a law for each draft position; sure [2 or more], first certainty of late and over the request,
standardised; rows [laws, WINDOW, FEATURES + 2], rings of features, then offset and outcome, of which seen [laws] were
written.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FEATURES = 3  # one, certainty of late, certainty over the request
WINDOW = 256  # verified drafts of one position that a fit looks back on
NEWTON_STEPS, SMALL = 4, 0.02  # at most, and a step that needs no other
LEVELS = np.arange(-6.0, 3.7, 0.6)  # shifts in logits that hold for all positions of a text
SHIFTS = np.exp(-LEVELS)
LEAST = 1e-9  # likelihood of anything: their product must not vanish
LATELY, OVERALL = 0.3, 0.05  # weights of the newest certainty in its two averages
FADING = 0.001  # and in the scale of all requests' at least
TEMPER = 0.8  # of what a round says: rounds beside one another are alike, and say less than as many apart


@njit(cache=True)
def tempered(likelihood: Floats) -> Floats:
    """What a round says, less what rounds beside it say as well."""
    found: Floats = np.maximum(likelihood, LEAST) ** TEMPER
    return found


@njit(cache=True)
def against(weights: Floats, sure: Floats, j: int) -> float:
    """The odds against draft j where all before it were kept, at level 0; a level multiplies them by exp(-level)."""
    w = weights[j]
    return math.exp(-(w[0] + w[1] * sure[0] + w[2] * sure[1]))


@njit(cache=True)
def reach(weights: Floats, sure: Floats, odds: Floats, reached: Floats) -> None:
    """Adds to reached [k + 1] how likely so many drafts are kept at least, in the mean of levels with `odds` [L]."""
    alive = odds.copy()
    reached[0] += alive.sum()
    for j in range(len(weights)):
        bad = against(weights, sure, j)
        for i in range(len(alive)):
            alive[i] /= 1.0 + bad * SHIFTS[i]
        reached[j + 1] += alive.sum()


@njit(cache=True)
def outcome(weights: Floats, sure: Floats, kept: int, further: float) -> Floats:
    """How likely each level makes it that `kept` drafts are kept, and one more by the chance `further`: [L], tempered.

    0 says that it was rejected, and 1 that it was kept; what is negative, that nothing is known of it.
    """
    found = np.ones(len(SHIFTS))
    for j in range(kept):
        found /= 1.0 + against(weights, sure, j) * SHIFTS
    if further >= 0.0:
        p = 1.0 / (1.0 + against(weights, sure, kept) * SHIFTS)
        found *= (1.0 - further) * (1.0 - p) + further * p
    told: Floats = tempered(found)
    return told


@njit(cache=True)
def counted(weights: Floats, sure: Floats, tries: int, hits: int) -> Floats:
    """How likely each level makes it that the first draft is kept in so many rounds of `tries`, [L], tempered."""
    p = 1.0 / (1.0 + against(weights, sure, 0) * SHIFTS)
    told: Floats = tempered(p**hits * (1.0 - p) ** (tries - hits))
    return told


@njit(cache=True)
def least_wasted(weights: Floats, sure: Floats, odds: Floats, times: Floats) -> int:
    """The k from 1 up that wastes the least time in the mean over the levels; see `Acceptance.cheapest`."""
    saved = -times
    tokens = np.ones(len(times))
    for i in range(len(SHIFTS)):
        whole, best = 1.0, tokens[0] / times[0]
        for k in range(1, len(times)):
            whole /= 1.0 + against(weights, sure, k - 1) * SHIFTS[i]
            tokens[k] = tokens[k - 1] + whole
            best = max(best, tokens[k] / times[k])
        saved += odds[i] / best * tokens
    return 1 + int(np.argmax(saved[1:]))


# ---- what is learnt -------------------------------------------------------------------------------------------------


@njit(cache=True)
def note(rows: Floats, seen: Ints, law: int, sample: tuple[float, float, float, bool]) -> None:
    """Writes (feature, feature, offset, outcome) into the ring of a law."""
    row = rows[law, seen[law] % WINDOW]
    row[0], row[1], row[2], row[3], row[4] = 1.0, sample[0], sample[1], sample[2], sample[3]
    seen[law] += 1


@njit(cache=True)
def note_round(rows: Floats, seen: Ints, sure: Floats, level: float, kept: int) -> None:
    """A round kept so many drafts, and rejected the next one where rings are left for it."""
    for j in range(min(kept + 1, len(rows))):
        note(rows, seen, j, (sure[0], sure[1], level, j < kept))


@njit(cache=True)
def mark(sure: Floats, scale: Floats, marks: Floats) -> None:
    """Averages certainties [n] into `sure`, each standardised by those of all requests: scale holds their mean, their
    variance and how many there were.
    """
    for one in marks:
        scale[2] += 1.0
        weight, off = max(1.0 / scale[2], FADING), one - scale[0]
        scale[0] += weight * off
        if scale[2] > 1.0:
            scale[1] += weight * (off * off - scale[1])
        standard = (one - scale[0]) / math.sqrt(max(scale[1], 1e-2))
        standard = max(-3.0, min(3.0, standard))
        sure[0] += LATELY * (standard - sure[0])
        sure[1] += OVERALL * (standard - sure[1])


@njit(cache=True)
def newton(rows: Floats, mean: Floats, precision: Floats) -> Floats:
    """Most likely weights [FEATURES] of a law over rows [N, FEATURES + 2], under a Gaussian prior."""
    weights = mean.copy()
    for _ in range(NEWTON_STEPS):
        gradient, hessian = precision * (mean - weights), np.zeros((FEATURES, FEATURES))
        for a in range(FEATURES):
            hessian[a, a] = precision[a]
        for row in rows:
            z = row[FEATURES]
            for a in range(FEATURES):
                z += row[a] * weights[a]
            p = 1.0 / (1.0 + math.exp(-min(max(z, -30.0), 30.0)))
            for a in range(FEATURES):
                gradient[a] += row[a] * (row[FEATURES + 1] - p)
                for b in range(FEATURES):
                    hessian[a, b] += row[a] * row[b] * p * (1.0 - p)
        # A step of more than 2 logits leaves the region where the quadratic says anything.
        step, longest = solved(hessian, gradient), 0.0
        for a in range(FEATURES):
            weights[a] += min(max(step[a], -2.0), 2.0)
            longest = max(longest, abs(step[a]))
        if longest < SMALL:
            break
    return weights


@njit(cache=True)
def solved(matrix: Floats, right: Floats) -> Floats:
    """x of matrix @ x = right, by elimination: `matrix` is positive definite, so no row need be exchanged."""
    m, x = matrix.copy(), right.copy()
    n = len(x)
    for i in range(n):
        for j in range(i + 1, n):
            share = m[j, i] / m[i, i]
            x[j] -= share * x[i]
            for a in range(i, n):
                m[j, a] -= share * m[i, a]
    for i in range(n - 1, -1, -1):
        for j in range(i + 1, n):
            x[i] -= m[i, j] * x[j]
        x[i] /= m[i, i]
    return x
