"""Puts the advisor's predictions beside speed-ups that others published, which it was not fitted to.

python benchmarks/advisor_published.py    (seconds; no GPU; reads src/paceline/advisor/published.json)
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common

from paceline.advisor import published
from paceline.shapes import SHAPES


def compared(run: published.Run) -> dict[str, Any]:
    """A run, the predicted range, and whether the middle of what was published lies in it."""
    found = published.predicted(run)
    return {**asdict(run), "predicted": asdict(found), "inside": published.inside(run, found)}


def counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many of them are inside."""
    return {"inside": sum(row["inside"] for row in rows), "runs": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "advisor_published.json")
    options = parser.parse_args()
    rows = [compared(run) for run in published.runs()]
    head = common.head("paceline-advisor-published/1", ["predicted beside published", "nothing measured here"], {})
    sizes = {name: counted([row for row in rows if row["size"] == name]) for name in SHAPES}
    summary = {**counted(rows), "by_size": sizes}
    common.write(options.out, {**head, "rows": rows, "summary": summary})


if __name__ == "__main__":
    main()
