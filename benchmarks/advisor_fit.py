"""Fits the constants of the advisor's speed model to measured rounds, and keeps how far its predictions then are.

    python benchmarks/advisor_fit.py                        (seconds, needs scipy; reads ROUNDS in benchmarks/results)
    python benchmarks/advisor_fit.py --rounds h200.json     (what advisor_measure.py wrote on another GPU)
    python benchmarks/advisor_fit.py --rounds benchmarks/results/advisor_measure.json --rounds h200.json    (both)

Rounds: least squares on the logarithm of predicted over measured time, with a soft bound for outliers (scipy's
soft_l1 at 5%). A cell is a size at a batch. Cells that --hold-out names are not fitted to, and their errors are told
apart; they are HELD_OUT unless it says otherwise. Each size is also predicted with
constants fitted to the others, which is the honest error for a shape that was not seen. Where the constants that
shipped so far came from another GPU, their errors here are kept too. Prompts: the same on three measured first tokens
of cuda_extras.json, two constants. A plot of all errors goes to --plot where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import common
import numpy as np
from advisor_measure import SCHEMA as MEASURE
from scipy.optimize import least_squares

from paceline import acceptance
from paceline.advisor import machines, speed
from paceline.advisor.priors import SMALL, prior
from paceline.bench import record as files
from paceline.config import DrafterConfig, TextConfig
from paceline.errors import PacelineError, UsageError
from paceline.shapes import drafter_config, target_config

# The second was measured after calls of more than 16 rows got faster kernels, and reaches fewer batches.
ROUNDS = [common.RESULTS / name for name in ("advisor_measure.json", "cuda_rounds.json")]
EXTRAS = common.RESULTS / "cuda_extras.json"
ROUNDS_SCHEMA = "paceline-cuda-rounds/1"
HELD_OUT = ("12b/*", "*/8")  # a size and a batch that the constants never saw
CALIBRATION = common.REPOSITORY / "src" / "paceline" / "advisor" / "calibration.json"
MEASURED_ON = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100"}
SOFT = 0.05
ROUND_TERMS = ("bandwidth_share", "rate_share", "round_s", "draft_s", "row_s")
PROMPT_TERMS = ("prompt_rate_share", "prompt_layer_s")
UNIT = {"round_s": 1e-4, "draft_s": 1e-4, "row_s": 1e-8, "prompt_layer_s": 1e-4}
START = speed.Costs(bandwidth_share=0.88, rate_share=0.6, round_s=1e-4, draft_s=1e-4, row_s=4e-7,
                    prompt_rate_share=0.4, prompt_layer_s=1e-4)  # fmt: skip
# Other people's engine on another machine: what the constants say there, beside what was published.
PUBLISHED = (("31b", 0, 40.3), ("31b", 8, 125.3), ("26b-a4b", 0, 177.1), ("26b-a4b", 8, 264.2))
PUBLISHED_SOURCE = "vLLM, one H100 80 GB, bf16, SPEED-Bench qualitative, temperature 0 (jarvislabs.ai, 12 May 2026)"

SPEEDUPS = (("e2b", 2, 1.30), ("e4b", 4, 1.78), ("31b", 8, 3.19))
SPEEDUPS_SOURCE = "vLLM, one H100, the author of pull request 41745, at second hand"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured round; `cell` as in advisor_measure.py."""

    size: str
    plan: str
    load: speed.Load
    seconds: float
    machine: machines.Machine

    @property
    def cell(self) -> str:
        return f"{self.size}/{self.load.batch}"

    @property
    def pair(self) -> tuple[TextConfig, DrafterConfig]:
        return target_config(self.size), drafter_config(self.size)


@dataclass(frozen=True)
class Source:
    """A file of measured rounds: of which GPU, when measured, and whether its cells are held out unasked."""

    name: str
    gpu: str
    measured_utc: str
    rows: list[Row]
    by_cells: bool


def read(path: Path) -> Source:
    """The rounds of either driver's file. Raises UsageError in one sentence for any other, and for a dry run."""
    record = read_json(path)
    try:
        by_cells = record["schema"] == MEASURE
        if not by_cells and record["schema"] != ROUNDS_SCHEMA:
            raise KeyError("schema")
        if by_cells and any("predicted only" in label for label in record["labels"]):
            raise UsageError(f"{path} is a dry run, which holds predictions only; run advisor_measure.py on a GPU")
        gpu = record["provenance"]["machine"]["gpu"]
        rows = cell_rows(record) if by_cells else rows_of(record, machines.find(MEASURED_ON[gpu]))
        return Source(path.name, gpu, record["provenance"]["date_utc"], rows, by_cells)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no record of cuda_rounds.py or advisor_measure.py (missing: {error})") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise UsageError(f"{path} is not JSON; give what advisor_measure.py wrote") from None
    return found


