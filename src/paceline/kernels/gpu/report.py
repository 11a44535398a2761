"""Log-probabilities of chosen tokens by the model itself: of softmax over its soft-capped logits, before any rule.

Sums are float64, in an order fixed by the vocabulary alone: a row has the same bits whatever shares the call.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.launch import cdiv, let_next_start, options, pow2, scratch, wait

TILE = 2048


def report(logits: Tensor, chosen: Tensor, out: Tensor) -> None:
    """Writes the log-probability of each row's chosen token, int64 [n], under its logits fp32 [n, V].

    out float64 [B, at least n / B]: rows are sequence-major, n / B of each sequence.
    """
    (n, vocab), tiles = logits.shape, cdiv(logits.shape[1], TILE)
    masses = scratch((n, tiles, 2), logits, torch.float64)
    _masses[tiles, n](logits, masses, vocab, TILE=TILE, **options(num_warps=8))
    each, sizes = n // len(out), {"TILES": pow2(tiles), **options(num_warps=1)}
    _report[n,](logits, masses, chosen, out, vocab, each, out.stride(0), tiles, **sizes)


@triton.jit
def _masses(logits, masses, vocab, TILE: tl.constexpr, PDL: tl.constexpr):
    """A tile's greatest logit, and the sum of exp(logit - that) over it."""
    wait(PDL)
    let_next_start(PDL)
    tile, row = tl.program_id(0), tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    at = logits + row.to(tl.int64) * vocab + column
    x = tl.load(at, column < vocab, other=float("-inf")).to(tl.float64)
    peak = tl.max(x, 0)
    place = masses + 2 * (row * tl.num_programs(0) + tile)
    tl.store(place, peak)
    base = tl.where(peak > float("-inf"), peak, 0.0)  # a tile may hold nothing that is possible
    tl.store(place + 1, tl.sum(tl.exp(x - base), 0))


@triton.jit(do_not_specialize=["each", "width"])
def _report(
    logits, masses, chosen, out, vocab, each, width, tiles, TILES: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    wait(PDL)
    let_next_start(PDL)
    row, tile = tl.program_id(0), tl.arange(0, TILES)
    at = masses + 2 * (row * tiles + tile)
    peaks = tl.load(at, tile < tiles, other=float("-inf"))
    sums = tl.load(at + 1, tile < tiles, other=0.0)
    peak = tl.max(peaks, 0)
    total = tl.sum(sums * tl.exp(peaks - peak), 0)
    x = tl.load(logits + row.to(tl.int64) * vocab + tl.load(chosen + row)).to(tl.float64)
    tl.store(out + row // each * width + row % each, x - peak - tl.log(total))
