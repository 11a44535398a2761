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


def measure_table(table: Table) -> Callable[[Record], str]:
    """Planned beside reserved bytes on a GPU, by size and batch, of cells that fitted."""

    def show(record: Record) -> str:
        rows = []
        for key, cell in record["cells"].items():
            size, batch = key.split("/")
            if "refused" in cell:
                continue
            m = cell["memory"]
            rows.append((NAMES[size], batch, f"{m['planned_bytes'] / 1e9:.2f}", f"{m['reserved'] / 1e9:.2f}",
                         f"{m['error']:+.1%}"))  # fmt: skip
        return table(("", "batch", "planned, GB", "measured peak, GB", "error"), rows)

    return show


def measure_line(record: Record) -> str:
    """The worst of them in a sentence."""
    held = record["summary"]["memory"]
    gpu = record["provenance"]["machine"]["gpu"]
    return f"planned memory is within {held['worst']:.1%} of the measured peak in {held['rows']} cells on {gpu}"


def error_table(table: Table) -> Callable[[Record], str]:
    """By size, batch and in all: errors in cells that were fitted to, in those left out, and without the size."""

    def show(record: Record) -> str:
        each, apart = record["each"], record["held_out"]
        sizes = [error_row(NAMES[name], [r for r in each if r["size"] == name], apart.get(name))
                 for name in NAMES if any(r["size"] == name for r in each)]  # fmt: skip
        batches = sorted({r["batch"] for r in each})
        rows = [error_row(f"all, batch {n}", [r for r in each if r["batch"] == n], None) for n in batches]
        columns = ("", "rounds fitted to", "median error", "worst", "left out of the fit", "median error", "worst",
                   "without the size: median", "worst")  # fmt: skip
        shown = [*sizes, *rows, error_row("**all**", each, None)]
        return table(*narrow(columns, shown)) + f"\n\n{captions(record)}"

    return show


def error_row(name: str, rows: list[Record], without: Record | None) -> tuple[str, ...]:
    """A line of them."""
    kept, held = ([abs(r["error"]) for r in rows if bool(r.get("held_out")) is out] for out in (False, True))
    apart = ("", "") if without is None else (f"{without['median']:.1%}", f"{without['worst']:.1%}")
    return (name, *errors(kept), *errors(held), *apart)


def errors(sizes: list[float]) -> tuple[str, str, str]:
    """How many, their median and the worst."""
    return (str(len(sizes)), f"{statistics.median(sizes):.1%}", f"{max(sizes):.1%}") if sizes else ("", "", "")


def narrow(columns: Sequence[str], rows: list[tuple[str, ...]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns that hold nothing."""
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def captions(record: Record) -> str:
    """What the columns mean, and what the constants of another GPU came to."""
    said = ['"Without the size": constants fitted to the other sizes alone, the honest error for a shape that was not'
            " seen."]  # fmt: skip
    if held := record.get("held_out_cells"):
        said.append(f"Left out of the fit: {', '.join(cell_name(cell) for cell in held['cells'])}.")
    if before := record.get("before"):
        said.append(f"The constants fitted to {before['gpu']} alone: median error {before['median']:.1%}, worst"
                    f" {before['worst']:.1%}, of all {before['rows']} rounds here.")  # fmt: skip
    return " ".join(said)


def cell_name(cell: str) -> str:
    """A cell in words."""
    size, _, batch = cell.partition("/")
    return f"{NAMES[size]} at batch {batch}"


def error_line(record: Record) -> str:
    """The errors in a sentence."""
    found, gpu, held = record["rounds"], record["calibration"]["provenance"]["gpu"], record.get("held_out_cells")
    fitted = f"median error {found['median']:.1%}, worst {found['worst']:.1%}, of {found['rows']} rounds on {gpu}"
    if not held:
        return f"{fitted}, to which the constants were fitted"
    return (
        f"median error {held['median']:.1%}, worst {held['worst']:.1%}, of {held['rows']} rounds on {gpu} that the"
        f" constants were not fitted to; of the {found['rows']} that they were, {found['median']:.1%} and"
        f" {found['worst']:.1%}"
    )


def views(table: Table) -> dict[str, tuple[Callable[[Record], str], Callable[[Record], str]]]:
    """(table, sentence) of each schema."""
    return {
        "paceline-advisor-published/1": (published_table(table), published_line),
        "paceline-advisor-memory/1": (memory_table(table), memory_line),
        "paceline-advisor-measure/1": (measure_table(table), measure_line),
        "paceline-advisor-error/1": (error_table(table), error_line),
    }
