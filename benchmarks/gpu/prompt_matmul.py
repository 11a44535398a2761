"""Matmuls of prompts: today's kernel beside one loop over all columns, and beside the library. Needs a GPU.

The sum of a row must stay what decoding makes it: parts of the columns from zero, added in order. Today a program runs
one pipelined loop for each part; `one_loop` runs a single one and adds at the seams. The library is the ceiling; its
bits belong to no row count but its own.

    PYTHONPATH=src:tests:benchmarks/gpu python benchmarks/gpu/prompt_matmul.py
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from timing import graph_time
from torch import Tensor

from paceline.kernels.gpu import matmul as mm
from paceline.kernels.gpu.launch import cdiv, let_next_start, options, scratch, wait
from paceline.kernels.gpu.parts import total

WEIGHTS = {
    "31b o": (5376, 8192), "31b down": (5376, 21504), "31b qkv": (16384, 5376), "26b o": (2816, 4096),
    "26b qkv": (8192, 2816), "e2b qkv": (2560, 1536), "e2b o": (1536, 2048), "e2b down": (1536, 6144),
}  # fmt: skip
CUTS = ((128, 64, 3, 4), (128, 64, 4, 4), (128, 64, 3, 8), (128, 64, 4, 8), (64, 64, 4, 4), (256, 64, 3, 8))


@triton.jit(do_not_specialize=["n"])
def _one_loop(
    x, w, out, n, N, K, part, R: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    r = tl.program_id(0) * R + tl.arange(0, R)
    let_next_start(PDL)
    wait(PDL)
    k = tl.arange(0, BK)
    w_at = w + rows[:, None].to(tl.int64) * K + k[None, :]
    x_at = x + r[None, :].to(tl.int64) * K + k[:, None]
    total = tl.zeros((BN, R), tl.float32)
    acc = tl.zeros((BN, R), tl.float32)
    for at in range(0, K, BK):
        a = tl.load(w_at, mask=rows[:, None] < N, other=0.0)
        b = tl.load(x_at, mask=r[None, :] < n, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        if (at + BK) % part == 0:
            total += acc
            acc = tl.zeros((BN, R), tl.float32)
        w_at += BK
        x_at += BK
    total += acc
    at = out + r[None, :].to(tl.int64) * N + rows[:, None]
    tl.store(at, total, mask=(rows[:, None] < N) & (r[None, :] < n))


def one_loop(x: Tensor, weight: Tensor, tile: mm.Tile, cut: tuple[int, int, int, int]) -> Tensor:
    """`matmul.linear` for many rows, fp32 [1, n, N]."""
    (n, cols), rows, (bn, bk, stages, warps) = x.shape, len(weight), cut
    out = scratch((1, n, rows), x)
    _one_loop[cdiv(n, 128), cdiv(rows, bn)](
        x, weight, out, n, rows, cols, mm.part_of(cols, tile), R=128, BN=bn, BK=bk,
        **options(num_warps=warps, num_stages=stages),
    )  # fmt: skip
    return out


def attempt(call: Any, weights: list[Tensor]) -> float:
    """Microseconds, or infinity where it does not run."""
    try:
        return round(graph_time(call, [(w,) for w in weights], 5), 1)
    except Exception as error:  # too much shared memory, for instance
        print("   failed:", str(error)[:80])
        return float("inf")


def main() -> None:
    for n, (name, (rows, cols)) in itertools.product((2048, 512), WEIGHTS.items()):
        weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(3)]
        x = torch.randn(n, cols, device="cuda", dtype=torch.bfloat16)
        tile = mm.tile_of(rows, cols, False)
        now = attempt(lambda w, x=x: mm.linear(x, w), weights)
        times = {cut: attempt(lambda w, x=x, t=tile, c=cut: one_loop(x, w, t, c), weights) for cut in CUTS}
        library = attempt(lambda w, x=x: torch.mm(x, w.T, out_dtype=torch.float32), weights)
        best = min(times, key=lambda cut: times[cut])
        same = torch.equal(one_loop(x, weights[0], tile, best)[0], total(mm.linear(x, weights[0]), torch.float32))
        rate = 2e-6 * n * rows * cols
        print(f"{n} {name} split {tile.split}: now {rate / now:.0f} TFLOP/s, one loop {rate / times[best]:.0f} {best},"
              f" library {rate / library:.0f}; same bits {same}; {times}", flush=True)  # fmt: skip


if __name__ == "__main__":
    with torch.no_grad():
        main()
