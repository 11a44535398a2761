"""Fits the constants of the advisor's speed model to measured rounds, and keeps how far its predictions then are.

python benchmarks/advisor_fit.py    (seconds; needs scipy; reads benchmarks/results/cuda_{rounds,extras}.json)

Rounds: least squares on the logarithm of predicted over measured time, with a soft bound for outliers (scipy's
soft_l1 at 5%). Each size is also predicted with constants fitted to the other four, which is the honest error for a
shape that was not seen. Prompts: the same on three measured first tokens, two constants.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from scipy.optimize import least_squares

from paceline import acceptance
from paceline.advisor import machines, speed
from paceline.advisor.priors import SMALL, prior
from paceline.bench import record as files
from paceline.config import DrafterConfig, TextConfig
from paceline.shapes import drafter_config, target_config

ROUNDS, EXTRAS = common.RESULTS / "cuda_rounds.json", common.RESULTS / "cuda_extras.json"
CALIBRATION = common.REPOSITORY / "src" / "paceline" / "advisor" / "calibration.json"
MEASURED_ON = {"NVIDIA H200": "h200"}
SOFT = 0.05
ROUND_TERMS = ("bandwidth_share", "rate_share", "round_s", "draft_s", "layer_s")
PROMPT_TERMS = ("prompt_rate_share", "prompt_layer_s")
UNIT = {"round_s": 1e-4, "draft_s": 1e-4, "layer_s": 1e-5, "prompt_layer_s": 1e-4}
START = speed.Costs(bandwidth_share=0.88, rate_share=0.3, round_s=1e-4, draft_s=1e-4, layer_s=1e-5,
                    prompt_rate_share=0.4, prompt_layer_s=1e-4)  # fmt: skip
# Other people's engine on another machine: what the constants say there, beside what was published.
PUBLISHED = (("31b", 0, 40.3), ("31b", 8, 125.3), ("26b-a4b", 0, 177.1), ("26b-a4b", 8, 264.2))
PUBLISHED_SOURCE = "vLLM, one H100 80 GB, bf16, SPEED-Bench qualitative, temperature 0 (jarvislabs.ai, 12 May 2026)"

SPEEDUPS = (("e2b", 2, 1.30), ("e4b", 4, 1.78), ("31b", 8, 3.19))
SPEEDUPS_SOURCE = "vLLM, one H100, the author of pull request 41745, at second hand"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured round."""

    size: str
    plan: str
    load: speed.Load
    seconds: float
    config: TextConfig
    drafter: DrafterConfig


def rows_of(record: dict[str, Any]) -> list[Row]:
    """Every measured round, with the experts that it really met."""
    return [
        Row(size=size, plan=plan, seconds=r["ms"] * 1e-3, config=target_config(size), drafter=drafter_config(size),
            load=speed.Load(batch=r["batch"], k=r["k"], context=r["context"],
                            distinct_experts=r["distinct_experts"], int8_head=run["options"]["int8_head"]))
        for size, runs in record["sizes"].items() for plan, run in runs.items() for r in run["rows"]
    ]  # fmt: skip


def error(row: Row, machine: machines.Machine, costs: speed.Costs) -> float:
    """Predicted over measured, less one."""
    return speed.round_seconds(row.config, row.drafter, row.load, machine, costs) / row.seconds - 1


def with_terms(start: speed.Costs, names: Sequence[str], values: Sequence[float]) -> speed.Costs:
    return replace(start, **{n: float(v) * UNIT.get(n, 1.0) for n, v in zip(names, values, strict=True)})


def solve(start: speed.Costs, names: Sequence[str], residuals: Any) -> speed.Costs:
    """Constants that make `residuals(costs)` small; shares lie in (0, 1], seconds at zero or above."""
    first = [getattr(start, n) / UNIT.get(n, 1.0) for n in names]
    bounds = ([0.0 if n in UNIT else 0.02 for n in names], [100.0 if n in UNIT else 1.0 for n in names])
    found = least_squares(lambda x: residuals(with_terms(start, names, x)), first, bounds=bounds, loss="soft_l1",
                          f_scale=SOFT)  # fmt: skip
    return with_terms(start, names, found.x)


def fit_rounds(rows: list[Row], machine: machines.Machine, start: speed.Costs = START) -> speed.Costs:
    return solve(start, ROUND_TERMS, lambda c: [math.log1p(error(row, machine, c)) for row in rows])


def prompt_error(row: dict[str, Any], machine: machines.Machine, costs: speed.Costs) -> float:
    predicted = speed.prompt_seconds(target_config(row["shape"]), row["prompt"], 2.0, machine, costs)
    assert predicted is not None
    return predicted / statistics.median(row["seconds"]) - 1


