"""Attention of one chunk of a prompt: many rows of one sequence, over its cache and over the chunk itself.

One program takes a tile of rows and one query head, and walks over the keys with a running maximum: first over cached
positions, then over the chunk's own rows up to the diagonal. Blocks no row of the tile sees are never visited.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from paceline.kernels.gpu.launch import CacheView, cdiv, let_next_start, options, pdl, wait


class Blocking(NamedTuple):
    """Rows and keys of a block, columns of the values one program sums, and how the kernel is compiled."""

    rows: int
    keys: int
    cols: int
    warps: int
    stages: int


def blocking(dim: int, width: int = 2) -> Blocking:
    """The accumulator [rows, dim] takes half of the registers, and rows, keys and values together fit shared memory.

    width: bytes of a number.
    """
    if width == 4:
        return Blocking(32, 16, 256, 8, 2)
    if pdl():
        return Blocking(128, 32, 256, 8, 2 if dim > 256 else 3)
    return Blocking(32, 32, 256, 8 if dim > 256 else 4, 2)


def prefill_attention(
    q: torch.Tensor, view: CacheView, positions: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """softmax(q k^T) v over positions first[r] .. last[r] of each row r: [n, heads * dim]; zeros for rows of padding.

    q [n, heads, dim], the rows of one sequence. Rows stand at consecutive positions; rows of padding come first, in a
    chunk that starts a prompt, and have negative ones. last[r] is at most the row's own position. What lies before the
    chunk is read from the cache.
    """
    return blocked(q, view, (positions, first, last), blocking(q.shape[2], q.element_size())).flatten(1)


def blocked(
    q: torch.Tensor, view: CacheView, reach: tuple[torch.Tensor, torch.Tensor, torch.Tensor], block: Blocking
) -> torch.Tensor:
    """`prefill_attention` with a given blocking: [n, heads, dim]."""
    if view.page % block.keys:
        raise ValueError(f"pages of {view.page} slots do not hold whole blocks of {block.keys} keys")
    if view.fresh is None:
        raise ValueError("a chunk of a prompt brings its own keys and values")
    (n, heads, dim), kv_heads = q.shape, view.keys.shape[1]
    out = torch.empty_like(q)
    cols = min(dim, block.cols)
    attend_chunk[(heads, cdiv(n, block.rows), dim // cols)](
        q, view.keys, view.values, view.table, *view.fresh, *reach, out, n,
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, PAGE=view.page, RING=view.ring, DIM=dim,
        ROWS=block.rows, KEYS=block.keys, COLS=cols, **options(num_warps=block.warps, num_stages=block.stages),
    )  # fmt: skip
    return out


@triton.jit
def attend_block(x, k, v, visible, peak, total, acc):
    """Adds a block of keys to the running (maximum, sum, values); the maximum is that of scores / log 2."""
    s = tl.dot(x, tl.trans(k), input_precision="ieee")
    s = tl.where(visible, s * 1.4426950408889634, float("-inf"))
    top = tl.maximum(peak, tl.max(s, 1))
    safe = tl.where(top == float("-inf"), 0.0, top)
    shrink = tl.exp2(peak - safe)
    p = tl.exp2(s - safe[:, None])
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return top, total, acc


@triton.jit(do_not_specialize=["n"])
def attend_chunk(
    q, keys, values, table, fresh_keys, fresh_values, positions, first, last, out, n,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr, RING: tl.constexpr, DIM: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, COLS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of rows, longest reach first, for one query head."""
    head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    wait(PDL)
    let_next_start(PDL)
    rows, dims, at = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, KEYS)
    inside = rows < n
    valid = tl.load(positions + rows, mask=inside, other=-1) >= 0
    lo = tl.load(first + rows, mask=inside, other=0).to(tl.int32)
    hi = tl.load(last + rows, mask=inside, other=0).to(tl.int32)
    low = tl.min(tl.where(valid, lo, 1 << 30), 0)
    start = tl.maximum(tl.load(positions), 0).to(tl.int32)
    pad = n - 1 - tl.load(positions + n - 1).to(tl.int32) + start
    STRIDE: tl.constexpr = KV_HEADS * DIM
    kv = (head // GROUP) * DIM
    place = rows.to(tl.int64)[:, None] * (STRIDE * GROUP) + head * DIM + dims[None, :]
    x = tl.load(q + place, mask=inside[:, None], other=0.0)
    offset = at.to(tl.int64)[:, None] * STRIDE + dims[None, :] + kv
    part = tl.program_id(2) * COLS + tl.arange(0, COLS)
    voffset = at.to(tl.int64)[:, None] * STRIDE + part[None, :] + kv
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    begin = low // KEYS * KEYS
    page = tl.load(table if RING else table + begin // PAGE, mask=begin < start, other=0)
    for base in range(begin, start, KEYS):
        slot = page.to(tl.int64) * PAGE + base % PAGE
        pos = base + at
        k = tl.load(keys + slot * STRIDE + offset)
        v = tl.load(values + slot * STRIDE + voffset, mask=((pos >= low) & (pos < start))[:, None], other=0.0)
        seen = (pos[None, :] >= lo[:, None]) & (pos[None, :] < start)
        if not RING:
            page = tl.load(table + (base + KEYS) // PAGE, mask=base + KEYS < start, other=0)
        peak, total, acc = attend_block(x, k, v, seen, peak, total, acc)
    begin = tl.where(low > start, pad + low - start, pad) // KEYS * KEYS
    for base in range(begin, tl.minimum(n, tile * ROWS + ROWS), KEYS):
        row = base + at
        k = tl.load(fresh_keys + base * STRIDE + offset, mask=(row < n)[:, None], other=0.0)
        real = (row >= pad) & (row < n)
        v = tl.load(fresh_values + base * STRIDE + voffset, mask=real[:, None], other=0.0)
        pos = row - pad + start
        seen = (pos[None, :] >= lo[:, None]) & (pos[None, :] <= hi[:, None]) & real[None, :]
        peak, total, acc = attend_block(x, k, v, seen, peak, total, acc)
    share = tl.where(valid & (total > 0), 1.0 / tl.where(total > 0, total, 1.0), 0.0)
    place = rows.to(tl.int64)[:, None] * (STRIDE * GROUP) + head * DIM + part[None, :]
    tl.store(out + place, (acc * share[:, None]).to(out.dtype.element_ty), mask=inside[:, None])
