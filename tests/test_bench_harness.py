"""The order of measurements, what the arms share, and arms that are not what they are called."""

from __future__ import annotations

from collections import Counter

import pytest
from bench_fakes import FakeEngine, make_prompts, run_fake

from paceline.bench.harness import check_arms
from paceline.bench.measurement import Measurement
from paceline.bench.plan import ArmKey, BenchOptions, arm_orders, derive_seed, plan
from paceline.errors import PacelineError, UsageError
from paceline.types import Completion, Prompt, SamplingParams


def run(engine: FakeEngine, prompts: int = 6, k: int = 4, **options: object) -> list[Measurement]:
    made = BenchOptions(**{"max_tokens": 30, "repeats": 2, **options})  # type: ignore[arg-type]
    return run_fake(engine, make_prompts(prompts), made, (k,))


def test_arms_are_interleaved_and_balanced_over_places() -> None:
    rows = run(FakeEngine(), prompts=12)
    assert len(rows) == 12 * 2 * 2 * 3
    for i in range(0, 144, 3):
        assert {row.arm for row in rows[i : i + 3]} == {"off", "on", "off2"}
        assert len({row.pair_key for row in rows[i : i + 3]}) == 1
    places = Counter((i % 3, row.arm) for i, row in enumerate(rows))
    assert set(places.values()) == {16}


def test_orders_follow_the_seed() -> None:
    arms = [ArmKey(name, 0) for name in "abcd"]
    first, again, other = (list(zip(range(30), arm_orders(arms, seed), strict=False)) for seed in (1, 1, 2))
    assert first == again != other


def test_arms_share_parameters_and_differ_only_in_k() -> None:
    engine = FakeEngine()
    rows = run(engine, k=3, temperatures=(0.0, 0.7), top_k=5, top_p=0.9, warmup=0)
    for i in range(0, len(rows), 3):
        group = engine.calls[i : i + 3]
        assert len({(str(prompt), params) for prompt, params, _ in group}) == 1
        assert sorted(k for _, _, k in group) == [0, 0, 3]
        assert group[0][1].top_k == 5
    assert len({row.seed for row in rows}) == 6 * 2
    assert all(not row.drafted for row in rows if row.arm != "on")


def test_warm_up_runs_both_ways_and_is_not_recorded() -> None:
    engine = FakeEngine()
    rows = run(engine, warmup=1, repeats=1, temperatures=(0.0,))
    assert len(engine.calls) == len(rows) + 2  # once an arm: drafting off twice is one arm
    assert {row.prompt_id for row in rows} == {f"p{i}" for i in range(6)}


def test_seconds_are_the_clocks() -> None:
    engine = FakeEngine()
    rows = run(engine, warmup=0)
    assert sum(row.seconds for row in rows) == pytest.approx(engine.now)
    assert all(row.ttft_s == pytest.approx(row.token_times_s[0], abs=1e-6) for row in rows)


def test_seeds_differ_by_prompt_repeat_and_seed() -> None:
    seeds = {derive_seed(s, p, r) for s in (0, 1) for p in ("a", "b") for r in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_an_arm_that_never_drafts_is_an_error() -> None:
    rows = run(FakeEngine(drafts=False))
    with pytest.raises(UsageError, match="on arm never drafted in 24 texts"):
        check_arms(rows, finished=True)
    with pytest.raises(UsageError, match="never drafted in 3 texts"):
        check_arms(rows[:9], finished=False)
    check_arms(rows[:3], finished=False)
    check_arms(run(FakeEngine()), finished=True)


def test_an_off_arm_that_drafts_is_an_error() -> None:
    class Ignores(FakeEngine):
        def generate(self, prompts: list[Prompt], params: SamplingParams, *, k: int) -> list[Completion]:
            return super().generate(prompts, params, k=4)

    with pytest.raises(UsageError, match="off arm drafted"):
        check_arms(run(Ignores())[:3], finished=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrencies": ()}, "concurrencies must name"),
        ({"concurrencies": (2, 2)}, "concurrencies must differ"),
        ({"concurrencies": (0,)}, "concurrency must lie in 1"),
        ({"repeats": 0}, "repeats"),
        ({"warmup": -1}, "warmup"),
        ({"temperatures": ()}, "temperatures must name"),
        ({"temperatures": (0.0, 0.0)}, "temperatures must differ"),
        ({"temperatures": (float("nan"),)}, "finite"),
        ({"temperatures": (-1.0,)}, "temperature must be 0"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_options_out_of_range(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        BenchOptions(**options)  # type: ignore[arg-type]


def test_prompts_must_be_given_and_unique() -> None:
    with pytest.raises(UsageError, match="no prompts"):
        plan([], BenchOptions(), [4])
    with pytest.raises(PacelineError, match="same id"):
        plan(make_prompts(1) * 2, BenchOptions(), [4])
    with pytest.raises(UsageError, match="8 requests in flight need as many prompts, and there are 7"):
        plan(make_prompts(7), BenchOptions(concurrencies=(1, 8)), [4])


@pytest.mark.parametrize("ks", [(0,), (), (4, 4)])
def test_draft_lengths_that_draft_nothing_or_twice(ks: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="k must be at least 1"):
        FakeEngine().contest(ks)
