"""A machine that slows is noticed, one that does not is left alone, whatever the prompts and the arms do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench_rows import row
from planted import Machine, simulate
from truth_cases import AGAIN, ALTERNATE, GREEDY, Case, fraction

from paceline.bench.drift import drift
from paceline.bench.measurement import Measurement
from paceline.bench.plan import BenchOptions
from paceline.bench.stats import student_t


def made(case: Case, seed: int) -> list[Measurement]:
    return simulate(case.made(seed), case.prompts, case.options)[0]


@pytest.mark.parametrize("options", [GREEDY, AGAIN, ALTERNATE], ids=["once", "thrice", "alternating"])
def test_a_planted_drift_is_found_and_its_size_covered(options: BenchOptions) -> None:
    found = [drift(made(Case("", 24, options=options, drift=1.2), seed)) for seed in range(5)]
    assert all(each["steady"] is False for each in found)
    assert np.mean([each["ratio"] for each in found]) == pytest.approx(1.2, abs=0.05)
    assert "TPOT" in found[0]["why"]


def test_a_steady_machine_is_not_accused() -> None:
    steady = [drift(made(Case("", 16, Machine()), seed))["steady"] for seed in range(60)]
    assert None not in steady
    assert fraction(each is False for each in steady) <= 0.08


def test_slower_texts_in_one_arm_are_no_drift() -> None:
    # Alternating: the passes of an arm stand at other times than those of the other, and differ by a factor of 2.
    rows = made(Case("", 24, Machine(speedup=2.0), ALTERNATE), 3)
    assert drift(rows)["steady"] is True
    confounded = [replace(each, arm="off", k=None) for each in rows[: len(rows) // 2]]
    assert drift(confounded)["steady"] is False


def test_texts_that_came_in_one_piece_are_judged_by_whole_seconds() -> None:
    rows = [row(prompt_id=f"p{i}", seconds=1.0 + 0.02 * i + 0.001 * (i % 3), started_s=10.0 * i, tpot_s=0.0)
            for i in range(20)]  # fmt: skip
    found = drift(rows)
    assert found["ratio"] == pytest.approx(1.38, abs=0.03)
    assert found["steady"] is False
    assert "seconds per token" in found["why"]


def test_a_change_too_small_to_matter_is_steady() -> None:
    rows = [row(prompt_id=f"p{i}", tpot_s=0.01 * (1 + 0.005 * i / 20), started_s=10.0 * i) for i in range(20)]
    found = drift(rows)
    assert found["ci95"][0] > 1.0
    assert found["steady"] is True


def test_too_little_to_tell() -> None:
    for rows, why in (([], "fewer than 5"), ([row(prompt_id=f"p{i}") for i in range(4)], "fewer than 5"),
                      ([row(prompt_id=f"p{i}") for i in range(9)], "different times")):  # fmt: skip
        found = drift(rows)
        assert (found["steady"], found["ratio"]) == (None, None)
        assert why in found["why"]


def test_students_t() -> None:
    assert student_t(np.array([4.0, 11.0, 1e9])) == pytest.approx([2.7764, 2.2010, 1.95996], rel=0.005)
