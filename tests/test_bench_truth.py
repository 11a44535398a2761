"""Planted truths through the whole instrument in virtual time: intervals cover them, and wrong ways are caught.

A few runs here; benchmarks/instrument_truth.py takes many and writes down what came of them.
"""

from __future__ import annotations

import asyncio
import time

import pytest
import virtual_time
from planted import Machine, simulate
from truth_cases import SPEEDUPS, Case, controls, fraction, harder, planted, run, study

from paceline.bench.plan import BenchOptions


def test_intervals_cover_planted_speedups_and_the_same_against_itself_is_no_difference() -> None:
    runs = [run(case, 1000 * i + seed) for i, s in enumerate(SPEEDUPS) for case in planted(s)[:1] for seed in range(50)]
    assert 0.92 <= fraction(each["covers"] for each in runs) <= 0.98
    assert fraction(each["a_a_rejects"] for each in runs) <= 0.08


@pytest.mark.parametrize("case", planted(1.5)[1:], ids=lambda case: case.name)
def test_every_design_covers(case: Case) -> None:
    found = study(case, range(25))
    assert found["coverage"] >= 0.84  # 25 runs: fewer than 21 has a chance of one in a hundred at 95%
    assert found["mean_speedup"] == pytest.approx(1.5, rel=0.03)


def test_a_drift_falls_out_of_pairs_and_shows_against_itself() -> None:
    interleaved, alternating = (study(case, range(12)) for case in harder()[:2])
    for found in (interleaved, alternating):
        assert found["mean_speedup"] == pytest.approx(1.5, rel=0.03)
        assert found["said_to_drift"] > 0.8
    assert alternating["a_a_rejects"] > 0.5 > interleaved["a_a_rejects"]


def test_wrong_ways_are_caught() -> None:
    for found in controls(range(10)):
        assert found["coverage_right"] >= 0.7, found
        assert found["coverage"] <= found["coverage_right"] - 0.15, found


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for s in SPEEDUPS for case in planted(s)], ids=str)
def test_two_hundred_runs_of_each(case: Case) -> None:
    found = study(case, range(200))
    assert 0.90 <= found["coverage"] <= 0.985  # 200 runs of an interval that covers 92-98%
    assert found["a_a_rejects"] <= 0.10


def test_virtual_minutes_pass_in_milliseconds_and_really_side_by_side() -> None:
    async def two() -> float:
        await asyncio.gather(asyncio.sleep(600), asyncio.sleep(599.5))
        return virtual_time.clock()

    begin = time.perf_counter()
    assert virtual_time.run(two()) == pytest.approx(600)
    assert time.perf_counter() - begin < 1


def test_waiting_for_nothing_is_an_error_and_not_for_ever() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing is due"):
        virtual_time.run(forever())


def test_the_planted_machine_is_what_it_says() -> None:
    rows, _ = simulate(Machine(noise=0.0), 400, BenchOptions(temperatures=(0.0,), warmup=0))
    off = [row for row in rows if row.arm == "off"]
    assert all(row.ttft_s == pytest.approx(0.05) and row.tpot_s == pytest.approx(0.02) for row in off)
    on = [row for row in rows if row.arm == "on"]
    assert sum(row.seconds for row in off) / sum(row.seconds for row in on) == pytest.approx(1.5, rel=0.05)
    assert len({round(a.seconds / b.seconds, 3) for a, b in zip(off, on, strict=True)}) > 100
