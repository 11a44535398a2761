"""Whether a row of a matrix product has the same bits alone and beside others, and what that costs.

Plain decoding multiplies one row, verification k + 1 of them. If a row's bits depended on how many share the call, the
text could depend on the drafter. This compares PyTorch's linear layer with Paceline's kernel on random numbers, for
bits and for time: warm (the weights were just used) and cold (a larger buffer was copied in between).

    python benchmarks/rows.py
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from paceline.bench.record import check_writable
from paceline.errors import PacelineError
from paceline.kernels.cpu import CpuOps

BACKENDS = ("torch_f32", "torch_bf16", "paceline_f32", "paceline_bf16")
MOST_ROWS = 16
COPY_BYTES = 256 << 20
Product = Callable[[int, int], Any]


@dataclass(frozen=True)
class Shape:
    """A weight [outputs, inputs] of a known model."""

    name: str
    inputs: int
    outputs: int


SHAPES = (
    Shape("miniature head", 256, 4096),
    Shape("E2B attention", 1536, 2048),
    Shape("E2B MLP in", 1536, 12288),
    Shape("E2B MLP out", 6144, 1536),
    Shape("E4B MLP in", 2560, 20480),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """One call with `rows` rows of input."""

    shape: str
    backend: str
    rows: int
    cold: bool
    seconds: float


def products(shape: Shape, seed: int = 0) -> dict[str, Product]:
    """{backend: f(first row, last row + 1)} over one weight and one input of MOST_ROWS rows."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape.outputs, shape.inputs, generator=generator).mul_(shape.inputs**-0.5)
    x = torch.randn(MOST_ROWS, shape.inputs, generator=generator)
    made: dict[str, Product] = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        made[f"torch_{name}"] = _torch_product(x.to(dtype), weight.to(dtype))
        made[f"paceline_{name}"] = _paceline_product(x, weight.to(dtype))
    return {name: made[name] for name in BACKENDS}


def _torch_product(x: Tensor, weight: Tensor) -> Product:
    return lambda start, stop: linear(x[start:stop], weight)


def _paceline_product(x: Tensor, weight: Tensor) -> Product:
    ops = CpuOps()
    matrix = ops.matrix(weight.shape[0], weight.shape[1], weight.dtype)
    matrix.write(0, weight)
    rows = ops.array(x)
    return lambda start, stop: ops.linear(rows[start:stop], matrix)


def same_bits(product: Product, rows: int) -> tuple[bool, float]:
    """Whether all rows of a call equal the same rows alone, bit for bit; the greatest difference of a number."""
    together = _tensor(product(0, rows))
    alone = torch.cat([_tensor(product(r, r + 1)) for r in range(rows)])
    integer = torch.int16 if together.dtype == torch.bfloat16 else torch.int32
    equal = torch.equal(together.view(integer), alone.view(integer))
    return equal, float((together.double() - alone.double()).abs().max())


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def bits(shape: Shape, made: dict[str, Product]) -> list[dict[str, Any]]:
    """One entry for each backend and number of rows."""
    found = []
    for backend, product in made.items():
        for rows in range(1, MOST_ROWS + 1):
            equal, difference = same_bits(product, rows)
            found.append(
                {
                    "shape": shape.name,
                    "backend": backend,
                    "rows": rows,
                    "equal": equal,
                    "greatest_difference": difference,
                }
            )
    return found


