"""The round's bookkeeping on the device: where rows stand, which drafts are kept, when a sequence ends.

One program serves one sequence. Nothing here ever reaches the host before the round is over.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.launch import let_next_start, options, pow2, scratch, wait


class Sequences(NamedTuple):
    """The device's state of every sequence, one entry each.

    length int32: tokens in the cache. last int64: the newest token, not in the cache yet. hidden [B, D]: the state
    that chose it. remaining int32: tokens it may still emit; 0 is an idle place. limit int32: drafts it may keep.
    stops bool: whether an end token ends it.
    """

    length: Tensor
    last: Tensor
    hidden: Tensor
    remaining: Tensor
    limit: Tensor
    stops: Tensor


class Rows(NamedTuple):
    """Rows of a pass, sequence-major: token ids, positions, first position seen in a window, and zeros, int64 [n].

    chosen_at: the position of the token that the row chooses.
    """

    ids: Tensor
    positions: Tensor
    first: Tensor
    zero: Tensor
    chosen_at: Tensor


def verify_rows(sequences: Sequences, drafts: Tensor | None, window: int) -> Rows:
    """Rows of a verification: each sequence's last token, then its drafts [k, B], k may be 0."""
    batch, k = len(sequences.length), 0 if drafts is None else len(drafts)
    n = batch * (k + 1)
    rows = Rows(*(scratch((n,), sequences.length, torch.int64) for _ in range(5)))
    _verify_rows[(batch,)](
        sequences.length, sequences.last, drafts, *rows, window, k, batch, BLOCK=pow2(k + 1), **options(num_warps=1)
    )
    return rows


