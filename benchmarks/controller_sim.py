"""The draft-length controller on made-up traces, with round times that were measured. No model runs.

Times: Gemma 4 26B-A4B and 31B at batch 1 on a GPU (benchmarks/results/cuda_rounds.json), and the embedded pair on the
CPU, from benchmarks/results/controller_cpu.json. Texts and acceptance are synthetic (`paceline.control.synthetic`), but
for one trace that was recorded on the embedded pair (benchmarks/results/trace_embedded.jsonl), on which the controller
also ends drafts early, as it does on a CPU. There the bounds say what choosing could bring at most. Short texts with
the acceptance of benchmarks/controller_gpu.py are told of a round late, as on a GPU (`controller_texts`).

    python benchmarks/controller_sim.py
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import controller_texts as texts
import numpy as np
from common import RESULTS, head, show, write

from paceline.control.cost import CostTable, Timing
from paceline.control.replay import Result, Workbench, make
from paceline.control.simulate import summarise
from paceline.control.synthetic import LONG, WORKLOADS, generate
from paceline.control.trace import Trace, read_trace

SIZES = ("26b-a4b", "31b")
STATIONARY = ("chat", "code", "hopeless", "perfect")
OTHERS = ("heuristic", "confidence")
SETTLED, SPAN = 0.97, 8


def gpu_table(size: str, record: dict[str, Any]) -> CostTable:
    """Measured rounds of one sequence."""
    parts = record["sizes"][size]
    rows = [row for part in ("alone", "contexts") for row in parts[part]["rows"]]
    return CostTable([Timing(r["batch"], r["k"], r["context"], r["ms"]) for r in rows])


def cpu_table(record: dict[str, Any], k_max: int, step_ms: float = 0.0) -> CostTable:
    """Median milliseconds of a round of each fixed draft length, over whole texts chosen greedily."""
    found: dict[int, list[float]] = {}
    for row in record["rows"]:
        if row["arm"].startswith("k=") and row["temperature"] == 0.0 and row["rounds"] > SPAN:
            found.setdefault(int(row["arm"][2:]), []).append(1e3 * row["decode_s"] / row["rounds"])
    return CostTable([Timing(1, k, 170, float(np.median(ms))) for k, ms in found.items() if k <= k_max],
                     step_ms)  # fmt: skip


def tables(k_max: int) -> dict[str, CostTable]:
    rounds = json.loads((RESULTS / "cuda_rounds.json").read_text("utf-8"))
    cpu = json.loads((RESULTS / "controller_cpu.json").read_text("utf-8"))
    found = {f"{size}, batch 1": gpu_table(size, rounds) for size in SIZES}
    return {**found, "embedded pair on the CPU": cpu_table(cpu, k_max)}


def one(bench: Workbench) -> dict[str, Any]:
    """All policies on one trace."""
    results = [bench.play(make(name, bench.table, bench.k_max), name) for name in ("auto", *OTHERS)]
    informed = bench.informed()
    bounds = [bench.clairvoyant(), *([informed] if informed else [])]
    summary = summarise(bench, results, bench.statics(), bounds)
    summary["recovery_rounds"] = recoveries(bench, results[0])
    return summary


def segment_rates(bench: Workbench) -> dict[str, list[float]]:
    """Tokens a millisecond of every constant k, by kind of text."""
    found: dict[str, list[float]] = {}
    for static in bench.statics():
        for kind in set(static.categories):
            at = [i for i, category in enumerate(static.categories) if category == kind]
            rate = sum(static.tokens[i] for i in at) / sum(static.ms[i] for i in at)
            found.setdefault(kind, []).append(rate)
    return found


def recoveries(bench: Workbench, result: Result) -> list[int | None]:
    """Rounds after each change within a request until the choices are settled.

    Settled: over 8 rounds the chosen k are, in the mean of the new text's rates, worth 97% of its best constant k.
    None where that does not happen before the next change.
    """
    if len(bench.requests) > 1:
        return []
    rates, kinds = segment_rates(bench), result.categories
    starts = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
    return [settled(rates[kinds[at]], result.ks[at:end])
            for at, end in zip(starts, [*starts[1:], len(kinds)], strict=True)]  # fmt: skip


def settled(rates: list[float], ks: list[int]) -> int | None:
    """The first of 8 rounds whose mean rate is 97% of the best."""
    worth = [rates[k] / max(rates) for k in ks]
    return next((i for i in range(len(worth) - SPAN + 1) if np.mean(worth[i : i + SPAN]) >= SETTLED), None)


def recorded(cpu: dict[str, Any], trace: Trace, k_max: int) -> dict[str, Any]:
    """The recorded trace, at once and by temperature: the controller and two bounds, over the best constant k."""
    step_ms = cpu["cost_table"]["step_ms"]
    found = {}
    parts = {"all": trace.rows} | {
        f"temperature {t:g}": [row for row in trace.rows if row.temperature == t]
        for t in sorted({row.temperature for row in trace.rows})
    }
    for name, rows in parts.items():
        bench = Workbench(Trace([replace(row, round_ms={}) for row in rows]), cpu_table(cpu, k_max, step_ms))
        statics, auto = bench.statics(), bench.play(make("auto+stop", bench.table, bench.k_max), "auto+stop")
        best = max(statics, key=lambda result: result.rate)
        found[name] = {
            "texts": len(bench.requests), "best": best.name, "auto": auto.rate / best.rate,
            "auto_over_plain": auto.rate / statics[0].rate, "best_k_of_each_text": by_text(bench) / best.rate,
            "clairvoyant": bench.clairvoyant().rate / best.rate,
        }  # fmt: skip
    return found


def by_text(bench: Workbench) -> float:
    """Tokens a millisecond of the constant k that is best for each text, known beforehand."""
    tokens = ms = 0.0
    for rows in bench.requests:
        best = max(Workbench(Trace(rows), bench.table).statics(), key=lambda result: result.rate)
        tokens, ms = tokens + sum(best.tokens), ms + sum(best.ms)
    return tokens / ms


def short_texts(seeds: int) -> list[dict[str, Any]]:
    """The controller on texts of a GPU, told late, and shown."""
    rounds = json.loads((RESULTS / "cuda_rounds.json").read_text("utf-8"))
    rows = [row for size in SIZES for row in texts.compare(size, gpu_table(size, rounds), seeds)]
    show("short texts, told a round late", texts.COLUMNS, [texts.line(row) for row in rows])
    return rows


def judge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What of the aims is reached, with the worst figure over all runs."""

    def worst(figure: str, kinds: tuple[str, ...]) -> float:
        return min(run["policies"]["auto"][figure] for run in runs if run["workload"] in kinds)

    aims = {
        "stationary: worst against the best constant k": (worst("over_best_static", STATIONARY), -0.02),
        "mixed: worst against the best constant k": (worst("over_best_static", ("mixed",)), 0.05),
        "all: worst against k = 0": (worst("over_plain", tuple(WORKLOADS)), -0.02),
    }
    judged = {name: {"figure": figure, "aim": aim, "reached": figure >= aim} for name, (figure, aim) in aims.items()}
    followed = {
        f"{workload}: rounds until it is followed": recovery(
            [wait for run in runs if run["workload"] == workload for wait in run["recovery_rounds"]]
        )
        for workload in LONG
    }
    return {**judged, **followed}


