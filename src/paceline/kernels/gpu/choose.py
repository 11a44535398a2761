"""Logits to tokens on the device: what `paceline.sampling` specifies, for all rows of a pass at once.

Top-k needs no sort. Columns are grouped by FAN, and those groups again: the k columns that lead a row lie in the k
groups whose greatest members lead, so three small searches find them, whatever the logits are.

Noise belongs to (seed, position, id), and a row's kind alone decides how it is computed: a row's token
depends neither on the other rows nor on the mode. Masses are added in another order than NumPy's: where the cut of
top-p falls within 1e-12 of the mass from a boundary, one token more or less may be kept than on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.keys import LAST_COLUMN, NO_KEY, clean, column_of, lead_of, lead_over, pack, value_of
from paceline.kernels.gpu.launch import cdiv, let_next_start, options, pow2, scratch, wait
from paceline.kernels.gpu.leaders import LOWEST, ceiling, list_leaders, listed, ranks_of
from paceline.kernels.gpu.nucleus import Unsettled, search
from paceline.kernels.gpu.rows import (
    MAX_TOP_K,
    Columns,
    Rows,
    Source,
    cuts,
    ids_at,
    keys_at,
    likely,
    logits_at,
    noisy,
    note_margin,
    scores_of,
    source_of,
)

TILE = 2048  # columns of one program where many programs share a row, a multiple of BLOCK
TILE_WARPS = ROW_WARPS = 8  # of programs that see a tile, and of those that see a row
DIRECT = 4096  # up to so many columns, one program chooses alone
FAN = tl.constexpr(16)
NARROW = tl.constexpr(64)  # a top-k up to this takes the shorter lists
WIDEST = tl.constexpr(MAX_TOP_K)
BLOCK = tl.constexpr(1024)
CHUNK = tl.constexpr(16)
UNIT = tl.constexpr(2.0**54)  # a mass of 1 in fixed point; MAX_TOP_K of them fit into an int64
VOCABULARY = Columns()


class Survey(NamedTuple):
    """What is known of each tile of each row before its token is chosen.

    fine [n, tiles * TILE / FAN] and coarse [n, tiles * TILE / FAN^2]: the greatest logit of each group of columns.
    stats float64 [n, tiles, 2]: of free rows, the tile's greatest noisy score and its column; of wide rows, the tile's
    greatest score and its mass relative to that.
    """

    fine: Tensor
    coarse: Tensor
    stats: Tensor


# ---- greedy ---------------------------------------------------------------------------------------------------------


@triton.jit
def _tile_best(source, best, TILE: tl.constexpr, PDL: tl.constexpr):
    wait(PDL)
    let_next_start(PDL)
    tile, row = tl.program_id(0), tl.program_id(1)
    keys = keys_at(source, row, tile * TILE + tl.arange(0, TILE))
    tl.store(best + row * tl.num_programs(0) + tile, tl.max(keys, 0))


@triton.jit
def _row_best(source, best, out, tiles, TILES: tl.constexpr, PDL: tl.constexpr):
    wait(PDL)
    let_next_start(PDL)
    row, tile = tl.program_id(0), tl.arange(0, TILES)
    key, lead = lead_of(tl.load(best + row * tiles + tile, tile < tiles, other=NO_KEY))
    tl.store(out + row, ids_at(source, row, column_of(key)))
    note_margin(source.margins, source.stride, row, tl.where(tiles > 1, lead, 0.0))


def greedy(logits: Tensor, columns: Columns = VOCABULARY) -> Tensor:
    """The greatest of each row of logits fp32 [n, V], ties by lowest column, as token ids int64 [n]."""
    source, n = source_of(logits, columns), len(logits)
    tiles = cdiv(source.V, TILE)
    best, out = scratch((n, tiles), logits, torch.int64), scratch((n,), logits, torch.int64)
    _tile_best[tiles, n](source, best, TILE=TILE, **options(num_warps=TILE_WARPS))
    _row_best[n,](source, best, out, tiles, TILES=pow2(tiles), **options(num_warps=1))
    return out


@triton.jit
def _pick_best(values, ids, seconds, out, margins, stride, tiles, n, SIZE: tl.constexpr, PDL: tl.constexpr):
    wait(PDL)
    let_next_start(PDL)
    row = tl.program_id(0)
    best, token = tl.full([SIZE], NO_KEY, tl.int64), tl.full([SIZE], 0, tl.int64)
    second = tl.full([SIZE], float("-inf"), tl.float32)
    for first in range(0, tiles, SIZE):
        tile = first + tl.arange(0, SIZE)
        x = clean(tl.load(values + tile * n + row, tile < tiles, other=float("-inf")))
        name = tl.load(ids + tile * n + row, tile < tiles, other=0).to(tl.int64)
        key = tl.where(tile < tiles, pack(x, tile), NO_KEY)
        token = tl.where(key > best, name, token)
        if seconds is not None:
            near = tl.load(seconds + tile * n + row, tile < tiles, other=float("-inf"))
            second = tl.where(key > best, near, second)
        best = tl.maximum(best, key)
    first, lead = lead_of(best)
    tl.store(out + row, tl.sum(tl.where(best == first, token, 0), 0))
    if seconds is not None:
        lead = tl.minimum(lead, lead_over(value_of(first), tl.max(tl.where(best == first, second, float("-inf")), 0)))
    else:
        lead = tl.where(tiles > 1, lead, 0.0)  # a tile alone does not tell
    note_margin(margins, stride, row, lead)


def pick_best(values: Tensor, ids: Tensor, seconds: Tensor | None = None, margins: Tensor | None = None) -> Tensor:
    """The id of each row's greatest value, ties by lowest tile: values fp32 and ids [tiles, n] -> int64 [n].

    seconds fp32 [tiles, n]: the value next to each, within its tile. margins: as those of `Columns`.
    """
    tiles, n = values.shape
    out = scratch((n,), values, torch.int64)
    size = min(pow2(tiles), 4096)
    stride, warps = 0 if margins is None else margins.stride(0), max(1, min(8, size // 128))
    _pick_best[n,](values, ids, seconds, out, margins, stride, tiles, n, SIZE=size, **options(num_warps=warps))
    return out


# ---- sampling: the survey -------------------------------------------------------------------------------------------


@triton.jit
def _survey(
    source, rows, positions, survey, q, TILE: tl.constexpr, GENERAL: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    wait(PDL)
    let_next_start(PDL)
    tile, row = tl.program_id(0), tl.program_id(1)
    place = row * tl.num_programs(0) + tile
    limit, _p, free = cuts(rows, row // q, source.V)
    if free:
        best, column = noisiest(source, rows, row, row // q, tl.load(positions + row), tile * TILE, TILE)
        tl.store(survey.stats + 2 * place, best)
        tl.store(survey.stats + 2 * place + 1, column.to(tl.float64))
    else:
        FINE: tl.constexpr = TILE // FAN
        COARSE: tl.constexpr = FINE // FAN
        x = logits_at(source, row, tile * TILE + tl.arange(0, TILE))
        fine = tl.max(tl.reshape(x, [FINE, FAN]), 1)
        coarse = tl.max(tl.reshape(fine, [COARSE, FAN]), 1)
        tl.store(survey.fine + place * FINE + tl.arange(0, FINE), fine)
        tl.store(survey.coarse + place * COARSE + tl.arange(0, COARSE), coarse)
        if GENERAL:
            peak = scores_of(tl.max(coarse, 0), rows, row // q)
            _note_mass(source, rows, survey.stats + 2 * place, row, row // q, peak, limit, tile * TILE, TILE)


@triton.jit
def noisiest(source, rows, row, b, position, first, span):
    """(greatest noisy score, its column) among columns first .. first + span - 1; ties take the lowest column."""
    lane = tl.arange(0, BLOCK)
    best, where = tl.full([BLOCK], float("-inf"), tl.float64), first + lane
    for start in range(0, span, BLOCK):
        columns = first + start + lane
        scores = scores_of(logits_at(source, row, columns), rows, b)
        total = noisy(scores, ids_at(source, row, columns), rows, b, position)
        where = tl.where(total > best, columns, where)
        best = tl.maximum(best, total)
    greatest = tl.max(best, 0)
    return greatest, tl.min(tl.where(best == greatest, where, LAST_COLUMN), 0)


@triton.jit
def _note_mass(source, rows, stats, row, b, peak, limit, first, span):
    """Stores the peak of a wide row's tile and the sum of exp(score - peak) over it, 0 if the peak is -infinity."""
    if limit > WIDEST:
        mass = tl.full([BLOCK], 0.0, tl.float64)
        base = tl.where(peak > float("-inf"), peak, 0.0)
        for start in range(0, span, BLOCK):
            x = logits_at(source, row, first + start + tl.arange(0, BLOCK))
            mass += tl.exp(scores_of(x, rows, b) - base)
        tl.store(stats, peak)
        tl.store(stats + 1, tl.sum(mass, 0))


