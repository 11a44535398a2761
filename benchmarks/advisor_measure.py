"""Measures what the advisor predicts: round times and peak memory of all five sizes on the GPU at hand, side by side.

    python benchmarks/advisor_measure.py --out results.json               (needs a GPU; about ten minutes in all)
    python benchmarks/advisor_measure.py --dry-run --gpu h100 --out x.json    (predictions only; no GPU)

A cell is a size at a batch, with every draft length: random weights, drafts that are all refused, as `paceline bench
--shape` times them, then one text for each place, whose prompts take the memory that prompts take. Cells that are in
the file named by --resume (by default --out) are kept; no cell is begun after --limit-s, so that another call goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import torch

from paceline.advisor import machines, memory, speed
from paceline.available import obstacle
from paceline.bench import record as files
from paceline.bench.shape_options import ROOM_AFTER, ShapeOptions
from paceline.errors import PacelineError, UsageError
from paceline.shapes import SHAPES, drafter_config, target_config

SCHEMA = "paceline-advisor-measure/1"
KS, BATCHES, CONTEXT, TOKENS = (0, 2, 4, 8), (1, 8, 32), 1024, 32
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One size at one batch."""

    size: str
    batch: int

    @property
    def key(self) -> str:
        """Its name in the record."""
        return f"{self.size}/{self.batch}"

    @property
    def options(self) -> ShapeOptions:
        """What `paceline bench --shape` would be asked."""
        return ShapeOptions(shape=self.size, batches=(self.batch,), ks=KS, contexts=(CONTEXT,), tokens=TOKENS)


def cells(sizes: list[str], batches: list[int]) -> list[Cell]:
    """All cells, small sizes first: what a limit cuts off is what takes longest."""
    return [Cell(size, batch) for size in sizes for batch in batches]


def predicted_memory(cell: Cell) -> memory.Plan:
    """The plan for what a cell sets aside."""
    use = memory.Use(batch=cell.batch, context=CONTEXT + ROOM_AFTER)
    return memory.plan(target_config(cell.size), drafter_config(cell.size), 16, use)


def predicted_ms(cell: Cell, k: int, machine: machines.Machine, distinct: float | None = None) -> float | None:
    """A round's milliseconds, with experts as they were met where that is known; None for an unknown machine."""
    if machine.bandwidth is None:
        return None
    load = speed.Load(batch=cell.batch, k=k, context=CONTEXT, distinct_experts=distinct)
    pair = target_config(cell.size), drafter_config(cell.size)
    return speed.round_seconds(*pair, load, machine, speed.fitted()) * 1e3


def measured(cell: Cell, machine: machines.Machine) -> Row:
    """Round times and peak memory of a cell, each beside its prediction. Raises UsageError where it does not fit."""
    from paceline.bench.shape import ShapeBench

    bench = ShapeBench(cell.options)
    settings = bench.settings()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # building it copied two gigabytes to and fro, which serving does not
    timed = [bench.measure(setting) for setting in settings]
    return {
        "rows": [beside(cell, row, machine) for row in timed],
        "memory": memory_row(cell, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()),
        "copy_bandwidth": bench.bandwidth, "graph_bytes": bench.engine.graphs.bytes,
        "cache_bytes": bench.engine.model.cache.nbytes,
    }  # fmt: skip


def beside(cell: Cell, row: Row, machine: machines.Machine) -> Row:
    """A timed row with its predictions: knowing the experts it met, and taking them to be uniform."""
    known = predicted_ms(cell, row["k"], machine, row["distinct_experts"])
    kept = {name: row[name] for name in ("batch", "k", "context", "ms", "times_ms", "distinct_experts")}
    return {**kept, "predicted_ms": known, "predicted_uniform_ms": predicted_ms(cell, row["k"], machine),
            "error": None if known is None else known / row["ms"] - 1}  # fmt: skip


def memory_row(cell: Cell, allocated: int, reserved: int) -> Row:
    """Peak bytes beside the plan, whose margin is what it leaves to others and so left out."""
    plan = predicted_memory(cell)
    used = plan.total - plan.margin
    return {"allocated": allocated, "reserved": reserved, "planned": asdict(plan), "planned_bytes": used,
            "error": used / reserved - 1}  # fmt: skip


