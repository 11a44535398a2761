"""The experts of a mixture: y = down(gelu(gate) * up) for each (row, rank) pair, each distinct expert read once.

A program multiplies a tile of an expert's weights, the left operand, by the rows of x that a plan tile names. The
element (weight row, pair) adds the same products in the same order wherever it lies and however wide the tile is, so
a pair's bits depend on its row and its expert alone.

The dense MLP of the same layer can ride along. Cut into slices as wide as an expert, it is so many more experts that
every row goes to: slice s gives part s of the dense answer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.launch import cdiv, let_next_start, options, scratch, wait
from paceline.kernels.gpu.maths import gelu_tanh
from paceline.kernels.gpu.moe_plan import LEAST_TILE, Plan, plan, route, route_and_plan
from paceline.kernels.gpu.parts import prefetch

__all__ = ["Plan", "Tile", "Tiles", "experts", "experts_and_dense", "plan", "route", "route_and_plan"]


class Tile(NamedTuple):
    """How a program cuts its weights; nothing here touches the arithmetic.

    bn rows (of gate and up together) and bk columns at a time; `lines`: cache lines of each row that are asked for
    before the kernel may start, 128 bytes each.
    """

    bn: int
    bk: int
    stages: int
    warps: int = 4
    lines: int = 0


class Tiles(NamedTuple):
    """The tiles of the two kernels."""

    gated: Tile
    down: Tile


class Slices(NamedTuple):
    """A dense MLP cut into S = `number` slices as wide as an expert: gate_up [2 S I, D], down [D, S I]."""

    x: Tensor
    gate_up: Tensor
    down: Tensor
    number: int


FEW = Tiles(gated=Tile(64, 64, 6, lines=4), down=Tile(128, 64, 4, lines=4))
MANY = Tiles(gated=Tile(128, 64, 3, 8), down=Tile(128, 64, 3))
FP32 = Tiles(gated=Tile(32, 32, 2), down=Tile(32, 32, 2))


def tiles_for(plan: Plan, dtype: torch.dtype) -> Tiles:
    """The tiles used by default."""
    if dtype == torch.float32:
        return FP32
    return FEW if plan.pairs.shape[1] == LEAST_TILE else MANY


def experts(x: Tensor, plan: Plan, ids: Tensor, gate_up: Tensor, down: Tensor, tiles: Tiles | None = None) -> Tensor:
    """Each pair's answer, not yet weighted: fp32 [n, A, D].

    x [n, D]; plan of ids [n, A]; gate_up [E, 2 I, D], gate rows first; down [E, D, I].
    """
    return _run(x, plan, ids, (gate_up, down), None, tiles or tiles_for(plan, x.dtype))[0]


def experts_and_dense(
    x: Tensor, x_dense: Tensor, plan: Plan, ids: Tensor, gate_up: Tensor, down: Tensor, dense_gate_up: Tensor,
    dense_down: Tensor, tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`experts` of x, and the dense MLP of x_dense [n, D] as parts fp32 [S, n, D], in the same two launches.

    dense_gate_up [2 S I, D], gate rows first; dense_down [D, S I].
    """
    number, rest = divmod(dense_down.shape[1], down.shape[2])
    assert rest == 0, "the dense MLP must be as wide as some number of experts"
    dense = Slices(x_dense, dense_gate_up, dense_down, number)
    return _run(x, plan, ids, (gate_up, down), dense, tiles or tiles_for(plan, x.dtype))


