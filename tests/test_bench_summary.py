"""The summary: places in the grid, the headline, sweeps, advice, prices; and pairs by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bench_fakes import FakeEngine, make_prompts, run_fake
from bench_rows import row, step
from planted import Machine, simulate

from paceline.bench.measurement import Measurement
from paceline.bench.plan import BenchOptions
from paceline.bench.summary import Prices, Terms, summarise
from paceline.errors import UsageError


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


def test_empty_summary_has_nulls_not_errors() -> None:
    summary = summarise([], [])
    assert summary["speedup"] is None
    assert summary["acceptance_by_position"] == []
    assert summary["ttft_s"]["off"] == {"median": None, "p90": None}
    assert summary["advice"] == {"k": None, "categories": {}, "off_from": None}
    assert summary["grid"] == []
    assert (summary["drift"]["steady"], summary["k"], summary["ks"]) == (None, None, [])
    json.dumps(summary, allow_nan=False)


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


def cell(arm: str, seconds: float, n: int = 8, **changes: object) -> list[Measurement]:
    """One arm over n prompts, each of about so many seconds."""
    return [row(arm=arm, prompt_id=f"p{i}", seconds=seconds * (1 + i / 100), **changes) for i in range(n)]


def sweep() -> list[Measurement]:
    """Two draft lengths and two concurrencies: k = 2 gains 1.5 alone, k = 4 gains 2; at 8 at once 1.1 and 0.9."""
    rows = []
    for concurrency, off_s, on_s in ((1, 6.0, {2: 4.0, 4: 3.0}), (8, 9.9, {2: 9.0, 4: 11.0})):
        for temperature in (0.0, 1.0):
            at = {"concurrency": concurrency, "temperature": temperature}
            rows += cell("off", off_s, **at) + cell("off2", off_s * 1.1, **at)
            for k, seconds in on_s.items():
                rows += cell("on", seconds / (1 + temperature), k=k, **at)
    return rows


def test_every_setting_has_its_place() -> None:
    summary = summarise(sweep(), [])
    assert (summary["temperature"], summary["concurrency"], summary["k"]) == (0.0, 1, 4)
    assert summary["speedup"] == pytest.approx(2.0)
    assert (summary["ks"], summary["k_chosen_here"]) == ([2, 4], True)
    assert {k: block["speedup"] for k, block in summary["by_k"].items()} == pytest.approx({"2": 1.5, "4": 2.0})
    assert {t: b["speedup"] for t, b in summary["by_temperature"].items()} == pytest.approx({"0.0": 2.0, "1.0": 4.0})
    by = summary["by_concurrency"]
    assert {c: (b["k"], b["worth_it"]) for c, b in by.items()} == {"1": (4, True), "8": (2, True)}
    assert by["8"]["speedup"] == pytest.approx(1.1)
    assert by["8"]["off_vs_off"] == pytest.approx(1 / 1.1)
    assert len(summary["grid"]) == 2 * 2 * 2 * 2  # all and one category; temperatures; concurrencies; draft lengths
    [place] = [
        g for g in summary["grid"]
        if (g["category"], g["temperature"], g["concurrency"], g["k"]) == (None, 1.0, 8, 4)
    ]  # fmt: skip
    assert place["speedup"] == pytest.approx(1.8)
    assert summary["pairs"] == 8 * 8
    assert summary["timed_pairs"] == 8
    json.dumps(summary, allow_nan=False)


def test_one_draft_length_is_not_chosen_here() -> None:
    summary = summarise([r for r in sweep() if r.k in (None, 2)], [])
    assert (summary["k"], summary["k_chosen_here"]) == (2, False)


def test_alternating_runs_pair_each_pass_with_its_own() -> None:
    # The machine slows by half between the passes: off against off2 shows it, the speed-up does not.
    rows = cell("on", 2.0, k=4) + cell("off", 4.0) + cell("off2", 6.0) + cell("on2", 3.0, k=4)
    summary = summarise(rows, [])
    assert summary["speedup"] == pytest.approx(10 / 5)
    assert summary["pairs"] == summary["timed_pairs"] == 16
    assert summary["prompts"] == 8
    assert summary["off_vs_off"] == pytest.approx(4 / 6)
    assert summary["on_vs_on"] == pytest.approx(2 / 3)
    assert summary["on_vs_on_equal_outputs"] == 1.0
    # Only the first half: the pairs that are there.
    assert summarise(rows[:16], [])["pairs"] == 8


def noisy(arm: str, seconds: float, **changes: object) -> list[Measurement]:
    """As `cell`, but the gains differ so much that no side of 1 is sure."""
    return [row(arm=arm, prompt_id=f"p{i}", seconds=seconds * (0.5 if i % 2 else 1.5), **changes) for i in range(8)]


def test_advice() -> None:
    rows = cell("off", 4.0) + cell("on", 2.0, k=4)
    rows += [replace(r, prompt_id="b" + r.prompt_id, category="slow") for r in cell("off", 2.0) + cell("on", 3.0, k=4)]
    rows += [replace(r, prompt_id="d" + r.prompt_id, category="same") for r in cell("off", 2.0) + noisy("on", 2.0, k=4)]
    rows += [replace(r, prompt_id="e" + r.prompt_id, category="few") for r in cell("off", 2.0, 3)]
    rows += [replace(r, prompt_id="e" + r.prompt_id, category="few") for r in cell("on", 1.0, 3, k=4)]
    advice = summarise(rows, [])["advice"]
    assert advice["categories"] == {"c": "on", "slow": "off", "same": "no difference", "few": None}
    assert summarise(cell("off", 4.0) + cell("on", 2.0, k=4), [])["advice"]["k"] == 4
    assert summarise(cell("off", 2.0) + cell("on", 4.0, k=4), [])["advice"]["k"] == 0
    assert summarise(cell("off", 2.0) + noisy("on", 2.0, k=4), [])["advice"]["k"] is None


@pytest.mark.parametrize(
    ("gains", "off_from"),
    [
        ((1.5, 1.2, 0.9), 16),
        ((1.5, 0.9, 0.9), 4),
        ((1.5, 0.9, 1.2), None),  # worth it again at more in flight: no such limit
        ((1.5, 1.2, 1.1), None),
        ((1.5, 1.2, 1.01), 16),  # surely faster, but not worth it
        ((0.9, 0.9, 0.9), 1),
    ],
)
def test_from_how_many_requests_in_flight_on_drafting_is_off(gains: tuple[float, ...], off_from: int | None) -> None:
    rows = []
    for concurrency, gain in zip((1, 4, 16), gains, strict=True):
        rows += cell("off", 2.0, concurrency=concurrency) + cell("on", 2.0 / gain, k=4, concurrency=concurrency)
    assert summarise(rows, [])["advice"]["off_from"] == off_from


def test_what_cannot_be_told_is_neither_worth_it_nor_not() -> None:
    rows = cell("off", 2.2) + noisy("on", 2.0, k=4)
    assert summarise(rows, [])["by_concurrency"]["1"]["worth_it"] is None
    assert summarise(rows, [])["advice"]["off_from"] is None


def test_several_in_flight_count_the_wall_time_of_whole_steps() -> None:
    rows = cell("off", 8.0, concurrency=4) + cell("on", 4.0, k=4, concurrency=4)
    steps = [
        step(arm="off", k=0, concurrency=4, tokens=80, wall_s=16.0, temperature=0.0),
        step(arm="off2", k=0, concurrency=4, tokens=80, wall_s=16.0, temperature=0.0),
        step(arm="on", concurrency=4, tokens=80, wall_s=8.0, temperature=0.0),
        step(arm="on", concurrency=4, tokens=1, failed=7, wall_s=99.0, temperature=0.0),
        step(arm="on", concurrency=4, tokens=80, wall_s=80.0, temperature=1.0),
        step(arm="on", k=2, concurrency=4, tokens=80, wall_s=80.0, temperature=0.0),
    ]
    summary = summarise(rows, steps)
    assert summary["tokens_per_s"] == {"off": pytest.approx(5.0), "on": pytest.approx(10.0)}
    assert summary["by_concurrency"]["4"]["tokens_per_s"] == summary["tokens_per_s"]
    assert summary["failures"] == 7
    assert summarise(rows, [])["tokens_per_s"] == {"off": None, "on": None}


def test_a_planted_sweep_over_requests_in_flight() -> None:
    options = BenchOptions(temperatures=(0.0,), concurrencies=(1, 4), warmup=0)
    rows, steps = simulate(Machine(speedup=1.5, crowd=0.1), 48, options)
    by = summarise(rows, steps)["by_concurrency"]
    for block in by.values():
        assert block["speedup"] == pytest.approx(1.5, rel=0.15)
        assert block["tokens_per_s"]["on"] / block["tokens_per_s"]["off"] == pytest.approx(block["speedup"], rel=0.1)
    # Four at once share the machine: each takes 1.3 times as long.
    assert by["4"]["tokens_per_s"]["off"] / by["1"]["tokens_per_s"]["off"] == pytest.approx(4 / 1.3, rel=0.15)


def test_prices_by_hand() -> None:
    rows = cell("off", 2.0) + cell("on", 1.0, k=4)  # 10 tokens in about 2 s and 1 s
    speeds = summarise(rows, [])["tokens_per_s"]
    summary = summarise(rows, [], Terms(prices=Prices(price_per_hour=3.6, watts=500)))
    # 3.6 an hour is a thousandth of a unit a second.
    assert summary["cost_per_million_tokens"]["off"] == pytest.approx(0.001 / speeds["off"] * 1e6)
    assert summary["cost_per_million_tokens"]["on"] == pytest.approx(summary["cost_per_million_tokens"]["off"] / 2)
    assert summary["tokens_per_joule"]["on"] == pytest.approx(speeds["on"] / 500)
    assert summary["by_concurrency"]["1"]["tokens_per_joule"] == summary["tokens_per_joule"]
    assert "cost_per_million_tokens" not in summarise(rows, [])
    assert summarise([], [], Terms(prices=Prices(1.0)))["cost_per_million_tokens"] == {"off": None, "on": None}


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_prices_that_are_none(value: float) -> None:
    with pytest.raises(UsageError, match="must be a number above 0"):
        Prices(price_per_hour=value)
    with pytest.raises(UsageError, match="watts must be a number above 0"):
        Prices(watts=value)


def test_texts_longer_than_asked_are_counted() -> None:
    rows = cell("off", 2.0) + cell("on", 1.0, k=4, tokens=11)
    assert summarise(rows, [], Terms(max_tokens=10))["over_long"] == 8
    assert summarise(rows, [], Terms(max_tokens=11))["over_long"] == 0
    assert summarise(rows, [])["over_long"] is None
