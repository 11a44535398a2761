"""Where the time of a prompt goes: one chunk of 2048 tokens behind as many, by class of kernel. Needs a GPU.

PYTHONPATH=src python benchmarks/gpu/prefill.py --sizes e2b,26b-a4b --out prefill.json
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from paceline import roofline
from paceline.bench import record as files
from paceline.bench.rounds import charge, marks
from paceline.device.build import Room, random_model
from paceline.device.engine import DeviceEngine
from paceline.shapes import target_config

CHUNK = 2048


def chunk_ms(engine: DeviceEngine, ids: torch.Tensor, start: int, wanted: int) -> float:
    """Median milliseconds of reading one chunk at `start`."""
    times = []
    for _ in range(6):
        begin, end = marks(2)
        begin.record()
        engine.graphs.chunk(ids, start, engine.model.cache.where(0), wanted)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[2:])


def kernels(engine: DeviceEngine, ids: torch.Tensor, start: int) -> list[tuple[float, float, str]]:
    """(start, end, name) of every kernel of a chunk, in microseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        engine.graphs.chunk(ids, start, engine.model.cache.where(0), 1)
        torch.cuda.synchronize()
    return [(e.time_range.start, e.time_range.end, e.name) for e in seen.events()
            if e.device_time and "cuda" not in e.name]  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """Times of the first and of the second chunk of a prompt, and what the second's kernels take."""
    config = target_config(name)
    engine = DeviceEngine(random_model(config, None, Room(places=1, context=2 * CHUNK + 64)))
    engine.model.cache.reserve(0, 2 * CHUNK)
    ids = torch.randint(0, config.vocab, (CHUNK,))
    found = {"first_ms": chunk_ms(engine, ids, 0, 0), "second_ms": chunk_ms(engine, ids, CHUNK, 1)}
    seen = kernels(engine, ids, CHUNK)
    longest: dict[str, list[float]] = defaultdict(list)
    for start, end, kernel in seen:
        longest[kernel].append(end - start)
    flops = roofline.prompt_flops(config, 2 * CHUNK).total - roofline.prompt_flops(config, CHUNK).total
    row = {"shape": name, **found, "tflop": flops / 1e12, "classes": charge(seen),
           "kernels": {kernel: [len(us), round(sum(us), 1)] for kernel, us in longest.items()}}  # fmt: skip
    print(f"{name}: {found['first_ms']:.2f} + {found['second_ms']:.2f} ms, second {flops / 1e12:.2f} TFLOP", flush=True)
    for kernel, us in sorted(longest.items(), key=lambda item: -sum(item[1]))[:14]:
        print(f"   {sum(us):9.1f} us  {len(us):4d} x  {max(us):8.1f} most  {kernel[:60]}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default="e2b,26b-a4b")
    options = parser.parse_args()
    rows = []
    for name in options.sizes.split(","):
        rows.append(measure(name))
        files.write_record(options.out, {"provenance": files.provenance(), "rows": rows})
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    with torch.no_grad():
        main()