def rows_of(record: dict[str, Any], machine: machines.Machine) -> list[Row]:
    """Every round of cuda_rounds.py, with the experts that it really met."""
    return [
        Row(size=size, plan=plan, seconds=r["ms"] * 1e-3, machine=machine,
            load=speed.Load(batch=r["batch"], k=r["k"], context=r["context"],
                            distinct_experts=r["distinct_experts"], int8_head=run["options"]["int8_head"],
                            int8_body=run["options"].get("int8_body", False)))
        for size, runs in record["sizes"].items() for plan, run in runs.items() for r in run["rows"]
    ]  # fmt: skip


def cell_rows(record: dict[str, Any]) -> list[Row]:
    """Every round of advisor_measure.py; cells that were refused have none. Raises UsageError for an unknown GPU."""
    machine = machines.Machine(**record["options"]["machine"])
    if machine.bandwidth is None or machine.flops is None:
        raise UsageError(f"the bandwidth and rate of {machine.name} are unknown; add it to machines.json to fit to it")
    return [
        Row(size=key.partition("/")[0], plan="cells", seconds=r["ms"] * 1e-3, machine=machine,
            load=speed.Load(batch=r["batch"], k=r["k"], context=r["context"], distinct_experts=r["distinct_experts"]))
        for key, cell in record["cells"].items() for r in cell["rows"]
    ]  # fmt: skip


def apart(sources: Sequence[Source], patterns: str | None) -> tuple[list[Row], list[Row]]:
    """Rows to fit to, and those of cells that are held out. patterns: as in a shell, commas between; None: as usual.

    Raises UsageError where a pattern names no cell, or nothing is left to fit to.
    """
    every = [row for source in sources for row in source.rows]
    names = None if patterns is None else [p for p in patterns.split(",") if p]
    unknown = [p for p in names or () if not any(fnmatch(row.cell, p) for row in every)]
    if unknown:
        cells = ", ".join(dict.fromkeys(row.cell for row in every))
        raise UsageError(f"--hold-out names {unknown[0]}, which is no cell; there are {cells}")
    kept, held = list[Row](), list[Row]()
    asked = HELD_OUT if names is None else names
    for row in every:
        (held if any(fnmatch(row.cell, p) for p in asked) else kept).append(row)
    if len({row.size for row in kept}) < 2:
        raise UsageError("--hold-out leaves fewer than two sizes to fit to; hold out less")
    return kept, held


def error(row: Row, costs: speed.Costs) -> float:
    """Predicted over measured, less one."""
    return speed.round_seconds(*row.pair, row.load, row.machine, costs) / row.seconds - 1


def with_terms(start: speed.Costs, names: Sequence[str], values: Sequence[float]) -> speed.Costs:
    return replace(start, **{n: float(v) * UNIT.get(n, 1.0) for n, v in zip(names, values, strict=True)})


def solve(start: speed.Costs, names: Sequence[str], residuals: Any) -> speed.Costs:
    """Constants that make `residuals(costs)` small; shares lie in (0, 1], seconds at zero or above."""
    first = [getattr(start, n) / UNIT.get(n, 1.0) for n in names]
    bounds = ([0.0 if n in UNIT else 0.02 for n in names], [100.0 if n in UNIT else 1.0 for n in names])
    found = least_squares(lambda x: residuals(with_terms(start, names, x)), first, bounds=bounds, loss="soft_l1",
                          f_scale=SOFT)  # fmt: skip
    return with_terms(start, names, found.x)


def fit_rounds(rows: list[Row], start: speed.Costs = START) -> speed.Costs:
    return solve(start, ROUND_TERMS, lambda c: [math.log1p(error(row, c)) for row in rows])


def prompt_error(row: dict[str, Any], machine: machines.Machine, costs: speed.Costs) -> float:
    predicted = speed.prompt_seconds(target_config(row["shape"]), row["prompt"], 2.0, machine, costs)
    assert predicted is not None
    return predicted / statistics.median(row["seconds"]) - 1


def fit_prompts(rows: list[dict[str, Any]], machine: machines.Machine, costs: speed.Costs) -> speed.Costs:
    return solve(costs, PROMPT_TERMS, lambda c: [math.log1p(prompt_error(row, machine, c)) for row in rows])


def spread(errors: Sequence[float]) -> dict[str, float]:
    size = [abs(e) for e in errors]
    return {"rows": len(size), "median": float(np.median(size)), "worst": max(size)}