def fit_prompts(rows: list[dict[str, Any]], machine: machines.Machine, costs: speed.Costs) -> speed.Costs:
    return solve(costs, PROMPT_TERMS, lambda c: [math.log1p(prompt_error(row, machine, c)) for row in rows])


def spread(errors: Sequence[float]) -> dict[str, float]:
    size = [abs(e) for e in errors]
    return {"rows": len(size), "median": float(np.median(size)), "worst": max(size)}


def held_out(rows: list[Row], machine: machines.Machine) -> dict[str, dict[str, float]]:
    """Errors for each size with constants from the others."""
    found = {}
    for size in dict.fromkeys(row.size for row in rows):
        costs = fit_rounds([row for row in rows if row.size != size], machine)
        found[size] = spread([error(row, machine, costs) for row in rows if row.size == size])
    return found


def elsewhere(costs: speed.Costs) -> list[dict[str, Any]]:
    """Predictions where others published: tokens a second, with the stated acceptance profile."""
    machine, profile, found = machines.find("h100"), acceptance.PROFILES["speed-bench"], []
    for size, k, published in PUBLISHED:
        load = speed.Load(k=k, context=1024)
        seconds = speed.round_seconds(target_config(size), drafter_config(size), load, machine, costs)
        found.append({"size": size, "k": k, "published": published,
                      "predicted": acceptance.expected_tokens(profile, k) / seconds})  # fmt: skip
    return found


def speedups(costs: speed.Costs) -> list[dict[str, Any]]:
    """Predicted ranges where others published only a speed-up, at the same draft length."""
    machine, found = machines.find("h100"), []
    for size, k, published in SPEEDUPS:
        config, drafter = target_config(size), drafter_config(size)
        plain, drafted = (
            speed.round_seconds(config, drafter, speed.Load(k=n, context=1024), machine, costs) for n in (0, k)
        )
        ends = prior("mixed", small=size in SMALL)
        low, high = (acceptance.expected_tokens(p, k) * plain / drafted for p in (ends.low, ends.high))
        found.append({"size": size, "k": k, "published": published, "low": low, "high": high})
    return found


def report(rows: list[Row], firsts: list[dict[str, Any]], machine: machines.Machine, costs: speed.Costs) -> Any:
    errors = [error(row, machine, costs) for row in rows]
    return {
        "rounds": spread(errors), "held_out": held_out(rows, machine),
        "first_token": spread([prompt_error(row, machine, costs) for row in firsts]),
        "published": {"source": PUBLISHED_SOURCE, "unit": "tokens a second", "rows": elsewhere(costs)},
        "published_speedups": {"source": SPEEDUPS_SOURCE, "rows": speedups(costs)},
        "each": [{"size": r.size, "plan": r.plan, "batch": r.load.batch, "k": r.load.k, "context": r.load.context,
                  "measured_ms": round(r.seconds * 1e3, 4), "error": round(e, 4)}
                 for r, e in zip(rows, errors, strict=True)],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "advisor_error.json")
    parser.add_argument("--calibration", type=Path, default=CALIBRATION)
    options = parser.parse_args()
    measured, extras = (json.loads(path.read_text(encoding="utf-8")) for path in (ROUNDS, EXTRAS))
    gpu = measured["provenance"]["machine"]["gpu"]
    machine, rows = machines.find(MEASURED_ON[gpu]), rows_of(measured)
    costs = fit_prompts(extras["ttft"], machine, fit_rounds(rows, machine))
    found = report(rows, extras["ttft"], machine, costs)
    origin = {"gpu": gpu, "measured_utc": measured["provenance"]["date_utc"], "rounds": ROUNDS.name,
              "first_tokens": EXTRAS.name, "fit": "benchmarks/advisor_fit.py",
              "bandwidth_gbs": (machine.bandwidth or 0) / 1e9, "bf16_tflops": (machine.flops or 0) / 1e12}  # fmt: skip
    errors = {name: found[name] for name in ("rounds", "held_out", "first_token")}
    kept = {"schema": "paceline-calibration/1", "costs": speed.as_record(costs), "provenance": origin, "errors": errors,
            "published": found["published"], "published_speedups": found["published_speedups"]}  # fmt: skip
    files.write_text(options.calibration, json.dumps(kept, indent=1) + "\n")
    head = common.head("paceline-advisor-error/1", ["predicted beside measured", "random weights"], {})
    common.write(options.out, {**head, "calibration": kept, **found,
                               "summary": {"costs": kept["costs"], **errors}})  # fmt: skip


if __name__ == "__main__":
    main()