@triton.jit(do_not_specialize=["window", "k", "batch"])
def _verify_rows(
    length, last, drafts, ids, positions, first, zero, chosen_at, window, k, batch,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    wait(PDL)
    b, i = tl.program_id(0), tl.arange(0, BLOCK)
    position = tl.load(length + b).to(tl.int64) + i
    token = tl.load(last + b) + i * 0
    if drafts is not None:
        token = tl.where(i == 0, token, tl.load(drafts + (i - 1) * batch + b, mask=(i > 0) & (i <= k), other=0))
    at, there = b * (k + 1) + i, i <= k
    tl.store(ids + at, token, mask=there)
    tl.store(positions + at, position, mask=there)
    tl.store(first + at, tl.maximum(position - window + 1, 0), mask=there)
    tl.store(zero + at, position * 0, mask=there)
    tl.store(chosen_at + at, position + 1, mask=there)


def draft_rows(sequences: Sequences, back: int, window: int, k: int) -> tuple[Rows, Tensor]:
    """The drafter's one row a sequence, at the constant position length - `back`, and the last position it sees [B].

    ids are not filled; chosen_at is [k, B].
    """
    batch = len(sequences.length)
    ids, positions, first, zero, last = (scratch((batch,), sequences.length, torch.int64) for _ in range(5))
    rows = Rows(ids, positions, first, zero, scratch((k, batch), sequences.length, torch.int64))
    _draft_rows[(batch,)](
        sequences.length, rows.positions, rows.first, rows.zero, last, rows.chosen_at, back, window, k, batch,
        BLOCK=pow2(k), **options(num_warps=1),
    )  # fmt: skip
    return rows, last


@triton.jit(do_not_specialize=["back", "window", "k", "batch"])
def _draft_rows(
    length, positions, first, zero, last, chosen_at, back, window, k, batch, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    let_next_start(PDL)
    wait(PDL)
    b, i = tl.program_id(0), tl.arange(0, BLOCK)
    n = tl.load(length + b).to(tl.int64)
    tl.store(positions + b, tl.maximum(n - back, 0))
    tl.store(first + b, tl.maximum(n - window, 0))
    tl.store(zero + b, n * 0)
    tl.store(last + b, n - 1)
    tl.store(chosen_at + i * batch + b, n + 1 + i, mask=i < k)


COUNT, KEPT, FINISHED, MARGINS, COLUMNS = 16, 17, 18, 19, 34
"""Columns of an outcome int64 [B, COLUMNS]: up to 16 tokens, how many of them are new (0: an idle place), how many
drafts were kept, 1 where the sequence ended, and of each draft the drafter's margin (`rows.note_margin`), 0 if unknown.
"""
_COLUMNS = tl.constexpr(COLUMNS)


class Ending(NamedTuple):
    """What ends a text: end tokens int64 [E]. survival fp32 [15] replaces comparing by chance, for timing only.

    survival[j]: the probability that more than j drafts are kept.
    """

    end_ids: Tensor
    survival: Tensor | None = None


def accept(
    sequences: Sequences, drafts: Tensor | None, chosen: Tensor, hidden: Tensor, end: Ending, out: Tensor
) -> None:
    """Keeps each sequence's drafts [k, B] up to the first that differs from the target's choice, and moves on.

    chosen int64 [B * (k + 1)] and hidden [B * (k + 1), D] belong to the rows of `verify_rows`. Emits the kept drafts
    and the target's own next token, cut at an end token and at `remaining`, into out int64 [B, COLUMNS]. Nothing is
    rolled back: what is not counted in `length` does not exist.
    """
    batch, k = len(sequences.length), 0 if drafts is None else len(drafts)
    _accept[(batch,)](
        *sequences, drafts, chosen, hidden, end.end_ids, end.survival, out, k, batch,
        len(end.end_ids), hidden.shape[1],
        BLOCK=pow2(k + 1), WIDTH=pow2(hidden.shape[1]), **options(num_warps=4),
    )  # fmt: skip


@triton.jit
def _uniform(seed, counter):
    """A number in [0, 1) from a 64-bit mix (splitmix64) of seed and counter: chance for timing, not for sampling."""
    z = (seed * 1048576 + counter).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return ((z ^ (z >> 31)) >> 40).to(tl.float32) / 16777216.0


@triton.jit(do_not_specialize=["k", "batch", "ends", "width"])
def _accept(
    length, last, hidden_out, remaining, limit, stops, drafts, chosen, hidden, end_ids, survival,
    out, k, batch, ends, width,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    wait(PDL)
    b, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    left = tl.load(remaining + b)
    choice = tl.load(chosen + b * (k + 1) + i, mask=i <= k, other=-1)
    allowed = tl.minimum(tl.load(limit + b), k)
    kept = 0
    if drafts is not None:
        if survival is not None:
            # Of the text too: else every text would have the luck of the one before it.
            place = tl.load(length + b).to(tl.int64) * 1048576 + tl.load(last + b)
            chance = _uniform(place, b)
            good = chance < tl.load(survival + i, mask=i < k, other=0.0)
        else:
            good = choice == tl.load(drafts + i * batch + b, mask=i < k, other=-2)
        wrong = tl.where(good & (i < allowed), BLOCK, i)
        kept = tl.min(wrong, 0)
    count = tl.minimum(kept + 1, left)
    if tl.load(stops + b) != 0:
        for e in range(ends):
            hit = tl.where((choice == tl.load(end_ids + e)) & (i < count), i, BLOCK)
            at = tl.min(hit, 0)
            count = tl.minimum(count, at + 1)
            left = tl.where(at < BLOCK, tl.minimum(left, count), left)
    out += b * _COLUMNS
    tl.store(out + i, choice, mask=i < count)
    tl.store(out + 16, count.to(tl.int64))
    tl.store(out + 17, tl.where(count > 0, kept, 0).to(tl.int64))
    tl.store(out + 18, ((count > 0) & (left == count)).to(tl.int64))
    if count > 0:
        tl.store(length + b, tl.load(length + b) + kept + 1)
        tl.store(last + b, tl.sum(tl.where(i == kept, choice, 0), 0))
        tl.store(remaining + b, left - count)
        column = tl.arange(0, WIDTH)
        row = tl.load(hidden + (b * (k + 1) + kept) * width + column, mask=column < width)
        tl.store(hidden_out + b * width + column, row, mask=column < width)
