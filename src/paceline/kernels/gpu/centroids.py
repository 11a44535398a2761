"""The centroid head of the small drafters: logits of the tokens in the best clusters only, without asking the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.keys import NO_KEY, clean, column_of, pack
from paceline.kernels.gpu.launch import cdiv, let_next_start, options, pow2, scratch, wait
from paceline.kernels.gpu.leaders import LOWEST, ceiling, list_leaders, listed, ranks_of

ROWS = 32  # table rows of one program
SEARCH_WARPS, GATHER_WARPS = 8, 4


class Clustered(NamedTuple):
    """Candidates, the best cluster's first, and for `choose.pick_best` the two best of each tile of them.

    logits fp32 and ids int64 [n, active * W]; tile_values fp32 and tile_ids int32 [tiles, n], and tile_seconds fp32.
    """

    logits: Tensor
    ids: Tensor
    tile_values: Tensor
    tile_ids: Tensor
    tile_seconds: Tensor


def centroid_choice(scores: Tensor, active: int, clusters: Tensor, y: Tensor, table: Tensor) -> Clustered:
    """Logits of all tokens in each row's `active` best clusters, in two launches.

    scores fp32 [S, n, C] are the parts of the clusters' scores; clusters int64 [C, W] holds token ids;
    y [n, hidden] is multiplied with rows of table [V, hidden] of its own dtype. Equal clusters go by lowest index.
    """
    best = _best(scores, active)
    n, hidden = y.shape
    width = clusters.shape[1]
    rows = min(ROWS, pow2(width))
    tiles = active * cdiv(width, rows)
    out = Clustered(
        scratch((n, active * width), y),
        scratch((n, active * width), y, torch.int64),
        scratch((tiles, n), y),
        scratch((tiles, n), y, torch.int32),
        scratch((tiles, n), y),
    )
    sizes = {"ROWS": rows, "HIDDEN": pow2(hidden), **options(num_warps=GATHER_WARPS)}
    _gather[tiles, n](best, clusters, y, table, out, active, width, hidden, **sizes)
    return out


def _best(scores: Tensor, active: int) -> Tensor:
    """The best clusters of each row, int32 [n, active], best first."""
    parts, n, count = scores.shape
    lists, best = scratch((n, active), scores, torch.int32), scratch((n, active), scores, torch.int32)
    sizes = {"CLUSTERS": pow2(count), "ACTIVE": pow2(active), **options(num_warps=SEARCH_WARPS)}
    _best_clusters[n,](scores, lists, best, parts, n, count, active, **sizes)
    return best


@triton.jit
def _best_clusters(
    scores, lists, best, parts, n, count, active,
    CLUSTERS: tl.constexpr, ACTIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program per row: finds the best clusters, then places each by how many are better."""
    wait(PDL)
    let_next_start(PDL)
    row, cluster = tl.program_id(0), tl.arange(0, CLUSTERS)
    ranks = ranks_of(_score(scores, parts, n, count, row, cluster), cluster < count)
    low = tl.full([], LOWEST, tl.int64)
    found, low = list_leaders(ranks, cluster, active, low, ceiling(ranks), lists + row * active)
    index = listed(lists + row * active, found, ACTIVE)
    score = _score(scores, parts, n, count, row, index)
    better = score[None, :] > score[:, None]
    better = better | ((score[None, :] == score[:, None]) & (index[None, :] < index[:, None]))
    place = tl.sum((better & (index < count)[None, :]).to(tl.int32), 1)
    tl.store(best + row * active + place, index, index < count)


@triton.jit
def _score(scores, parts, n, count, row, index):
    """Sums the parts of some clusters' scores in order; minus infinity where there is no cluster."""
    at = scores + row * count + index
    total = tl.load(at, index < count, other=float("-inf"))
    for part in range(1, parts):
        total += tl.load(at + part * n * count, index < count, other=0.0)
    return clean(total)


@triton.jit
def _gather(
    best, clusters, y, table, out, active, width, hidden,
    ROWS: tl.constexpr, HIDDEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program multiplies at most ROWS table rows of one cluster with one row of y."""
    wait(PDL)
    let_next_start(PDL)
    tile, row = tl.program_id(0), tl.program_id(1)
    each = tl.cdiv(width, ROWS)
    rank, lane = tile // each, tile % each * ROWS + tl.arange(0, ROWS)
    cluster = tl.load(best + row * active + rank)
    ids = tl.load(clusters + cluster * width + lane, lane < width, other=0)
    column = tl.arange(0, HIDDEN)
    x = tl.load(y + row * hidden + column, column < hidden, other=0.0).to(tl.float32)
    at = table + ids[:, None] * hidden + column[None, :]
    weight = tl.load(at, (lane < width)[:, None] & (column < hidden)[None, :], other=0.0).to(tl.float32)
    logit = tl.sum(weight * x[None, :], 1)
    place = row * active * width + rank * width + lane
    tl.store(out.logits + place, logit, lane < width)
    tl.store(out.ids + place, ids, lane < width)
    logit = clean(logit)
    key = tl.max(tl.where(lane < width, pack(logit, lane), NO_KEY), 0)
    first = lane == column_of(key)
    others = tl.where((lane < width) & (first == 0), logit, float("-inf"))
    spot = tile * tl.num_programs(1) + row
    tl.store(out.tile_values + spot, tl.sum(tl.where(first, logit, 0.0), 0))
    tl.store(out.tile_ids + spot, tl.sum(tl.where(first, ids, 0), 0).to(tl.int32))
    tl.store(out.tile_seconds + spot, tl.max(others, 0))
