"""Tables of what the advisor predicts beside what was published and measured, for `readme_table.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from gpu_tables import NAMES

Record = dict[str, Any]
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def published_table(table: Table) -> Callable[[Record], str]:
    """Every published run with the range predicted for it, then the misses with what explains them."""

    def show(record: Record) -> str:
        rows = [
            (run_name(r), f"{r['engine']}, k = {r['k']}, {r['category']}", figure(r), span(r["predicted"]),
             "inside" if r["inside"] else f"**{side(r)}**", r["source"] + assumed(r))
            for r in record["rows"]
        ]  # fmt: skip
        columns = ("", "engine, draft length, text", "published", "predicted", "", "source; assumed")
        misses = [f"- {run_name(r)}, {figure(r)}: {r['note']}." for r in record["rows"] if not r["inside"]]
        return "\n\n".join([table(columns, rows), f"{published_line(record)}. The misses:", "\n".join(misses)])

    return show


def run_name(row: Record) -> str:
    """Size, precision and machine, and the batch where there is one."""
    side_by_side = f", {row['batch']} texts" if row["batch"] > 1 else ""
    return f"{NAMES[row['size']]} {row['precision']}, {row['machine']}{side_by_side}"


def figure(row: Record) -> str:
    """What was published."""
    low, high = row["low"], row["high"]
    return f"{low:.2f}x" if low == high else f"{low:.2f} to {high:.2f}x"


def span(found: Record) -> str:
    """The predicted range."""
    return f"{found['low']:.2f} to {found['high']:.2f}x"


def side(row: Record) -> str:
    """On which side a miss lies."""
    return "above" if (row["low"] + row["high"]) / 2 > row["predicted"]["high"] else "below"


def assumed(row: Record) -> str:
    """What the source does not state."""
    return f"; {row['assumed']}" if row["assumed"] else ""


def published_line(record: Record) -> str:
    """How many lie inside, in a sentence."""
    found = record["summary"]
    sizes = ", ".join(f"{NAMES[name]} {own['inside']} of {own['runs']}" for name, own in found["by_size"].items())
    return f"{found['inside']} of {found['runs']} published speed-ups lie in the range predicted for them ({sizes})"


def memory_table(table: Table) -> Callable[[Record], str]:
    """Planned beside measured bytes."""

    def show(record: Record) -> str:
        rows = [
            (r["name"], f"{r['planned_bytes'] / 1e6:,.1f}", f"{r['peak_bytes'] / 1e6:,.1f}",
             f"{r['planned_bytes'] / r['peak_bytes'] - 1:+.2%}")
            for r in record["rows"]
        ]  # fmt: skip
        return table(("", "planned, MB", "measured peak above its baseline, MB", "error"), rows)

    return show


def memory_line(record: Record) -> str:
    """The worst of them in a sentence."""
    worst = max(abs(error) for error in record["summary"]["errors"].values())
    return f"planned memory is within {worst:.1%} of the measured peak in {len(record['rows'])} runs"


def error_table(table: Table) -> Callable[[Record], str]:
    """By size: how far fitted constants are off, and those of the other sizes; then by batch."""

    def show(record: Record) -> str:
        sizes = [error_row(NAMES[name], [r for r in record["each"] if r["size"] == name], record["held_out"][name])
                 for name in NAMES]  # fmt: skip
        batches = sorted({r["batch"] for r in record["each"]})
        rows = [error_row(f"all, batch {n}", [r for r in record["each"] if r["batch"] == n], None) for n in batches]
        whole = error_row("**all**", record["each"], None)
        columns = ("", "rounds", "median error", "worst", "fitted without it: median", "worst")
        return table(columns, [*sizes, *rows, whole])

    return show


def error_row(name: str, rows: list[Record], held_out: Record | None) -> tuple[str, ...]:
    """A line of them."""
    sizes = [abs(r["error"]) for r in rows]
    apart = ("", "") if held_out is None else (f"{held_out['median']:.1%}", f"{held_out['worst']:.1%}")
    return name, str(len(rows)), f"{statistics.median(sizes):.1%}", f"{max(sizes):.1%}", *apart


def error_line(record: Record) -> str:
    """The errors in a sentence."""
    found, origin = record["rounds"], record["calibration"]["provenance"]
    return (
        f"median error {found['median']:.1%}, worst {found['worst']:.1%}, of {found['rows']} rounds on one"
        f" {origin['gpu']}, to which the constants were fitted"
    )


def views(table: Table) -> dict[str, tuple[Callable[[Record], str], Callable[[Record], str]]]:
    """(table, sentence) of each schema."""
    return {
        "paceline-advisor-published/1": (published_table(table), published_line),
        "paceline-advisor-memory/1": (memory_table(table), memory_line),
        "paceline-advisor-error/1": (error_table(table), error_line),
    }
