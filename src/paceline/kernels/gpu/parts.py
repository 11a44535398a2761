"""What a matmul returns, and what every kernel that reads it shares.

"Parts" are fp32 [S, n, N], to be added in the order s = 0 .. S-1. Rows of every argument must be contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.launch import cdiv, let_next_start, options, pow2, scratch, wait

TILE = 1024  # columns of a program that treats each number by itself


def tile_options() -> dict[str, Any]:
    """BLOCK and how to launch a program that holds a piece of a row."""
    return options(BLOCK=TILE, num_warps=4, maxnreg=128)


def row_options(width: int) -> dict[str, Any]:
    """BLOCK and how to launch a program that holds a whole row of `width` numbers, 8 of each row a thread.

    Both follow from the width alone: the number of warps decides in what order a row is summed.
    """
    block = pow2(width, 32)
    return options(BLOCK=block, **row_warps(block))


def row_warps(block: int) -> dict[str, int]:
    """num_warps and the most registers a thread, for rows of `block` numbers.

    Registers are named only because the assembler else saves them: it then adds a part before it asks for the next, a
    round trip to L2 for each.
    """
    warps = min(32, max(1, block // 256))
    return {"num_warps": warps, "maxnreg": min(128, 65536 // (32 * warps))}


def shape_of(parts: Tensor) -> tuple[int, int, int]:
    """(S, n, N) of parts, whose rows must be contiguous within each part."""
    count, n, width = parts.shape
    assert parts[0].is_contiguous(), "rows of parts must be contiguous"
    return count, n, width


@triton.jit
def load(pointers, mask):
    """fp32 values, zero where masked; mask may be None."""
    if mask is None:
        return tl.load(pointers).to(tl.float32)
    else:
        return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def sum_parts(parts, stride, offset, mask, S: tl.constexpr):
    """parts[0] + parts[1] + .. at `offset`, in that order; unrolled, so that all loads are under way at once."""
    total = load(parts + offset, mask)
    for _ in tl.static_range(1, S):
        parts += stride
        total += load(parts + offset, mask)
    return total


@triton.jit
def place(row, column):
    """Pointers to columns of a row. Numbers of 16 bits are moved by fours like those of 32, not by eights.

    That is what the alignment of 8 bytes asks for: else Triton exchanges rows through shared memory on the way.
    """
    if row.dtype.element_ty.primitive_bitwidth == 16:
        return tl.multiple_of(row + column, 8)
    else:
        return row + column


@triton.jit
def prefetch(pointers, PDL: tl.constexpr):
    """Brings the lines at `pointers` to L2. Allowed before `wait`: L2 has one copy, whoever writes it and when."""
    if PDL:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def issue_first(PDL: tl.constexpr):
    """What is loaded above is asked for before what is loaded below. Costs nothing: the assembler drops the barrier."""
    if PDL:
        tl.inline_asm_elementwise(
            "bar.warp.sync 0xffffffff; // dummy $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )


def total(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The ordered sum of parts: [n, N]. A single fp32 part is returned as it is."""
    count, n, width = shape_of(parts)
    if count == 1 and dtype == parts.dtype:
        return parts[0]
    out = scratch((n, width), parts, dtype)
    total_kernel[(cdiv(n * width, TILE),)](parts, out, n * width, parts.stride(0), S=count, **tile_options())
    return out


@triton.jit
def total_kernel(parts, out, size, stride, S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait(PDL)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = sum_parts(parts, stride, at, at < size, S)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < size)
