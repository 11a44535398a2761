"""Device time of a call: many copies in one CUDA graph, inputs rotated so that weights come from memory and not L2."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

L2_BYTES = 64 << 20


def graph_time(call: Callable[..., Any], input_sets: Sequence[tuple[Any, ...]], repeats: int = 15) -> float:
    """Median microseconds of one `call(*inputs)`: one graph calls it once for each input set, in order.

    Give as many sets as it takes for all weights together to exceed L2 several times.
    """
    for inputs in input_sets[:2]:
        call(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in input_sets:
            call(*inputs)
    return replay_time(graph, repeats) / len(input_sets)


def replay_time(graph: torch.cuda.CUDAGraph, repeats: int = 15) -> float:
    """Median microseconds of one replay."""
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth(size: int = 1 << 31) -> float:
    """Bytes per second of a device-to-device copy, bytes read and written counted."""
    source = torch.randn(size // 4, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return 2 * size / statistics.median(times[2:])
