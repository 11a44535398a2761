"""Policies replayed on made-up traces: what the controller reaches, what bounds it, and that nobody sees the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from paceline.control.auto import Auto
from paceline.control.cost import CostTable, Timing
from paceline.control.guard import Guard
from paceline.control.parking import PROBE_LAST
from paceline.control.policy import Confidence, Constant, Heuristic, Policy, Served, State
from paceline.control.predict import expected_tokens
from paceline.control.replay import Result, Workbench, make, regret
from paceline.control.synthetic import generate
from paceline.control.trace import Row, Trace
from paceline.errors import UsageError

# Rounded from measured rounds of a mixture of experts and of a dense model; a test needs their shape only.
MOE = CostTable([Timing(1, k, 0, ms) for k, ms in zip((0, 1, 2, 4, 8), (2.6, 3.7, 4.5, 6.2, 9.0), strict=True)])
DENSE = CostTable([Timing(1, 0, 0, 15.0), Timing(1, 8, 0, 17.9)])
TABLES = {"moe": MOE, "dense": DENSE}
TOKENS, K = 4000, 8


@cache
def bench(workload: str, table: str) -> Workbench:
    return Workbench(generate(workload, TOKENS, K, seed=11), TABLES[table])


@cache
def best(workload: str, table: str) -> Result:
    return max(bench(workload, table).statics(), key=lambda result: result.rate)


@cache
def auto(workload: str, table: str) -> Result:
    stage = bench(workload, table)
    return stage.play(Auto(stage.table.copy(), K), "auto", explain=True)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("workload", ["chat", "code", "hopeless", "perfect"])
def test_stationary_text_within_two_percent_of_the_best_constant(workload: str, table: str) -> None:
    assert auto(workload, table).rate > 0.98 * best(workload, table).rate


@pytest.mark.parametrize("table", TABLES)
def test_mixed_text_beats_every_constant_by_five_percent(table: str) -> None:
    assert auto("mixed", table).rate > 1.05 * best("mixed", table).rate


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("workload", ["chat", "code", "hopeless", "perfect", "mixed", "changing"])
def test_never_more_than_two_percent_below_plain(workload: str, table: str) -> None:
    plain = bench(workload, table).play(Constant(0), "plain")
    assert auto(workload, table).rate > 0.98 * plain.rate


def test_the_heuristic_fails_what_the_controller_passes() -> None:
    stage = bench("hopeless", "moe")
    assert stage.play(Heuristic(K), "heuristic").rate < 0.98 * stage.play(Constant(0), "plain").rate


def test_parks_and_comes_back_after_a_change() -> None:
    result = auto("changing", "moe")
    changes = [i for i in range(1, len(result.ks)) if result.categories[i] != result.categories[i - 1]]
    assert len(changes) == 3
    assert np.mean(np.array(result.ks[changes[0] + 50 : changes[1]]) > 0) < 0.1
    assert np.mean(result.ks[changes[1] + 50 : changes[2]]) > 2


# ---- nobody sees the future -----------------------------------------------------------------------------------------


class Peeker:
    """Cheats: holds the trace, and drafts exactly what will be kept. A made-up trace names positions by context."""

    reason, stop, patience = "I know", None, 1

    def __init__(self, stage: Workbench) -> None:
        self.kept = {(row.request, row.context): row.accepted for row in stage.trace.rows}

    def choose(self, state: State) -> int:
        return self.kept[state.request, state.context]

    def observe(self, served: Served) -> None:
        """Needs to learn nothing."""


def first_difference(build: Callable[[Workbench], Policy], trace: Trace, at: int) -> int | None:
    """Index of the first choice that changes when everything from position `at` of the first request on does.

    Up to and including the round at `at`, a policy that hides nothing cannot tell the two runs apart.
    """
    changed = [
        replace(
            row, accepted=K - row.accepted, margins=row.margins[::-1], confidences=tuple(1 - p for p in row.confidences)
        )
        if (row.position or 0) >= at
        else row
        for row in trace.rows
    ]
    stages = Workbench(trace, MOE), Workbench(replace(trace, rows=changed), MOE)
    first, second = (stage.play(build(stage), "x") for stage in stages)
    positions = np.cumsum([0, *first.tokens])
    for i, (a, b) in enumerate(zip(first.ks, second.ks, strict=False)):
        if a != b:
            return int(positions[i])
    return None


HONEST: dict[str, Callable[[Workbench], Policy]] = {
    "auto": lambda stage: Auto(stage.table.copy(), K),
    "heuristic": lambda stage: Heuristic(K),
    "confidence": lambda stage: Confidence(K),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("at", [100, 250])
def test_choices_do_not_depend_on_the_round_they_are_made_for(name: str, at: int) -> None:
    differs = first_difference(HONEST[name], generate("chat", 400, K, seed=5), at)
    assert differs is not None  # else nothing was tested
    assert differs > at


def test_a_policy_that_peeks_is_found_out() -> None:
    trace = generate("chat", 400, K, seed=5)
    found = [first_difference(Peeker, trace, at) for at in range(100, 110)]
    assert any(differs == at for differs, at in zip(found, range(100, 110), strict=True))


def test_peeking_beats_the_best_that_does_not() -> None:
    stage = bench("chat", "moe")
    informed = stage.informed()
    assert informed is not None
    assert stage.play(Peeker(stage), "peeker").rate > 1.1 * informed.rate
    assert auto("chat", "moe").rate < informed.rate


# ---- bounds and bookkeeping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", ["chat", "mixed"])
def test_nothing_is_faster_than_the_clairvoyant(workload: str) -> None:
    stage = bench(workload, "moe")
    bound = stage.clairvoyant()
    for result in (auto(workload, "moe"), *stage.statics(), stage.play(Peeker(stage), "peeker")):
        assert sum(result.tokens) == sum(bound.tokens) == TOKENS // 400 * 400
        assert sum(result.ms) >= sum(bound.ms) - 1e-6


def test_the_clairvoyant_finds_the_fastest_of_all_ways() -> None:
    rows = [Row(request="a", drafted=3, accepted=a, position=i) for i, a in enumerate((2, 0, 3, 1, 0, 1))]
    table = CostTable([Timing(1, k, 0, ms) for k, ms in enumerate((2.0, 2.5, 4.1, 4.6))])
    stage = Workbench(Trace(rows), table)

    def fastest(at: int) -> float:
        if at >= len(rows):
            return 0.0
        return min(stage.ms(rows[at], k) + fastest(at + min(k, rows[at].accepted) + 1) for k in range(4))

    assert sum(stage.clairvoyant().ms) == pytest.approx(fastest(0))


def test_round_by_round_traces_take_every_row_once() -> None:
    rows = [Row(request="a", drafted=4, accepted=a) for a in (4, 0, 2, 1)]
    stage = Workbench(Trace(rows), DENSE)
    result = stage.play(Constant(2), "k=2")
    assert not stage.jumps
    assert result.tokens == [3, 1, 3, 2]
    assert stage.clairvoyant().rate >= max(static.rate for static in stage.statics())


def test_recorded_times_come_before_the_table() -> None:
    rows = [Row(request="a", drafted=4, accepted=1, round_ms={2: 99.0})] * 2
    assert Workbench(Trace(rows), DENSE).play(Constant(2), "k=2").ms == [99.0, 99.0]


def test_regret_is_time_lost_by_then() -> None:
    stage = bench("chat", "moe")
    bound, plain = stage.clairvoyant(), stage.play(Constant(0), "plain")
    assert regret(bound, bound)[1] == pytest.approx(0.0, abs=1e-6)
    tokens, lost = regret(plain, bound)
    assert tokens[-1] == TOKENS
    assert lost[-1] == pytest.approx(sum(plain.ms) - sum(bound.ms))


# ---- single policies ------------------------------------------------------------------------------------------------


def served(k: int, accepted: int, **more: tuple[float, ...]) -> Served:
    return Served("a", k, accepted, 5.0, **more)


def test_the_heuristic_adds_two_or_takes_one() -> None:
    policy = Heuristic(8, start=5)
    ks = [policy.choose(State("a"))]
    for accepted in (5, 7, 3, 0):
        policy.observe(served(ks[-1], accepted))
        ks.append(policy.choose(State("a")))
    assert ks == [5, 7, 8, 7, 6]
    assert policy.choose(State("another")) == 5


def test_confidence_follows_what_the_drafter_said() -> None:
    policy = Confidence(8, threshold=0.4)
    for _ in range(30):
        policy.observe(served(3, 3, confidences=(0.9, 0.8, 0.3)))
    assert policy.choose(State("a")) == 2
    for _ in range(30):
        policy.observe(served(2, 2, confidences=(0.1, 0.1)))
    assert policy.choose(State("a")) == 1


def test_reasons_tell_the_price() -> None:
    parked, drafting = auto("hopeless", "moe"), auto("perfect", "moe")
    assert parked.ks[-1] == 0
    assert parked.reasons[-1].startswith("parked: 1 draft would cost 1.1 ms and win 0.")
    assert drafting.reasons[-1].startswith("8 drafts: 8.")
    assert drafting.reasons[-1].endswith("tokens in 9.0 ms, against 1 in 2.6 ms")
    assert any(reason.startswith("probe: ") for reason in parked.reasons)


def test_probes_become_rare_but_never_cease() -> None:
    ks = np.array(auto("hopeless", "moe").ks)
    gaps = np.diff(np.flatnonzero(ks))
    assert gaps[-20:].min() >= 1
    assert 25 <= np.median(gaps[-20:]) <= PROBE_LAST + 1
    assert gaps.max() <= PROBE_LAST + 1


def test_the_controller_learns_a_cost_that_the_table_got_wrong() -> None:
    """A table in which drafts are next to free; on a hopeless text they are not."""
    trace = generate("hopeless", 4000, K, seed=2)
    stage = Workbench(trace, CostTable([Timing(1, 0, 0, 2.6), Timing(1, 8, 0, 7.0)]))
    policy = Auto(CostTable([Timing(1, 0, 0, 2.6), Timing(1, 8, 0, 2.7)]), K)
    result = stage.play(policy, "auto")
    assert np.mean(result.ks[-500:]) < 0.1
    assert policy.table.ms(1) / policy.table.ms(0) > 1.05  # as given: 1.005


# ---- the guard ------------------------------------------------------------------------------------------------------


def guarded(own: Callable[[int], int], law: np.ndarray, rounds: int = 600) -> list[int]:
    """Ks that a guard lets through when the controller wants own(round), acceptance being 0.9 at all positions."""
    guard, noise, ks = Guard(4), np.random.default_rng(0), []
    times = np.array([2.0, 2.2, 2.4, 2.6, 2.8])
    for i in range(rounds):
        k = guard.choose(own(i), law, times)
        hits = int(np.cumprod(noise.random(4) < 0.9).sum())
        guard.observe(guard.score(Served("a", k, min(k, hits), float(times[k])), own(i)))
        ks.append(k)
    return ks


def test_the_guard_overrules_a_controller_that_loses() -> None:
    ks = guarded(lambda i: i % 2, np.full(4, 0.9))
    assert np.mean(ks[-200:]) > 3.5


def test_the_guard_leaves_a_good_controller_alone() -> None:
    assert guarded(lambda i: 4, np.full(4, 0.9)) == [4] * 600


def test_a_constant_arm_that_is_not_better_is_not_played() -> None:
    law = np.full(4, 0.9)
    assert float(expected_tokens(law)[4]) > 4
    assert set(guarded(lambda i: 3 + i % 2, law, 64)) == {3, 4}


@pytest.mark.parametrize(("told", "taken_over"), [(True, False), (False, True)])
def test_the_guard_does_not_take_dropped_guesses_for_ordinary_ones(told: bool, taken_over: bool) -> None:
    """Drafts end at the first guess that is bad. By the law of all guesses a constant k would keep half of these too,
    and the guard that is not told of their chance believes in it.
    """
    guard, noise, held = Guard(4), np.random.default_rng(0), 0
    law, times = np.full(4, 0.7), np.array([2.0, 2.2, 2.4, 2.6, 2.8])
    for _ in range(800):
        good = int(np.cumprod(noise.random(4) < 0.7).sum())  # the others are dropped, and would not have been kept
        guard.choose(4, law, times)
        one = Served("a", good, good, float(times[good]), unmade=0.05 if good < 4 else None)
        guard.observe(guard.score(one, good, float(times[good]), 0.05 if told and good < 4 else None))
        held += guard.holds
    assert bool(held) == taken_over


# ---- drafts that end by themselves ----------------------------------------------------------------------------------

STEPS = CostTable([Timing(1, k, 0, ms) for k, ms in ((0, 1.0), (1, 1.35), (8, 3.5))], step_ms=0.15)


@cache
def listening(workload: str) -> tuple[Result, Result, Result, Result]:
    """(auto+stop, auto, the best constant k, k = 0) on a small model's round times."""
    stage = Workbench(generate(workload, TOKENS, K, seed=11), STEPS)
    statics = stage.statics()
    results = [stage.play(make(name, STEPS, K), name) for name in ("auto+stop", "auto")]
    return results[0], results[1], max(statics, key=lambda result: result.rate), statics[0]