def dry(cell: Cell, machine: machines.Machine) -> Row:
    """The predictions of a cell alone."""
    plan = predicted_memory(cell)
    rows = [
        {"batch": cell.batch, "k": k, "context": CONTEXT, "predicted_ms": predicted_ms(cell, k, machine)} for k in KS
    ]
    return {"rows": rows, "memory": {"planned": asdict(plan), "planned_bytes": plan.total - plan.margin},
            "fits": plan.total <= machine.room}  # fmt: skip


def run(todo: list[Cell], record: Row, measure: Callable[[Cell], Row], limit_s: float, out: Path) -> bool:
    """Measures cells that the record lacks until the limit; each is written as it comes. Whether all are there.

    A cell that is refused is kept with its reason, which is a result too; one that fails otherwise ends the run.
    """
    begin = time.monotonic()
    for cell in todo:
        if cell.key in record["cells"]:
            continue
        if time.monotonic() - begin > limit_s:
            return False
        print(f"{cell.key} ...", file=sys.stderr, flush=True)
        try:
            record["cells"][cell.key] = measure(cell)
        except UsageError as error:
            record["cells"][cell.key] = {"refused": str(error), "rows": []}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        files.write_record(out, {**record, "summary": summary(record)})
    return True


def summary(record: Row) -> Row:
    """Errors of round times and of memory, over all cells so far."""
    kept = record["cells"].values()
    times = [row["error"] for cell in kept for row in cell["rows"] if row.get("error") is not None]
    held = [cell["memory"]["error"] for cell in kept if "error" in cell.get("memory", {})]
    return {"cells": len(kept), "rounds": spread(times), "memory": spread(held)}


def spread(errors: list[float]) -> Row | None:
    """Median and worst, whatever their sign; None of none."""
    sizes = [abs(e) for e in errors]
    return {"rows": len(sizes), "median": statistics.median(sizes), "worst": max(sizes)} if sizes else None


def opened(path: Path, head: Row) -> Row:
    """The record to go on with: that of the file, if it is there and of the same machine, else a new one."""
    if not path.exists():
        return {**head, "cells": {}}
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    gpus = [r["provenance"]["machine"]["gpu"] for r in (found, head)]
    if found["schema"] != SCHEMA or found["labels"] != head["labels"] or gpus[0] != gpus[1]:
        raise UsageError(
            f"{path} was not begun by this driver on this machine ({gpus[0]}, here {gpus[1]}); name another"
        )
    return found


def machine_here(dry_run: bool, gpu: str) -> machines.Machine:
    """The GPU at hand, or in a dry run the named one. Raises UsageError without a GPU."""
    if dry_run:
        return machines.find(gpu)
    if why := obstacle():
        raise UsageError(f"this needs a GPU, and here is none that serves ({why}); --dry-run shows the predictions")
    return machines.detect()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="a record to go on with, if it is not --out")
    parser.add_argument("--limit-s", type=float, default=480.0, help="begin no cell after so many seconds")
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--gpu", default="h100", help="whose predictions a dry run shows")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    try:
        files.check_writable(options.out)
        machine = machine_here(options.dry_run, options.gpu)
        labels = ["random weights", "dry run: predicted only"] if options.dry_run else ["random weights"]
        head = common.head(SCHEMA, labels, {"ks": KS, "context": CONTEXT, "machine": asdict(machine)})
        record = opened(options.resume or options.out, head)
        todo = cells(options.sizes.split(","), [int(n) for n in options.batches.split(",")])
        with torch.no_grad():
            measure = dry if options.dry_run else measured
            done = run(todo, record, lambda cell: measure(cell, machine), options.limit_s, options.out)
    except PacelineError as error:
        sys.exit(f"advisor_measure: {error}")
    common.write(options.out, {**record, "complete": done, "summary": {**summary(record), "complete": done}})


if __name__ == "__main__":
    main()
