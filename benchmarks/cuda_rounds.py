"""Rounds of all five sizes on a GPU: random weights, synthetic acceptance, beside the bandwidth ceiling.

python benchmarks/cuda_rounds.py --out benchmarks/results/cuda_rounds.json    (about five minutes; needs a GPU)
"""

from __future__ import annotations

import argparse
import gc
import json
import traceback
from pathlib import Path
from typing import Any

import torch

from paceline.acceptance import PROFILES
from paceline.bench import record as files
from paceline.bench.shape import ShapeOptions, run_shape

BATCHED = {"26b-a4b": (2, 4, 8, 16, 32), "31b": (2, 4, 8, 16)}  # of 31B, 20 texts of this context fit 80 GB
# Routers whose scores spread by 1 - x to 1 + x meet fewer distinct experts; how many is measured beside each time.
OVERLAP = 0.6


def plans(name: str) -> dict[str, ShapeOptions]:
    """What is measured of one size: batch 1 closely, batches, long contexts, and the levers."""
    profile = PROFILES["speed-bench"]

    def options(**chosen: Any) -> ShapeOptions:
        return ShapeOptions(shape=name, profile=profile, **chosen)

    closely = name in BATCHED
    found = {
        "alone": options(ks=(0, 1, 2, 3, 4, 6, 8), tokens=400, kernels=True),
        "batches": options(
            batches=BATCHED.get(name, (8, 16)), ks=(0, 1, 2, 3, 4, 6, 8) if closely else (0, 2, 4), tokens=0
        ),
        "contexts": options(contexts=(1024, 8192), ks=(0, 4), tokens=0),
    }
    if name == "26b-a4b":
        found["overlap"] = options(ks=(0, 2, 3, 4, 8), tokens=400, skew=OVERLAP)
    if name in ("12b", "26b-a4b", "31b"):
        found["int8 head"] = options(batches=(1, 8, 16), ks=(2, 4, 6, 8), tokens=400, int8_head=True)
        found["int8 drafter"] = options(ks=(2, 3, 4, 5, 6, 7, 8), tokens=400, int8_head=True, int8_body=True)
        found["int8 drafter batches"] = options(
            batches=(8, 16), ks=(2, 4, 6, 8), tokens=0, int8_head=True, int8_body=True
        )
    return found


def show(row: dict[str, Any]) -> None:
    rate = f", {row['tokens_per_s']:.0f} tok/s ({row['tokens_per_round']:.2f} a round)" if "tokens_per_s" in row else ""
    experts = f", {row['distinct_experts']:.1f} experts" if row["distinct_experts"] else ""
    print(f"   B={row['batch']} k={row['k']} context {row['context']}: {row['ms']:.3f} ms, bound {row['bound_ms']:.3f},"
          f" {row['share_of_bandwidth']:.0%}{rate}{experts}, ready {row['ready_s']:.1f} s", flush=True)  # fmt: skip


def merged(path: Path) -> dict[str, Any]:
    """The record so far, so that one size or plan can be measured anew and the others kept."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"schema": "paceline-cuda-rounds/1", "labels": [], "provenance": {}, "sizes": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; what it holds of other plans is kept")
    parser.add_argument("--sizes", default="e2b,e4b,12b,26b-a4b,31b")
    parser.add_argument("--plans", help="names of the plans to run, all by default")
    options = parser.parse_args()
    record = merged(options.out)
    for name in options.sizes.split(","):
        for label, plan in plans(name).items():
            if options.plans and label not in options.plans.split(","):
                continue
            print(f"{name}: {label}", flush=True)
            try:
                run = run_shape(plan, show)
            except Exception:  # one plan that fails must not lose the others' minutes
                traceback.print_exc()
                continue
            record["labels"], record["provenance"] = run["labels"], {**run["provenance"], "load_before": None}
            record["provenance"] |= {"load_after": None, "command": ["benchmarks/cuda_rounds.py"]}
            record["sizes"].setdefault(name, {})[label] = run
            gc.collect()
            torch.cuda.empty_cache()
            files.write_record(options.out, record)


if __name__ == "__main__":
    with torch.no_grad():
        main()
