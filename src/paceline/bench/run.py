"""The whole benchmark: measure, summarise, write, show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import Progress

from paceline.bench import harness
from paceline.bench import record as files
from paceline.bench.harness import BenchOptions, Engine
from paceline.bench.measurement import Measurement
from paceline.bench.plots import require_matplotlib
from paceline.bench.prompts import BenchPrompt
from paceline.bench.report import console_report, html_report
from paceline.bench.stats import summarise
from paceline.errors import PacelineError


@runtime_checkable
class Described(Protocol):
    """An engine that says what it is: JSON data for the record; its "labels" are shown with every result."""

    def describe(self) -> Mapping[str, Any]: ...


def run_bench(
    llm: Engine, prompts: list[BenchPrompt], options: BenchOptions, out: Path, html: Path | None
) -> dict[str, Any]:
    """Measures, writes `out` (JSON) and `html` if named, shows tables on stderr, and returns the summary.

    Whatever ends it early, Ctrl-C included, is raised again after what was measured is in `out` as incomplete.
    Input that is refused before the first measurement leaves no file.
    Raises UsageError before measuring when a file could not be written or matplotlib is missing for `html`.
    """
    files.check_writable(out)
    if html is not None:
        files.check_writable(html)
        require_matplotlib()
    console = Console(stderr=True)
    rows: list[Measurement] = []
    record = _head(llm, options)
    try:
        _collect(llm, prompts, options, rows, console)
    except BaseException as error:
        if not rows and isinstance(error, PacelineError):  # refused, not failed: leave no file behind
            raise
        record["failure"] = f"{type(error).__name__}: {error}".rstrip(": ")
        _finish(record, rows, options, out)
        console.print(f"Stopped early; {out} keeps {len(rows)} measurements.", markup=False, style="yellow")
        raise
    record["complete"] = True
    _finish(record, rows, options, out)
    if html is not None:
        files.write_text(html, html_report(record))
    console.print(console_report(record))
    summary: dict[str, Any] = record["summary"]
    return summary


def _head(llm: Engine, options: BenchOptions) -> dict[str, Any]:
    engine = dict(llm.describe()) if isinstance(llm, Described) else {}
    return {
        "schema": files.SCHEMA,
        "complete": False,
        "failure": None,
        "labels": list(engine.get("labels", [])),
        "options": asdict(options),
        "engine": engine,
        "provenance": {**files.provenance(), "load_before": files.load_average()},
    }


def _collect(
    llm: Engine, prompts: list[BenchPrompt], options: BenchOptions, rows: list[Measurement], console: Console
) -> None:
    # A thread redrawing the bar would take time from what is being measured.
    with Progress(console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("warming up", total=options.count(len(prompts)))
        progress.refresh()
        for row in harness.measure(llm, prompts, options):
            rows.append(row)
            harness.check_arms(rows, finished=False)
            progress.update(task, advance=1, description="measuring", refresh=True)
    harness.check_arms(rows, finished=True)


def _finish(record: dict[str, Any], rows: list[Measurement], options: BenchOptions, out: Path) -> None:
    record["provenance"]["load_after"] = files.load_average()
    record["summary"] = summarise(rows, options.k)
    record["measurements"] = files.rows_as_data(rows)
    files.write_record(out, record)
