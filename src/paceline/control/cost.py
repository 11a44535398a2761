"""What a round costs: milliseconds by batch, draft length k and context, measured beforehand and corrected by use."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import UsageError

Floats = NDArray[np.float64]
K_MOST = 15
SMOOTHING = 0.05  # share of a served round in the average of its cell
CLAMP = 1.5  # a round counts as at most so many times slower or faster than expected: a stall is no news


@dataclass(frozen=True, slots=True)
class Timing:
    """One measured round: `batch` sequences of `context` tokens, k drafts each, in milliseconds."""

    batch: int
    k: int
    context: int
    ms: float
    distinct_experts: float | None = None


class CostTable:
    """Round times on a grid of buckets: linear between them, constant in batch and context beyond the ends.

    grid [batches, contexts, k_max + 1], in ms. `ms_per_expert` is what one more distinct expert of a layer costs and
    `experts` [k_max + 1] how many a round of each k met when it was timed (mixture-of-experts models only).
    """

    def __init__(self, timings: Iterable[Timing], ms_per_expert: float = 0.0) -> None:
        lines = _lines(timings)
        base = max(lines.values(), key=len)
        self.batches = sorted({batch for batch, _ in lines})
        self.contexts = sorted({context for _, context in lines})
        self.k_max = max(base)
        self.ms_per_expert = ms_per_expert
        self.experts = _by_k({k: t.distinct_experts or 0.0 for k, t in base.items()}, self.k_max)
        shape = _by_k({k: t.ms for k, t in base.items()}, self.k_max)
        self.grid = np.array([[_line(lines, b, c, shape) for c in self.contexts] for b in self.batches])
        self.drift = 0.0  # logarithm: what all rounds have become slower by

    def copy(self) -> CostTable:
        """Another table with these times, which learns on its own."""
        other = object.__new__(CostTable)
        other.__dict__.update(self.__dict__ | {"grid": self.grid.copy()})
        return other

    def times(self, batch: int = 1, context: int = 0, overlap: float = 1.0) -> Floats:
        """Milliseconds of a round of each k, [k_max + 1].

        overlap: distinct experts that recent rounds met, relative to the timed ones; 1 where it is not known.
        """
        low_b, high_b, share_b = _between(self.batches, batch)
        low_c, high_c, share_c = _between(self.contexts, context)
        low = self.grid[low_b, low_c] * (1 - share_c) + self.grid[low_b, high_c] * share_c
        high = self.grid[high_b, low_c] * (1 - share_c) + self.grid[high_b, high_c] * share_c
        met = self.ms_per_expert * self.experts * (overlap - 1.0)
        times: Floats = (low * (1 - share_b) + high * share_b + met) * math.exp(self.drift)
        return times

    def ms(self, k: int, batch: int = 1, context: int = 0, overlap: float = 1.0) -> float:
        """Milliseconds of one round; UsageError for a k the table cannot know."""
        if not 0 <= k <= self.k_max:
            raise UsageError(f"the cost table knows 0 to {self.k_max} drafts, not {k}")
        return float(self.times(batch, context, overlap)[k])

    def observe(self, k: int, ms: float, batch: int = 1, context: int = 0) -> None:
        """A served round took `ms`: averages it, clamped, into its cell, and by half into what all rounds share.

        Without the shared half, a slower machine would make every k but the one in use look cheap.
        """
        if not (math.isfinite(ms) and ms > 0):
            return
        off = math.log(ms / self.ms(k, batch, context))
        step = SMOOTHING * max(-math.log(CLAMP), min(math.log(CLAMP), off))
        self.drift += step / 2
        cell = _nearest(self.batches, batch), _nearest(self.contexts, context), k
        self.grid[cell] *= math.exp(step / 2)


def _lines(timings: Iterable[Timing]) -> dict[tuple[int, int], dict[int, Timing]]:
    """Timings by (batch, context), then by k; of two of one kind the later stays."""
    lines: dict[tuple[int, int], dict[int, Timing]] = defaultdict(dict)
    for timing in timings:
        lines[timing.batch, timing.context][timing.k] = timing
    if not any(len(line) > 1 and 0 in line for line in lines.values()):
        raise UsageError("a cost table needs rounds of k = 0 and of at least one longer k at one batch and context")
    return {key: lines[key] for key in sorted(lines)}


def _by_k(known: dict[int, float], k_max: int) -> Floats:
    ks = sorted(known)
    return np.asarray(np.interp(np.arange(k_max + 1.0), ks, [known[k] for k in ks]))


def _line(lines: dict[tuple[int, int], dict[int, Timing]], batch: int, context: int, shape: Floats) -> Floats:
    """Times by k of one bucket: where few k were timed, the fullest line scaled to those that were."""
    near = min(lines, key=lambda key: (abs(math.log(key[0] / batch)), abs(key[1] - context)))
    known = {k: t.ms / shape[k] for k, t in lines[near].items() if k < len(shape)}
    return shape * _by_k(known, len(shape) - 1) if known else shape


def _between(buckets: list[int], value: float) -> tuple[int, int, float]:
    """The buckets around `value` and how far it lies towards the second."""
    if value <= buckets[0]:
        return 0, 0, 0.0
    for i, (low, high) in enumerate(pairwise(buckets)):
        if value <= high:
            return i, i + 1, (value - low) / (high - low)
    return len(buckets) - 1, len(buckets) - 1, 0.0


def _nearest(buckets: list[int], value: float) -> int:
    return min(range(len(buckets)), key=lambda i: abs(buckets[i] - value))


def read_table(path: Path) -> CostTable:
    """A table from JSON: {"rows": [{"batch", "k", "context", "ms", "distinct_experts"?}], "ms_per_expert"?}.

    What `paceline bench --shape ... --out` writes is such a file. Raises UsageError in one sentence.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise UsageError(f"{path} is not JSON; give a table with rows of batch, k, context and ms") from None
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} holds no rows; give a table with rows of batch, k, context and ms")
    slope = data.get("ms_per_expert", 0.0)
    if not _positive(slope, zero=True):
        raise UsageError(f"{path}: ms_per_expert must be a number from 0 up, not {slope!r}")
    return CostTable([_timing(row, f"{path}, row {i}") for i, row in enumerate(rows, 1)], float(slope))


def _timing(row: Any, where: str) -> Timing:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: expected an object with batch, k, context and ms")
    for name, least, most in (("batch", 1, 1 << 16), ("k", 0, K_MOST), ("context", 0, 1 << 24)):
        value = row.get(name)
        if type(value) is not int or not least <= value <= most:
            raise UsageError(f"{where}: {name} must be a whole number from {least} to {most}, not {value!r}")
    for name in ("ms", "distinct_experts"):
        if not _positive(row.get(name)) and (name == "ms" or row.get(name) is not None):
            raise UsageError(f"{where}: {name} must be a positive number, not {row.get(name)!r}")
    experts = row.get("distinct_experts")
    return Timing(row["batch"], row["k"], row["context"], float(row["ms"]), float(experts) if experts else None)


def _positive(value: Any, zero: bool = False) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and (value > 0 or (zero and value == 0))
