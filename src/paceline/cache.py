"""Keys and values, and the only file that knows slot arithmetic.

A full layer is paged: position p lies in page `table[p // PAGE]`. A sliding layer is a ring: one page of at least
window + MAX_TENTATIVE slots that repeats. A pass of n <= MAX_TENTATIVE tokens then never lands on a slot that is
still inside some row's window, so taking tokens back is a subtraction and restores nothing.
"""

from __future__ import annotations

import numpy as np
import torch

from paceline.config import TextConfig
from paceline.errors import RollbackError, UsageError
from paceline.kernels import Array, LayerView, Ops

PAGE = 64
MAX_TENTATIVE = 16
"""Most tokens one pass may add: the bonus token and up to 15 drafts, or a chunk of a prompt."""


class Storage:
    """The arrays behind all sequences: pages shared by the full layers' sequences, one ring for each sequence.

    `capacity` is in tokens, over all sequences; `sequences` is how many may live at once.
    """

    def __init__(self, config: TextConfig, ops: Ops, capacity: int, sequences: int = 1) -> None:
        self.config, self.ops = config, ops
        self.pages = -(-capacity // PAGE)
        self.free_pages = list(range(self.pages - 1, -1, -1))
        self.free_rings = list(range(sequences - 1, -1, -1))
        self.layers = {i: self._allocate(i, sequences) for i in config.kv_owners}

    @property
    def capacity(self) -> int:
        """Tokens of all sequences together."""
        return self.pages * PAGE

    def _allocate(self, index: int, sequences: int) -> tuple[Array, Array]:
        layer = self.config.layers[index]
        slots = self.pages * PAGE if layer.window is None else sequences * ring_slots(layer.window)
        return self.ops.store(slots, layer.kv_heads, layer.head_dim)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(self.ops.tensor(a).nbytes for pair in self.layers.values() for a in pair)


def ring_slots(window: int) -> int:
    """Slots of a sliding layer's ring: its window, plus room for one unverified pass, in whole pages."""
    return -(-(window + MAX_TENTATIVE) // PAGE) * PAGE


class Extent:
    """How many tokens a sequence has in a cache, and how many of them its last pass may still take back."""

    def __init__(self) -> None:
        self.length = self.tentative = 0

    def append(self, count: int) -> range:
        """The positions of the next `count` tokens, which stay tentative until the next call.

        Raises RollbackError above MAX_TENTATIVE tokens.
        """
        if count > MAX_TENTATIVE:
            raise RollbackError(f"a pass of {count} tokens does not fit the {MAX_TENTATIVE} slots kept for one")
        start, self.length, self.tentative = self.length, self.length + count, count
        return range(start, self.length)

    def rollback(self, count: int) -> None:
        """Takes back the last `count` tokens of the last pass: exact, or a RollbackError."""
        if not 0 <= count <= self.tentative:
            raise RollbackError(f"cannot take back {count} tokens: the last pass added {self.tentative}")
        self.length -= count
        self.tentative -= count


class KVCache(Extent):
    """One sequence's share of a `Storage`: how long it is, and where its tokens lie."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        if not storage.free_rings:
            raise UsageError("this cache holds as many sequences as it was made for; wait for one to finish")
        self.storage = storage
        self._held = 0
        self._ring = storage.free_rings.pop()
        self._table = np.zeros(max(storage.pages, 1), np.int64)
        self._look()

    def _look(self) -> None:
        """Views of the table as it is now: a backend with memory of its own has copied it."""
        self._views = {i: self._view(i) for i in self.storage.layers}

    def _view(self, index: int) -> LayerView:
        keys, values = self.storage.layers[index]
        window = self.storage.config.layers[index].window
        table = self._table if window is None else np.array([self._ring], np.int64)
        page = PAGE if window is None else ring_slots(window)
        array = self.storage.ops.array(torch.from_numpy(table))
        return LayerView(keys, values, array, page, window is not None)

    def view(self, layer: int) -> LayerView:
        """Keys and values of the layer that owns them."""
        return self._views[layer]

    def append(self, count: int) -> range:
        """Makes room for the next `count` tokens, too: UsageError when the pages are used up."""
        # A pass that is too long is refused before it takes pages.
        held = self._held
        while count <= MAX_TENTATIVE and self._held * PAGE < self.length + count:
            if not self.storage.free_pages:
                raise UsageError(f"the cache is full at {self.length} tokens; allow more context or shorten the prompt")
            self._table[self._held] = self.storage.free_pages.pop()
            self._held += 1
        if self._held > held:
            self._look()
        return super().append(count)

    def release(self) -> None:
        """Gives pages and ring back. The cache must not be used afterwards."""
        self.storage.free_pages.extend(int(p) for p in self._table[: self._held])
        self.storage.free_rings.append(self._ring)
        self._held = self.length = self.tentative = 0
