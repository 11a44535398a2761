"""The choice for wide rows: a top-k too large to list, or a top-p or min-p that leaves too many, over the vocabulary.

What is kept are all keys from some edge on, and the edge is searched digit by digit, from the top: each step weighs,
tile by tile, the keys that agree with the digits found so far, by their next digit, and the first digit at which the
weight from the greatest key down reaches the goal is the edge's. Keys weigh 1 each until the edge of top-k is found,
then their mass until that of top-p is. Every launch is small, and returns at once for rows that do not need it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.keys import COLUMN_BITS, NO_KEY, column_of
from paceline.kernels.gpu.launch import cdiv, let_next_start, options, pow2, scratch, wait
from paceline.kernels.gpu.rows import Rows, Source, cuts, ids_at, keys_at, likely, logits_at, noisy, scores_of

TILE = 4096  # columns of one program, a multiple of BLOCK
DIGIT = tl.constexpr(4)  # bits
BINS = tl.constexpr(1 << DIGIT.value)
TOP = tl.constexpr(32 + COLUMN_BITS.value - DIGIT.value)  # the shift of the first digit
STEPS = TOP.value // DIGIT.value + 1
BLOCK = tl.constexpr(512)


class Unsettled(NamedTuple):
    """The wide rows: open int32 [n] is 1 for those still to be chosen; peak float64 [n] their greatest score, or 0."""

    open: Tensor
    peak: Tensor


class State(NamedTuple):
    """A search before a step's digit, [n] each, and what the step weighed.

    edge int64: the digits found. floor int64: no key below it counts. before: the weight above all keys that agree with
    the edge; whole: the weight of all that count (float64). bins float64 [n, tiles, BINS]; alive int32 [n, tiles]:
    whether any key of the tile agreed.
    """

    edge: Tensor
    floor: Tensor
    before: Tensor
    whole: Tensor
    bins: Tensor
    alive: Tensor


def search(source: Source, params: Rows, positions: Tensor, unsettled: Unsettled, out: Tensor) -> None:
    """Writes the token ids of the open rows into out int64 [n]; positions as for `choose.sample`."""
    n, tiles, q = len(out), cdiv(source.V, TILE), len(out) // len(params.seed)
    turns = [_state(source, tiles) for _ in range(2)]
    sizes = {"TILE": TILE, "TILES": pow2(tiles), **options(num_warps=8)}
    for i in range(2 * STEPS):
        mass, step = divmod(i, STEPS)
        old, new = turns[(i + 1) % 2], turns[i % 2]
        shift = TOP.value - DIGIT.value * step
        _step[tiles, n](source, params, unsettled, old, new, q, shift, tiles, MASS=mass == 1, FIRST=step == 0, **sizes)
    counted, weighed = turns[(STEPS - 1) % 2], turns[(2 * STEPS - 1) % 2]
    best, keys = scratch((n, tiles), out, torch.float64), scratch((n, tiles), out, torch.int64)
    _tile_choice[tiles, n](source, params, positions, unsettled, counted, weighed, best, keys, q, tiles, **sizes)
    _row_choice[n,](source, unsettled, best, keys, out, tiles, TILES=pow2(tiles), **options(num_warps=1))


def _state(source: Source, tiles: int) -> State:
    n, like = len(source.logits), source.logits
    return State(
        edge=scratch((n,), like, torch.int64),
        floor=scratch((n,), like, torch.int64),
        before=scratch((n,), like, torch.float64),
        whole=scratch((n,), like, torch.float64),
        bins=scratch((n, tiles, BINS.value), like, torch.float64),
        alive=scratch((n, tiles), like, torch.int32),
    )


@triton.jit(do_not_specialize=["shift"])
def _step(
    source, rows, unsettled, old, new, q, shift, tiles,
    MASS: tl.constexpr, FIRST: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    let_next_start(PDL)
    tile, row = tl.program_id(0), tl.program_id(1)
    if tl.load(unsettled.open + row) > 0:
        limit, p, _free = cuts(rows, row // q, source.V)
        if (p < 1.0) if MASS else (limit < source.V):
            so_far = _before_step(old, row, limit, p, source.V, shift, tiles, MASS, FIRST, TILES)
            if tile == 0:
                tl.store(new.edge + row, so_far[0])
                tl.store(new.floor + row, so_far[1])
                tl.store(new.before + row, so_far[2])
                tl.store(new.whole + row, so_far[3])
            peak = tl.load(unsettled.peak + row)
            _weigh_tile(source, rows, old, new, row, row // q, peak, so_far, shift, tile, tiles, MASS, FIRST, TILE)


@triton.jit
def _weigh_tile(
    source, rows, old, new, row, b, peak, so_far, shift, tile, tiles,
    MASS: tl.constexpr, FIRST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Stores the bins of a tile, and whether it will have to be looked at again."""
    place = row * tiles + tile
    alive = 1 if FIRST else tl.load(old.alive + place)
    bins = tl.full([BINS], 0.0, tl.float64)
    if alive > 0:
        keys = keys_at(source, row, tile * TILE + tl.arange(0, TILE))
        alive = tl.max(_agree(keys, so_far[0], so_far[1], shift).to(tl.int32), 0)
        if alive > 0:
            bins = _weigh(source, rows, row, b, peak, so_far[0], so_far[1], shift, tile * TILE, TILE, MASS)
    tl.store(new.alive + place, alive)
    tl.store(new.bins + place * BINS + tl.arange(0, BINS), bins)


