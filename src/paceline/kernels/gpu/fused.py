"""What stands between two matmuls: norms, rotary embedding and cache writes, one small kernel each.

Arguments named parts are a matmul's results, see `paceline.kernels.gpu.parts`. A norm has one program per row, with
the whole row in registers. Norm weights are constant, so they are read while the kernel before still runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels import Heads, Rope
from paceline.kernels.gpu.launch import CacheView, cdiv, let_next_start, options, scratch, wait
from paceline.kernels.gpu.parts import (
    TILE,
    issue_first,
    load,
    place,
    prefetch,
    row_options,
    shape_of,
    sum_parts,
    tile_options,
)
from paceline.kernels.gpu.parts import total as total

HEAD = {"num_warps": 1, "maxnreg": 128}  # a head fits one warp, whose sum needs no shared memory
ROPE_ROWS = 4  # of a prompt that one program turns, one after another


@triton.jit
def inverse_rms(x, size, eps):
    """1 / rms of a row whose numbers beyond `size` are zero."""
    return tl.rsqrt(tl.sum(x * x, 0) / size + eps)


def rms_norm(h: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """h [n, D] / rms(h) * weight: [n, D]."""
    n, width = h.shape
    x = scratch((n, width), h, dtype)
    norms_kernel[(n,)](h, weight, None, x, None, width, eps, **row_options(width))
    return x


def norms2(h: Tensor, w1: Tensor, w2: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The norm of h [n, D] with two weights: a router's input and its experts', [n, D] each."""
    n, width = h.shape
    x1, x2 = scratch((n, width), h, dtype), scratch((n, width), h, dtype)
    norms_kernel[(n,)](h, w1, w2, x1, x2, width, eps, **row_options(width))
    return x1, x2


