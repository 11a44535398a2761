"""What all kernels share: how they are launched, and the two calls of programmatic dependent launch (PDL)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


class CacheView(NamedTuple):
    """One layer's keys and values as a batch of sequences sees them.

    keys, values [slots, kv_heads, head_dim]. The key of position p of sequence b lies in slot
    `table[b, (p // page) % pages] * page + p % page`: pages for a full layer, one page that repeats for a ring.
    table int32 [sequences, pages]. No row sees more than `span` positions. `fresh` is None while decoding; in a chunk
    of a prompt it holds the chunk's own keys and values [rows, kv_heads, head_dim], which are not in the cache yet.
    """

    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor
    page: int
    ring: bool
    span: int
    fresh: tuple[torch.Tensor, torch.Tensor] | None = None


@lru_cache(maxsize=1)
def pdl() -> bool:
    """Whether kernels overlap their neighbours: on real devices from compute capability 9.0."""
    if triton.knobs.runtime.interpret:
        return False
    return bool(triton.runtime.driver.active.get_current_target().arch >= 90)


def options(**extra: Any) -> dict[str, Any]:
    """Keyword arguments of every launch: the kernel's PDL flag, PDL itself, and `extra` (num_warps, num_stages)."""
    if triton.knobs.runtime.interpret:
        return {"PDL": False, **extra}
    return {"PDL": pdl(), "launch_pdl": pdl(), **extra}


@triton.jit
def wait(PDL: tl.constexpr):
    """Returns when everything launched before has finished: call it before the first read of their results."""
    if PDL:
        gdc_wait()


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """Lets the next kernel's blocks take free places; it still waits for this kernel to finish."""
    if PDL:
        gdc_launch_dependents()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def pow2(n: int, least: int = 1) -> int:
    """The least power of two that is at least n and `least`."""
    return max(least, 1 << (n - 1).bit_length())


def scratch(shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Uninitialised memory beside `like`; inside a graph capture it belongs to the graph's pool."""
    return torch.empty(shape, dtype=dtype, device=like.device)
