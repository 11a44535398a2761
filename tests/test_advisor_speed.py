"""Predicted times against measured rounds, and what must hold of them whatever the constants are."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from paceline import roofline
from paceline.acceptance import POSITIONS, PROFILES, expected_tokens
from paceline.advisor import speed
from paceline.advisor.forecast import best_k, forecast
from paceline.advisor.machines import Machine, find
from paceline.advisor.priors import RANGES, prior
from paceline.advisor.speed import Load, fitted, prompt_seconds, round_bytes, round_seconds
from paceline.errors import UsageError
from paceline.shapes import SHAPES, drafter_config, target_config

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
MEDIAN, WORST = 0.05, 0.2  # what the constants that ship must hold on the rounds they were fitted to


def seconds(size: str, load: Load, machine: Machine, costs: speed.Costs | None = None) -> float:
    return round_seconds(target_config(size), drafter_config(size), load, machine, costs or fitted())


def errors(costs: speed.Costs) -> list[float]:
    """Relative errors on every measured round that the constants that ship were fitted to."""
    driver = pytest.importorskip("advisor_fit")  # needs scipy
    shipped = speed.calibration()
    held = (shipped["errors"].get("held_out_cells") or {"cells": ()})["cells"]
    rows = [row for name in shipped["provenance"]["rounds"].split(", ") for row in driver.read(RESULTS / name).rows]
    return [
        abs(seconds(row.size, row.load, row.machine, costs) / row.seconds - 1) for row in rows if row.cell not in held
    ]


def test_predictions_are_near_the_measured_rounds() -> None:
    found = errors(fitted())
    assert len(found) > 25
    assert statistics.median(found) < MEDIAN
    assert max(found) < WORST


@pytest.mark.parametrize("change", [{"bandwidth_share": 0.6}, {"round_s": 0.0}, {"rate_share": 0.3}])
def test_wrong_constants_are_far_from_them(change: dict[str, float]) -> None:
    found = errors(replace(fitted(), **change))
    assert statistics.median(found) > MEDIAN or max(found) > WORST


def test_the_record_of_errors_belongs_to_the_constants_that_ship() -> None:
    kept = json.loads((RESULTS / "advisor_error.json").read_text(encoding="utf-8"))
    assert kept["calibration"] == speed.calibration()
    fitted_to = [abs(row["error"]) for row in kept["each"] if not row["held_out"]]
    assert kept["rounds"]["rows"] == len(fitted_to)
    assert kept["rounds"]["worst"] == pytest.approx(max(fitted_to), abs=1e-4)
    assert set(kept["held_out"]) == {row["size"] for row in kept["each"]}


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("load", [Load(), Load(k=4, context=8192), Load(batch=64, k=8, context=1024)])
def test_more_of_the_machine_is_never_slower(size: str, load: Load) -> None:
    base = Machine(name="x", kind="cuda", memory=1e12, bandwidth=5e11, flops=1e14)
    slow = seconds(size, load, base)
    assert seconds(size, load, replace(base, bandwidth=1e12)) <= slow
    assert seconds(size, load, replace(base, flops=2e14)) <= slow
    assert seconds(size, load, replace(base, bandwidth=1e12, flops=2e14)) < slow


@pytest.mark.parametrize("size", SHAPES)
def test_more_work_is_never_faster(size: str) -> None:
    machine, load = find("rtx4090"), Load(batch=2, k=2, context=1000)
    base = seconds(size, load, machine)
    for more in ({"batch": 4}, {"k": 3}, {"context": 9000}):
        assert seconds(size, replace(load, **more), machine) > base
    assert seconds(size, replace(load, weight_bytes=0.5625), machine) < base


def test_bytes_are_the_rooflines() -> None:
    config, drafter = target_config("26b-a4b"), drafter_config("26b-a4b")
    wanted = roofline.traffic(config, drafter, roofline.Round(batch=2, k=3, context=900))
    found = round_bytes(config, drafter, Load(batch=2, k=3, context=900))
    drafted_embeddings = 2 * 3 * config.hidden * 2  # rows of a table, which the advisor leaves out
    assert found == pytest.approx(wanted.total - drafted_embeddings)
    less = found - round_bytes(config, drafter, Load(batch=2, k=3, context=900, int8_head=True))
    assert less == 3 * 262144 * (1024 - 4)
    smaller = round_bytes(config, drafter, Load(batch=2, k=3, context=900, int8_head=True, int8_body=True))
    assert found - less - smaller == 3 * roofline.int8_saved(drafter, (False, True))[1] > 0


def test_overlap_reads_fewer_experts() -> None:
    config = target_config("26b-a4b")
    assert speed.experts(config, Load(k=4)) == pytest.approx(35.3, abs=0.1)
    assert speed.experts(config, Load(k=4, overlap=1.0)) == 8
    assert speed.experts(config, Load(k=4, distinct_experts=20.0)) == 20
    # Texts side by side choose on their own: overlap within each leaves a batch nearly all experts.
    assert speed.experts(config, Load(batch=2, k=4)) == pytest.approx(roofline.distinct(128, 8, 10))
    assert speed.experts(config, Load(batch=2, overlap=1.0, k=4)) == pytest.approx(roofline.distinct(128, 8, 2))
    assert speed.experts(target_config("31b"), Load()) is None
    with pytest.raises(UsageError, match="overlap"):
        Load(overlap=1.5)


def test_unknown_figures() -> None:
    blank = Machine(name="x", kind="any", memory=1e12)
    config, drafter = target_config("12b"), drafter_config("12b")
    with pytest.raises(UsageError, match="--bandwidth"):
        round_seconds(config, drafter, Load(), blank, fitted())
    assert forecast(config, drafter, Load(), blank, prior("mixed")) is None
    assert prompt_seconds(config, 1000, 2.0, blank, fitted()) is None


def test_longer_prompts_wait_longer() -> None:
    times = [prompt_seconds(target_config("31b"), n, 2.0, find("h100"), fitted()) for n in (100, 4000, 40000)]
    assert all(t is not None for t in times)
    assert times == sorted(times, key=lambda t: t or 0)
    assert times[0] != times[1]


def test_the_best_draft_length() -> None:
    free, profile = [1.0] * 16, PROFILES["code"]
    assert best_k(free, profile) == POSITIONS
    assert best_k([1.0 + k for k in range(16)], profile) == 0
    dear = [1 + 0.2 * k for k in range(16)]
    best = best_k(dear, profile)
    assert 0 < best < POSITIONS
    assert all(expected_tokens(profile, best) / dear[best] >= expected_tokens(profile, k) / dear[k] for k in range(16))
    assert best_k(free, PROFILES["hopeless"]) == 0  # a gain of 2% is not worth a drafter


@pytest.mark.parametrize("category", RANGES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("small", [False, True])
def test_priors_are_ranges(category: str, temperature: float, small: bool) -> None:
    found = prior(category, temperature, small)
    for low, middle, high in zip(found.low.conditional, found.middle.conditional, found.high.conditional, strict=True):
        assert 0 < low < middle < high <= 1
    assert temperature == 0 or expected_tokens(found.low, 4) < expected_tokens(prior(category).low, 4)


def test_unknown_priors_are_refused() -> None:
    with pytest.raises(UsageError, match="choose mixed"):
        prior("poetry slam")
    with pytest.raises(UsageError, match="temperature"):
        prior("chat", 3.0)


def test_published_speedups_lie_in_the_predicted_range() -> None:
    # One H100, vLLM, k = 8: 3.11 for 31B. The same prior must not say so of a drafter that is never right.
    config, drafter, machine = target_config("31b"), drafter_config("31b"), find("h100")
    seen = forecast(config, drafter, Load(context=1024), machine, prior("mixed"))
    assert seen is not None
    assert seen.speedup.low < 3.11 < seen.speedup.high
    never = replace(prior("mixed"), middle=PROFILES["hopeless"])
    alone = forecast(config, drafter, Load(context=1024), machine, never)
    assert alone is not None
    assert alone.k == 0
    assert alone.speedup.high == pytest.approx(1.0)
