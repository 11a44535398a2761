"""Captures rounds and prompt chunks as CUDA graphs when they are first needed, and replays them.

A graph replays the very kernels that `DeviceModel.round` launches; without graphs the same calls run one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from paceline.device.cache import Where
from paceline.device.memory import largest_chunk
from paceline.device.round import Chunk, DeviceModel, Shape

MOST_GRAPHS = 128
"""Graphs kept at once: each costs megabytes, and batches, draft lengths and spans have many combinations."""

T = TypeVar("T")


class Graphs:
    """Runs rounds and chunks of one model. `enabled` False launches every kernel anew (and serves machines without
    a GPU, under Triton's interpreter).
    """

    def __init__(self, model: DeviceModel, enabled: bool = True) -> None:
        self.model, self.enabled = model, enabled
        self.kept: OrderedDict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = OrderedDict()
        self.inputs: dict[int, Chunk] = {}
        self.bytes = 0
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def replay(self, key: Hashable, call: Callable[[bool], T]) -> T:
        """What `call` returns, captured when `key` is first wanted; call(True) is a rehearsal and touches no sequence.

        Tensors that it returns are the graph's own, and good until the next replay of any graph.
        """
        if not self.enabled:
            return call(False)
        if key not in self.kept:
            if len(self.kept) == MOST_GRAPHS:
                self.kept.popitem(last=False)  # the one that was wanted least recently
            call(True)  # compiles what is new; a capture must not
            self.kept[key] = self._capture(lambda: call(False))
        self.kept.move_to_end(key)
        graph, out = self.kept[key]
        graph.replay()
        return cast(T, out)

    def round(self, shape: Shape) -> None:
        """One round of the first `shape.batch` places."""
        self.replay(shape, lambda rehearsal: self.model.round(shape, rehearsal))

    def has(self, shape: Shape) -> bool:
        """Whether a round of this shape can run at once."""
        return not self.enabled or shape in self.kept

    def ready(self, shape: Shape, lengths: Iterable[int]) -> list[int]:
        """Which of these draft lengths a round of this shape could have at once."""
        return [k for k in lengths if self.has(shape._replace(k=k))]

    def prompt(self, prompt: Sequence[int], where: Where) -> Tensor:
        """Reads a prompt in parts: the last token's hidden state [1, D]."""
        ids, start = torch.tensor(prompt, dtype=torch.int64), 0
        for size in split_prompt(len(ids), largest_chunk(self.model.target.config)):
            last = start + size == len(ids)
            hidden = self.chunk(ids[start : start + size], start, where, int(last))
            start += size
        return hidden

    def chunk(self, ids: Tensor, start: int, where: Where, wanted: int) -> Tensor:
        """Reads ids int64 [m] (host) as the tokens at start .. of a sequence, padded in front to a captured size."""
        size = chunk_size(len(ids))
        inputs = self._inputs(size)
        pad = size - len(ids)
        inputs.ids[pad:].copy_(ids, non_blocking=True)
        inputs.start.fill_(start)
        inputs.pad.fill_(pad)
        inputs.table.copy_(where.table)
        inputs.ring.copy_(where.ring)

        def run(rehearsal: bool) -> Tensor:
            # A rehearsal must not touch the sequence: a ring's old keys are still wanted.
            own = replace(inputs, **self.model.cache.nobody._asdict()) if rehearsal else inputs
            return self.model.chunk(own, wanted)

        return self.replay((size, wanted), run)

    def _inputs(self, size: int) -> Chunk:
        if size not in self.inputs:
            cache = self.model.cache
            ids = torch.zeros(size, dtype=torch.int64, device=cache.tables.device)
            start, pad = (torch.zeros(1, dtype=torch.int32, device=ids.device) for _ in range(2))
            self.inputs[size] = Chunk(ids, start, pad, cache.tables[:1].clone(), cache.rings[:1].clone())
        return self.inputs[size]

    def _capture(self, call: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # a capture begins with this, which would count against it
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = call()
        self.bytes += torch.cuda.memory_reserved() - before
        return graph, out


CHUNKS = (16, 64, 128, 256, 512, 1024, 1536, 2048, 4096)
"""Sizes a prompt's parts are padded to."""


def chunk_size(count: int) -> int:
    """The least captured size that holds so many tokens."""
    return next(size for size in CHUNKS if size >= count)


def split_prompt(length: int, most: int) -> list[int]:
    """Lengths of a prompt's parts, a function of its length alone, none above `most`.

    Whole parts of the two greatest sizes come last: only the first is padded.
    """
    parts, rest = list[int](), length
    for size in [size for size in reversed(CHUNKS) if size <= most][:2]:
        parts = [size] * (rest // size) + parts
        rest %= size
    return [rest] * (rest > 0) + parts
