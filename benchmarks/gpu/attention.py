"""Attention kernels on a real GPU: right results, the bits of rows, and microseconds over tilings.

`PYTHONPATH=src:tests python benchmarks/gpu/attention.py`; under a minute, most of it compilation. `warm` times replay
one input over and over; `cold` ones read 128 MB before each call, and that reading's own time is taken off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from gpu import DEVICE, error, randn
from timing import graph_time
from torch import Tensor

from paceline.kernels.gpu import attention as decoding
from paceline.kernels.gpu import prefill
from paceline.kernels.gpu.attention import Tiling
from paceline.kernels.gpu.launch import CacheView
from paceline.kernels.gpu.prefill import Blocking

BF16 = torch.bfloat16
SECONDS = 52
begin = time.time()


class Layer(NamedTuple):
    """A layer's shape; window None for a full one."""

    kv_heads: int
    group: int
    dim: int
    window: int | None


LAYERS = {
    "e2b sliding": Layer(1, 8, 256, 512),
    "e2b full": Layer(1, 8, 512, None),
    "31b sliding": Layer(16, 2, 256, 1024),
    "31b full": Layer(4, 8, 512, None),
    "12b full": Layer(1, 16, 512, None),
    "e4b sliding": Layer(2, 4, 256, 512),
}
CANDIDATES = [  # beside what TILINGS has
    Tiling(stages=3),
    Tiling(),
    Tiling(split=64),
    Tiling(split=64, warps=8, stages=1),
    Tiling(warps=8, stages=1),
    Tiling(cols=32, warps=8),
]
COMBINES = [{"chunk": 64}, {"chunk": 64, "ahead": 32}, {"ahead": 8}]
BLOCKINGS = {
    256: [Blocking(128, 32, 256, 8, 3), Blocking(128, 64, 256, 8, 2), Blocking(64, 32, 256, 4, 2)],
    512: [Blocking(128, 32, 256, 8, 2), Blocking(64, 32, 512, 8, 2), Blocking(128, 16, 256, 8, 3)],
}
Inputs = tuple[Tensor, CacheView, Tensor, Tensor]


