"""The order of measurements, what the arms share, and arms that are not what they are called."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from functools import partial
from typing import Any

import planted
import pytest
import virtual_time
from bench_fakes import FakeEngine, make_prompts, run_fake
from planted import Machine, PlantedArm

from paceline.bench import harness
from paceline.bench.arms import Answer, ArmError, Ask, Drafting
from paceline.bench.harness import Contest, Stage, check_arms
from paceline.bench.measurement import Measurement
from paceline.bench.plan import ArmKey, BenchOptions, Step, arm_orders, derive_seed, plan
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


# ---- arms in virtual time -------------------------------------------------------------------------------------------

GREEDY = BenchOptions(temperatures=(0.0,), warmup=0)


def steps_of(options: BenchOptions, count: int = 16) -> list[Step]:
    return plan(planted.prompts(count), options, [4])


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_so_many_requests_are_really_in_flight(concurrency: int) -> None:
    options = BenchOptions(temperatures=(0.0,), warmup=0, concurrencies=(concurrency,))
    machine = Machine(noise=0.0, crowd=0.0, lengths=0.0)
    rows, steps = planted.simulate(machine, 48, options)
    assert machine.most_in_flight == concurrency
    alone = sum(row.seconds for row in rows)
    together = sum(step.wall_s for step in steps)
    # All texts take the same time, so only the last ones of a block wait for nobody.
    assert together == pytest.approx(alone / concurrency, rel=0.25 if concurrency > 1 else 1e-9)
    assert sum(step.tokens for step in steps) == sum(row.tokens for row in rows)


def test_a_long_text_does_not_hold_up_the_others() -> None:
    async def job(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return virtual_time.clock()

    jobs = [partial(job, seconds) for seconds in (10.0, 1.0, 1.0, 1.0, 1.0)]
    assert virtual_time.run(harness._in_flight(2, jobs)) == pytest.approx([1, 2, 3, 4, 10])


def test_counters_tell_of_single_texts_and_of_whole_blocks() -> None:
    options = BenchOptions(temperatures=(0.0,), warmup=2, concurrencies=(1, 4))
    rows, steps = planted.simulate(Machine(), 16, options, tells=False)
    for step in steps:
        own = [row for row in rows if (row.arm, row.concurrency) == (step.arm, step.concurrency)]
        if step.concurrency == 1:
            assert step.drafted is None
            assert all(row.drafted_tokens is not None for row in own)
        else:
            assert all(row.drafted_tokens is None for row in own)
            assert (step.drafted or 0) > 0 if step.arm == "on" else step.drafted == 0
    on = [row for row in rows if row.arm == "on" and row.concurrency == 1]
    # Rounds and accepted drafts make up exactly the tokens after the first: nothing of the warm-up, or of another text.
    assert [row.rounds + (row.accepted_tokens or 0) for row in on] == [row.tokens - 1 for row in on]
    blocks = [step for step in steps if step.arm == "on" and step.concurrency == 4]
    assert [(s.rounds or 0) + (s.accepted or 0) for s in blocks] == [s.tokens - s.texts for s in blocks]


def test_an_engine_that_dies_with_its_counters_keeps_the_answers_before() -> None:
    class Dies(PlantedArm):
        async def counters(self) -> Drafting | None:
            if self.asked >= 2:
                raise ArmError("gone")
            return await super().counters()

    machine = Machine()
    arms = Contest(PlantedArm(machine, False), {4: Dies(machine, True, tells=False)})
    found = planted.outcomes(arms, steps_of(GREEDY), GREEDY)
    assert sum(len(outcome.rows) for outcome in found) == 48
    told = [row.drafted_tokens is not None for outcome in found for row in outcome.rows if row.arm == "on"]
    assert told == [True] + [False] * 15


class Both:
    """A contest of planted arms, and how it ended."""

    def __init__(self, alone: bool = False, concurrency: int = 1) -> None:
        self.options = BenchOptions(temperatures=(0.0,), warmup=1, alternate=alone, concurrencies=(concurrency,))
        machine = Machine()
        self.off, self.on = PlantedArm(machine, False), PlantedArm(machine, True)
        self.contest = Contest(self.off, {4: self.on}, alone=alone)

    def run(self, count: int = 16) -> list[harness.Outcome]:
        return planted.outcomes(self.contest, steps_of(self.options, count), self.options)

    def check_closed(self) -> None:
        for arm in (self.off, self.on):
            assert arm.opened == arm.closed


def test_patience_ends_a_run_whose_arm_keeps_failing() -> None:
    both = Both()
    both.on.fails = set(range(6, 100))
    with pytest.raises(
        ArmError, match=r"3 requests in a row failed in the arm on \(k = 4\); the last: planted failure"
    ):
        both.run()
    assert both.on.asked == 6 + 3
    both.check_closed()


def test_failures_here_and_there_do_not_end_a_run() -> None:
    both = Both()
    both.on.fails = {2, 3, 5, 6, 9}
    found = both.run()
    assert sum(len(outcome.failures) for outcome in found) == 5
    assert sum(len(outcome.rows) for outcome in found) == 48 - 5
    failure = next(outcome.failures[0] for outcome in found if outcome.failures)
    assert (failure.arm, failure.k, failure.concurrency, failure.why) == ("on", 4, 1, "planted failure")


def test_an_arm_that_dies_in_the_middle_of_a_block_is_noticed_at_its_end() -> None:
    both = Both(concurrency=4)
    both.on.fails = set(range(9, 100))  # after 4 of the warm-up and 5 of the 16 of the only block
    with pytest.raises(ArmError, match="requests in a row failed"):
        both.run(16)
    scattered = Both(concurrency=4)
    scattered.on.fails = {5, 9, 14}
    assert sum(len(outcome.failures) for outcome in scattered.run(16)) == 3


@pytest.mark.parametrize("alone", [False, True])
def test_arms_are_closed_on_every_way_out(alone: bool) -> None:
    fine = Both(alone)
    fine.run()
    fine.check_closed()
    assert (fine.on.opened, fine.off.opened) == ((2, 1) if alone else (1, 1))

    warm_up = Both(alone)
    warm_up.on.fails = {0}
    with pytest.raises(ArmError):
        warm_up.run()
    warm_up.check_closed()

    for error in (RuntimeError("bug"), KeyboardInterrupt()):
        broken = Both(alone)
        broken.on.answer = partial(raises, error)  # type: ignore[method-assign]
        with pytest.raises(type(error)):
            broken.run()
        broken.check_closed()

    half = Both(alone)
    half.on.check = partial(raises, ArmError("wrong model"))  # type: ignore[method-assign]
    with pytest.raises(ArmError, match="wrong model"):
        half.run()
    half.check_closed()


async def raises(error: BaseException, *_: object) -> Any:
    raise error


@pytest.mark.parametrize("concurrency", [1, 4])
def test_ctrl_c_ends_the_requests_before_the_arms_are_closed(concurrency: int) -> None:
    both = Both(concurrency=concurrency)
    answer, events = both.on.answer, list[str]()

    async def pressed(ask: Ask) -> Answer:
        if both.on.asked == 12:
            signal.raise_signal(signal.SIGINT)
        try:
            return await answer(ask)
        except asyncio.CancelledError:
            events.append("cancelled")
            await asyncio.sleep(0.01)
            events.append("let go")
            raise

    async def close() -> None:
        events.append("closed")

    both.on.answer, both.on.close = pressed, close  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        both.run()
    assert events == ["cancelled"] * concurrency + ["let go"] * concurrency + ["closed"]


def test_one_arm_that_does_not_close_does_not_keep_the_other_up() -> None:
    both = Both()
    both.on.close = partial(raises, ArmError("will not stop"))  # type: ignore[method-assign]
    with pytest.raises(ArmError, match="will not stop"):
        both.run()
    assert both.off.closed == 1


def test_only_one_arm_is_up_at_a_time_where_only_one_fits() -> None:
    both = Both(alone=True)
    up = list[int]()
    for arm in (both.off, both.on):
        opened = arm.open

        async def watched(opened: Any = opened) -> None:
            await opened()
            up.append(both.off.opened - both.off.closed + both.on.opened - both.on.closed)

        arm.open = watched  # type: ignore[method-assign]
    both.run()
    assert up == [1, 1, 1]


def test_as_many_texts_warm_up_as_asked_for() -> None:
    both = Both()
    both.options = BenchOptions(temperatures=(0.0,), warmup=3)
    both.run()
    assert (both.off.asked, both.on.asked) == (32 + 3, 16 + 3)


def test_an_off_arm_known_by_its_second_name_first_is_still_off() -> None:
    machine = Machine()
    arms = Contest(PlantedArm(machine, False), {4: PlantedArm(machine, True)})
    stage = Stage(arms, GREEDY)
    virtual_time.run(stage.bring_up(ArmKey("off2", 0)))
    assert list(stage.facts) == [ArmKey("off", 0)]
