"""Memory and time that loading takes, against the bytes of the weights.

Writes a checkpoint of random numbers in E2B's layout (about 1.8 GB in bf16, several files), loads it in a fresh
process, writes a few tokens, and compares the peak of resident memory above that after the imports with what the model
and its cache hold. Once with the files dropped from the page cache where the system allows it, once with them in it.

    python benchmarks/memory.py
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from paceline.bench.record import check_writable
from paceline.config import parse_text
from paceline.errors import PacelineError
from paceline.kernels import get_ops
from paceline.models.gemma4 import Target
from paceline.models.plan import Plan

DTYPES = {"bf16": ("BF16", torch.bfloat16), "f32": ("F32", torch.float32)}
SLIDING, FULL = "sliding_attention", "full_attention"
SHARD_BYTES = 600 << 20
BLOCK = 8 << 20  # random numbers drawn once and repeated: what they are changes neither memory nor time
PROMPT_TOKENS, NEW_TOKENS = 64, 8


@dataclass(frozen=True)
class Piece:
    """One tensor of the checkpoint to be."""

    name: str
    shape: tuple[int, ...]
    nbytes: int


def config(layers: int) -> dict[str, Any]:
    """E2B's config.json with fewer layers and a quarter of its vocabulary."""
    return {
        "model_type": "gemma4_text",
        "vocab_size": 65536,
        "vocab_size_per_layer_input": 65536,
        "hidden_size": 1536,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 6144,
        "use_double_wide_mlp": True,
        "num_hidden_layers": layers,
        "num_kv_shared_layers": layers // 2,
        "layer_types": [FULL if (i + 1) % 5 == 0 or i + 1 == layers else SLIDING for i in range(layers)],
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": 30.0,
        "eos_token_id": 1,
    }


def pieces(settings: dict[str, Any], itemsize: int) -> list[Piece]:
    """The tensors of such a checkpoint, asked of the model itself; its untouched weights take no memory yet."""
    plan = Plan(get_ops("cpu"), lambda name: torch.bfloat16)
    Target(parse_text(settings, "config.json"), plan)
    return [Piece(name, place.shape, itemsize * prod(place.shape)) for name, place in plan.places.items()]


