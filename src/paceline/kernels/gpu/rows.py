"""What the kernels that choose tokens read: logits, what their columns mean, and each sequence's parameters.

A row is one of four kinds, which kernels learn only when they run: greedy; free (no top-k, top-p or
min-p); cut by a top-k of at most MAX_TOP_K; and wide (a larger top-k, or none beside top-p or min-p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.errors import UsageError
from paceline.kernels.gpu.keys import MAX_COLUMNS, NO_KEY, clean, pack
from paceline.kernels.gpu.philox import gumbel, halves
from paceline.types import SamplingParams

MAX_TOP_K = 256
MARGIN_UNIT = 1024  # a margin of 1
_UNIT, _MOST = tl.constexpr(MARGIN_UNIT), tl.constexpr(64.0)


class Rows(NamedTuple):
    """`SamplingParams` of the sequences of a batch, [B] each. floor: log of min-p, minus infinity where it is off."""

    temperature: Tensor  # float64
    top_k: Tensor  # int32
    top_p: Tensor  # float64
    seed: Tensor  # int64, the bits of the unsigned seed
    floor: Tensor  # float64


class Columns(NamedTuple):
    """What the columns of logits [n, V] stand for.

    ids int64 [n, V] names them where they are not the vocabulary itself. The columns listed in suppress, int32 [p],
    are never chosen while another can be. margins int64 [n], a view of any stride: where `note_margin` is to write.
    """

    ids: Tensor | None = None
    suppress: Tensor | None = None
    margins: Tensor | None = None


class Source(NamedTuple):
    """Logits fp32 [n, V] and `Columns`, as kernels take them."""

    logits: Tensor
    ids: Tensor | None
    suppress: Tensor | None
    V: int
    suppressed: int
    margins: Tensor | None
    stride: int


def source_of(logits: Tensor, columns: Columns) -> Source:
    """Checks what a kernel could not: dense fp32 logits whose columns fit into a key."""
    if logits.dtype != torch.float32 or not logits.is_contiguous() or not 1 <= logits.shape[1] <= MAX_COLUMNS:
        raise UsageError(f"logits must be contiguous fp32 [n, 1 .. {MAX_COLUMNS}], not {logits.dtype} {logits.shape}")
    count = 0 if columns.suppress is None else len(columns.suppress)
    suppress, margins = columns.suppress if count else None, columns.margins
    stride = 0 if margins is None else margins.stride(0)
    return Source(logits, columns.ids, suppress, logits.shape[1], count, margins, stride)


def numbers_of(p: SamplingParams) -> tuple[float, int, float, int, float]:
    """What `Rows` holds of one request. A top-k beyond int32 cuts nothing, so it is capped."""
    seed = p.seed - (1 << 64) if p.seed >> 63 else p.seed
    floor = math.log(p.min_p) if p.min_p else -math.inf
    return p.temperature, min(p.top_k, (1 << 31) - 1), p.top_p, seed, floor


def rows_of(params: Sequence[SamplingParams], device: torch.device | str) -> Rows:
    """The parameters of a batch as tensors."""
    dtypes = torch.float64, torch.int32, torch.float64, torch.int64, torch.float64
    columns = zip(*(numbers_of(p) for p in params), strict=True)
    return Rows(*(torch.tensor(column, dtype=d, device=device) for column, d in zip(columns, dtypes, strict=True)))


def mode_of(params: Sequence[SamplingParams]) -> str:
    """The cheapest mode that serves all of them: "greedy", "top", or "general"."""
    hot = [p for p in params if p.temperature > 0.0]
    if not hot:
        return "greedy"
    return "top" if all(1 <= p.top_k <= MAX_TOP_K or is_free(p) for p in hot) else "general"


def is_free(p: SamplingParams) -> bool:
    """Whether no rule cuts any token away."""
    return p.top_k == 0 and p.top_p >= 1.0 and p.min_p == 0.0


@triton.jit
def logits_at(source, row, columns):
    """Clean logits of one row; columns past its end and suppressed ones are minus infinity."""
    at = source.logits + row.to(tl.int64) * source.V
    x = clean(tl.load(at + columns, columns < source.V, other=float("-inf")))
    if source.suppress is not None:
        for j in range(source.suppressed):
            x = tl.where(columns == tl.load(source.suppress + j), float("-inf"), x)
    return x


@triton.jit
def keys_at(source, row, columns):
    """Keys of one row; NO_KEY past its end."""
    return tl.where(columns < source.V, pack(logits_at(source, row, columns), columns), NO_KEY)


@triton.jit
def ids_at(source, row, columns):
    """The token ids, int64, that columns of a row stand for."""
    if source.ids is None:
        return columns.to(tl.int64)
    else:
        return tl.load(source.ids + row.to(tl.int64) * source.V + columns, columns < source.V, other=0)


@triton.jit
def note_margin(margins, stride, row, margin):
    """Writes by how much a row's likeliest column leads, in 1 / MARGIN_UNIT of a logit, if anybody wants to know.

    Never more than 64; 0 where that is not known, because a row's choice does not come down to its leaders.
    """
    if margins is not None:
        margin = tl.where(margin <= _MOST, margin, _MOST)
        tl.store(margins + row * stride, (margin * _UNIT).to(tl.int64))


@triton.jit
def cuts(rows, b, V):
    """(how many of V columns top-k leaves, top-p, whether sequence b is free); greedy keeps one column."""
    hot = tl.load(rows.temperature + b) > 0.0
    k = tl.load(rows.top_k + b)
    p = tl.load(rows.top_p + b).to(tl.float64)
    limit = tl.where((k <= 0) | (k > V), V, k)
    uncut = (k <= 0) & (p >= 1.0) & (tl.load(rows.floor + b) == float("-inf"))
    return tl.where(hot, limit, 1), p, hot & uncut


@triton.jit
def likely(scores, peak, rows, b):
    """Which scores min-p leaves, where `peak` is the greatest."""
    return scores >= peak + tl.load(rows.floor + b).to(tl.float64)


@triton.jit
def scores_of(x, rows, b):
    """Logits over temperature, float64; greedy sequences have them as they are."""
    t = tl.load(rows.temperature + b).to(tl.float64)
    return x.to(tl.float64) / tl.where(t > 0.0, t, 1.0)


@triton.jit
def noisy(scores, ids, rows, b, position):
    """Scores plus noise, float64; minus infinity where that is no number."""
    low, high = halves(tl.load(rows.seed + b))
    total = scores + gumbel(low, high, position, ids)
    return tl.where(total == total, total, float("-inf"))