@triton.jit
def _before_step(
    old, row, limit, p, V, shift, tiles, MASS: tl.constexpr, FIRST: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """(edge, floor, before, whole) as a step finds them: the search so far, or the start of a new one."""
    if FIRST:
        floor = _floor(old, row, limit, p, V, tiles, TILES) if MASS else tl.full([], 0, tl.int64)
        return tl.full([], 0, tl.int64), floor, p * 0.0, p * 0.0
    else:
        edge, before, whole = _digit(old, row, limit, p, shift + DIGIT, tiles, MASS, TILES)
        return edge, tl.load(old.floor + row), before, whole


@triton.jit
def _floor(counted, row, limit, p, V, tiles, TILES: tl.constexpr):
    """The least key that top-k leaves, from the finished search; 0 where it leaves all of V."""
    floor = tl.full([], 0, tl.int64)
    if limit < V:
        floor, _, _ = _digit(counted, row, limit, p, 0, tiles, False, TILES)
    return floor


@triton.jit
def _digit(state, row, limit, p, shift, tiles, MASS: tl.constexpr, TILES: tl.constexpr):
    """(edge, before, whole) with the digit at `shift` that the state's bins decide."""
    tile, digit = tl.arange(0, TILES), tl.arange(0, BINS)
    at = state.bins + (row * tiles + tile[None, :]) * BINS + digit[:, None]
    bins = tl.sum(tl.load(at, tile[None, :] < tiles, other=0.0), 1)
    above = tl.sum(tl.where(digit[:, None] > digit[None, :], bins[:, None], 0.0), 0)
    below = tl.sum(tl.where(digit[:, None] >= digit[None, :], bins[:, None], 0.0), 0)
    before = tl.load(state.before + row)
    whole = tl.where(shift == TOP, tl.sum(bins, 0), tl.load(state.whole + row))
    goal = p * whole if MASS else limit.to(tl.float64)
    found = tl.max(tl.where(before + below >= goal, digit, 0), 0)
    edge = tl.load(state.edge + row) | (found.to(tl.int64) << shift)
    return edge, before + tl.sum(tl.where(digit == found, above, 0.0), 0), whole


@triton.jit
def _agree(keys, edge, floor, shift):
    """Which keys count and agree with the edge in all digits above `shift`."""
    return (keys >= floor) & (((keys >> shift) >> DIGIT) == ((edge >> shift) >> DIGIT))


@triton.jit
def _weigh(source, rows, row, b, peak, edge, floor, shift, first, TILE: tl.constexpr, MASS: tl.constexpr):
    """The weight of a tile's agreeing keys by their digit at `shift`, float64 [BINS]."""
    digit = tl.arange(0, BINS)
    bins = tl.full([BINS, BLOCK], 0.0, tl.float64)
    for start in range(0, TILE, BLOCK):
        columns = first + start + tl.arange(0, BLOCK)
        keys = keys_at(source, row, columns)
        weight = _agree(keys, edge, floor, shift).to(tl.float64)
        if MASS:
            weight *= tl.exp(scores_of(logits_at(source, row, columns), rows, b) - peak)
        own = ((keys >> shift) & (BINS - 1)).to(tl.int32)
        bins += tl.where(own[None, :] == digit[:, None], weight[None, :], 0.0)
    return tl.sum(bins, 1)


@triton.jit
def _tile_choice(
    source, rows, positions, unsettled, counted, weighed, best, keys, q, tiles,
    TILE: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The greatest noisy score of each tile of each open row among what is kept, and its key."""
    wait(PDL)
    let_next_start(PDL)
    tile, row = tl.program_id(0), tl.program_id(1)
    if tl.load(unsettled.open + row) > 0:
        limit, p, _free = cuts(rows, row // q, source.V)
        if p < 1.0:
            edge, _, _ = _digit(weighed, row, limit, p, 0, tiles, True, TILES)
            edge = tl.maximum(edge, tl.load(weighed.floor + row))
        else:
            edge = _floor(counted, row, limit, p, source.V, tiles, TILES)
        place = tl.load(positions + row), tl.load(unsettled.peak + row)
        total, key = _noisiest(source, rows, row, row // q, place, edge, tile * TILE, TILE)
        tl.store(best + row * tiles + tile, total)
        tl.store(keys + row * tiles + tile, key)


@triton.jit
def _noisiest(source, rows, row, b, place, edge, first, TILE: tl.constexpr):
    """(greatest noisy score, its key) among the columns of a tile from the edge on; ties take the greatest key.

    place: the token's position, and the row's greatest score.
    """
    best, leader = tl.full([BLOCK], float("-inf"), tl.float64), tl.full([BLOCK], NO_KEY, tl.int64)
    for start in range(0, TILE, BLOCK):
        columns = first + start + tl.arange(0, BLOCK)
        keys = keys_at(source, row, columns)
        if tl.max((keys >= edge).to(tl.int32), 0) > 0:
            scores = scores_of(logits_at(source, row, columns), rows, b)
            total = noisy(scores, ids_at(source, row, columns), rows, b, place[0])
            kept = (keys >= edge) & likely(scores, place[1], rows, b)
            better = kept & ((total > best) | ((total == best) & (keys > leader)))
            best, leader = tl.where(better, total, best), tl.where(better, keys, leader)
    return _first(best, leader)


@triton.jit
def _first(totals, keys):
    """(greatest total, the greatest of its keys)."""
    most = tl.max(totals, 0)
    return most, tl.max(tl.where(totals == most, keys, NO_KEY), 0)


@triton.jit
def _row_choice(source, unsettled, best, keys, out, tiles, TILES: tl.constexpr, PDL: tl.constexpr):
    wait(PDL)
    let_next_start(PDL)
    row, tile = tl.program_id(0), tl.arange(0, TILES)
    if tl.load(unsettled.open + row) > 0:
        totals = tl.load(best + row * tiles + tile, tile < tiles, other=float("-inf"))
        leaders = tl.load(keys + row * tiles + tile, tile < tiles, other=NO_KEY)
        _, key = _first(totals, leaders)
        tl.store(out + row, ids_at(source, row, column_of(key)))
