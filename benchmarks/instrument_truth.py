"""Does the instrument tell the truth? Whole runs on machines with a planted speed-up, in virtual time. No model runs.

Every run has prompts, texts, gains and noise of its own, and goes through the plan, the harness and the summary that
`paceline bench` uses. Counted: how often the 95% interval covers the planted speed-up, how often the same arm measured
twice is called different, how often a steady machine is said to drift and one that slows by a fifth is; and how badly
wrong ways to analyse the same runs do.

    python benchmarks/instrument_truth.py
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np

sys.path.insert(0, str(common.REPOSITORY / "tests"))  # the planted machines are the tests' own
import truth_cases as truth

COVERED = (0.92, 0.98)


def one(work: tuple[truth.Case, range]) -> dict[str, Any]:
    """What many runs of one case came to."""
    case, seeds = work
    return truth.study(case, seeds)


def judge(record: dict[str, Any]) -> dict[str, Any]:
    """The figures a reader wants first, the worst of each."""
    cases, hard = record["cases"], record["not_steady"]
    covered = [case["coverage"] for case in cases]
    return {
        "cases": len(cases), "runs": cases[0]["runs"],
        "coverage": [min(covered), max(covered)], "mean_coverage": sum(covered) / len(covered),
        "cases_covered_92_to_98": sum(COVERED[0] <= c <= COVERED[1] for c in covered),
        "a_a_rejects": by_design(cases, "a_a_rejects"),
        "steady_said_to_drift": by_design(cases, "said_to_drift"),
        "planted_drift_found_at_least": min(case["said_to_drift"] for case in record["slows_by_a_fifth"]),
        "not_steady_coverage_at_least": min(case["coverage"] for case in hard),
        "wrong_ways_cover_at_most": max(control["coverage"] for control in record["controls"]),
    }  # fmt: skip


def by_design(cases: list[dict[str, Any]], figure: str) -> dict[str, float]:
    """Over all planted speed-ups: they make no difference to what compares an arm with itself."""
    names = dict.fromkeys(case["case"] for case in cases)
    return {name: float(np.mean([c[figure] for c in cases if c["case"] == name])) for name in names}


def show(record: dict[str, Any]) -> None:
    """Tables on stderr."""
    columns = ["case", "planted", "mean", "covers", "off / off differs", "said to drift"]
    rows = [
        [case["case"], f"{case['planted']:g}", f"{case['mean_speedup']:.3f}", f"{case['coverage']:.1%}",
         f"{case['a_a_rejects']:.1%}", f"{case['said_to_drift']:.1%}"]
        for case in record["cases"] + record["not_steady"] + record["slows_by_a_fifth"]
    ]  # fmt: skip
    common.show("planted truths", columns, rows)
    wrong = [[c["control"], f"{c['coverage']:.1%}", f"{c['coverage_right']:.1%}"] for c in record["controls"]]
    common.show("wrong ways", ["way", "covers", "the right way"], wrong)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=common.RESULTS / "instrument_truth.json")
    made.add_argument("--runs", type=int, default=400, help="of each case")
    made.add_argument("--processes", type=int, default=2)
    options = made.parse_args()
    labels = ["simulated", "virtual time", "no model"]
    settings = {"runs": options.runs, "control_runs": options.runs // 4, "processes": options.processes}
    record = common.head("paceline-instrument-truth/1", labels, settings)
    begin = time.perf_counter()
    parts = {
        "cases": [case for speedup in truth.SPEEDUPS for case in truth.planted(speedup)],
        "not_steady": truth.harder(),
        "slows_by_a_fifth": truth.drifting(),
    }
    firsts = itertools.count(0, options.runs)  # no two cases share a seed
    with ProcessPoolExecutor(options.processes) as pool:
        for name, cases in parts.items():
            work = [(case, range(first, first + options.runs)) for case, first in zip(cases, firsts, strict=False)]
            record[name] = list(pool.map(one, work))
    record["controls"] = truth.controls(range(options.runs // 4))
    record["seconds"] = round(time.perf_counter() - begin, 1)
    show(record)
    common.write(options.out, {**record, "summary": judge(record)})


if __name__ == "__main__":
    main()
