"""Places for a batch of sequences in one `Storage`: who holds which pages and which ring, on the host and the device.

Page 0 and the last ring belong to nobody: idle places of a batch, and rehearsals before a capture, write there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paceline.cache import PAGE, Storage, ring_slots
from paceline.config import TextConfig
from paceline.errors import UsageError
from paceline.kernels import Ops
from paceline.kernels.gpu.launch import CacheView, cdiv


class Where(NamedTuple):
    """Where one sequence's keys and values lie: table int32 [1, pages], ring int32 [1, 1]."""

    table: Tensor
    ring: Tensor


class BatchCache:
    """Storage for `places` sequences of at most `context` tokens each; `capacity` tokens in all full layers."""

    def __init__(self, config: TextConfig, ops: Ops, places: int, context: int, capacity: int | None = None) -> None:
        self.config, self.places, self.context = config, places, context
        self.pages = cdiv(context, PAGE)
        self.storage = Storage(config, ops, (capacity or places * self.pages * PAGE) + PAGE, places + 1)
        self.storage.free_pages.remove(0)
        device = next(iter(self.storage.layers.values()))[0].device
        # One entry more than a sequence can hold: what a round drafts past its end goes to nobody's page.
        self.tables = torch.zeros(places + 1, self.pages + 1, dtype=torch.int32, device=device)
        self.rings = torch.arange(places + 1, dtype=torch.int32, device=device)[:, None]
        self.held: dict[int, list[int]] = {}
        self.lent: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.storage.nbytes

    def can_hold(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens fits now."""
        return cdiv(tokens, PAGE) <= min(self.pages, len(self.storage.free_pages))

    def reserve(self, place: int, tokens: int) -> None:
        """Gives `place` the pages of a sequence of so many tokens. Raises UsageError when it is too long or full."""
        if not self.can_hold(tokens):
            room = min(self.pages, len(self.storage.free_pages)) * PAGE
            raise UsageError(f"the cache has room for {room} tokens, not {tokens}; allow a longer context or wait")
        pages = [self.storage.free_pages.pop() for _ in range(cdiv(tokens, PAGE))]
        self.held[place] = pages
        row = torch.tensor(pages + [0] * (self.pages + 1 - len(pages)), dtype=torch.int32)
        self.tables[place].copy_(row, non_blocking=True)

    def lend(self, place: int, tokens: int) -> Where:
        """`reserve` for a sequence that the batch's rounds must not touch: to them the place looks idle."""
        self.reserve(place, tokens)
        where = Where(*(tensor.clone() for tensor in self.where(place)))
        self.tables[place].zero_()
        self.rings[place].copy_(self.rings[-1])  # nobody's: a batch's round writes there for idle places
        self.lent[place] = where.ring[0]
        return where

    def where(self, place: int) -> Where:
        """The pages and the ring of a place."""
        return Where(self.tables[place : place + 1], self.rings[place : place + 1])

    @property
    def nobody(self) -> Where:
        """Where rehearsals write. In tensors of their own, since kernels are compiled for aligned addresses apart."""
        return Where(*(tensor.clone() for tensor in self.where(self.places)))

    def release(self, place: int) -> None:
        """Takes the pages back; the place writes to nobody's page from the next round on."""
        self.storage.free_pages.extend(self.held.pop(place))
        self.tables[place].zero_()
        if place in self.lent:
            self.rings[place].copy_(self.lent.pop(place))

    def move(self, source: int, target: int) -> None:
        """`target`, which is free, takes over the sequence of `source`; their rings change hands too."""
        self.held[target] = self.held.pop(source)
        self.tables[target] = self.tables[source]
        self.tables[source].zero_()
        free = self.rings[target].clone()
        self.rings[target] = self.rings[source]
        self.rings[source] = free


class PassCache:
    """What a pass over some places sees: stands where a `KVCache` does in the models.

    tables int32 [sequences, pages], rings int32 [sequences, 1]; no position reaches `span`. `chunk`: rows of a prompt
    that are not in the cache yet.
    """

    def __init__(self, cache: BatchCache, tables: Tensor, rings: Tensor, span: int, chunk: int = 0) -> None:
        self.cache, self.tables, self.rings, self.span, self.chunk = cache, tables, rings, span, chunk
        self._fresh: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def view(self, layer: int) -> CacheView:
        """Keys and values of the layer that owns them."""
        keys, values = self.cache.storage.layers[layer]
        window = self.cache.config.layers[layer].window
        fresh = self._chunk_keys(keys) if self.chunk else None
        if window is None:
            return CacheView(keys, values, self.tables, PAGE, False, self.span, fresh)
        slots = ring_slots(window)
        return CacheView(keys, values, self.rings, slots, True, min(self.span, slots), fresh)

    def _chunk_keys(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Room for a chunk's own keys and values; layers of one shape take turns."""
        shape = (self.chunk, *keys.shape[1:])
        if shape not in self._fresh:
            self._fresh[shape] = (keys.new_empty(shape), keys.new_empty(shape))
        return self._fresh[shape]
