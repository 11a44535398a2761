"""What the drivers in this folder share: records without machine paths, threads, and one JSON line last on stdout."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from paceline.bench import record as files

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"


STALL = 5.0  # times the median round of a text


def without_stalls(rounds_s: Sequence[float]) -> tuple[float, float]:
    """(Seconds of all rounds but those that stalled, seconds of those): what else a machine does says nothing of us."""
    rounds = np.array(rounds_s)
    stalled = rounds > STALL * np.median(rounds) if len(rounds) else np.zeros(0, bool)
    return float(rounds[~stalled].sum()), float(rounds[stalled].sum())


def head(schema: str, labels: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The opening of a record, taken before anything is measured."""
    provenance = files.provenance()
    provenance["versions"] |= {name: _version(name) for name in ("transformers", "safetensors")}
    return {
        "schema": schema,
        "labels": list(labels),
        "options": options,
        "provenance": {**provenance, "load_before": files.load_average()},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes the record whole, and its summary as the last line of stdout."""
    record["provenance"]["load_after"] = files.load_average()
    files.write_record(path, record)
    print(json.dumps(record["summary"], allow_nan=False))


def set_threads(count: int) -> None:
    """The same number of threads for PyTorch and for Paceline's kernels."""
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stderr."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with the flags of every driver."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / out, help="JSON file with all raw timings")
    made.add_argument("--threads", type=int, default=2, help="threads of PyTorch and of Paceline's kernels")
    return made


def ratio_text(ratio: float | None, interval: Sequence[float] | None) -> str:
    """A speed-up with its 95% interval, as tables show it."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
