"""What a round costs: milliseconds by batch, draft length k and context, measured beforehand and corrected by use."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paceline.errors import UsageError

if TYPE_CHECKING:
    from paceline.control.drift import Drift

K_MOST = 15
STEP = 0.1  # share of the newest in the average of dropped draft steps
HOST = 0.05  # steps in which the median of the host's work is followed: where a text ends, it is twice as much


@dataclass(frozen=True, slots=True)
class Timing:
    """One measured round: `batch` sequences of `context` tokens, k drafts each, in milliseconds."""

    batch: int
    k: int
    context: int
    ms: float


class CostTable:
    """Round times on a grid of buckets: linear between them, constant in batch and context beyond the ends.

    grid [batches][contexts][k_max + 1], in ms, as they were given; `drifts`, one for each bucket that served rounds
    were of, correct them. `step_ms` is a step of the drafter whose guess was then dropped. `host_ms`, by batch, is what
    the host does for a round while the device runs another: none takes less. vague: predicted times, of which served
    rounds know better. How many experts a mixture's rounds meet is no part of it: nobody counts them while it serves,
    and what they cost in the mean is in the times of served rounds.
    """

    def __init__(self, timings: Iterable[Timing], step_ms: float = 0.0, vague: bool = False) -> None:
        lines = _lines(timings)
        base = max(lines.values(), key=len)
        self.batches = sorted({batch for batch, _ in lines})
        self.contexts = sorted({context for _, context in lines})
        self.between = _middles(self.batches), _middles(self.contexts)
        self.k_max = max(base)
        self.step_ms, self.vague = step_ms, vague
        shape = _by_k({k: t.ms for k, t in base.items()}, self.k_max)
        self.grid = [[_line(lines, b, c, shape) for c in self.contexts] for b in self.batches]
        self.drifts: dict[tuple[int, int], Drift] = {}
        self.latest: Drift | None = None
        self.host_ms: dict[int, float] = {}
        self.rounds = 0

    def copy(self) -> CostTable:
        """Another table with these times, which learns on its own."""
        other = object.__new__(CostTable)
        other.__dict__.update(self.__dict__ | {"drifts": {}, "latest": None, "host_ms": {}, "rounds": 0})
        for key, drift in self.drifts.items():
            other.drifts[key] = self._drift(key, drift)
            if drift is self.latest:
                other.latest = other.drifts[key]
        return other

    def _drift(self, key: tuple[int, int], before: Drift | None) -> Drift:
        """What a bucket's rounds differ by, to begin with as those of `before` do."""
        from paceline.control.drift import Drift  # compiled: whoever only looks times up need not load Numba

        return Drift(self.grid[key[0]][key[1]], self.vague, before.offsets if before else None)

    def times(self, batch: int = 1, context: int = 0) -> list[float]:
        """Milliseconds of a round of each k, [k_max + 1]."""
        times, least = self._times(batch, context), self.host_ms.get(batch, 0.0)
        return [max(ms, least) for ms in times] if least else times

    def _times(self, batch: int, context: int) -> list[float]:
        low, high, share = _between(self.batches, batch)
        times = self._row(low, context)
        return _mixed(times, self._row(high, context), share) if share else times

    def _row(self, b: int, context: int) -> list[float]:
        low, high, share = _between(self.contexts, context)
        times = self._cell(b, low)
        return _mixed(times, self._cell(b, high), share) if share else times

    def _cell(self, b: int, c: int) -> list[float]:
        """Of one bucket; of one that no round was of, as the latest rounds differed from theirs."""
        drift = self.drifts.get((b, c), self.latest)
        times = self.grid[b][c]
        return [ms * factor for ms, factor in zip(times, drift.factors, strict=True)] if drift else times

    def ms(self, k: int, batch: int = 1, context: int = 0) -> float:
        """Milliseconds of one round; UsageError for a k the table cannot know."""
        if not 0 <= k <= self.k_max:
            raise UsageError(f"the cost table knows 0 to {self.k_max} drafts, not {k}")
        return self.times(batch, context)[k]

    def observe(self, k: int, ms: float, batch: int = 1, context: int = 0) -> None:
        """A served round took `ms`, and waited for no host."""
        if not (math.isfinite(ms) and ms > 0):
            return
        off = math.log(ms / self._times(batch, context)[k])  # as of now: what was expected beforehand may be rounds old
        key = bisect_left(self.between[0], batch), bisect_left(self.between[1], context)
        drift = self.drifts.get(key)
        if drift is None:
            drift = self.drifts[key] = self._drift(key, self.latest)
        self.latest = drift
        self.rounds += drift.learn(k, off)

    def observe_host(self, ms: float, batch: int) -> None:
        """What the host did for a round took `ms`."""
        known = self.host_ms.get(batch)
        self.host_ms[batch] = ms if known is None else known * (1.0 + HOST if ms > known else 1.0 - HOST)

    def observe_step(self, ms: float) -> None:
        """A draft step whose guess was dropped took so long beside the rest of its round."""
        if math.isfinite(ms):
            self.step_ms += STEP * (max(0.0, min(ms, 3 * self.step_ms)) - self.step_ms)


