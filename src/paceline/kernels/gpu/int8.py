"""Weights in int8 with a scale for each row: half the bytes of bf16, for a drafter's guesses only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 16384  # rows: an fp32 copy of a whole LM head would be twice the head


class Quantised(NamedTuple):
    """weight int8 [N, K]; scales fp32 [N], of each row: row i stands for weight[i] * scales[i]."""

    weight: Tensor
    scales: Tensor


Weight = Tensor | Quantised  # [N, K]


def numbers_of(weight: Weight) -> tuple[Tensor, Tensor | None]:
    """(numbers, scales): no scales where the numbers stand for themselves."""
    return weight if isinstance(weight, Quantised) else (weight, None)


def quantize(weight: Tensor) -> Quantised:
    """The weight [N, K] in int8, each row scaled by its greatest magnitude."""
    held = Quantised(
        torch.empty(weight.shape, dtype=torch.int8, device=weight.device),
        torch.empty(len(weight), dtype=torch.float32, device=weight.device),
    )
    for start in range(0, len(weight), AT_ONCE):
        part = weight[start : start + AT_ONCE].float()
        scale = part.abs().amax(1).clamp(min=1e-12) / 127
        held.weight[start : start + AT_ONCE] = (part / scale[:, None]).round().to(torch.int8)
        held.scales[start : start + AT_ONCE] = scale
    return held


def dequantised(held: Quantised) -> Tensor:
    """What it stands for, fp32 [N, K]."""
    return held.weight.float() * held.scales[:, None]
