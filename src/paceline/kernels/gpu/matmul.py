"""Matmuls of few rows, bound by reading weights: y = x W^T with the same bits for a row whatever shares the call.

A tile multiplies BN rows of the weight [BN, K] by R rows of x, the weight as the left operand, so that 1 to 16 rows
cost what one costs. The sum over K is cut into `split` parts by (N, K) alone; whoever reads the parts adds them in
order. More rows only widen the tile, which changes no sum: every element adds the same products in the same order. Its
width is R or R + MORE, two powers of two, so that 40 or 80 rows need not be padded to 64 or 128.

The rows of a prompt are always read in the same parts, so `whole` calls of many rows may sum otherwise: in one go.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.int8 import Weight, numbers_of
from paceline.kernels.gpu.launch import cdiv, let_next_start, options, pow2, scratch, wait
from paceline.kernels.gpu.maths import gelu_tanh, tanh
from paceline.kernels.gpu.parts import prefetch
from paceline.kernels.gpu.tuned import TUNED, TUNED_INT8

MAX_ROWS = 128  # of a tile that many rows are cut into
WIDTHS = (16, 32, 48, 64, 80, 96, 128, 160, 192)  # of a tile that holds all rows of a call


class Tile(NamedTuple):
    """How one weight [N, K] is cut. Only `split` touches the arithmetic."""

    bn: int
    bk: int
    split: int
    stages: int
    warps: int = 4
    lines: int = 4


@cache
def tile_of(rows: int, cols: int, gated: bool, int8: bool = False) -> Tile:
    """The tile of a weight [rows, cols], measured where TUNED has it, else by rule: about four blocks a processor."""
    key = rows, cols, gated
    found = (TUNED_INT8.get(key) if int8 else None) or TUNED.get(key)
    if found:
        return Tile(*found["tile"])
    bk = min(128, pow2(cols, 16))
    blocks = cdiv(rows // (2 if gated else 1), 64)
    split = 1 if gated else max(1, min(8, 512 // blocks, cols // 512))
    return Tile(64, bk, split, 4)


@triton.jit
def _prefetch_rows(w, rows, N, K, start, stop, LINES: tl.constexpr, PDL: tl.constexpr):
    """The first LINES cache lines of each of these rows' columns start .. stop - 1: weights, which nobody writes."""
    step: tl.constexpr = 128 // (w.dtype.element_ty.primitive_bitwidth // 8)
    columns = start + tl.arange(0, LINES) * step
    columns = tl.minimum(columns, stop - 1)
    rows = tl.minimum(rows, N - 1)
    prefetch(w + rows[:, None].to(tl.int64) * K + columns[None, :], PDL)


@triton.jit
def _weights(at, rows, N, k, left, EVEN: tl.constexpr):
    """A step of the weight's rows [BN, BK], zero beyond its last row and, unless EVEN, beyond `left` columns."""
    if EVEN:
        return tl.load(at, mask=rows[:, None] < N, other=0.0)
    else:
        return tl.load(at, mask=(rows[:, None] < N) & (k[None, :] < left), other=0.0)


@triton.jit
def _inputs(at, r, n, k, left, EVEN: tl.constexpr):
    """A step of the rows of x, as columns [BK, R], likewise."""
    if EVEN:
        return tl.load(at, mask=r[None, :] < n, other=0.0)
    else:
        return tl.load(at, mask=(r[None, :] < n) & (k[:, None] < left), other=0.0)


