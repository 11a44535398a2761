"""What fits into a GPU's memory, and what is said where something does not."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar

import torch

from paceline.cache import MAX_TENTATIVE, PAGE, ring_slots
from paceline.config import TextConfig
from paceline.errors import UsageError
from paceline.weights import Header

if TYPE_CHECKING:
    from paceline.device.build import Room

T = TypeVar("T")

MARGIN_BYTES = 1 << 30  # graphs, activations of a prompt's chunk, and what other programs may take
PLACES = (16, 8, 4, 2, 1)
CONTEXT = 8192


@dataclass(frozen=True, kw_only=True)
class Need:
    """What is to lie on the device: bytes of weights, and caches whose numbers take `width` bytes.

    places and context are what was asked for; None leaves them open.
    """

    config: TextConfig
    weights: int
    width: int = 2
    places: int | None = None
    context: int | None = None

    def bytes(self, places: int, context: int) -> int:
        """Bytes of the caches of so many sequences, and of the rotary tables."""
        full, ring = (places * -(-context // PAGE) + 1) * PAGE, places + 1
        total = 0
        for layer in (self.config.layers[i] for i in self.config.kv_owners):
            slots = full if layer.window is None else ring * ring_slots(layer.window)
            total += 2 * slots * layer.kv_heads * layer.head_dim * self.width
        return total + rope_bytes(self.config, context)


def rope_bytes(config: TextConfig, context: int) -> int:
    """Bytes of cos and sin in fp32, for twice the positions (see `models.gemma4.RopeTables`)."""
    rotated = {(layer.rope_theta, layer.rotated, layer.head_dim) for layer in config.layers}
    return sum(2 * 4 * 2 * (context + MAX_TENTATIVE) * pairs for _, pairs, _ in rotated)


def largest_chunk(config: TextConfig) -> int:
    """Rows of a prompt that pass at once: more where they take little memory, since each pass reads all weights."""
    return 4096 if config.hidden <= 3072 else 2048


def held_bytes(headers: dict[str, Header], width: int) -> int:
    """Bytes of a checkpoint's weights on the device: matrices in numbers of `width` bytes, the rest as in `Plan`."""

    def size(header: Header) -> int:
        integer = not header.dtype.is_floating_point
        return header.dtype.itemsize if integer else width if len(header.shape) > 1 else 4

    return sum(prod(header.shape) * size(header) for header in headers.values())


def choose_room(need: Need, free: int) -> Room:
    """The room that fits `free` bytes beside the weights. Raises UsageError saying what would fit."""
    from paceline.device.build import Room  # needs Triton, which the arithmetic above does without

    context = need.context or min(CONTEXT, need.config.max_positions)
    left = free - need.weights - MARGIN_BYTES
    for places in (need.places,) if need.places else PLACES:
        if need.bytes(places, context) <= left:
            return Room(places=places, context=context)
    if need.bytes(1, PAGE) > left:
        raise UsageError(
            f"the weights take {_gb(need.weights)}, {_gb(MARGIN_BYTES)} must stay free to work in, and the GPU has"
            f" {_gb(free)} free; use a smaller size, or device 'cpu'"
        )
    raise UsageError(_what_fits(need, context, left))


def _what_fits(need: Need, context: int, left: int) -> str:
    """Fewer sequences where that is enough, else the longest context of one."""
    asked = need.places or 1
    places = bisect_right(range(1, asked + 1), left, key=lambda count: need.bytes(count, context))
    pages = bisect_right(range(1, context // PAGE + 1), left, key=lambda count: need.bytes(1, count * PAGE))
    mend = (
        f"{places} would fit, so ask for fewer"
        if places
        else f"one of {pages * PAGE} tokens would fit, so ask for less"
    )
    each = "sequence" if asked == 1 else "sequences"
    return (
        f"keys and values of {asked} {each} of {context} tokens take {_gb(need.bytes(asked, context))}, and beside"
        f" {_gb(need.weights)} of weights the GPU has {_gb(left)} for them; {mend}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def within_memory(call: Callable[[], T], advice: str) -> T:
    """What `call` returns. Out of memory becomes a UsageError with `advice`, after what it took was given back."""
    try:
        return call()
    except torch.OutOfMemoryError:
        pass  # its traceback holds all that was loaded: only when this block is left can that be given back
    release()
    free = torch.cuda.mem_get_info()[0]
    raise UsageError(f"the GPU ran out of memory, and has {_gb(free)} free without this; {advice}")


def release() -> None:
    """Gives back what a failed load took."""
    gc.collect()
    torch.cuda.empty_cache()