def recovery(waits: list[int | None]) -> dict[str, Any]:
    """How long changes of a text took to be followed."""
    known = [wait for wait in waits if wait is not None]
    return {"figure": max(known, default=None), "aim": 50, "changes": len(waits), "never": waits.count(None),
            "within": sum(wait <= 50 for wait in known), "median": float(np.median(known)) if known else None,
            "reached": len(known) == len(waits) and max(known, default=0) <= 50}  # fmt: skip


def mean_row(name: str, workload: str, runs: list[dict[str, Any]]) -> list[str]:
    def over(policy: str, figure: str = "over_best_static", where: str = "policies") -> str:
        values = [run[where][policy][figure] for run in runs]
        return f"{np.mean(values):+.1%} ({min(values):+.1%})"

    ks = sorted({run["best_static_k"] for run in runs})
    return [name, workload, ",".join(map(str, ks)), over("auto"), over("auto", "over_plain"),
            *map(over, OTHERS), *(over(bound, where="bounds") for bound in ("informed", "clairvoyant"))]  # fmt: skip


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / "controller_sim.json")
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--tokens", type=int, default=12_000)
    made.add_argument("--k-max", type=int, default=8)
    options = made.parse_args()
    costs = tables(options.k_max)
    settings = {"seeds": options.seeds, "tokens": options.tokens, "k_max": options.k_max}
    record = head("paceline-controller-sim/1", ["synthetic traces", "round times measured"], settings)
    record["costs"] = {name: [round(ms, 4) for ms in table.times(1, 170)] for name, table in costs.items()}
    runs, lines = [], []
    for name, table in costs.items():
        for workload in WORKLOADS:
            some = [
                {"cost": name, "workload": workload, "seed": seed}
                | one(Workbench(generate(workload, options.tokens, options.k_max, seed), table))
                for seed in range(options.seeds)
            ]
            lines.append(mean_row(name, workload, some))
            runs += some
    show("against the best constant k: mean (worst)",
         ["times", "text", "best k", "auto", "auto vs k = 0", *OTHERS, "informed", "clairvoyant"], lines)  # fmt: skip
    by_cost = {name: judge([run for run in runs if run["cost"] == name]) for name in costs}
    cpu = json.loads((RESULTS / "controller_cpu.json").read_text("utf-8"))
    known = recorded(cpu, read_trace(RESULTS / "trace_embedded.jsonl"), options.k_max)
    record["short_texts"] = short = short_texts(4 * options.seeds)
    summary = {"all": judge(runs), **by_cost, "recorded": known, "short texts": texts.judge(short)}
    write(options.out, {**record, "runs": runs, "summary": summary})


if __name__ == "__main__":
    main()