def _lines(timings: Iterable[Timing]) -> dict[tuple[int, int], dict[int, Timing]]:
    """Timings by (batch, context), then by k; of two of one kind the later stays."""
    lines: dict[tuple[int, int], dict[int, Timing]] = defaultdict(dict)
    for timing in timings:
        lines[timing.batch, timing.context][timing.k] = timing
    if not any(len(line) > 1 and 0 in line for line in lines.values()):
        raise UsageError("a cost table needs rounds of k = 0 and of at least one longer k at one batch and context")
    return {key: lines[key] for key in sorted(lines)}


def _by_k(known: dict[int, float], k_max: int) -> list[float]:
    ks = sorted(known)
    return [float(ms) for ms in np.interp(np.arange(k_max + 1.0), ks, [known[k] for k in ks])]


def _line(lines: dict[tuple[int, int], dict[int, Timing]], batch: int, context: int, shape: list[float]) -> list[float]:
    """Times by k of one bucket: where few k were timed, the fullest line scaled to those that were."""
    near = min(lines, key=lambda key: (abs(math.log(key[0] / batch)), abs(key[1] - context)))
    known = {k: t.ms / shape[k] for k, t in lines[near].items() if k < len(shape)}
    return [a * b for a, b in zip(shape, _by_k(known, len(shape) - 1), strict=True)] if known else list(shape)


def _between(buckets: list[int], value: float) -> tuple[int, int, float]:
    """The buckets around `value` and how far it lies towards the second."""
    if value <= buckets[0]:
        return 0, 0, 0.0
    i = bisect_right(buckets, value) - 1
    if buckets[i] == value or i == len(buckets) - 1:
        return i, i, 0.0
    return i, i + 1, (value - buckets[i]) / (buckets[i + 1] - buckets[i])


def _mixed(low: list[float], high: list[float], share: float) -> list[float]:
    return [a + share * (b - a) for a, b in zip(low, high, strict=True)]


def _middles(buckets: list[int]) -> list[float]:
    """Where one bucket ceases to be the nearest."""
    return [(low + high) / 2 for low, high in pairwise(buckets)]


def read_table(path: Path) -> CostTable:
    """A table from JSON: {"rows": [{"batch", "k", "context", "ms"}]}, and step_ms where guesses may be dropped.

    What `paceline bench --shape ... --out` writes is such a file. Raises UsageError in one sentence.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise UsageError(f"{path} is not JSON; give a table with rows of batch, k, context and ms") from None
    return parse_table(data, str(path))


def parse_table(data: Any, path: str) -> CostTable:
    """As `read_table`, from what the JSON holds; `path` names it in errors."""
    rows = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} holds no rows; give a table with rows of batch, k, context and ms")
    step_ms = data.get("step_ms", 0.0)
    if not _positive(step_ms, zero=True):
        raise UsageError(f"{path}: step_ms must be a number from 0 up, not {step_ms!r}")
    return CostTable([_timing(row, f"{path}, row {i}") for i, row in enumerate(rows, 1)], float(step_ms))


def _timing(row: Any, where: str) -> Timing:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: expected an object with batch, k, context and ms")
    for name, least, most in (("batch", 1, 1 << 16), ("k", 0, K_MOST), ("context", 0, 1 << 24)):
        value = row.get(name)
        if type(value) is not int or not least <= value <= most:
            raise UsageError(f"{where}: {name} must be a whole number from {least} to {most}, not {value!r}")
    if not _positive(row.get("ms")):
        raise UsageError(f"{where}: ms must be a positive number, not {row.get('ms')!r}")
    return Timing(row["batch"], row["k"], row["context"], float(row["ms"]))


def _positive(value: Any, zero: bool = False) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and (value > 0 or (zero and value == 0))
