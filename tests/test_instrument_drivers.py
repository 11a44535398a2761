"""The pure parts of the drivers that examine the instrument, and one small run of each."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from planted import prompts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import instrument_overhead as overhead
import instrument_truth as truth


def case(name: str, coverage: float, rejects: float, drift: float) -> dict[str, Any]:
    return {"case": name, "runs": 10, "coverage": coverage, "a_a_rejects": rejects, "said_to_drift": drift}


def test_the_worst_of_each_is_told() -> None:
    record = {
        "cases": [case("a", 0.95, 0.02, 0.0), case("b", 0.91, 0.04, 0.1), case("a", 0.97, 0.06, 0.0)],
        "not_steady": [case("c", 0.9, 1.0, 1.0)],
        "slows_by_a_fifth": [case("d", 0.9, 0.0, 0.7), case("e", 0.9, 0.0, 0.9)],
        "controls": [{"coverage": 0.3}, {"coverage": 0.6}],
    }
    found = truth.judge(record)
    assert found["coverage"] == [0.91, 0.97]
    assert found["cases_covered_92_to_98"] == 2
    assert found["a_a_rejects"] == pytest.approx({"a": 0.04, "b": 0.04})
    assert found["planted_drift_found_at_least"] == 0.7
    assert found["wrong_ways_cover_at_most"] == 0.6


def test_a_delay_is_told_beside_what_the_machine_adds() -> None:
    def one(seconds: float) -> dict[str, Any]:
        return overhead.told([seconds] * 10, {"cpu_s": seconds, "wall_s": 2.0})

    found = overhead.judge([{"instrument": one(0.003), "bare": one(0.001)}])
    assert found["cpu_ms_per_event"] == pytest.approx(0.3)
    assert found["added_delay_ms_median"] == pytest.approx(2.0)
    assert found["below_a_millisecond"] is False
    assert overhead.judge([{"instrument": one(0.0015), "bare": one(0.001)}])["below_a_millisecond"] is True


def test_events_of_a_server_in_another_process_are_timed() -> None:
    plan = {"tokens": 12, "ttft_s": 0.001, "tpot_s": 0.001}
    with overhead.server(**plan) as off, overhead.server(**plan, drafts=True) as on:
        read = asyncio.run(overhead.instrument((off, on), prompts(4), 4))
        bare = asyncio.run(overhead.bare(off, 4, 4, 100))
    assert read["events"] > 3 * 4 * 5
    assert bare["events"] > 4 * 5
    for found in (read, bare):
        assert 0 < found["cpu_s_per_event"] < 0.1
        assert -0.001 < found["delay_s"]["median"] <= found["delay_s"]["p99"] < 5