def _run(
    x: Tensor, plan: Plan, ids: Tensor, weights: tuple[Tensor, Tensor], dense: Slices | None, tiles: Tiles
) -> tuple[Tensor, Tensor]:
    (n, hidden), active, size = x.shape, ids.shape[1], weights[1].shape[2]
    most, tile = plan.pairs.shape
    slices = 0 if dense is None else dense.number
    more = slices * cdiv(n, tile)
    dense = dense or Slices(x, *weights, 0)
    h = scratch(((more + most) * tile, size), x, x.dtype)
    sparse, parts = scratch((n, active, hidden), x), scratch((slices, n, hidden), x)
    numbers = (n, hidden, size, active, slices)
    _gated[(more + most) * cdiv(size, tiles.gated.bn // 2),](
        x, dense.x, weights[0], dense.gate_up, h, *plan, *numbers, **_shape(tiles.gated, tile, hidden, slices)
    )
    _down[(more + most) * cdiv(hidden, tiles.down.bn),](
        h, weights[1], dense.down, sparse, parts, *plan, *numbers, **_shape(tiles.down, tile, size, slices)
    )
    return sparse, parts


def _shape(tile: Tile, pairs: int, cols: int, slices: int) -> dict[str, int]:
    most = 1 << (pairs.bit_length() - 1)  # a tile's width is one power of two, or the sum of two
    return options(
        R=most, MORE=pairs - most, BN=tile.bn, BK=tile.bk, EVEN=cols % tile.bk == 0, DENSE=slices > 0,
        LINES=tile.lines, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


@triton.jit
def _tile(tile, n, slices, tiles, expert_of, counts, WIDTH: tl.constexpr, DENSE: tl.constexpr):
    """What a tile multiplies: (expert or slice, the plan's tile, how many pairs or rows are real, is there anything).

    The dense MLP's tiles come first, those of the plan after them. Loads bypass L1, which is only known to forget an
    earlier plan at the wait, and `_down` reads before it.
    """
    t = tile
    if DENSE:
        t = tl.maximum(tile - slices * tl.cdiv(n, WIDTH), 0)
    used = t < tl.load(tiles, cache_modifier=".cg")
    index, count = tl.load(expert_of + t, cache_modifier=".cg"), tl.load(counts + t, cache_modifier=".cg")
    if DENSE and tile < slices * tl.cdiv(n, WIDTH):
        index, count = tile % slices, n - (tile // slices) * WIDTH
    return index.to(tl.int64), t, count, used


@triton.jit
def _items(place, tile, t, count, pairs, n, slices, WIDTH: tl.constexpr, DENSE: tl.constexpr):
    """The pairs, or for the dense MLP the rows, at these places of a tile, and which of them are real."""
    item = tl.load(pairs + t * WIDTH + place, cache_modifier=".cg")
    if DENSE and tile < slices * tl.cdiv(n, WIDTH):
        item = (tile // slices) * WIDTH + place
    real = place < count
    return tl.where(real, item, 0), real


@triton.jit
def _either(DENSE: tl.constexpr, is_dense, dense, sparse):
    """`dense` or `sparse`, chosen by arithmetic: a branch would hide from the compiler how addresses are aligned."""
    if DENSE:
        return tl.where(is_dense, dense, sparse)
    else:
        return sparse


@triton.jit
def _prefetch(w, rows, stride, size, LINES: tl.constexpr, PDL: tl.constexpr):
    """Asks L2 for the first LINES cache lines of these rows of weights, which no kernel writes."""
    if PDL and LINES > 0:
        line: tl.constexpr = 1024 // w.dtype.element_ty.primitive_bitwidth
        columns = tl.minimum(tl.arange(0, LINES) * line, size - 1)
        prefetch(w + rows[:, None] * stride + columns[None, :], PDL)


@triton.jit
def _inputs(at, real, k, left, EVEN: tl.constexpr):
    """A step of rows of x as columns, zero where not real and, unless EVEN, beyond `left` columns."""
    if EVEN:
        return tl.load(at, mask=real[None, :], other=0.0)
    else:
        return tl.load(at, mask=real[None, :] & (k[:, None] < left), other=0.0)


@triton.jit
def _product(
    w, w_rows, w_stride, x, x_rows, real, more_rows, more_real, size,
    R: tl.constexpr, MORE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """[BN, R] and [BN, MORE]: these rows of w times these rows of x [.., size], zero where they are not real.

    Without MORE the second is the first.
    """
    k = tl.arange(0, BK)
    w_at = w + w_rows[:, None] * w_stride + k[None, :]
    x_at = x + x_rows[None, :] * size + k[:, None]
    more_at = x + more_rows[None, :] * size + k[:, None]
    acc = tl.zeros((BN, R), tl.float32)
    more = tl.zeros((BN, MORE if MORE else R), tl.float32)
    for at in range(0, size, BK):
        a = tl.load(w_at) if EVEN else tl.load(w_at, mask=k[None, :] < size - at, other=0.0)
        acc = tl.dot(a, _inputs(x_at, real, k, size - at, EVEN), acc, input_precision="ieee")
        if MORE:
            more = tl.dot(a, _inputs(more_at, more_real, k, size - at, EVEN), more, input_precision="ieee")
        w_at += BK
        x_at += BK
        more_at += BK
    return acc, more if MORE else acc


@triton.jit(do_not_specialize=["n"])
def _gated(
    x, x_dense, gate_up, dense_gate_up, h, tiles, expert_of, counts, pairs, n, hidden, size, active, slices,
    R: tl.constexpr, MORE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, DENSE: tl.constexpr,
    LINES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h [tile * (R + MORE) + place, size] = gelu(gate) * up.

    Gate and up rows alternate by 8 in the tile: one thread then holds a gate and the up that belongs to it.
    """
    HALF: tl.constexpr = BN // 2
    WIDTH: tl.constexpr = R + MORE
    blocks = tl.cdiv(size, HALF)
    tile, first = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * HALF
    is_dense = tile < slices * tl.cdiv(n, WIDTH)
    i = tl.arange(0, BN)
    is_up = (i // 8) % 2
    w_rows = tl.minimum(first + (i // 16) * 8 + i % 8, size - 1) + is_up * _either(DENSE, is_dense, slices, 1) * size
    if DENSE and is_dense:
        _prefetch(dense_gate_up, w_rows + (tile % slices) * size, hidden, hidden, LINES, PDL)
    wait(PDL)
    let_next_start(PDL)  # not before the wait: the next kernel reads the plan as soon as it starts
    index, t, count, used = _tile(tile, n, slices, tiles, expert_of, counts, WIDTH, DENSE)
    if not used:
        return
    place = tl.arange(0, R)
    more_place = R + tl.arange(0, MORE) if MORE else place
    item, real = _items(place, tile, t, count, pairs, n, slices, WIDTH, DENSE)
    more_item, more_real = _items(more_place, tile, t, count, pairs, n, slices, WIDTH, DENSE)
    rows_of_w = _either(DENSE, is_dense, index * size, index * (2 * size))
    w = _either(DENSE, is_dense, dense_gate_up, gate_up) + rows_of_w * hidden
    acc, more = _product(
        w, w_rows, hidden, _either(DENSE, is_dense, x_dense, x), _either(DENSE, is_dense, item, item // active), real,
        _either(DENSE, is_dense, more_item, more_item // active), more_real, hidden, R, MORE, BN, BK, EVEN,
    )  # fmt: skip
    h += tile.to(tl.int64) * WIDTH * size
    _store_gated(h, acc, place, real, first, size, BN, R)
    if MORE:
        _store_gated(h, more, more_place, more_real, first, size, BN, MORE)


@triton.jit
def _store_gated(h, acc, place, real, first, size, BN: tl.constexpr, R: tl.constexpr):
    """gelu(gate) * up of acc [BN, R] into rows `place` of h, from column `first` on."""
    gate, up = tl.split(tl.permute(tl.reshape(acc, (BN // 16, 2, 8, R)), (0, 2, 3, 1)))
    y = tl.reshape(gelu_tanh(gate) * up, (BN // 2, R))
    column = first + tl.arange(0, BN // 2)
    at = h + place[None, :].to(tl.int64) * size + column[:, None]
    tl.store(at, y.to(h.dtype.element_ty), mask=real[None, :] & (column[:, None] < size))


@triton.jit(do_not_specialize=["n"])
def _down(
    h, down, dense_down, sparse, parts, tiles, expert_of, counts, pairs, n, hidden, size, active, slices,
    R: tl.constexpr, MORE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, DENSE: tl.constexpr,
    LINES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """sparse [pair, hidden] = down of h, and parts [slice, row, hidden] likewise.

    `_gated` lets this kernel start after its own wait only. The plan is complete by then, and may be read before the
    wait here.
    """
    WIDTH: tl.constexpr = R + MORE
    blocks = tl.cdiv(hidden, BN)
    tile, first = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BN
    is_dense = tile < slices * tl.cdiv(n, WIDTH)
    index, t, count, used = _tile(tile, n, slices, tiles, expert_of, counts, WIDTH, DENSE)
    place = tl.arange(0, R)
    more_place = R + tl.arange(0, MORE) if MORE else place
    item, real = _items(place, tile, t, count, pairs, n, slices, WIDTH, DENSE)
    more_item, more_real = _items(more_place, tile, t, count, pairs, n, slices, WIDTH, DENSE)
    column = first + tl.arange(0, BN)
    w_rows = tl.minimum(column, hidden - 1)
    w_stride = _either(DENSE, is_dense, slices, 1) * size
    w = _either(DENSE, is_dense, dense_down, down) + _either(DENSE, is_dense, index, index * hidden) * size
    if used:
        _prefetch(w, w_rows, w_stride, size, LINES, PDL)
    wait(PDL)
    let_next_start(PDL)
    if not used:
        return
    h += tile.to(tl.int64) * WIDTH * size
    acc, more = _product(
        w, w_rows, w_stride, h, place, real, more_place, more_real, size, R, MORE, BN, BK, EVEN
    )  # fmt: skip
    out = _either(DENSE, is_dense, parts + index * n * hidden, sparse)
    _store_down(out, acc, item, real, column, hidden)
    if MORE:
        _store_down(out, more, more_item, more_real, column, hidden)


@triton.jit
def _store_down(out, acc, item, real, column, hidden):
    """acc [BN, R] into these columns of the rows `item` of out."""
    at = out + item[None, :].to(tl.int64) * hidden + column[:, None]
    tl.store(at, acc, mask=real[None, :] & (column[:, None] < hidden))