@pytest.mark.parametrize("workload", ["chat", "code", "hopeless", "perfect", "mixed", "changing"])
def test_a_stop_within_the_round_loses_to_nothing(workload: str) -> None:
    stopped, _, best, plain = listening(workload)
    assert stopped.rate > (1.05 if workload == "mixed" else 0.98) * best.rate
    assert stopped.rate > 0.98 * plain.rate
    assert sum(stopped.tokens) == sum(plain.tokens)


def test_what_the_drafter_hears_of_itself_is_worth_something() -> None:
    stopped, before, _, _ = listening("chat")
    assert stopped.rate > 1.03 * before.rate


def test_a_stop_does_not_see_what_will_be_kept() -> None:
    """Runs that differ in acceptance alone, from a position on, choose alike up to and in the round at it."""
    trace = generate("chat", 400, K, seed=5)
    changed = [replace(r, accepted=K - r.accepted) if (r.position or 0) >= 100 else r for r in trace.rows]
    first, second = (
        Workbench(Trace(rows), STEPS).play(make("auto+stop", STEPS, K), "x") for rows in (trace.rows, changed)
    )
    at = np.cumsum([0, *first.tokens])
    differs = next(int(at[i]) for i, (a, b) in enumerate(zip(first.ks, second.ks, strict=False)) if a != b)
    assert differs > 100


