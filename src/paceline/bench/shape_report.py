"""`paceline bench --shape`: times one size on a GPU, shows each row as it comes, and keeps all of them in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from paceline.available import obstacle
from paceline.bench import record as files
from paceline.bench.shape_options import ShapeOptions, record_head
from paceline.errors import PacelineError, UsageError

Row = dict[str, Any]
# Titles and widths: a row is a table of its own, because it is shown before the next one is known.
ROUNDS = {
    "batch": 5, "k": 2, "context": 7, "ms": 8, "bound ms": 8, "of copy": 7, "experts": 7, "tok/round": 9, "tokens/s": 8,
}  # fmt: skip
KERNELS = {"kernels": 16, "launches": 8, "us": 9, "share": 7}
UNKNOWN = "-"


def bench_shape(options: ShapeOptions, out: Path) -> dict[str, Any]:
    """Measures, shows rows on stderr, writes `out` (JSON), and returns the summary.

    Whatever ends it early is raised again after the rows so far are in `out` as incomplete. Raises UsageError where
    there is no GPU that serves, where the size does not fit it, or when the file could not be written.
    """
    files.check_writable(out)
    if why := obstacle():
        raise UsageError(f"--shape runs on a GPU, and here is none that serves: {why}")
    console, rows = Console(stderr=True, highlight=False), list[Row]()

    def keep(row: Row) -> None:
        if not rows:  # not before: a size that does not fit is refused in one line
            _announce(console, options)
        rows.append(row)
        show(console, row)

    try:
        record = _measure(options, keep)
    except BaseException as error:
        if rows or not isinstance(error, PacelineError):  # refused, not failed: leave no file behind
            failure = f"{type(error).__name__}: {error}".rstrip(": ")
            files.write_record(out, {**record_head(options), "failure": failure, "rows": rows})
            console.print(f"Stopped early; {out} keeps {len(rows)} rows.", markup=False, style="yellow")
        raise
    files.write_record(out, record)
    return summary(record)


def _measure(options: ShapeOptions, keep: Callable[[Row], None]) -> dict[str, Any]:
    # Both need Triton, which is known to be there only now.
    from paceline.bench.shape import run_shape
    from paceline.device.memory import within_memory

    return within_memory(lambda: run_shape(options, keep), "use a smaller batch, context or size")


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """The record in one line of JSON: copy bandwidth in bytes a second, and the speed of each setting."""
    names = ("batch", "k", "context", "ms", "share_of_bandwidth", "tokens_per_s")
    return {
        "shape": record["options"]["shape"],
        "labels": record["labels"],
        "copy_bandwidth": record["copy_bandwidth"],
        "rows": [{name: row.get(name) for name in names} for row in record["rows"]],
    }


def _announce(console: Console, options: ShapeOptions) -> None:
    title = f"{options.shape} on {torch.cuda.get_device_name()}; {', '.join(options.labels)}"
    console.print(title, style="bold", markup=False)
    console.print(f"acceptance: {options.profile.basis}", style="dim", markup=False)
    console.print(_line(ROUNDS, list(ROUNDS)), style="bold")


def show(console: Console, row: Row) -> None:
    """One setting: its round, and where it was profiled the time of each class of kernel."""
    rate, experts = row.get("tokens_per_s"), row["distinct_experts"]
    cells = [
        str(row["batch"]), str(row["k"]), str(row["context"]), f"{row['ms']:.3f}", f"{row['bound_ms']:.3f}",
        f"{row['share_of_bandwidth']:.0%}", UNKNOWN if experts is None else f"{experts:.1f}",
        f"{row.get('tokens_per_round', row['expected_tokens']):.2f}", UNKNOWN if rate is None else f"{rate:,.0f}",
    ]  # fmt: skip
    console.print(_line(ROUNDS, cells))
    if "kernels" in row:
        _show_kernels(console, row)


def _show_kernels(console: Console, row: Row) -> None:
    """Classes of kernel by their time, gaps among them, and what the bytes that had to move say to it."""
    whole = sum(spent["us"] for spent in row["kernels"].values())
    console.print(_line(KERNELS, list(KERNELS)), style="dim")
    for name, spent in sorted(row["kernels"].items(), key=lambda item: -item[1]["us"]):
        launches = f"{spent['launches']:.0f}" if spent["launches"] else UNKNOWN
        share = f"{spent['us'] / whole:.1%}" if whole else UNKNOWN
        console.print(_line(KERNELS, [name, launches, f"{spent['us']:.1f}", share]), style="dim")
    moved, speed = row["bytes"] / 1e9, row["bytes"] / row["ms"] / 1e6
    console.print(
        f"  {moved:.3f} GB had to move in {row['ms']:.3f} ms: {speed:,.0f} GB/s, {row['share_of_bandwidth']:.0%} of the"
        f" {speed / row['share_of_bandwidth']:,.0f} GB/s that a copy reaches",
        style="dim",
    )


def _line(widths: dict[str, int], cells: list[str]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in widths.values():
        table.add_column(width=width, justify="right", no_wrap=True)
    table.add_row(*cells)
    return table
