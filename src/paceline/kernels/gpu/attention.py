"""Attention of few rows per sequence (decoding and verification) over a paged or ring cache.

Keys are cut into leaves of SPLIT at absolute positions, and leaves into blocks of LEAVES. These cuts alone fix the
arithmetic of a row: each leaf gives (maximum, sum, unnormalised values), the leaves of a block are folded in order, and
so are the blocks. `attend` leaves one partial result per leaf while a context is short, which keeps many programs busy,
and one per block when it is long, which keeps partial results few; `combine` does the folding `attend` has not done.
Both fold with the same instructions, so a row has the same bits either way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from paceline.kernels.gpu.launch import CacheView, cdiv, let_next_start, options, scratch, wait

PROGRAMS = 640
"""Programs of one call of `attend` at most, where there is more than one per sequence: about five a multiprocessor."""
ROWS = 16
"""Most rows of a sequence."""


class Tiling(NamedTuple):
    """How a layer is cut and its kernels compiled; a function of the layer's shape, never of the rows.

    split: keys of a leaf; leaves: leaves of a block; cols: query columns (row, head of the group) of a program.
    `combine` gives a program `chunk` columns of a head and keeps `ahead` partial results in flight; no bit depends on
    these two.
    """

    split: int = 32
    leaves: int = 4
    cols: int = 16
    warps: int = 4
    stages: int = 2
    registers: int = 255
    chunk: int = 128
    ahead: int = 16


TILINGS = {256: Tiling(registers=168)}
"""By head size, where not the usual one: 168 registers a thread let three programs share a multiprocessor."""


class Work(NamedTuple):
    """Sizes of one call; `slots` is how many partial results a (sequence, key head, tile) may leave."""

    rows: int
    tiles: int
    programs: int
    slots: int


def work(q: torch.Tensor, view: CacheView, cut: Tiling) -> Work:
    """Enough programs to fill the device, and no more than there may be leaves."""
    sequences, kv_heads = view.table.shape[0], view.keys.shape[1]
    rows = q.shape[0] // sequences
    tiles = cdiv(rows * (q.shape[1] // kv_heads), cut.cols)
    seen = view.span + ROWS - 1  # by all rows of a sequence together
    leaves = cdiv(seen, cut.split) + cut.leaves  # counted from the start of a block
    blocks = cdiv(seen, cut.split * cut.leaves) + 1
    programs = max(1, min(leaves, PROGRAMS // (sequences * kv_heads * tiles)))
    return Work(rows, tiles, programs, max(programs, blocks))


def attention(q: torch.Tensor, view: CacheView, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T) v over positions first[r] .. last[r] of each row r: [n, heads * dim]; zeros where there are none.

    q [n, heads, dim], sequence-major, at most ROWS rows a sequence; first, last int64 [n]. The rows of a sequence see
    no more than view.span + ROWS - 1 positions together.
    """
    return tiled(q, view, (first, last), TILINGS.get(q.shape[2], Tiling()))