class Copy:
    """Copying a buffer larger than the caches: the yardstick of bandwidth, and what empties them."""

    def __init__(self, nbytes: int = COPY_BYTES) -> None:
        self.source, self.target = np.zeros(nbytes // 4, np.float32), np.zeros(nbytes // 4, np.float32)

    def evict(self) -> None:
        """Replaces what the caches hold."""
        np.copyto(self.target, self.source)

    def bytes_per_s(self, threaded: bool) -> float:
        """Bytes read plus bytes written a second, best of five: NumPy with one thread, or PyTorch with all."""
        source, target = torch.from_numpy(self.source), torch.from_numpy(self.target)
        copy = (lambda: target.copy_(source)) if threaded else self.evict
        return 2 * self.source.nbytes / min(_seconds(copy) for _ in range(5))


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def timings(
    shape: Shape, made: dict[str, Product], row_counts: list[int], repeats: int, copy: Copy
) -> Iterator[Timing]:
    """Every backend in random order, again and again, first cold and then warm."""
    rng = random.Random(shape.name)
    for rows in row_counts:
        for backend in rng.sample(BACKENDS, len(BACKENDS)) * repeats:
            call = _bound(made[backend], rows)
            copy.evict()
            yield Timing(shape.name, backend, rows, True, _seconds(call))
            yield Timing(shape.name, backend, rows, False, min(_seconds(call) for _ in range(3)))


def _bound(product: Product, rows: int) -> Callable[[], Any]:
    return lambda: product(0, rows)


def weight_bytes(shape: Shape, backend: str) -> int:
    """Bytes of the weight, each of which a product reads at least once."""
    return shape.inputs * shape.outputs * (2 if backend.endswith("bf16") else 4)


def best(rows: list[Timing], shape: str, backend: str, count: int, cold: bool) -> float:
    """The shortest time of one cell, in seconds."""
    return min(t.seconds for t in rows if (t.shape, t.backend, t.rows, t.cold) == (shape, backend, count, cold))


def summarise(found: list[dict[str, Any]], taken: list[Timing], bandwidth: float) -> dict[str, Any]:
    """Which backends keep the bits of a row, and the best time of every cell with its share of copy bandwidth."""
    shapes = {shape.name: shape for shape in SHAPES}
    cells = []
    for name, backend, rows, cold in dict.fromkeys((t.shape, t.backend, t.rows, t.cold) for t in taken):
        seconds = best(taken, name, backend, rows, cold)
        rate = weight_bytes(shapes[name], backend) / seconds
        cells.append(
            {"shape": name, "backend": backend, "rows": rows, "cold": cold, "microseconds": seconds * 1e6,
             "weight_bytes_per_s": rate, "share_of_copy": rate / bandwidth}
        )  # fmt: skip
    return {"equal_rows": {b: equal_rows(found, b) for b in BACKENDS}, "copy_bytes_per_s": bandwidth, "cells": cells}


def equal_rows(found: list[dict[str, Any]], backend: str) -> dict[str, Any]:
    """In how many of the calls with more than one row every row had the bits it has alone."""
    own = [entry for entry in found if entry["backend"] == backend and entry["rows"] > 1]
    return {
        "equal": sum(entry["equal"] for entry in own),
        "calls": len(own),
        "greatest_difference": max((entry["greatest_difference"] for entry in own), default=0.0),
    }


def run(row_counts: list[int], repeats: int, threads: int, out: Path) -> None:
    """Measures, writes the record, shows the tables."""
    common.set_threads(threads)
    options = {"rows": row_counts, "repeats": repeats, "threads": threads, "shapes": [asdict(s) for s in SHAPES]}
    record = common.head("paceline-rows/1", ["CPU", "synthetic: random numbers in the shapes of the models"], options)
    record["blas"] = torch.__config__.show().splitlines()
    copy = Copy()
    record["copy_bytes_per_s"] = {"numpy, 1 thread": copy.bytes_per_s(False), "torch": copy.bytes_per_s(True)}
    found: list[dict[str, Any]] = []
    taken: list[Timing] = []
    for shape in SHAPES:
        made = products(shape)
        found += bits(shape, made)
        taken += timings(shape, made, row_counts, repeats, copy)
    record["summary"] = summarise(found, taken, max(record["copy_bytes_per_s"].values()))
    record["bits"], record["measurements"] = found, [asdict(t) for t in taken]
    show(record["summary"])
    common.write(out, record)


def show(summary: dict[str, Any]) -> None:
    """The summary as tables on stderr."""
    rows = [
        (b, f"{e['equal']} of {e['calls']}", f"{e['greatest_difference']:.1e}")
        for b, e in summary["equal_rows"].items()
    ]
    common.show("rows with the bits they have alone", ("backend", "calls", "greatest difference"), rows)
    keys = list(dict.fromkeys((c["shape"], c["rows"], c["cold"]) for c in summary["cells"]))
    at = {(c["shape"], c["rows"], c["cold"], c["backend"]): c for c in summary["cells"]}
    lines = [
        (shape, str(n), "cold" if cold else "warm", *(_cell(at[shape, n, cold, backend]) for backend in BACKENDS))
        for shape, n, cold in keys
    ]
    title = f"microseconds (share of {summary['copy_bytes_per_s'] / 1e9:.1f} GB/s)"
    common.show(title, ("shape", "rows", "caches", *BACKENDS), lines)


def _cell(cell: dict[str, Any]) -> str:
    return f"{cell['microseconds']:.0f} ({cell['share_of_copy']:.0%})"


def main() -> None:
    """Reads the flags and runs; input errors become one sentence."""
    parser = common.parser("Bits and time of a row, alone and beside others.", "rows.json")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 5, 8, 16], help="numbers of rows to time")
    parser.add_argument("--repeats", type=int, default=10, help="timings of each cell; the best counts")
    flags = parser.parse_args()
    if not all(1 <= rows <= MOST_ROWS for rows in flags.rows):
        sys.exit(f"rows: --rows must lie in 1 to {MOST_ROWS}")
    try:
        check_writable(flags.out)
        run(flags.rows, flags.repeats, flags.threads, flags.out)
    except PacelineError as error:
        sys.exit(f"rows: {error}")


if __name__ == "__main__":
    main()