def held_out(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Errors for each size with constants from the others."""
    found = {}
    for size in dict.fromkeys(row.size for row in rows):
        costs = fit_rounds([row for row in rows if row.size != size])
        found[size] = spread([error(row, costs) for row in rows if row.size == size])
    return found


def left_out(rows: list[Row], costs: speed.Costs) -> dict[str, Any] | None:
    """Errors in the cells that were not fitted to."""
    if not rows:
        return None
    return {"cells": list(dict.fromkeys(row.cell for row in rows)), **spread([error(row, costs) for row in rows])}


def before(rows: list[Row], gpus: list[str]) -> dict[str, Any] | None:
    """Errors of the constants that shipped so far, where they came from other GPUs: what they promise on a new one."""
    kept = speed.calibration()
    gpu = kept["provenance"]["gpu"]
    if set(gpu.split(", ")) & set(gpus):
        return None
    return {"gpu": gpu, **spread([error(row, speed.fitted()) for row in rows])}


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


def told(row: Row, costs: speed.Costs, held: bool) -> dict[str, Any]:
    """One round beside its prediction."""
    return {"size": row.size, "plan": row.plan, "batch": row.load.batch, "k": row.load.k, "context": row.load.context,
            "measured_ms": round(row.seconds * 1e3, 4), "error": round(error(row, costs), 4),
            "machine": row.machine.name, "held_out": held}  # fmt: skip


def report(kept: list[Row], held: list[Row], costs: speed.Costs) -> dict[str, Any]:
    """Errors where constants were fitted, where they were not, and what they say of others' figures."""
    return {
        "rounds": spread([error(row, costs) for row in kept]), "held_out": held_out(kept + held),
        "held_out_cells": left_out(held, costs),
        "published": {"source": PUBLISHED_SOURCE, "unit": "tokens a second", "rows": elsewhere(costs)},
        "published_speedups": {"source": SPEEDUPS_SOURCE, "rows": speedups(costs)},
        "each": [told(row, costs, held=row in held) for row in kept + held],
    }  # fmt: skip


def origin(sources: Sequence[Source], rows: list[Row]) -> dict[str, Any]:
    """Where the constants come from."""
    used = {row.machine.name: row.machine for row in rows}.values()
    return {
        "gpu": ", ".join(dict.fromkeys(s.gpu for s in sources)),
        "measured_utc": ", ".join(s.measured_utc for s in sources),
        "rounds": ", ".join(s.name for s in sources), "first_tokens": EXTRAS.name, "fit": "benchmarks/advisor_fit.py",
        "bandwidth_gbs": [(m.bandwidth or 0) / 1e9 for m in used], "bf16_tflops": [(m.flops or 0) / 1e12 for m in used],
    }  # fmt: skip


def fit(paths: Sequence[Path], patterns: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what ships as calibration.json, the record of errors without its head)."""
    sources = [read(path) for path in paths]
    kept, held = apart(sources, patterns)
    extras = read_json(EXTRAS)
    firsts, theirs = extras["ttft"], machines.find(MEASURED_ON[extras["provenance"]["machine"]["gpu"]])
    costs = fit_prompts(firsts, theirs, fit_rounds(kept))
    found = report(kept, held, costs)
    found["first_token"] = spread([prompt_error(row, theirs, costs) for row in firsts])
    found["before"] = before(kept + held, [s.gpu for s in sources])
    errors = {name: found[name] for name in ("rounds", "held_out", "held_out_cells", "first_token", "before")}
    calibration = {"schema": "paceline-calibration/1", "costs": speed.as_record(costs),
                   "provenance": origin(sources, kept), "errors": errors, "published": found["published"],
                   "published_speedups": found["published_speedups"]}  # fmt: skip
    return calibration, {**found, "summary": {"costs": calibration["costs"], **errors}}


def plot(rows: list[dict[str, Any]], gpu: str, out: Path) -> None:
    """The picture of all errors, where it can be drawn."""
    try:
        import advisor_plot
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
    else:
        advisor_plot.draw(rows, gpu, out)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=Path, action="append", help="a file of measured rounds; may come twice")
    parser.add_argument("--hold-out", help='cells not to fit to, as in "12b/*,*/8"; an empty string fits to all')
    parser.add_argument("--out", type=Path, default=common.RESULTS / "advisor_error.json")
    parser.add_argument("--calibration", type=Path, default=CALIBRATION)
    parser.add_argument("--plot", type=Path, default=common.REPOSITORY / "docs" / "advisor_error.svg")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    head = common.head("paceline-advisor-error/1", ["predicted beside measured", "random weights"], {})
    try:
        for path in (options.out, options.calibration):
            files.check_writable(path)
        kept, found = fit(options.rounds or ROUNDS, options.hold_out)
    except PacelineError as error:
        sys.exit(f"advisor_fit: {error}")
    files.write_text(options.calibration, json.dumps(kept, indent=1) + "\n")
    plot(found["each"], kept["provenance"]["gpu"], options.plot)
    common.write(options.out, {**head, "calibration": kept, **found})


if __name__ == "__main__":
    main()