def shards(tensors: list[Piece], limit: int) -> Iterator[list[Piece]]:
    """The tensors in order, in groups of at most `limit` bytes (a larger tensor is alone)."""
    group: list[Piece] = []
    for piece in tensors:
        if group and sum(p.nbytes for p in group) + piece.nbytes > limit:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def write_checkpoint(folder: Path, layers: int, dtype: str) -> int:
    """Writes config.json, the shards and their index; returns the bytes of all tensors."""
    code, kind = DTYPES[dtype]
    settings = config(layers)
    groups = list(shards(pieces(settings, kind.itemsize), SHARD_BYTES))
    block = torch.randn(BLOCK // kind.itemsize, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(kind)
    raw = block.view(torch.uint8).numpy()
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _write_shard(folder / name, group, code, raw)
        weight_map.update({piece.name: name for piece in group})
    (folder / "config.json").write_text(json.dumps(settings))
    index = {"metadata": {"total_size": sum(p.nbytes for g in groups for p in g)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return int(index["metadata"]["total_size"])  # type: ignore[index]


def _write_shard(path: Path, group: list[Piece], code: str, raw: np.ndarray) -> None:
    """A safetensors file: 8 bytes of header length, the header, the tensors. No tensor is ever whole in memory."""
    header, at = {}, 0
    for piece in group:
        header[piece.name] = {"dtype": code, "shape": list(piece.shape), "data_offsets": [at, at + piece.nbytes]}
        at += piece.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for left in range(at, 0, -len(raw)):
            file.write(raw[:left].data)
        file.flush()
        os.fsync(file.fileno())


def drop_cached(folder: Path) -> bool:
    """Asks the system to forget its cached copy of the files; False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return True


def resident() -> tuple[int, int]:
    """Bytes resident now, and at most so far.

    Linux counts the peak of the program that started this one into ru_maxrss, so its own VmHWM is read where it exists.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


def measure_here(folder: Path, threads: int) -> dict[str, Any]:
    """Loads the checkpoint in this process and writes a few tokens."""
    from paceline.kernels import cpu  # noqa: F401  # the kernels' compiler is an import too, not weights
    from paceline.llm import LLM
    from paceline.types import SamplingParams

    common.set_threads(threads)
    before, _ = resident()
    began = time.perf_counter()
    llm = LLM.from_pretrained(str(folder), drafter=None)
    load_s = time.perf_counter() - began
    after_load, peak_load = resident()
    prompt = [3 + i % 1000 for i in range(PROMPT_TOKENS)]
    llm.generate([prompt], SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True))
    after_run, peak_run = resident()
    assert llm.engine.storage is not None
    return {
        "weights_bytes": weights_bytes(llm.engine.target),
        "cache_bytes": llm.engine.storage.nbytes,
        "load_s": load_s,
        "resident_bytes": {"imports": before, "loaded": after_load, "generated": after_run},
        "peak_bytes": {"loading": peak_load, "generating": peak_run},
        "ru_maxrss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def weights_bytes(model: Any) -> int:
    """Bytes of all weights a model holds, each counted once."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, np.ndarray) or hasattr(value, "cols"):
            seen[id(value)] = int(value.nbytes)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("paceline.models"):
            for item in vars(value).values():
                visit(item)

    visit(model)
    return sum(seen.values())


def measure_apart(folder: Path, threads: int) -> dict[str, Any]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--measure", str(folder), "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def with_ratio(run: dict[str, Any], stored_bytes: int) -> dict[str, Any]:
    """A run with its figures: peak memory above the imports over weights and cache, and the speed of loading."""
    held = run["weights_bytes"] + run["cache_bytes"]
    above = {when: peak - run["resident_bytes"]["imports"] for when, peak in run["peak_bytes"].items()}
    return {
        **run,
        "stored_bytes": stored_bytes,
        "ratio": above["generating"] / held,
        "ratio_loading": above["loading"] / held,
        "load_gb_per_s": stored_bytes / run["load_s"] / 1e9,
    }


def measure_dtype(dtype: str, layers: int, threads: int) -> list[dict[str, Any]]:
    """A row for each state of the page cache."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = write_checkpoint(folder, layers, dtype)
        for dropped in (True, False):
            if dropped and not drop_cached(folder):
                continue
            run = with_ratio(measure_apart(folder, threads), stored)
            rows.append({"dtype": dtype, "layers": layers, "page_cache": "dropped" if dropped else "warm", **run})
    return rows


def run(dtypes: list[str], layers: int, threads: int, out: Path) -> None:
    """Measures, writes the record, shows the table."""
    options = {"dtypes": dtypes, "layers": layers, "threads": threads}
    record = common.head("paceline-memory/1", ["CPU", "synthetic: random weights in E2B's layout"], options)
    rows = [row for dtype in dtypes for row in measure_dtype(dtype, layers, threads)]
    kept = ("dtype", "page_cache", "stored_bytes", "weights_bytes", "cache_bytes", "ratio", "load_s", "load_gb_per_s")
    record["summary"] = {"runs": [{key: row[key] for key in kept} for row in rows]}
    record["measurements"] = rows
    shown = [
        (r["dtype"], r["page_cache"], f"{r['weights_bytes'] / 1e9:.2f} GB", f"{r['ratio']:.3f}",
         f"{r['ratio_loading']:.3f}", f"{r['load_gb_per_s']:.2f} GB/s")
        for r in rows
    ]  # fmt: skip
    columns = ("dtype", "page cache", "weights", "peak / (weights + cache)", "while loading", "loading")
    common.show("memory", columns, shown)
    common.write(out, record)


def main() -> None:
    """Reads the flags and runs; input errors become one sentence."""
    parser = common.parser("Peak memory and time of loading.", "memory.json")
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["bf16"])
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--measure", type=Path, help="load this folder here and print one JSON line; nothing else")
    flags = parser.parse_args()
    try:
        if flags.measure:
            print(json.dumps(measure_here(flags.measure, flags.threads)))
            return
        check_writable(flags.out)
        run(flags.dtypes, flags.layers, flags.threads, flags.out)
    except PacelineError as error:
        sys.exit(f"memory: {error}")


if __name__ == "__main__":
    main()
