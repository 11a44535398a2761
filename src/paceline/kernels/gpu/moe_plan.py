"""Which experts each row goes to, and the order in which a mixture of experts works through its weights.

Whatever decides a row's experts and weights is exact (comparisons, integers) or has an order fixed by rank, so it
does not matter how many rows a program handles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.launch import cdiv, let_next_start, options, pow2, scratch, wait

FEW_ROWS = 16  # so many rows are routed and planned by a single program
LEAST_TILE, MOST_TILE = 16, 160  # pairs in a tile: what one matrix instruction takes, and what registers hold
CHUNK, MANY_PAIRS = 64, 16384  # pairs placed by one program, twice as many from that many pairs on
LOWEST = tl.constexpr(-(2**31))


class Plan(NamedTuple):
    """The weights that a call needs, as tiles: one expert and up to R of the pairs routed to it. All int32.

    Pair row * A + rank is a row's expert of that rank. An expert's pairs are in ascending order, all its tiles but the
    last are full, and no two experts share a tile, so few rows read each distinct expert once. There are `tiles` [1]
    tiles; what lies behind them in experts [T], counts [T] (pairs of the tile) and pairs [T, R] is undefined.
    """

    tiles: Tensor
    experts: Tensor
    counts: Tensor
    pairs: Tensor


def route(parts: Tensor, active: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The best experts of each row, ties by lowest index, and softmax over their scores times expert_scale.

    parts fp32 [S, n, E] are added in order; expert_scale fp32 [E]. Returns (ids int32, weights fp32), [n, active] in
    rank order.
    """
    choices = _choices(parts, active)
    _launch_route(parts, expert_scale, choices, None)
    return choices


def route_and_plan(parts: Tensor, active: int, expert_scale: Tensor) -> tuple[Tensor, Tensor, Plan]:
    """`route` and `plan`, in one launch for few rows."""
    n, experts = parts.shape[1:]
    if n > FEW_ROWS:
        ids, weights = route(parts, active, expert_scale)
        return ids, weights, plan(ids, experts)
    choices = _choices(parts, active)
    tiles = _empty_plan(choices[0], experts, LEAST_TILE)
    _launch_route(parts, expert_scale, choices, tiles)
    return *choices, tiles


def plan(ids: Tensor, experts: int, tile: int | None = None) -> Plan:
    """The tiles for ids [n, A]. A tile takes `tile` pairs, one power of two or two; the default follows from n."""
    n, active = ids.shape
    tiles = _empty_plan(ids, experts, tile or tile_for(n * active, experts))
    block = 128 if n * active <= 128 else 1024
    chunk = CHUNK if n * active <= MANY_PAIRS else 2 * CHUNK
    _plan[(cdiv(n * active, chunk),)](
        ids, *tiles, n * active,
        E=pow2(experts, 16), R=tiles.pairs.shape[1], CHUNK=chunk, BLOCK=block, **options(num_warps=4),
    )  # fmt: skip
    return tiles