# ---- sampling: the choice -------------------------------------------------------------------------------------------


@triton.jit
def _choose(
    source, rows, positions, survey, unsettled, lists, out, q, tiles,
    COARSE: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr, GENERAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program per row. A tile has COARSE coarse groups; TILES >= tiles; WIDTH >= what the search starts from."""
    wait(PDL)
    let_next_start(PDL)
    row = tl.program_id(0)
    b = row // q
    position = tl.load(positions + row)
    limit, p, free = cuts(rows, b, source.V)
    held, whole, lead = free, p * 0.0, p * 0.0  # what is unknown is 0
    if free:
        token = _free_choice(source, rows, survey, row, b, position, tiles, TILES)
    elif limit <= NARROW:
        at, count = _leaders(source, survey, lists, row, limit, tiles * COARSE, NARROW, WIDTH)
        token, held, lead = _draw(source, rows, row, b, position, at, count, p, whole, NARROW)
    else:
        if GENERAL:
            whole = _whole(survey, unsettled, row, limit > WIDEST, tiles, TILES)
        at, count = _leaders(source, survey, lists, row, tl.minimum(limit, WIDEST), tiles * COARSE, WIDEST, WIDTH)
        token, held, lead = _draw(source, rows, row, b, position, at, count, p, whole, WIDEST)
    tl.store(out + row, token)
    note_margin(source.margins, source.stride, row, tl.where(limit > 1, lead, 0.0))
    if GENERAL:
        done = held & (limit == source.V) & (p < 1.0)
        tl.store(unsettled.open + row, ((limit > WIDEST) & (free == 0) & (done == 0)).to(tl.int32))


@triton.jit
def _free_choice(source, rows, survey, row, b, position, tiles, TILES: tl.constexpr):
    """The token with the greatest noisy score of all."""
    if survey is None:
        _best, column = noisiest(source, rows, row, b, position, 0, source.V)
    else:
        tile = tl.arange(0, TILES)
        at = survey.stats + 2 * (row * tiles + tile)
        total = tl.load(at, tile < tiles, other=float("-inf"))
        where = tl.load(at + 1, tile < tiles, other=0.0).to(tl.int32)
        first = tl.where((total == tl.max(total, 0)) & (tile < tiles), where, LAST_COLUMN)
        column = tl.min(first, 0)
    return ids_at(source, row, column)


@triton.jit
def _leaders(source, survey, lists, row, limit, groups, K: tl.constexpr, WIDTH: tl.constexpr):
    """(where the leading columns of a row are listed in ascending order, how many): `limit` <= K, or all there are."""
    first = tl.arange(0, WIDTH)
    at = lists + row * 3 * WIDEST
    low = tl.full([], LOWEST, tl.int64)
    if survey is None:
        ranks = ranks_of(logits_at(source, row, first), first < source.V)
        count, low = list_leaders(ranks, first, limit, low, ceiling(ranks), at)
        return at, count
    else:
        ranks = _ranks(survey.coarse + row * groups, first, groups)
        high = ceiling(ranks)
        count, low = list_leaders(ranks, first, limit, low, high, at)
        fine = _members(listed(at, count, K), K)
        ranks = _ranks(survey.fine + row * groups * FAN, fine, groups * FAN)
        count, low = list_leaders(ranks, fine, limit, low, high, at + WIDEST)
        columns = _members(listed(at + WIDEST, count, K), K)
        ranks = ranks_of(logits_at(source, row, columns), columns < source.V)
        count, low = list_leaders(ranks, columns, limit, low, high, at + 2 * WIDEST)
        return at + 2 * WIDEST, count


@triton.jit
def _ranks(at, group, groups):
    """Ranks of groups by their greatest members."""
    return ranks_of(tl.load(at + group, group < groups, other=0.0), group < groups)


@triton.jit
def _members(groups, K: tl.constexpr):
    """What K groups consist of, [K * FAN]."""
    return tl.reshape(groups[:, None] * FAN + tl.arange(0, FAN)[None, :], [K * FAN])


@triton.jit
def _whole(survey, unsettled, row, wide, tiles, TILES: tl.constexpr):
    """The mass of all of a wide row relative to its greatest score, which is noted; 0 for other rows."""
    tile = tl.arange(0, TILES)
    at = survey.stats + 2 * (row * tiles + tile)
    peaks = tl.load(at, wide & (tile < tiles), other=float("-inf"))
    masses = tl.load(at + 1, wide & (tile < tiles), other=0.0)
    peak = tl.max(peaks, 0)
    peak = tl.where(peak > float("-inf"), peak, 0.0)
    tl.store(unsettled.peak + row, peak)
    return tl.sum(masses * tl.exp(peaks - peak), 0)


@triton.jit
def _draw(source, rows, row, b, position, at, count, p, whole, K: tl.constexpr):
    """(the token that leads with noise among the listed columns that top-p and min-p leave, whether all listed columns
    held p of the mass, by how much the likeliest leads without noise).

    Top-p counts shares of `whole`, or where that is 0, of the mass of the `count` listed columns. Listed masses are
    added as integers: the cut does not depend on the order in which some kernel adds them.
    """
    columns = listed(at, count, K)
    x = logits_at(source, row, columns)
    scores = scores_of(x, rows, b)
    peak = tl.max(scores, 0)
    peak = tl.where(peak > float("-inf"), peak, 0.0)
    kept, held = tl.arange(0, K) < count, p >= 1.0
    if p < 1.0:
        own = tl.sum(_units(scores - peak), 0).to(tl.float64)
        goal = p * tl.where(whole > 0.0, whole * UNIT, own)
        before = _units_before(source, rows, row, b, at, count, scores, columns, peak, K).to(tl.float64)
        kept, held = kept & ((before < goal) | (before == 0.0)), own >= goal
    kept = kept & likely(scores, peak, rows, b)
    total = noisy(scores, ids_at(source, row, columns), rows, b, position)
    total = tl.where(kept, total, float("-inf"))
    # Equal totals go to the likelier token, then to the lower column.
    lead = kept & (total == tl.max(total, 0))
    lead = lead & (scores == tl.max(tl.where(lead, scores, float("-inf")), 0))
    token = ids_at(source, row, tl.min(tl.where(lead, columns, LAST_COLUMN), 0))
    return token, held, _lead_of_two(x, columns).to(tl.float64)


@triton.jit
def _lead_of_two(x, columns):
    """How far the greatest of the listed logits is above the next."""
    first = tl.max(x, 0)
    column = tl.min(tl.where(x == first, columns, LAST_COLUMN), 0)
    return lead_over(first, tl.max(tl.where(columns == column, float("-inf"), x), 0))


@triton.jit
def _units(scores):
    """exp(scores) in fixed point."""
    return (tl.exp(scores) * UNIT).to(tl.int64)


@triton.jit
def _units_before(source, rows, row, b, at, count, scores, columns, peak, K: tl.constexpr):
    """For each listed column, the units of all likelier ones, and of equal ones in lower columns."""
    before = tl.full([K], 0, tl.int64)
    for start in range(0, K, CHUNK):
        if start < count:
            lane = start + tl.arange(0, CHUNK)
            other = tl.load(at + lane, lane < count, other=LAST_COLUMN)
            score = scores_of(logits_at(source, row, other), rows, b)
            ahead = score[None, :] > scores[:, None]
            ahead = ahead | ((score[None, :] == scores[:, None]) & (other[None, :] < columns[:, None]))
            before += tl.sum(tl.where(ahead, _units(score - peak)[None, :], 0), 1)
    return before


def sample(logits: Tensor, params: Rows, positions: Tensor, mode: str, columns: Columns = VOCABULARY) -> Tensor:
    """A token id for each row of logits fp32 [n, V], int64 [n].

    params hold B sequences of n / B rows each, sequence-major; positions int64 [n] are those of the tokens to be
    chosen. `mode` is `mode_of` the batch or a costlier one: "greedy", "top", "general".
    """
    if mode == "greedy":
        return greedy(logits, columns)
    source, q = source_of(logits, columns), len(logits) // len(params.seed)
    if mode == "top" and source.V <= DIRECT:
        return _sample_alone(source, params, positions, q)
    return _sample_surveyed(source, params, positions, q, mode == "general")


def _sample_alone(source: Source, params: Rows, positions: Tensor, q: int) -> Tensor:
    """One launch, for few columns."""
    n = len(source.logits)
    lists, out = _lists(source), scratch((n,), source.logits, torch.int64)
    sizes = {"COARSE": 1, "TILES": 1, "WIDTH": pow2(source.V, MAX_TOP_K), "GENERAL": False}
    _choose[n,](source, params, positions, None, None, lists, out, q, 0, **sizes, **options(num_warps=ROW_WARPS))
    return out


def _sample_surveyed(source: Source, params: Rows, positions: Tensor, q: int, general: bool) -> Tensor:
    """Two launches, and for wide rows those of `nucleus.search`."""
    n, like = len(source.logits), source.logits
    tiles, coarse = cdiv(source.V, TILE), TILE // FAN.value**2
    survey = Survey(
        scratch((n, tiles * coarse * FAN.value), like),
        scratch((n, tiles * coarse), like),
        scratch((n, tiles, 2), like, torch.float64),
    )
    unsettled = Unsettled(scratch((n,), like, torch.int32), scratch((n,), like, torch.float64)) if general else None
    lists, out = _lists(source), scratch((n,), like, torch.int64)
    _survey[tiles, n](source, params, positions, survey, q, TILE=TILE, GENERAL=general, **options(num_warps=TILE_WARPS))
    sizes = {"COARSE": coarse, "TILES": pow2(tiles), "WIDTH": pow2(tiles * coarse), "GENERAL": general}
    everything = (source, params, positions, survey, unsettled, lists, out, q, tiles)
    _choose[n,](*everything, **sizes, **options(num_warps=ROW_WARPS))
    if unsettled is not None:
        search(source, params, positions, unsettled, out)
    return out


def _lists(source: Source) -> Tensor:
    """Room for three lists of leaders per row."""
    return scratch((len(source.logits), 3 * MAX_TOP_K), source.logits, torch.int32)
