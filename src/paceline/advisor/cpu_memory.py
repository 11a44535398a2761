"""What a pair takes on the CPU, to the byte: the model's own files are built on a backend that only counts.

Weights lie in panels and norms in fp32 as `paceline.kernels.cpu` has them; keys and values are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from types import SimpleNamespace
from typing import Any, cast

import torch

from paceline.cache import Storage
from paceline.config import DrafterConfig, TextConfig
from paceline.kernels import Ops
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.models.plan import Plan

CODE_BYTES = 70.3e6
"""Resident after a first text beyond weights and cache: compiled kernels and their libraries. As measured with 2.2 and
4.5 GB of weights alike (benchmarks/results/memory.json)."""
TOKENIZER_SHARE = 8.6
"""Resident bytes of a loaded tokenizer for each of its tokenizer.json: 1.14 MB of 133 kB, measured on the embedded one;
for the 32 MB of the published ones it is an assumption."""
TOKENIZER_FILE = 32_169_884


class Counting:
    """Stands where `Ops` does while a model is built, and adds up what the CPU backend would allocate."""

    def __init__(self) -> None:
        self.held = 0

    def matrix(self, rows: int, cols: int, dtype: torch.dtype, table: bool = False) -> Any:
        """Counts one weight."""
        from paceline.kernels.cpu import kept_dtype, matrix_shape  # brings Numba, which takes seconds

        self.held += prod(matrix_shape(rows, cols, table)) * kept_dtype(dtype).itemsize
        return SimpleNamespace(read=None)  # its place is noted, and never read

    def stack(self, count: int, rows: int, cols: int, dtype: torch.dtype) -> Any:
        """Counts several weights of one shape."""
        before = self.held
        weight = self.matrix(rows, cols, dtype)
        self.held += (count - 1) * (self.held - before)
        return weight

    def array(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts a small array, which is kept in fp32 or int64."""
        self.held += tensor.numel() * (4 if tensor.is_floating_point() else tensor.itemsize)
        return tensor

    def store(self, slots: int, kv_heads: int, head_dim: int) -> Any:
        """Counts keys and values of a layer."""
        from paceline.kernels.cpu import store_shapes

        self.held += sum(4 * prod(shape) for shape in store_shapes(slots, kv_heads, head_dim))
        return SimpleNamespace(), SimpleNamespace()

    def plan(self, dtype: torch.dtype) -> Plan:
        """Where a model whose weights are stored so can be built."""
        return Plan(cast(Ops, self), lambda name: dtype)


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Bytes of the arrays: of the target's weights, the drafter's, and keys and values."""

    target: int
    drafter: int
    cache: int


@cache
def arrays(
    config: TextConfig, drafter: DrafterConfig | None, tokens: int, dtype: torch.dtype = torch.bfloat16
) -> Arrays:
    """What the CPU backend allocates for a pair with weights of that dtype, and a cache of so many tokens."""
    return Arrays(
        target=target_bytes(config, dtype),
        drafter=drafter_bytes(drafter, config, dtype) if drafter else 0,
        cache=cache_bytes(config, tokens),
    )


@cache
def target_bytes(config: TextConfig, dtype: torch.dtype) -> int:
    """Bytes of a target's weights."""
    counting = Counting()
    Target(config, counting.plan(dtype))
    return counting.held


@cache
def drafter_bytes(drafter: DrafterConfig, config: TextConfig, dtype: torch.dtype) -> int:
    """Bytes of a drafter's weights."""
    counting = Counting()
    MtpDrafter(drafter, config, counting.plan(dtype))
    return counting.held


def cache_bytes(config: TextConfig, tokens: int) -> int:
    """Bytes of one sequence's keys and values: on the CPU texts are written one after another."""
    counting = Counting()
    Storage(config, cast(Ops, counting), tokens)
    return counting.held