def tile_for(pairs: int, experts: int) -> int:
    """Pairs in a tile: twice an even share, so that few experts need a second tile."""
    return min(MOST_TILE, pow2(2 * pairs // experts, LEAST_TILE))


def most_tiles(pairs: int, experts: int, tile: int) -> int:
    """The number of tiles when every expert that can have one has a nearly empty last tile."""
    return (pairs + min(pairs, experts) * (tile - 1)) // tile


def _choices(parts: Tensor, active: int) -> tuple[Tensor, Tensor]:
    n = parts.shape[1]
    return scratch((n, active), parts, torch.int32), scratch((n, active), parts)


def _empty_plan(ids: Tensor, experts: int, tile: int) -> Plan:
    count = most_tiles(ids.numel(), experts, tile)
    shapes = ((1,), (count,), (count,), (count, tile))
    return Plan(*(scratch(shape, ids, torch.int32) for shape in shapes))


def _launch_route(parts: Tensor, expert_scale: Tensor, choices: tuple[Tensor, Tensor], tiles: Plan | None) -> None:
    """One program for each row, or one for all of them where it writes the plan too."""
    (count, n, experts), active = parts.shape, choices[0].shape[1]
    assert parts[0].is_contiguous(), "rows of parts must be contiguous"
    rows = 1 if tiles is None else pow2(n)
    _route[(cdiv(n, rows),)](
        parts, expert_scale, *choices, *(tiles or (None,) * 4), n, experts, parts.stride(0),
        S=count, A=active, AP=pow2(active), E=pow2(experts, 16), ROWS=rows, R=LEAST_TILE, PLAN=tiles is not None,
        **options(num_warps=rows),
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def _route(
    parts, expert_scale, ids_out, weights_out, tiles, expert_of, counts, pairs, n, experts, stride,
    S: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr,
    PLAN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """ROWS rows, and with PLAN their plan, for which there must be one program."""
    let_next_start(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, E)
    known = (row[:, None] < n) & (expert[None, :] < experts)
    at = parts + row[:, None].to(tl.int64) * experts + expert[None, :]
    wait(PDL)
    score = tl.zeros((ROWS, E), tl.float32)  # from zero on, so that no score is a negative zero
    for part in tl.static_range(S):
        score += tl.load(at + part * stride, mask=known, other=0.0)
    score = tl.where(expert[None, :] < experts, score, -float("inf"))
    ids, best, rank_of = _best(score, A, AP, E, ROWS)
    rank = tl.arange(0, AP)[None, :]
    chosen = (row[:, None] < n) & (rank < A)
    pair = row[:, None] * A + rank
    scale = tl.load(expert_scale + ids, mask=chosen, other=0.0)
    tl.store(ids_out + pair, ids, mask=chosen)
    tl.store(weights_out + pair, _softmax(best, rank, A) * scale, mask=chosen)
    if PLAN and ROWS == 1:  # each expert has one pair: the order may be that of ranks
        rank, chosen, ids = tl.ravel(rank), tl.ravel(chosen), tl.ravel(ids)
        tl.store(tiles, A)
        tl.store(expert_of + rank, ids, mask=chosen)
        tl.store(counts + rank, 1, mask=chosen)
        tl.store(pairs + rank * R, rank, mask=chosen)
    elif PLAN:
        rank_of = tl.where(row[:, None] < n, rank_of, A)
        _plan_few(tiles, expert_of, counts, pairs, rank_of, A, E, ROWS, R)


@triton.jit
def _best(score, A: tl.constexpr, AP: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr):
    """The A greatest of each row of score [ROWS, E], greatest first, ties by lowest index: (indices, values, ranks).

    ranks [ROWS, E] has A where an expert is not chosen. Scores are compared as integers that have the same order,
    since a warp finds the greatest integer in one instruction.
    """
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    expert, rank = tl.arange(0, E)[None, :], tl.arange(0, AP)[None, :]
    ids, keys = tl.zeros((ROWS, AP), tl.int32), tl.zeros((ROWS, AP), tl.int32)
    rank_of = tl.full((ROWS, E), A, tl.int32)
    for a in tl.static_range(A):
        most = tl.max(key, axis=1)[:, None]
        index = tl.min(tl.where(key == most, expert, E), axis=1)[:, None]
        ids, keys = tl.where(rank == a, index, ids), tl.where(rank == a, most, keys)
        key, rank_of = tl.where(expert == index, LOWEST, key), tl.where(expert == index, a, rank_of)
    bits = keys ^ ((keys >> 31) & 0x7FFFFFFF)
    return ids, bits.to(tl.float32, bitcast=True), rank_of


@triton.jit
def _softmax(best, rank, A: tl.constexpr):
    """Softmax of the first A columns, which are in descending order. Each sum below has one term that is not zero."""
    greatest = tl.sum(tl.where(rank == 0, best, 0.0), axis=1)[:, None]
    weight = tl.where(rank < A, tl.exp(best - greatest), 0.0)
    total = tl.sum(tl.where(rank == 0, weight, 0.0), axis=1)
    for a in tl.static_range(1, A):
        total += tl.sum(tl.where(rank == a, weight, 0.0), axis=1)
    return weight / total[:, None]


@triton.jit
def _plan_few(
    tiles, expert_of, counts, pairs, rank_of, A: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr
):
    """The plan of so few rows that no expert needs two tiles, from their ranks [ROWS, E], A where not chosen."""
    expert, row = tl.arange(0, E), tl.arange(0, ROWS)
    chosen = (rank_of < A).to(tl.int32)
    count = tl.sum(chosen, axis=0)
    used = (count > 0).to(tl.int32)
    tile = tl.cumsum(used) - used
    tl.store(tiles, tl.sum(used))
    tl.store(expert_of + tile, expert, mask=used > 0)
    tl.store(counts + tile, count, mask=used > 0)
    place = tl.cumsum(chosen, axis=0) - chosen
    tl.store(pairs + tile[None, :] * R + place, row[:, None] * A + rank_of, mask=chosen > 0)


@triton.jit(do_not_specialize=["total"])
def _plan(
    ids, tiles, expert_of, counts, pairs, total,
    E: tl.constexpr, R: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Places CHUNK pairs. Every program counts all pairs for itself: that is quicker than asking the others."""
    let_next_start(PDL)
    wait(PDL)
    start = tl.program_id(0) * CHUNK
    pair = start + tl.arange(0, CHUNK)
    real = pair < total
    expert = tl.load(ids + pair, mask=real, other=0)
    all_pairs, earlier = tl.zeros((E,), tl.int32), tl.zeros((E,), tl.int32)
    for at in range(0, total, BLOCK):
        other = at + tl.arange(0, BLOCK)
        its_expert = tl.load(ids + other, mask=other < total, other=0)
        all_pairs += tl.histogram(its_expert, E, mask=other < total)
        earlier += tl.histogram(its_expert, E, mask=other < tl.minimum(start, total))
    tiles_of = (all_pairs + R - 1) // R
    first_tile = tl.cumsum(tiles_of) - tiles_of
    same = (expert[:, None] == expert[None, :]) & real[None, :] & (pair[None, :] < pair[:, None])
    place = tl.gather(earlier, expert, 0) + tl.sum(same.to(tl.int32), axis=1)
    count = tl.minimum(tl.gather(all_pairs, expert, 0) - place, R)
    tile = tl.gather(first_tile, expert, 0) + place // R
    tl.store(pairs + tile * R + place % R, pair, mask=real)
    tl.store(expert_of + tile, expert, mask=real & (place % R == 0))
    tl.store(counts + tile, count, mask=real & (place % R == 0))
    if start == 0:
        tl.store(tiles, tl.sum(tiles_of, axis=0))
