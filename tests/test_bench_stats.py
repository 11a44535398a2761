"""Statistics against planted truths: intervals must cover what they say, and wrong ways must be seen to fail."""

from __future__ import annotations

import numpy as np
import pytest
from bench_fakes import FakeEngine, make_prompts, run_fake

from paceline.bench import stats
from paceline.bench.accepted import acceptance_by_position, acceptance_length, survival_by_position
from paceline.bench.measurement import Measurement
from paceline.bench.plan import BenchOptions
from paceline.bench.summary import summarise

RUNS = 600


def simulate(speedup: float, prompts: int, repeats: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Seconds off and on, [prompts, repeats, RUNS]: lengths and each prompt's own ratio vary, runs are 3% noisy."""
    rng = np.random.default_rng(seed)
    spread, shape = 0.25, (prompts, 1, RUNS)
    off = np.exp(rng.normal(0, 0.5, shape))
    # The mean of exp(normal(-s^2/2, s)) is 1, so sum(off) / sum(on) tends to `speedup` exactly.
    ratio = np.exp(rng.normal(-(spread**2) / 2, spread, shape)) / speedup
    noisy = rng.normal(1.0, 0.03, (2, prompts, repeats, RUNS))
    return off * noisy[0], off * ratio * noisy[1]


def coverage(interval: np.ndarray | None, truth: float) -> float:
    assert interval is not None
    return float(np.mean((interval[0] <= truth) & (truth <= interval[1])))


@pytest.mark.parametrize("prompts", [12, 60])
@pytest.mark.parametrize("speedup", [1.0, 1.05, 1.5, 0.8])
def test_interval_covers_the_planted_speedup(speedup: float, prompts: int) -> None:
    off, on = simulate(speedup, prompts, seed=prompts)
    interval = stats.ratio_interval(off.sum(1), on.sum(1), draws=2000)
    assert 0.92 <= coverage(interval, speedup) <= 0.98


def test_ignoring_repeats_of_a_prompt_is_caught() -> None:
    off, on = simulate(1.5, 20, repeats=5)
    as_if_independent = stats.ratio_interval(off.reshape(-1, RUNS), on.reshape(-1, RUNS), draws=1000)
    assert coverage(as_if_independent, 1.5) < 0.75


def test_mean_of_ratios_is_caught() -> None:
    off, on = simulate(1.5, 60)
    # Short texts gain, long ones lose: what a user waits for is the sum.
    off, on = off.sum(1), on.sum(1) * np.where(off.mean(1) > 1, 1.3, 0.4)
    truth = simulate(1.5, 2000, seed=5)
    true_off, true_on = truth[0].sum(1), truth[1].sum(1) * np.where(truth[0].mean(1) > 1, 1.3, 0.4)
    ratio = float(true_off.sum() / true_on.sum())
    wrong = stats.ratio_interval(off / on, np.ones_like(on), draws=1000)
    assert coverage(stats.ratio_interval(off, on, draws=1000), ratio) > 0.92
    assert coverage(wrong, ratio) < 0.5


def test_few_prompts_give_no_interval_and_tail_matches_students_t() -> None:
    assert stats.ratio_interval(np.ones(4), np.ones(4)) is None
    # t(0.975) is 2.7764 at 4 degrees and 2.2010 at 11; the tail is Phi(-t sqrt(n / (n - 1))).
    assert stats._tail(5) == pytest.approx(0.00096, rel=0.05)
    assert stats._tail(12) == pytest.approx(0.01075, rel=0.02)
    assert stats._tail(10**6) == pytest.approx(0.025, rel=1e-3)


def test_resampling_draws_every_cluster_equally_often() -> None:
    counts = stats._resample_counts(7, 5000, seed=1)
    assert (counts.sum(1) == 7).all()
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.05)


def row(**changes: object) -> Measurement:
    base = {
        "order": 0, "prompt_id": "p", "category": "c", "arm": "off", "temperature": 0.0, "repeat": 0, "seed": 0,
        "seconds": 1.0, "ttft_s": 0.1, "tpot_s": 0.01, "prompt_tokens": 3, "tokens": 10, "rounds": 0, "drafted": [],
        "accepted": [], "token_times_s": [], "token_sha256": "x", "finish_reason": "stop",
    }  # fmt: skip
    return Measurement(**(base | changes))  # type: ignore[arg-type]


def test_ratio_of_sums_by_hand() -> None:
    rows = [row(prompt_id="a", seconds=9.0), row(prompt_id="a", arm="on", seconds=3.0)]
    rows += [row(prompt_id="b", seconds=1.0), row(prompt_id="b", arm="on", seconds=2.0, token_sha256="y")]
    rows += [row(prompt_id="lonely", seconds=100.0)]
    summary = summarise(rows, [])
    assert summary["speedup"] == pytest.approx(10 / 5)
    assert summary["equal_outputs"] == 0.5
    assert (summary["pairs"], summary["prompts"]) == (2, 2)
    assert summary["tokens_per_s"] == {"off": pytest.approx(2.0), "on": pytest.approx(4.0)}
    assert summary["off_vs_off"] is None


def test_acceptance_by_hand() -> None:
    # Ten rounds of 2 drafts: 8 accept the first, 4 of those the second; then two rounds cut to 1 draft, both accepted.
    on = [
        row(arm="on", rounds=10, drafted=[10, 10], accepted=[8, 4], tokens=23),
        row(arm="on", rounds=2, drafted=[2], accepted=[2], tokens=5),
    ]
    assert acceptance_length(on) == pytest.approx(1 + 14 / 12)
    assert survival_by_position(on) == pytest.approx([10 / 12, 4 / 10])
    assert acceptance_by_position(on) == pytest.approx([10 / 12, 0.4 / (10 / 12)])
    assert acceptance_by_position([row(arm="on", rounds=3, drafted=[3, 3], accepted=[0, 0])]) == [0.0]
    assert acceptance_length([]) is None


def test_empty_summary_has_nulls_not_errors() -> None:
    summary = summarise([], [])
    assert summary["speedup"] is None
    assert summary["acceptance_by_position"] == []
    assert summary["ttft_s"]["off"] == {"median": None, "p90": None}


def test_latency_spread() -> None:
    assert stats.spread([1.0, 2.0, 3.0, 4.0, 11.0]) == {"median": 3.0, "p90": pytest.approx(8.2)}


@pytest.mark.parametrize("speedup", [1.0, 1.5, 0.8])
def test_whole_way_finds_the_planted_speedup(speedup: float) -> None:
    engine = FakeEngine(speedup)
    rows = run_fake(engine, make_prompts(40), BenchOptions(repeats=2, max_tokens=40))
    summary = summarise(rows, [])
    assert summary["speedup"] == pytest.approx(speedup, rel=0.01)
    assert summary["speedup_ci95"][1] - summary["speedup_ci95"][0] < 0.03
    assert summary["off_vs_off"] == pytest.approx(1.0, rel=0.01)
    assert summary["equal_outputs"] == summary["off_vs_off_equal_outputs"] == 1.0
    assert set(summary["by_category"]) == {"cat0", "cat1"}
    assert set(summary["by_temperature"]) == {"0.0", "1.0"}
    assert summary["by_category"]["cat0"]["prompts"] == 20