class Counting(Auto):
    """Counts how often it is asked and told."""

    asked = told = 0

    def choose(self, state: State) -> int:
        self.asked += 1
        return super().choose(state)

    def observe(self, served: Served) -> None:
        self.told += 1
        super().observe(served)


@pytest.mark.parametrize("workload", ["chat", "hopeless"])
def test_a_policy_is_asked_rarely_and_told_once_for_each_question(workload: str) -> None:
    policy = Counting(STEPS.copy(), K, listens=True)
    result = Workbench(generate(workload, TOKENS, K, seed=11), STEPS).play(policy, "auto+stop")
    assert policy.told <= policy.asked < 0.2 * len(result.ks)
    assert policy.told >= policy.asked - TOKENS // 400  # a text may end before its last choice does
    assert policy.rounds >= len(result.ks)
    eager = Counting(STEPS.copy(), K)  # a choice before each round needs the news of the last one
    result = Workbench(generate("chat", TOKENS, K, seed=11), STEPS).play(eager, "auto")
    assert eager.asked == eager.told > 0.95 * len(result.ks)


def test_news_of_another_request_than_the_last_one_asked_about_is_left_aside() -> None:
    policy = Auto(STEPS.copy(), K, listens=True)
    policy.choose(State("a"))
    before = policy.table.times()
    policy.observe(Served("b", 2, 2, 99.0))
    assert policy.table.times() == before
    policy.observe(Served("a", 2, 2, 99.0))
    assert policy.table.times() != before


def test_dropped_guesses_are_paid_for() -> None:
    rows = [Row(request="a", drafted=4, accepted=4, confidences=(0.9, 0.1, 0.9, 0.9))] * 3
    result = Workbench(Trace(rows), STEPS).play(make("stop=0.5", STEPS, 4), "stop")
    assert result.ks == [1, 1, 1]
    assert result.ms == pytest.approx([1.35 + 0.15] * 3)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "match"),
    [("magic", "there is no policy 'magic'"), ("k=9", "from 0 to 8, not '9'"), ("k=-1", "there is no policy 'k=-1'"),
     ("confidence=2", "from 0 to 1, not '2'"), ("confidence=x", "not 'x'")],
)  # fmt: skip
def test_unknown_policies_are_refused(name: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make(name, MOE, 8)


def test_a_policy_out_of_range_is_named() -> None:
    with pytest.raises(UsageError, match="policy odd chose 9 drafts"):
        bench("chat", "moe").play(Constant(9), "odd")
