"""Draws predicted over measured round times of benchmarks/results/advisor_error.json into docs/advisor_error.svg.

python benchmarks/advisor_plot.py    (needs matplotlib)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import common
import matplotlib as mpl
from gpu_tables import NAMES

OUT = common.REPOSITORY / "docs" / "advisor_error.svg"
TICKS = (2, 4, 6, 10, 20, 40, 80)
MARKS = dict(zip(NAMES, "osD^v", strict=True))


def draw(rows: list[dict[str, Any]], gpu: str, out: Path) -> None:
    """A point for each round: measured time against predicted over measured, its size as colour and mark.

    Open marks are rounds that the constants were not fitted to.
    """
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "paceline"  # the same file for the same points
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    for name, mark in MARKS.items():
        colour = f"C{list(MARKS).index(name)}"
        for held in (False, True):
            own = [r for r in rows if r["size"] == name and bool(r.get("held_out")) is held]
            axes.scatter([r["measured_ms"] for r in own], [100 * r["error"] for r in own], s=18, marker=mark,
                         edgecolors=colour, facecolors="none" if held else colour,
                         label=None if held else NAMES[name])  # fmt: skip
    axes.axhspan(-10, 10, color="0.93", zorder=0)
    axes.axhline(0, color="0.5", linewidth=0.8)
    high = max(25, *(110 * abs(r["error"]) for r in rows))
    axes.set(xscale="log", ylim=(-high, high), xlabel=f"measured round, ms ({gpu}, random weights)",
             ylabel="predicted against measured, %")  # fmt: skip
    ticks = [n for n in TICKS if n <= 1.2 * max(r["measured_ms"] for r in rows)]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xticks([], minor=True)
    axes.legend(ncols=5, fontsize="small", loc="upper center")
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    record = json.loads((common.RESULTS / "advisor_error.json").read_text(encoding="utf-8"))
    draw(record["each"], record["calibration"]["provenance"]["gpu"], options.out)


if __name__ == "__main__":
    main()
