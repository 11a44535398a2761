"""Kernels that treat each number by itself: embeddings, gates, caps; and per-layer embeddings (PLE).

Arguments named parts are a matmul's results, see `paceline.kernels.gpu.parts`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.fused import inverse_rms
from paceline.kernels.gpu.launch import cdiv, let_next_start, scratch, wait
from paceline.kernels.gpu.maths import gelu_tanh, tanh
from paceline.kernels.gpu.parts import TILE, load, place, row_options, shape_of, sum_parts, tile_options, total


def embed(table: Tensor, ids: Tensor, scale: float) -> Tensor:
    """Rows `ids` [n] of table [V, D], times `scale` in fp32: [n, D]."""
    n, width = len(ids), table.shape[1]
    out = scratch((n, width), table)
    embed_kernel[n, cdiv(width, TILE)](table, ids, out, width, scale, **tile_options())
    return out


@triton.jit(do_not_specialize_on_alignment=["ids"])
def embed_kernel(table, ids, out, width, scale, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = place(table + tl.load(ids + row).to(tl.int64) * width, column)
    tl.store(out + row * width + column, load(source, column < width) * scale, mask=column < width)


def concat(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a [n, A] and b, [n, B] or parts [S, n, B], side by side: [n, A + B]."""
    b = b if b.dim() == 3 else b[None]
    count, n, right = shape_of(b)
    left = a.shape[1]
    out = scratch((n, left + right), a, dtype)
    concat_kernel[n, cdiv(left + right, TILE)](a, b, out, left, right, b.stride(0), S=count, **tile_options())
    return out


@triton.jit
def concat_kernel(a, b, out, left, right, stride, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < left + right
    from_a = load(a + row * left + column, column < left)
    from_b = sum_parts(b + row * right, stride, column - left, (column >= left) & inside, S)
    value = tl.where(column < left, from_a, from_b)
    tl.store(out + row * (left + right) + column, value.to(out.dtype.element_ty), mask=inside)


def geglu(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """gelu_tanh(left half) * right half of parts [S, n, 2 I]: [n, I]."""
    count, n, width = shape_of(parts)
    half = width // 2
    out = scratch((n, half), parts, dtype)
    geglu_kernel[n, cdiv(half, TILE)](parts, out, half, parts.stride(0), S=count, **tile_options())
    return out


@triton.jit
def geglu_kernel(parts, out, half, stride, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < half
    gate = parts + row * 2 * half
    left, right = sum_parts(gate, stride, column, inside, S), sum_parts(gate + half, stride, column, inside, S)
    tl.store(out + row * half + column, (gelu_tanh(left) * right).to(out.dtype.element_ty), mask=inside)


def softcap(parts: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(sum / cap), or the plain ordered sum: logits [n, V]."""
    if cap is None:
        return total(parts, torch.float32)
    count, n, width = shape_of(parts)
    out = scratch((n, width), parts)
    softcap_kernel[(cdiv(n * width, TILE),)](parts, out, n * width, parts.stride(0), cap, S=count, **tile_options())
    return out


@triton.jit
def softcap_kernel(parts, out, size, stride, cap, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait(PDL)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = sum_parts(parts, stride, at, at < size, S)
    tl.store(out + at, cap * tanh(value / cap), mask=at < size)


def mix_ple(context: Tensor, token: Tensor, weight: Tensor, scale: float, eps: float) -> Tensor:
    """(rms_norm(sum * scale, weight) + token) / sqrt(2) for each layer: [n, L, P] from [S, n, L * P] and [n, L * P]."""
    count, n, width = shape_of(context)
    size = len(weight)
    out = scratch((n, width // size, size), token)
    mix_ple_kernel[(n * (width // size),)](
        context, token, weight, out, size, context.stride(0), scale, eps, S=count, **row_options(size)
    )
    return out


@triton.jit
def mix_ple_kernel(
    context, token, weight, out, size, stride, scale, eps, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One layer of one row."""
    let_next_start(PDL)
    column = tl.arange(0, BLOCK)
    inside = column < size
    w = load(weight + column, inside)
    wait(PDL)
    start = tl.program_id(0).to(tl.int64) * size
    x = sum_parts(context + start, stride, column, inside, S) * scale
    x = x * inverse_rms(x, size, eps) * w + load(token + start + column, inside)
    tl.store(out + start + column, x * 0.7071067811865476, mask=inside)


def gate_ple(gate: Tensor, ple: Tensor, layer: int, dtype: torch.dtype) -> Tensor:
    """gelu_tanh(sum) * that layer's part of `mix_ple`'s result [n, L, P]: [n, P]."""
    count, n, size = shape_of(gate)
    out = scratch((n, size), gate, dtype)
    gate_ple_kernel[(n,)](gate, ple, out, size, gate.stride(0), ple.shape[1], layer, S=count, **row_options(size))
    return out


@triton.jit(do_not_specialize=["layers", "layer"])
def gate_ple_kernel(
    gate, ple, out, size, stride, layers, layer, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    let_next_start(PDL)
    wait(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = gelu_tanh(sum_parts(gate + row * size, stride, column, inside, S))
    value *= load(ple + (row * layers + layer) * size + column, inside)
    tl.store(out + row * size + column, value.to(out.dtype.element_ty), mask=inside)