@triton.jit
def _partial(
    x, w, rows, r, more_r, n, N, K, start, stop,
    R: tl.constexpr, MORE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """[BN, R] and [BN, MORE]: these rows of w times the rows r and more_r of x, columns start .. stop - 1.

    EVEN: they are whole steps of BK. Without MORE the second is the first.
    """
    k = tl.arange(0, BK)
    w_at = w + rows[:, None].to(tl.int64) * K + (start + k)[None, :]
    x_at = x + r[None, :].to(tl.int64) * K + (start + k)[:, None]
    more_at = x + more_r[None, :].to(tl.int64) * K + (start + k)[:, None]
    acc = tl.zeros((BN, R), tl.float32)
    more = tl.zeros((BN, MORE if MORE else R), tl.float32)
    for at in range(start, stop, BK):
        b = _inputs(x_at, r, n, k, stop - at, EVEN)
        a = _weights(w_at, rows, N, k, stop - at, EVEN).to(b.dtype)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        if MORE:
            b = _inputs(more_at, more_r, n, k, stop - at, EVEN)
            more = tl.dot(a, b, more, input_precision="ieee")
        w_at += BK
        x_at += BK
        more_at += BK
    return acc, more if MORE else acc


@triton.jit
def _rows_of(R: tl.constexpr, MORE: tl.constexpr):
    """Which rows of x a program multiplies: R and MORE numbers; without MORE the second repeats the first."""
    first = tl.program_id(0) * (R + MORE)
    r = first + tl.arange(0, R)
    if MORE:
        return r, first + R + tl.arange(0, MORE)
    else:
        return r, r


@triton.jit(do_not_specialize=["n"])
def _linear(
    x, w, scales, out, n, N, K, part,
    R: tl.constexpr, MORE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
    INSIDE: tl.constexpr, LINES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    r, more_r = _rows_of(R, MORE)
    start = tl.program_id(2) * part
    let_next_start(PDL)
    if LINES > 0:
        _prefetch_rows(w, rows, N, K, start, tl.minimum(start + part, K), LINES, PDL)
    wait(PDL)
    stop = tl.minimum(start + part, K)
    acc, more = _partial(x, w, rows, r, more_r, n, N, K, start, stop, R, MORE, BN, BK, EVEN)
    if INSIDE:  # many rows: the parts are added here, in the same order
        for begin in range(part, K, part):
            stop = tl.minimum(begin + part, K)
            next, next_more = _partial(x, w, rows, r, more_r, n, N, K, begin, stop, R, MORE, BN, BK, EVEN)
            acc += next
            more += next_more
    acc, more = _scaled(acc, more, scales, rows, N)
    out += tl.program_id(2).to(tl.int64) * n * N
    _store(out, acc, r, rows, n, N)
    if MORE:
        _store(out, more, more_r, rows, n, N)


@triton.jit
def _scaled(acc, more, scales, rows, N):
    """Sums [BN, R] and [BN, MORE] of a weight in int8, times its rows' scales; as they are without scales."""
    if scales is not None:
        scale = tl.load(scales + rows, mask=rows < N, other=0.0)[:, None]
        acc, more = acc * scale, more * scale
    return acc, more


@triton.jit
def _store(out, acc, r, rows, n, N):
    """acc [BN, R] into rows r of out [n, N], at the columns `rows`."""
    at = out + r[None, :].to(tl.int64) * N + rows[:, None]
    tl.store(at, acc.to(out.dtype.element_ty), mask=(rows[:, None] < N) & (r[None, :] < n))


@triton.jit
def _geglu(acc, R: tl.constexpr, BN: tl.constexpr):
    """gelu(gate) * up [BN / 2, R] of acc [BN, R], whose upper half is the gate."""
    gate, up = tl.split(tl.permute(tl.reshape(acc, (2, BN // 2, R)), (1, 2, 0)))
    return gelu_tanh(gate) * up


@triton.jit(do_not_specialize=["n"])
def _gated(
    x, w, scales, out, n, N, K,
    R: tl.constexpr, MORE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
    LINES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """gelu(gate) * up, where w [2 N, K] holds gate rows, then up rows. A tile holds BN / 2 of each."""
    HALF: tl.constexpr = BN // 2
    i = tl.arange(0, BN)
    column = tl.program_id(1) * HALF + i % HALF
    rows = tl.where(column < N, tl.where(i < HALF, column, N + column), 2 * N)
    r, more_r = _rows_of(R, MORE)
    let_next_start(PDL)
    if LINES > 0:
        _prefetch_rows(w, rows, 2 * N, K, 0, K, LINES, PDL)
    wait(PDL)
    acc, more = _partial(x, w, rows, r, more_r, n, 2 * N, K, 0, K, R, MORE, BN, BK, EVEN)
    acc, more = _scaled(acc, more, scales, rows, 2 * N)
    column = tl.program_id(1) * HALF + tl.arange(0, HALF)
    _store(out, _geglu(acc, R, BN), r, column, n, N)
    if MORE:
        _store(out, _geglu(more, MORE, BN), more_r, column, n, N)


@triton.jit(do_not_specialize=["n"])
def _head(
    x, w, scales, suppressed, logits, best, best_ids, n, N, K, cap, suppress_count,
    R: tl.constexpr, MORE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
    WRITE: tl.constexpr, INT8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Logits of the rows of w [N, K], soft-capped: written whole, or as each tile's greatest and its id."""
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    r, more_r = _rows_of(R, MORE)
    let_next_start(PDL)
    wait(PDL)
    acc, more = _partial(x, w, rows, r, more_r, n, N, K, 0, K, R, MORE, BN, BK, EVEN)
    y = _logits(acc, scales, rows, N, cap, INT8)
    if WRITE:
        _store(logits, y, r, rows, n, N)
    else:
        _store_best(best, best_ids, y, suppressed, suppress_count, r, rows, n, N)
    if MORE:
        y = _logits(more, scales, rows, N, cap, INT8)
        if WRITE:
            _store(logits, y, more_r, rows, n, N)
        else:
            _store_best(best, best_ids, y, suppressed, suppress_count, more_r, rows, n, N)


@triton.jit
def _logits(acc, scales, rows, N, cap, INT8: tl.constexpr):
    """Products [BN, R] scaled and soft-capped."""
    if INT8:
        acc *= tl.load(scales + rows, mask=rows < N, other=0.0)[:, None]
    if cap > 0:
        acc = cap * tanh(acc / cap)
    return acc


@triton.jit
def _store_best(best, best_ids, y, suppressed, suppress_count, r, rows, n, N):
    """The greatest of logits y [BN, R] that is not suppressed, and its id, for each row r."""
    y = tl.where(rows[:, None] < N, y, -float("inf"))
    for i in range(suppress_count):
        y = tl.where(rows[:, None] == tl.load(suppressed + i), -float("inf"), y)
    value, index = tl.max(y, axis=0, return_indices=True, return_indices_tie_break_left=True)
    at = tl.program_id(1).to(tl.int64) * n + r
    tl.store(best + at, value, mask=r < n)
    tl.store(best_ids + at, tl.program_id(1) * y.shape[0] + index, mask=r < n)


class Launch(NamedTuple):
    """How a call is cut, given its rows: nothing here touches the arithmetic. A tile is r + more rows wide."""

    r: int
    bn: int
    bk: int
    stages: int
    warps: int
    lines: int
    inside: bool = False
    more: int = 0

    @property
    def width(self) -> int:
        """Rows of x that one program takes."""
        return self.r + self.more


ENOUGH_BLOCKS = 256  # from so many on, a program adds its own parts


def width_of(n: int) -> tuple[int, int]:
    """(r, more) of the tile for a call of n rows: all of them where one is wide enough."""
    width = next((width for width in WIDTHS if width >= n), MAX_ROWS)
    r = 1 << (width.bit_length() - 1)
    return r, width - r


def launch_of(n: int, tile: Tile, rows: int, gated: bool = False) -> Launch:
    """The cut of a call of n rows on a weight of so many rows, by rule."""
    r, more = width_of(n)
    if r + more == 16:
        return Launch(r, tile.bn, tile.bk, tile.stages, tile.warps, tile.lines)
    if r + more < MAX_ROWS:
        return Launch(r, 64, min(128, tile.bk), 3 if tile.bk > 64 else 4, 4, 0, more=more)
    if gated and n <= MAX_ROWS:
        return Launch(r, 128, min(64, tile.bk), 4, 8, 0, more=more)
    if cdiv(n, r + more) * cdiv(rows, 128) < ENOUGH_BLOCKS:
        return Launch(r, 64, min(64, tile.bk), 4, 4, 0, more=more)
    stages, warps = (3, 4) if tile.split == 1 else (4, 8)
    return Launch(r, 128, min(64, tile.bk), stages, warps, 0, tile.split > 1, more)


@cache
def cut_of(n: int, weight: tuple[int, int, bool]) -> Launch:
    """The cut of a call of n rows on a weight (rows, cols, gated): the measured one of the next greater width."""
    r, more = width_of(n)
    wide = TUNED.get(weight, {}).get("wide", [])
    found = next((cut for most, *cut in wide if 16 < r + more <= most), None)
    if found is None or n > WIDTHS[-1]:
        return launch_of(n, tile_of(*weight), weight[0], weight[2])
    bn, bk, stages, warps, inside = found
    return Launch(r, bn, bk, stages, warps, 0, bool(inside), more)


@cache
def prompt_cut(weight: tuple[int, int, bool]) -> Launch:
    """The cut of the many rows of a prompt: as many products from each number read as registers allow."""
    bk = min(64, tile_of(*weight).bk)
    return Launch(256, 128, bk, 3, 8, 0) if weight[2] else Launch(128, 256, bk, 3, 8, 0)


def _fitted(cut: Launch, x: Tensor) -> Launch:
    """A wide cut for numbers of 4 bytes, which take twice the shared memory: fewer steps of them are under way."""
    return cut._replace(stages=min(cut.stages, 2)) if x.element_size() == 4 and cut.width > 16 else cut


def part_of(cols: int, tile: Tile) -> int:
    """Columns of one part of the sum: whole steps of `bk`."""
    return cdiv(cdiv(cols, tile.split), tile.bk) * tile.bk


def linear(
    x: Tensor, weight: Weight, tile: Tile | None = None, cut: Launch | None = None, whole: bool = False
) -> Tensor:
    """x [n, K] times weight [N, K] transposed, as parts fp32 [S, n, N] to be added in order; S = 1 if `whole`.

    A tile or a cut of one's own is for tests and measurements.
    """
    w, scales = numbers_of(weight)
    (n, cols), rows = x.shape, len(w)
    key = rows, cols, False
    tile = tile or (None if scales is None else tile_of(*key, int8=True))
    c = _fitted(cut or (launch_of(n, tile, rows) if tile else prompt_cut(key) if whole else cut_of(n, key)), x)
    tile = tile or tile_of(*key)
    part = part_of(cols, tile._replace(split=1) if whole else tile)
    inside = c.inside and scales is None  # each part is scaled before it is added
    split = 1 if inside else cdiv(cols, part)
    out = scratch((split, n, rows), x)
    _linear[cdiv(n, c.width), cdiv(rows, c.bn), split](
        x, w, scales, out, n, rows, cols, part, R=c.r, MORE=c.more, BN=c.bn, BK=c.bk, EVEN=cols % tile.bk == 0,
        INSIDE=inside and part < cols, LINES=c.lines, **options(num_warps=c.warps, num_stages=c.stages),
    )  # fmt: skip
    return out


def gated(
    x: Tensor, weight: Weight, tile: Tile | None = None, cut: Launch | None = None, whole: bool = False
) -> Tensor:
    """gelu(gate) * up of x [n, K] with weight [2 I, K], gate rows first: [n, I] in x's dtype."""
    w, scales = numbers_of(weight)
    (n, cols), rows = x.shape, len(w) // 2
    key = 2 * rows, cols, True
    tile = tile or (None if scales is None else tile_of(*key, int8=True))
    c = _fitted(
        cut or (launch_of(n, tile, 2 * rows, True) if tile else prompt_cut(key) if whole else cut_of(n, key)), x
    )
    tile, out = tile or tile_of(*key), scratch((n, rows), x, x.dtype)
    _gated[cdiv(n, c.width), cdiv(2 * rows, c.bn)](
        x, w, scales, out, n, rows, cols, R=c.r, MORE=c.more, BN=c.bn, BK=c.bk, EVEN=cols % tile.bk == 0,
        LINES=c.lines, **options(num_warps=c.warps, num_stages=c.stages),
    )  # fmt: skip
    return out


class HeadWeight(NamedTuple):
    """An LM head: weight [V, K], in bf16 or fp32, or in int8 with a scale for each row; soft cap, or 0 for none."""

    weight: Tensor
    cap: float = 0.0
    scales: Tensor | None = None


def head_weight(weight: Weight, cap: float = 0.0) -> HeadWeight:
    """A weight [V, K] as an LM head."""
    numbers, scales = numbers_of(weight)
    return HeadWeight(numbers, cap, scales)


def head_logits(x: Tensor, head: HeadWeight) -> Tensor:
    """Soft-capped logits fp32 [n, V] of x [n, K]."""
    logits = scratch((len(x), len(head.weight)), x)
    _launch_head(x, head, None, logits, (logits, logits))
    return logits


def head_best(x: Tensor, head: HeadWeight, suppressed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each tile's greatest logit fp32 [tiles, n] and its token id int32 [tiles, n], lowest id first among equals."""
    tiles = cdiv(len(head.weight), tile_of(*head.weight.shape, False).bn)
    best, ids = scratch((tiles, len(x)), x), scratch((tiles, len(x)), x, torch.int32)
    _launch_head(x, head, suppressed, None, (best, ids))
    return best, ids


def _launch_head(
    x: Tensor, head: HeadWeight, suppressed: Tensor | None, logits: Tensor | None, best: tuple[Tensor, Tensor]
) -> None:
    (n, cols), weight = x.shape, head.weight
    tile = tile_of(*weight.shape, False)
    # Tiles of a fixed size, since each leaves its maximum, and no wider than the registers of four warps.
    c = launch_of(n if n <= MAX_ROWS else cdiv(n, 2), tile, len(weight))._replace(bn=tile.bn)
    _head[cdiv(n, c.width), cdiv(len(weight), c.bn)](
        x, weight, x if head.scales is None else head.scales, x if suppressed is None else suppressed,
        best[0] if logits is None else logits, *best, n, len(weight), cols, head.cap,
        0 if suppressed is None else len(suppressed), R=c.r, MORE=c.more, BN=c.bn, BK=c.bk, EVEN=cols % tile.bk == 0,
        WRITE=logits is not None, INT8=head.scales is not None, **options(num_warps=4, num_stages=c.stages),
    )  # fmt: skip