def inputs(layer: Layer, ends: list[int], rows: int, room: int = 0) -> Inputs:
    """Queries of `rows` rows for sequences whose last row sees position ends[b], in shuffled pages or wrapped rings.

    `room`: positions a sequence could have, where that is more than it has.
    """
    ring, page = layer.window is not None, 64 if layer.window is None else layer.window + 64
    pages = 1 if ring else -(-max(room, *ends, 0) // 64) + 1
    table = torch.randperm(pages * len(ends), generator=torch.Generator().manual_seed(0))
    keys, values = (cached(pages * len(ends) * page, layer.kv_heads, layer.dim, s) for s in (1, 2))
    span = page if layer.window else pages * 64
    view = CacheView(keys, values, table.view(len(ends), pages).to(DEVICE, torch.int32), page, ring, span)
    last = torch.tensor([end - rows + 1 + i for end in ends for i in range(rows)], device=DEVICE)
    first = (last - (layer.window or 1 << 40) + 1).clamp(min=0)
    heads = layer.kv_heads * layer.group
    return randn(len(last), heads, layer.dim, seed=3, dtype=BF16, scale=layer.dim**-0.5), view, first, last


@cache
def cached(slots: int, kv_heads: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(slots, kv_heads, dim, generator=generator, device=DEVICE, dtype=BF16)


def reference(q: Tensor, view: CacheView, first: Tensor, last: Tensor) -> Tensor:
    """[n, heads * dim] in fp32, row by row."""
    rows, group, out = len(q) // len(view.table), q.shape[1] // view.keys.shape[1], []
    for r in range(len(q)):
        at = torch.arange(int(first[r]), int(last[r]) + 1, device=DEVICE)
        slots = view.table[r // rows][(at // view.page) % view.table.shape[1]].long() * view.page + at % view.page
        out.append(one_row(q[r], view.keys[slots], view.values[slots], group))
    return torch.stack(out)


def one_row(q: Tensor, keys: Tensor, values: Tensor, group: int) -> Tensor:
    keys, values = (x.float().repeat_interleave(group, dim=1) for x in (keys, values))
    weights = torch.einsum("hd,mhd->hm", q.float(), keys).softmax(-1)
    return torch.einsum("hm,mhd->hd", weights, values).flatten()


def same_bits(layer: Layer, ends: list[int], cut: Tiling) -> bool:
    """Whether rows alone, in other batches, under other capacities and program counts all give the same bits."""
    q, view, first, last = inputs(layer, ends, 5)
    together = decoding.tiled(q, view, (first, last), cut)
    same = True
    for b in range(len(ends)):
        for r in range(5 * b, 5 * b + 5):
            one = slice(r, r + 1)
            alone = view._replace(table=view.table[b : b + 1].contiguous(), span=view.span + 9000 * (not view.ring))
            same &= torch.equal(decoding.tiled(q[one], alone, (first[one], last[one]), cut), together[one])
    usual = decoding.PROGRAMS
    try:
        for programs in (1, 60, 20000):
            decoding.PROGRAMS = programs
            same &= torch.equal(decoding.tiled(q, view, (first, last), cut), together)
    finally:
        decoding.PROGRAMS = usual
    return same


def correctness(name: str, cut: Tiling) -> Iterator[dict[str, Any]]:
    ends = [170, 2000, 33] if LAYERS[name].window is None else [170, 3000, 33]
    given = inputs(LAYERS[name], ends, 5)
    off = error(decoding.tiled(given[0], given[1], given[2:], cut), reference(*given))
    yield {"what": name, "cut": brief(cut), "error": off, "same bits": same_bits(LAYERS[name], ends, cut)}


def brief(cut: NamedTuple) -> str:
    return " ".join(f"{name}={value}" for name, value in cut._asdict().items())


@cache
def flood() -> Tensor:
    return torch.ones(1 << 26, dtype=BF16, device=DEVICE)


def microseconds(call: Callable[[], Any]) -> tuple[float, float]:
    """(warm, cold)."""

    def after_flood() -> None:
        flood().max()
        call()

    flooded = graph_time(lambda: flood().max(), [()] * 10)
    return graph_time(call, [()] * 20), graph_time(after_flood, [()] * 10) - flooded


PLACES = [(1, 1, 170), (1, 5, 170), (1, 1, 2000), (1, 5, 2000), (8, 5, 2000), (1, 5, 16000), (1, 1, 60000)]


def times(name: str, cut: Tiling) -> Iterator[dict[str, Any]]:
    """One line for each (sequences, rows, length)."""
    layer = LAYERS[name]
    for sequences, rows, length in PLACES[: 5 if layer.window else None]:
        q, view, *reach = inputs(layer, [length - 1] * sequences, rows, 4096)
        warm, cold = microseconds(partial(decoding.tiled, q, view, tuple(reach), cut))
        seen = min(length, layer.window or length)
        gigabytes = 4e-9 * sequences * seen * layer.kv_heads * layer.dim
        where = f"{name} B={sequences} rows={rows} at {length}"
        yield {"what": where, "cut": brief(cut), "warm": warm, "cold": cold, "TB/s": gigabytes / cold * 1e3}


def chunk(layer: Layer, n: int, start: int, padding: int) -> tuple[Any, ...]:
    """Arguments of `prefill.blocked` less the blocking: n rows, the first `padding` of them empty, after `start`."""
    _, view, *_ = inputs(layer, [start + n], 1)
    fresh = tuple(randn(n, layer.kv_heads, layer.dim, seed=s, dtype=BF16) for s in (5, 6))
    positions = torch.arange(n, device=DEVICE) + start - padding
    positions = torch.where(positions < start, -1, positions)
    first = (positions - (layer.window or 1 << 40) + 1).clamp(min=0)
    q = randn(n, layer.kv_heads * layer.group, layer.dim, seed=7, dtype=BF16, scale=layer.dim**-0.5)
    return q, view._replace(fresh=fresh), (positions, first, positions)


def prefill_error(layer: Layer, block: Blocking, n: int, start: int, padding: int) -> float:
    """Worst error of a few rows against the reference."""
    q, view, (_, first, _) = given = chunk(layer, n, start, padding)
    out, worst = prefill.blocked(*given, block).flatten(1), 0.0
    for r in {padding, padding + 1, (padding + n) // 2, n - 1}:
        at = torch.arange(min(int(first[r]), start), start, device=DEVICE)
        slots = view.table[0][(at // view.page) % view.table.shape[1]].long() * view.page + at % view.page
        own = slice(padding + max(0, int(first[r]) - start), r + 1)
        keys, values = (torch.cat([x[slots], f[own]]) for x, f in zip(view[:2], view.fresh, strict=True))
        worst = max(worst, error(out[r], one_row(q[r], keys, values, layer.group)))
    return max(worst, float(out[:padding].abs().sum()))


def prefill_line(name: str, block: Blocking, n: int, start: int, padding: int) -> Iterator[dict[str, Any]]:
    layer = LAYERS[name]
    given = chunk(layer, n, start, padding)
    spent = graph_time(lambda: prefill.blocked(*given, block), [()] * 3)
    positions, first, _ = given[2]
    pairs = float((positions - first + 1)[padding:].double().sum())
    rate = 4e-6 * pairs * layer.dim * layer.kv_heads * layer.group / spent
    off = prefill_error(layer, block, n, start, padding)
    where = f"{name} prefill n={n} start={start} pad={padding}"
    yield {"what": where, "cut": brief(block), "us": spent, "TFLOP/s": rate, "error": off}


def usual(name: str) -> Tiling:
    """What `attention` takes."""
    return decoding.TILINGS.get(LAYERS[name].dim, Tiling())


def cases() -> Iterator[Callable[[], Any]]:
    """Most wanted first: what runs out of time is left out."""
    for name in LAYERS:
        yield partial(correctness, name, usual(name))
        yield partial(times, name, usual(name))
    for name in ("31b sliding", "31b full", "e2b full"):
        for place in ((2048, 2048, 0), (2048, 0, 0), (256, 0, 56)):
            yield partial(prefill_line, name, BLOCKINGS[LAYERS[name].dim][0], *place)
    for cut in CANDIDATES:
        for name in ("e2b sliding", "e2b full", "31b sliding"):
            yield partial(correctness, name, cut)
            yield partial(times, name, cut)
    for name in ("31b sliding", "31b full"):
        for block in BLOCKINGS[LAYERS[name].dim][1:]:
            yield partial(prefill_line, name, block, 2048, 2048, 0)
    for change in COMBINES:
        for name in ("e2b sliding", "e2b full"):
            yield partial(times, name, usual(name)._replace(**change))


def run() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for made in cases():
        if time.time() - begin > SECONDS:
            print("out of time")
            break
        try:
            for line in made():
                lines.append(line)
                print(
                    "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{v}" for k, v in line.items()), flush=True
                )
        except Exception as problem:
            print(f"{type(problem).__name__}: {str(problem)[:300]}", file=sys.stderr, flush=True)
    return lines


if __name__ == "__main__":
    run()
