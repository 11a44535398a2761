"""Captures rounds and prompt chunks as CUDA graphs when they are first needed, and replays them.

A graph replays the very kernels that `DeviceModel.round` launches; without graphs the same calls run one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from paceline.device.round import Chunk, DeviceModel, Shape

MOST_ROUNDS = 128
"""Captured rounds kept at once: each costs megabytes, and batches, draft lengths and spans have many combinations."""


class Graphs:
    """Runs rounds and chunks of one model. `enabled` False launches every kernel anew (and serves machines without
    a GPU, under Triton's interpreter).
    """

    def __init__(self, model: DeviceModel, enabled: bool = True) -> None:
        self.model, self.enabled = model, enabled
        self.rounds: OrderedDict[Shape, torch.cuda.CUDAGraph] = OrderedDict()
        self.chunks: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.inputs: dict[int, Chunk] = {}
        self.bytes = 0
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def round(self, shape: Shape) -> None:
        """One round of the first `shape.batch` places."""
        if not self.enabled:
            self.model.round(shape)
            return
        if shape not in self.rounds:
            if len(self.rounds) == MOST_ROUNDS:
                self.rounds.popitem(last=False)  # the one that was wanted least recently
            self.model.round(shape, rehearsal=True)  # compiles what is new; a capture must not
            self.rounds[shape], _ = self._capture(lambda: self.model.round(shape))
        self.rounds.move_to_end(shape)
        self.rounds[shape].replay()

    def ready(self, shape: Shape, lengths: Iterable[int]) -> list[int]:
        """Which of these draft lengths a round of this shape could have at once."""
        return [k for k in lengths if not self.enabled or shape._replace(k=k) in self.rounds]

    def chunk(self, ids: Tensor, start: int, place: int, wanted: int) -> Tensor:
        """Reads ids int64 [m] (host) as the tokens at start .. of `place`, padded in front to a captured size."""
        size = chunk_size(len(ids))
        inputs = self._inputs(size)
        pad = size - len(ids)
        inputs.ids[pad:].copy_(ids, non_blocking=True)
        inputs.start.fill_(start)
        inputs.pad.fill_(pad)
        inputs.table.copy_(self.model.cache.tables[place : place + 1])
        inputs.ring.copy_(self.model.cache.rings[place : place + 1])
        if not self.enabled:
            return self.model.chunk(inputs, wanted)
        if (size, wanted) not in self.chunks:
            cache = self.model.cache  # a rehearsal must not touch the sequence: a ring's old keys are still wanted
            self.model.chunk(replace(inputs, table=cache.tables[-1:], ring=cache.rings[-1:]), wanted)
            self.chunks[size, wanted] = self._capture(lambda: self.model.chunk(inputs, wanted))
        graph, hidden = self.chunks[size, wanted]
        graph.replay()
        return hidden

    def _inputs(self, size: int) -> Chunk:
        if size not in self.inputs:
            cache = self.model.cache
            ids = torch.zeros(size, dtype=torch.int64, device=cache.tables.device)
            start, pad = (torch.zeros(1, dtype=torch.int32, device=ids.device) for _ in range(2))
            self.inputs[size] = Chunk(ids, start, pad, cache.tables[:1].clone(), cache.rings[:1].clone())
        return self.inputs[size]

    def _capture(self, call: Callable[[], Tensor | None]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # a capture begins with this, which would count against it
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = call()
        self.bytes += torch.cuda.memory_reserved() - before
        return graph, out if out is not None else torch.empty(0)


CHUNKS = (16, 64, 128, 256, 512, 1024, 1536, 2048)
"""Sizes a prompt's parts are padded to."""


def chunk_size(count: int) -> int:
    """The least captured size that holds so many tokens."""
    return next(size for size in CHUNKS if size >= count)


def split_prompt(length: int) -> list[int]:
    """Lengths of a prompt's parts, a function of its length alone. Whole parts last: only the first is padded."""
    rest = length % CHUNKS[-1]
    return [rest] * (rest > 0) + [CHUNKS[-1]] * (length // CHUNKS[-1])