@triton.jit
def norms_kernel(h, w1, w2, x1, x2, width, eps, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    column = tl.arange(0, BLOCK)
    inside = column < width
    if w1 is not None:
        first = load(w1 + column, inside)
    if w2 is not None:
        second = load(w2 + column, inside)
    wait(PDL)
    start = tl.program_id(0).to(tl.int64) * width
    x = load(h + start + column, inside)
    x = x * inverse_rms(x, width, eps)
    y = x
    if w1 is not None:
        y = x * first
    tl.store(place(x1 + start, column), y.to(x1.dtype.element_ty), mask=inside)
    if w2 is not None:
        tl.store(place(x2 + start, column), (x * second).to(x2.dtype.element_ty), mask=inside)


def enter(parts: Tensor, norm: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A stream that a matmul begins: (h = the ordered sum, rms_norm(h, norm)), [n, D] each."""
    count, n, width = shape_of(parts)
    h, x = scratch((n, width), parts), scratch((n, width), parts, dtype)
    enter_kernel[(n,)](parts, norm, h, x, width, parts.stride(0), eps, S=count, **row_options(width))
    return h, x


@triton.jit
def enter_kernel(
    parts, norm, h_out, x_out, width, stride, eps, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    let_next_start(PDL)
    column = tl.arange(0, BLOCK)
    inside = column < width
    weight = load(norm + column, inside)
    wait(PDL)
    start = tl.program_id(0).to(tl.int64) * width
    h = sum_parts(parts + start, stride, column, inside, S)
    tl.store(h_out + start + column, h, mask=inside)
    x = h * inverse_rms(h, width, eps) * weight
    tl.store(place(x_out + start, column), x.to(x_out.dtype.element_ty), mask=inside)


def add_norm(
    h: Tensor, parts: Tensor, post: Tensor, pre: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """h' = (h + rms_norm(sum of parts, post)) * scale[0], [n, D]; returns (h', x).

    x, the next matmul's input in `dtype`: rms_norm(h', pre), or h' as it is without `pre`.
    """
    count, n, width = shape_of(parts)
    new = scratch((n, width), h)
    x = new if pre is None and dtype == new.dtype else scratch((n, width), h, dtype)
    add_norm_kernel[(n,)](
        h, parts, post, pre, scale, new, x, width, parts.stride(0), eps, S=count, **row_options(width)
    )
    return new, x


@triton.jit
def add_norm_kernel(
    h, parts, post, pre, scale, h_out, x_out, width, stride, eps,
    S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row. The stream was written before a matmul's weights passed through L2, and may have left it since."""
    start = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    prefetch(h + start + tl.minimum(tl.arange(0, BLOCK // 32) * 32, width - 1), PDL)
    post_weight = load(post + column, inside)
    if pre is not None:
        pre_weight = load(pre + column, inside)
    factor = tl.load(scale)
    wait(PDL)
    let_next_start(PDL)
    old = load(h + start + column, inside)
    issue_first(PDL)
    y = sum_parts(parts + start, stride, column, inside, S)
    new = (old + y * inverse_rms(y, width, eps) * post_weight) * factor
    tl.store(h_out + start + column, new, mask=inside)
    if pre is not None:
        new = new * inverse_rms(new, width, eps) * pre_weight
    tl.store(place(x_out + start, column), new.to(x_out.dtype.element_ty), mask=inside)


def combine_experts(
    dense: Tensor, dense_norm: Tensor, sparse: Tensor, weights: Tensor, sparse_norm: Tensor, eps: float
) -> Tensor:
    """The two halves of a mixture-of-experts block, normalised and added: one part [1, n, D].

    dense: parts. sparse [n, A, D]: the active experts' results, added in rank order with weights [n, A].
    """
    count, n, width = shape_of(dense)
    out = scratch((1, n, width), dense)
    combine_kernel[(n,)](
        dense, dense_norm, sparse, weights, sparse_norm, out, width, dense.stride(0), eps,
        S=count, ACTIVE=weights.shape[1], **row_options(width),
    )  # fmt: skip
    return out


@triton.jit
def combine_kernel(
    dense, dense_norm, sparse, weights, sparse_norm, out, width, stride, eps,
    S: tl.constexpr, ACTIVE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < width
    dense_weight = load(dense_norm + column, inside)
    sparse_weight = load(sparse_norm + column, inside)
    wait(PDL)
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    y = sum_parts(dense + row * width, stride, column, inside, S)
    z = tl.zeros((BLOCK,), tl.float32)
    for rank in tl.static_range(ACTIVE):
        active = row * ACTIVE + rank
        z += load(sparse + active * width + column, inside) * tl.load(weights + active)
    y = y * inverse_rms(y, width, eps) * dense_weight + z * inverse_rms(z, width, eps) * sparse_weight
    tl.store(out + row * width + column, y, mask=inside)


def rope_write(
    qkv: Tensor, heads: Heads, rope: Rope, positions: Tensor, view: CacheView | None, dtype: torch.dtype
) -> Tensor:
    """Normalises and turns the heads of a fused projection; keys and values go where `view` says.

    qkv: parts [S, n, (queries + kv + kv) * dim], or without the last group when values are the raw keys, or queries
    alone where view is None. Returns q [n, queries, dim]. A row at a negative position is padding, and stays out of
    the cache; a chunk of a prompt writes to `view.fresh` instead of the cache.
    """
    count, n, width = shape_of(qkv)
    dim = len(heads.q_norm)
    kv = (width // dim - heads.queries) // (1 if heads.k_eq_v else 2)
    assert (kv == 0) == (view is None), "keys and values need a place, and queries alone have none"
    q = scratch((n, heads.queries, dim), qkv, dtype)
    each = ROPE_ROWS if view is not None and view.fresh is not None and n % ROPE_ROWS == 0 else 1
    rope_write_kernel[width // dim, n // each](
        qkv, heads.q_norm, heads.k_norm, rope.cos, rope.sin, positions, q, *targets(view, n),
        qkv.stride(0), heads.queries, kv, *rope.cos.shape, heads.eps,
        S=count, HALF=dim // 2, K_EQ_V=heads.k_eq_v, EACH=each, **options(**HEAD),
    )  # fmt: skip
    return q


def targets(view: CacheView | None, n: int) -> tuple[Tensor | None, Tensor | None, Tensor | None, int, int, int]:
    """(keys, values, table, rows of a sequence, page, pages) to write n rows to; no table: row r goes to slot r."""
    if view is None:
        return None, None, None, n, 1, 1
    if view.fresh is not None:
        return *view.fresh, None, n, 1, 1
    return view.keys, view.values, view.table, n // len(view.table), view.page, view.table.shape[1]


@triton.jit(
    do_not_specialize=["rows", "page", "pages", "queries", "kv", "length"],
    do_not_specialize_on_alignment=["positions", "table"],
)
def rope_write_kernel(
    qkv, q_norm, k_norm, cos, sin, positions, q_out, keys, values, table, rows, page, pages,
    stride, queries, kv, length, rotated, eps,
    S: tl.constexpr, HALF: tl.constexpr, K_EQ_V: tl.constexpr, EACH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of EACH rows: a query, a key or a value."""
    let_next_start(PDL)
    head, first = tl.program_id(0), tl.program_id(1).to(tl.int64) * EACH
    is_query, is_key = head < queries, (head >= queries) & (head < queries + kv)
    pair = tl.arange(0, HALF)
    if is_query:
        wa, wb = load(q_norm + pair, None), load(q_norm + HALF + pair, None)
    else:
        wa, wb = load(k_norm + pair, None), load(k_norm + HALF + pair, None)
    if PDL and head == 0:
        prefetch_angles(cos, sin, positions + first, length, rotated, HALF, PDL)
    wait(PDL)
    for i in tl.static_range(EACH):
        row = first + i
        position = tl.load(positions + row).to(tl.int32)
        issue_first(PDL)
        x = qkv + (row * tl.num_programs(0) + head) * (2 * HALF)
        a, b = sum_parts(x, stride, pair, None, S), sum_parts(x + HALF, stride, pair, None, S)
        angle = tl.maximum(position, 0).to(tl.int64) * rotated + pair
        c = tl.load(cos + angle, mask=pair < rotated, other=1.0)
        s = tl.load(sin + angle, mask=pair < rotated, other=0.0)
        slot = row
        if table is not None:
            slot = slot_of(table, tl.program_id(1) // rows, position, page, pages)
        factor = tl.rsqrt(tl.sum(a * a + b * b, 0) / (2 * HALF) + eps)
        a, b = a * factor, b * factor
        na, nb = a * wa, b * wb
        ta, tb = na * c - nb * s, nb * c + na * s
        if is_query:
            store_pair(q_out + (row * queries + head) * (2 * HALF), ta, tb, HALF)
        elif keys is not None:
            to = (slot * kv + (head - queries) % kv) * (2 * HALF)
            stored = (table is None) | (position >= 0)
            if stored & is_key:
                store_pair(keys + to, ta, tb, HALF)
            if stored & (K_EQ_V | (not is_key)):
                store_pair(values + to, a, b, HALF)


@triton.jit
def prefetch_angles(cos, sin, position, length, rotated, HALF: tl.constexpr, PDL: tl.constexpr):
    """Brings a row's angles to L2 before it is certain that its position has been written.

    The position is only a guess here: it is read past L1, so that no later read finds it there, and forgotten.
    """
    if rotated > 0:
        guess = tl.load(position, cache_modifier=".cg").to(tl.int32)
        guess = tl.minimum(tl.maximum(guess, 0), length - 1).to(tl.int64)
        at = guess * rotated + tl.minimum(tl.arange(0, HALF // 8) * 8, rotated - 1)
        prefetch(cos + at, PDL)
        prefetch(sin + at, PDL)


@triton.jit
def store_pair(to, a, b, HALF: tl.constexpr):
    """Two halves of a head, side by side."""
    pair = tl.arange(0, HALF)
    tl.store(to + pair, a.to(to.dtype.element_ty))
    tl.store(to + HALF + pair, b.to(to.dtype.element_ty))


@triton.jit
def slot_of(table, sequence, position, page, pages):
    """The slot of an int32 position, by the rule in `CacheView`; any slot for a negative one."""
    known = tl.maximum(position, 0)
    first = tl.load(table + sequence * pages + (known // page) % pages)
    return first.to(tl.int64) * page + known % page


def store_fresh(view: CacheView, positions: Tensor) -> None:
    """Copies a chunk's own keys and values into the cache of its one sequence, once its attention is done.

    A ring takes the last `page` rows only: in an earlier row's slot lies a later row of the same chunk.
    """
    assert view.fresh is not None, "only a chunk of a prompt has keys and values of its own"
    keys, values = view.fresh
    n, width = len(positions), keys.shape[1] * keys.shape[2]
    count = min(n, view.page) if view.ring else n
    store_fresh_kernel[count, cdiv(width, TILE)](
        keys, values, view.keys, view.values, view.table, positions,
        n - count, view.page, view.table.shape[1], width, **tile_options(),
    )  # fmt: skip


@triton.jit(do_not_specialize=["skipped", "page", "pages"], do_not_specialize_on_alignment=["positions", "table"])
def store_fresh_kernel(
    new_keys, new_values, keys, values, table, positions, skipped, page, pages, width,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    wait(PDL)
    row = skipped + tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(new_keys + row * width + column, mask=column < width)
    value = tl.load(new_values + row * width + column, mask=column < width)
    position = tl.load(positions + row).to(tl.int32)
    at = slot_of(table, 0, position, page, pages) * width + column
    stored = (column < width) & (position >= 0)
    tl.store(keys + at, key, mask=stored)
    tl.store(values + at, value, mask=stored)


def row_ranges(lengths: Tensor, q: int, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What q new rows of each sequence attend: (positions, first of a sliding layer, first of a full layer, last).

    lengths int32 [B]: positions in the cache before this pass. Results int64 [B * q], sequence-major.
    """
    return ranges(lengths, None, len(lengths) * q, (q, 0, 0, window))


def draft_ranges(lengths: Tensor, back: int, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `row_ranges` for a drafter's query: it sits at lengths - back and sees what is in the cache. int64 [B]."""
    return ranges(lengths, None, len(lengths), (1, -1, 1 - back, window))


def chunk_ranges(start: Tensor, n: int, pad: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `row_ranges` for n rows of a prompt, of which the first pad[0] are padding: position -1, seeing nothing.

    The row after the padding sits at start[0]. start, pad: int32 [1]. Results int64 [n].
    """
    return ranges(start, pad, n, (n, 0, 0, window))


def ranges(
    lengths: Tensor, pad: Tensor | None, n: int, numbers: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`row_ranges` and its kin. numbers: rows a sequence, (last - length) of the first, (position - last), window."""
    positions, sliding, full, last = (scratch((n,), lengths, torch.int64) for _ in range(4))
    ranges_kernel[(cdiv(n, 128),)](
        lengths, pad, positions, sliding, full, last, n, *numbers, **options(BLOCK=128, num_warps=4)
    )
    return positions, sliding, full, last


@triton.jit(do_not_specialize=["n", "q", "shift", "ahead", "window"], do_not_specialize_on_alignment=["lengths", "pad"])
def ranges_kernel(
    lengths, pad, positions, sliding, full, last, n, q, shift, ahead, window, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    let_next_start(PDL)
    wait(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    step = row % q
    if pad is not None:
        step -= tl.load(pad)
    end = tl.load(lengths + row // q, mask=inside, other=0) + step + shift
    real = step >= 0
    zero = tl.zeros((BLOCK,), tl.int64)
    tl.store(positions + row, tl.where(real, end + ahead, -1).to(tl.int64), mask=inside)
    tl.store(sliding + row, tl.where(real, tl.maximum(end - window + 1, 0), 0).to(tl.int64), mask=inside)
    tl.store(full + row, zero, mask=inside)
    tl.store(last + row, tl.where(real, end, -1).to(tl.int64), mask=inside)
