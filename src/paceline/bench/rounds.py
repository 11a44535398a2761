"""Times single rounds on a GPU: one captured graph, replayed, at a given batch, draft length and context."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch

from paceline.device.engine import DeviceEngine
from paceline.device.round import SPANS, Shape

ENDLESS = 1 << 30
# A kernel's class, by what its name begins with; the first that fits.
CLASSES = {
    "matmul": ("_linear",), "gated matmul": ("_gated_dense", "_gated"), "experts": ("_down",), "LM head": ("_head",),
    "norm": ("add_norm", "norms", "enter", "combine_kernel"), "rope and cache": ("rope", "store_fresh"),
    "attention": ("attend", "combine", "_prefill"), "routing": ("_route", "_plan"),
    "choose": ("_pick", "_row_best", "_tile_best", "_choose", "_survey", "_best_clusters", "_gather", "_nucleus"),
    "bookkeeping": ("_accept", "_verify", "_draft", "embed", "concat", "total", "mix_ple", "gate_ple"),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is timed: `batch` sequences that hold `context` tokens each, drafting k; mode as in `choose.mode_of`."""

    batch: int
    k: int
    context: int
    mode: str = "greedy"


class RoundTimer:
    """Replays rounds of an engine whose places it seats itself; give it a synthetic acceptance of zero."""

    def __init__(self, engine: DeviceEngine) -> None:
        self.engine, self.model = engine, engine.model

    def shape(self, setting: Setting) -> Shape:
        """The graph that serves a setting, with room for the rounds timed."""
        span = next(span for span in SPANS if span >= setting.context + 512)
        k = setting.k if self.model.drafter else 0
        return Shape(setting.batch, k, setting.mode, min(span, self.model.cache.context))

    def seat(self, setting: Setting, seed: int = 0) -> None:
        """Puts the batch at its context; last tokens are random and differ, so that experts do too."""
        cache, s = self.model.cache, self.model.places.sequences
        for place in range(setting.batch):
            if place not in cache.held:
                cache.reserve(place, cache.context)
        generator = torch.Generator().manual_seed(seed)
        s.length.fill_(setting.context)
        s.remaining.zero_()
        s.remaining[: setting.batch] = ENDLESS
        s.limit.fill_(setting.k)
        s.last.copy_(torch.randint(0, self.model.target.config.vocab, s.last.shape, generator=generator))
        s.hidden.normal_()

    def times_ms(self, setting: Setting, repeats: int = 20) -> list[float]:
        """Milliseconds of each of `repeats` rounds, from events on the device."""
        shape = self.shape(setting)
        self.seat(setting)
        for _ in range(3):
            self.engine.graphs.round(shape)
        self.seat(setting)
        first, *others = marks(repeats + 1)
        first.record()
        for mark in others:
            self.engine.graphs.round(shape)
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in itertools.pairwise([first, *others])]

    def profile(self, setting: Setting) -> dict[str, dict[str, float]]:
        """Per class of kernel: launches and microseconds of one round; "gaps" is when no kernel ran.

        Kernels overlap their neighbours, so each is charged from the end of the one before it to its own end.
        """
        shape = self.shape(setting)
        self.times_ms(setting, 2)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            self.engine.graphs.round(shape)
            torch.cuda.synchronize()
        return charge([
            (event.time_range.start, event.time_range.end, event.name)
            for event in seen.events() if event.device_time and "cuda" not in event.name
        ])  # fmt: skip


def marks(count: int) -> list[torch.cuda.Event]:
    """Events that tell the time between them."""
    return [torch.cuda.Event(enable_timing=True) for _ in range(count)]  # type: ignore[no-untyped-call]


def charge(kernels: list[tuple[float, float, str]]) -> dict[str, dict[str, float]]:
    """Time of (start, end, name) in microseconds by class, nothing counted twice, and the gaps between them."""
    launches, spent = Counter[str](), defaultdict[str, float](float)
    before = min((start for start, _, _ in kernels), default=0.0)
    for start, end, name in sorted(kernels, key=lambda kernel: kernel[1]):
        label = kernel_class(name)
        launches[label] += 1
        spent[label] += max(0.0, end - max(before, start))
        spent["gaps"] += max(0.0, start - before)
        before = max(before, end)
    return {name: {"launches": launches[name], "us": round(spent[name], 2)} for name in spent}


def kernel_class(name: str) -> str:
    """The class of a kernel's name; the name itself where none fits."""
    return next((label for label, starts in CLASSES.items() if name.startswith(starts)), name[:40])
