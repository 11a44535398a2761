"""Rules that reshape logits on the device before a token is chosen: what `paceline.processors` does on the host.

Each row of a pass stands after the drafts before it. The device keeps a history of what every sequence has read and
written, and adds to it what a round emits, so that a round with rules runs without a word to the host, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.kernels.gpu.accept import COLUMNS, COUNT
from paceline.kernels.gpu.launch import cdiv, let_next_start, options, wait
from paceline.types import SamplingParams

READ = 1 << 30
"""Set in a history where the prompt holds the token; the bits below count how often the text does."""
MOST_BIASES = 300
TILE = 1024
_READ, _COUNT, _COLUMNS = tl.constexpr(READ), tl.constexpr(COUNT), tl.constexpr(COLUMNS)


class Rules(NamedTuple):
    """The rules of the sequences of a batch, [B] each.

    grace int32: min_tokens - max_tokens. biases int32: how many entries of bias_ids int32 and bias_values fp32
    [B, MOST_BIASES] hold.
    """

    repetition: Tensor  # fp32
    presence: Tensor  # float64
    frequency: Tensor  # float64
    grace: Tensor
    biases: Tensor
    bias_ids: Tensor
    bias_values: Tensor


class Ruling(NamedTuple):
    """Rules with what they look at. history int32 [B, vocab]; remaining, stops int32 [B] as in `accept.Sequences`."""

    rules: Rules
    history: Tensor
    remaining: Tensor
    stops: Tensor
    end_ids: Tensor


def neutral_rules(count: int, device: torch.device | str) -> Rules:
    """Rules of `count` sequences that change nothing."""
    return rules_of([SamplingParams()] * count, device)


def rules_of(params: Sequence[SamplingParams], device: torch.device | str) -> Rules:
    """The rules of a batch as tensors, each with at most MOST_BIASES biases."""
    ids = torch.zeros(len(params), MOST_BIASES, dtype=torch.int32)
    values = torch.zeros(len(params), MOST_BIASES)
    for row, own in enumerate(params):
        for i, (token, bias) in enumerate(own.biases):
            ids[row, i], values[row, i] = token, bias

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    return Rules(
        column([p.repetition_penalty for p in params], torch.float32),
        column([p.presence_penalty for p in params], torch.float64),
        column([p.frequency_penalty for p in params], torch.float64),
        column([p.min_tokens - p.max_tokens for p in params], torch.int32),
        column([len(p.biases) for p in params], torch.int32),
        ids.to(device, non_blocking=True), values.to(device, non_blocking=True),
    )  # fmt: skip


def begin_history(history: Tensor, prompt: Tensor) -> None:
    """Makes a sequence's history int32 [vocab] that of a text that begins after this prompt int64 [m]."""
    history.zero_()
    history.index_fill_(0, prompt, READ)


def reshape(logits: Tensor, ids: Tensor | None, ruling: Ruling, drafts: Tensor | None, first: int = 0) -> None:
    """Applies each sequence's rules to its rows of logits fp32 [n, V], in place.

    ids int64 [n, V] names the columns where they are not the vocabulary itself. The n / B rows of a sequence stand
    after first, first + 1, ... of its drafts int64 [k, B].
    """
    (n, columns), batch = logits.shape, len(ruling.remaining)
    _reshape[cdiv(columns, TILE), n](
        logits, ids, *ruling, drafts, n // batch, first, batch, columns, ruling.history.shape[1],
        len(ruling.end_ids), ruling.rules.bias_ids.shape[1], TILE=TILE, **options(num_warps=4),
    )  # fmt: skip


@triton.jit(do_not_specialize=["q", "first", "batch", "ends"])
def _reshape(
    logits, ids, rules, history, remaining, stops, end_ids, drafts, q, first, batch, V, vocab, ends, room,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait(PDL)
    let_next_start(PDL)
    row = tl.program_id(1).to(tl.int64)
    b, after = row // q, first + (row % q).to(tl.int32)
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = columns < V
    token = columns.to(tl.int64)
    if ids is not None:
        token = tl.load(ids + row * V + columns, there, other=0)
    x = tl.load(logits + row * V + columns, there, other=0.0)
    seen = tl.load(history + b * vocab + token, there, other=0)
    if drafts is not None:
        for j in range(after):
            seen += (token == tl.load(drafts + j * batch + b)).to(tl.int32)
    for i in range(tl.load(rules.biases + b)):
        bias = tl.load(rules.bias_values + b * room + i)
        x = tl.where(token == tl.load(rules.bias_ids + b * room + i), x + bias, x)
    penalty = tl.load(rules.repetition + b)
    x = tl.where(seen != 0, tl.where(x < 0.0, x * penalty, tl.div_rn(x, tl.zeros_like(x) + penalty)), x)
    written = seen & (_READ - 1)
    once, each = tl.load(rules.presence + b), tl.load(rules.frequency + b)
    x = tl.where(written > 0, x - (once + each * written.to(tl.float64)).to(tl.float32), x)
    if (after < tl.load(rules.grace + b) + tl.load(remaining + b)) & (tl.load(stops + b) != 0):
        for e in range(ends):
            x = tl.where(token == tl.load(end_ids + e), float("-inf"), x)
    tl.store(logits + row * V + columns, x, there)


def remember(history: Tensor, outcome: Tensor) -> None:
    """Adds to each history [B, vocab] what the round emitted: outcome int64 [B, COLUMNS] of `accept`."""
    _remember[(len(outcome),)](history, outcome, history.shape[1], **options(num_warps=1))


@triton.jit
def _remember(history, outcome, vocab, PDL: tl.constexpr):
    wait(PDL)
    let_next_start(PDL)
    b, i = tl.program_id(0).to(tl.int64), tl.arange(0, 16)
    new = i < tl.load(outcome + b * _COLUMNS + _COUNT)
    token = tl.load(outcome + b * _COLUMNS + i, new, other=0)
    # A round may emit a token twice; sums of whole numbers are the same in any order.
    tl.atomic_add(history + b * vocab + token, 1, mask=new)