def tiled(q: torch.Tensor, view: CacheView, reach: tuple[torch.Tensor, torch.Tensor], cut: Tiling) -> torch.Tensor:
    """`attention` with a given tiling."""
    if view.page % cut.split:
        raise ValueError(f"pages of {view.page} slots do not hold whole leaves of {cut.split}")
    (n, heads, dim), (sequences, pages), kv_heads = q.shape, view.table.shape, view.keys.shape[1]
    job, chunk = work(q, view, cut), min(dim, cut.chunk)
    groups = sequences * kv_heads * job.tiles
    parts = scratch((groups, job.slots, cut.cols, dim), q)
    peaks, sums = (scratch((groups, cut.cols, job.slots), q) for _ in range(2))
    out = torch.empty_like(q)
    attend[(job.programs, kv_heads * job.tiles, sequences)](
        q, view.keys, view.values, view.table, *reach, parts, peaks, sums, *job, pages, PAGE=view.page, RING=view.ring,
        **shape_of(q, view, cut), **exact(num_warps=cut.warps, num_stages=cut.stages, maxnreg=cut.registers),
    )  # fmt: skip
    combine[(n * heads, dim // chunk)](
        parts, peaks, sums, *reach, out, *job, CHUNK=chunk, AHEAD=cut.ahead,
        **shape_of(q, view, cut), **exact(num_warps=1, num_stages=1),
    )  # fmt: skip
    return out.view(n, heads * dim)


def shape_of(q: torch.Tensor, view: CacheView, cut: Tiling) -> dict[str, int]:
    """What both kernels are compiled for."""
    kv_heads = view.keys.shape[1]
    layer = {"KV_HEADS": kv_heads, "DIM": q.shape[2], "GROUP": q.shape[1] // kv_heads}
    return {**layer, "COLS": cut.cols, "SPLIT": cut.split, "LEAVES": cut.leaves}


def exact(**extra: Any) -> dict[str, Any]:
    """Launch options under which the compiler fuses no multiply-add by itself: where it would could differ."""
    return options(enable_fp_fusion=False, **extra)


@triton.jit
def column_reach(first, last, seq, tile, rows, GROUP: tl.constexpr, COLS: tl.constexpr):
    """First and last position of each column of a tile, int32 [COLS]; 1 and 0 for columns that see nothing."""
    row = (tile * COLS + tl.arange(0, COLS)) // GROUP
    lo = tl.load(first + seq * rows + row, mask=row < rows, other=1).to(tl.int32)
    hi = tl.load(last + seq * rows + row, mask=row < rows, other=0).to(tl.int32)
    seen = lo <= hi
    return tl.where(seen, lo, 1), tl.where(seen, hi, 0), seen


@triton.jit
def tile_reach(lo, hi, seen, SPAN: tl.constexpr):
    """Lowest and highest position any column of a tile sees, and the first block: high is -1 where none sees any."""
    low = tl.min(tl.where(seen, lo, 0x7FFFFFFF), 0)
    high = tl.max(tl.where(seen, hi, -1), 0)
    return low, high, low // SPAN


@triton.jit
def fold(peak, total, acc, leaf_peak, leaf_sum, leaf_acc, COLUMNS: tl.constexpr):
    """Adds a leaf to its block so far. The multiply-add is explicit: both kernels must round alike."""
    top = tl.maximum(peak, leaf_peak)
    safe = tl.where(top == float("-inf"), 0.0, top)
    old, new = tl.exp2(peak - safe), tl.exp2(leaf_peak - safe)
    total = tl.fma(total, old, leaf_sum * new)
    if COLUMNS:
        old, new = tl.expand_dims(old, 0), tl.expand_dims(new, 0)
    acc = tl.fma(acc, old, leaf_acc * new)
    return top, total, acc


INTS = ["rows", "tiles", "programs", "slots", "pages"]


@triton.jit(do_not_specialize=INTS)
def attend(
    q, keys, values, table, first, last, parts, peaks, sums,
    rows, tiles, programs, slots, pages,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr,
    LEAVES: tl.constexpr, PAGE: tl.constexpr, RING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Partial results of the units program, program + programs, .. of one (tile, key head, sequence)."""
    program, seq = tl.program_id(0), tl.program_id(2)
    head, tile = tl.program_id(1) % KV_HEADS, tl.program_id(1) // KV_HEADS
    wait(PDL)
    let_next_start(PDL)
    dims, cols, at = tl.arange(0, DIM), tl.arange(0, COLS), tl.arange(0, SPLIT)
    col = tile * COLS + cols
    valid = col < rows * GROUP
    lo, hi, seen = column_reach(first, last, seq, tile, rows, GROUP, COLS)
    row = (seq * rows + col // GROUP).to(tl.int64) * (KV_HEADS * GROUP) + head * GROUP + col % GROUP
    x = tl.trans(tl.load(q + row[:, None] * DIM + dims[None, :], mask=valid[:, None], other=0.0))
    # The page this program needs when the sequence is short and seen from its start: loading it need not wait for that.
    book = table + seq * pages
    likely = tl.minimum(0 if RING else program * SPLIT // PAGE, pages - 1)
    likely_page = tl.load(book + likely)
    low, high, block = tile_reach(lo, hi, seen, SPLIT * LEAVES)
    leaf0 = block * LEAVES
    ahead = high // SPLIT - leaf0
    short = ahead < programs
    size = tl.where(short, 1, LEAVES)
    units = tl.where(high < 0, 0, tl.where(short, ahead, ahead // LEAVES) + 1)
    group = ((seq * KV_HEADS + head) * tiles + tile).to(tl.int64)
    STRIDE: tl.constexpr = KV_HEADS * DIM
    offset = at.to(tl.int64)[:, None] * STRIDE + dims[None, :] + head * DIM
    for unit in range(program, units, programs):
        peak = tl.full([COLS], float("-inf"), tl.float32)
        total = tl.zeros([COLS], tl.float32)
        acc = tl.zeros([DIM, COLS], tl.float32)
        start = tl.maximum(leaf0 + unit * size, low // SPLIT)
        stop = tl.minimum(leaf0 + unit * size + size, high // SPLIT + 1)
        entry = 0 if RING else start * SPLIT // PAGE
        page = tl.where(entry == likely, likely_page, tl.load(book + entry, mask=entry != likely, other=0))
        for leaf in range(start, stop):
            base = leaf * SPLIT
            slot = page.to(tl.int64) * PAGE + base % PAGE
            pos = base + at
            k = tl.load(keys + slot * STRIDE + offset)
            inside = (pos - low).to(tl.uint32) <= (high - low).to(tl.uint32)
            v = tl.load(values + slot * STRIDE + offset, mask=inside[:, None], other=0.0)
            if not RING:
                page = tl.load(book + (base + SPLIT) // PAGE, mask=leaf + 1 < stop, other=0)
            s = tl.dot(k, x, input_precision="ieee") * 1.4426950408889634
            visible = (pos[:, None] >= lo[None, :]) & (pos[:, None] <= hi[None, :]) & seen[None, :]
            s = tl.where(visible, s, float("-inf"))
            leaf_peak = tl.max(s, 0)
            p = tl.exp2(s - tl.where(leaf_peak == float("-inf"), 0.0, leaf_peak)[None, :])
            leaf_acc = tl.dot(tl.trans(v), p.to(v.dtype), input_precision="ieee")
            peak, total, acc = fold(peak, total, acc, leaf_peak, tl.sum(p, 0), leaf_acc, True)
        mark = (group * COLS + cols) * slots + unit
        tl.store(peaks + mark, peak, mask=valid)
        tl.store(sums + mark, total, mask=valid)
        here = (group * slots + unit) * (COLS * DIM)
        tl.store(parts + here + cols[:, None] * DIM + dims[None, :], tl.trans(acc), mask=valid[:, None])


@triton.jit
def partial(parts, peaks, sums, u, u0, u1, stride):
    """Unit u's partial result, or that of no key at all where u lies outside u0 .. u1."""
    mine = (u >= u0) & (u <= u1)
    peak = tl.load(peaks + u, mask=mine, other=float("-inf"))
    total = tl.load(sums + u, mask=mine, other=0.0)
    return peak, total, tl.load(parts + u * stride, mask=mine, other=0.0)


@triton.jit(do_not_specialize=INTS)
def combine(
    parts, peaks, sums, first, last, out,
    rows, tiles, programs, slots,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr,
    LEAVES: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """CHUNK columns of one head of one row, from the partial results of its units, AHEAD of them in flight."""
    row, head = tl.program_id(0) // (KV_HEADS * GROUP), tl.program_id(0) % (KV_HEADS * GROUP)
    seq, col = row // rows, (row % rows) * GROUP + head % GROUP
    tile = col // COLS
    wait(PDL)
    let_next_start(PDL)
    begin, end = tl.load(first + row).to(tl.int32), tl.load(last + row).to(tl.int32)
    lo, hi, seen = column_reach(first, last, seq, tile, rows, GROUP, COLS)
    _low, high, block = tile_reach(lo, hi, seen, SPLIT * LEAVES)
    group = ((seq * KV_HEADS + head // GROUP) * tiles + tile).to(tl.int64)
    mark = (group * COLS + col % COLS) * slots
    peaks, sums = peaks + mark, sums + mark
    dims = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    parts = parts + group * slots * (COLS * DIM) + (col % COLS) * DIM + dims
    peak, total, acc = float("-inf"), 0.0, tl.zeros([CHUNK], tl.float32)
    leaf0, some = block * LEAVES, begin <= end
    u0, u1 = tl.where(some, begin // SPLIT - leaf0, 0), tl.where(some, end // SPLIT - leaf0, -1)
    if high // SPLIT - leaf0 < programs:
        for base in range(u0 // LEAVES * LEAVES, u1 + 1, AHEAD):
            for b in tl.static_range(0, AHEAD, LEAVES):
                block_peak, block_total, block_acc = float("-inf"), 0.0, tl.zeros([CHUNK], tl.float32)
                for i in tl.static_range(LEAVES):
                    p, t, a = partial(parts, peaks, sums, base + (b + i), u0, u1, COLS * DIM)
                    block_peak, block_total, block_acc = fold(block_peak, block_total, block_acc, p, t, a, False)
                peak, total, acc = fold(peak, total, acc, block_peak, block_total, block_acc, False)
    else:
        u0, u1 = u0 // LEAVES, tl.where(some, u1 // LEAVES, -1)
        for base in range(u0, u1 + 1, AHEAD):
            for i in tl.static_range(AHEAD):
                p, t, a = partial(parts, peaks, sums, base + i, u0, u1, COLS * DIM)
                peak, total, acc = fold(peak, total, acc, p, t, a, False)
    acc = acc / tl.where(some, total, 1.0)
    tl.store(out + tl.program_id(0).to(tl.int64) * DIM + dims, acc.to(out.dtype.element_ty))
