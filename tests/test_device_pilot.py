"""Draft lengths on a GPU, as arithmetic: what is predicted before anything ran, and one k for a whole batch."""

from __future__ import annotations

import pytest

from paceline.control.auto import Auto, pooled
from paceline.control.cost import CostTable, Timing
from paceline.control.policy import Served
from paceline.device.pilot import BATCHES, CONTEXTS, DRAFTS, Pilot, Seat, prior_table
from paceline.shapes import drafter_config, target_config
from paceline.steering import LONGEST

CHEAP = CostTable([Timing(1, 0, 0, 2.0), Timing(1, 8, 0, 2.4)])
STEEP = CostTable([Timing(b, k, 0, 2.0 + k * price) for b, price in ((1, 0.05), (8, 3.0)) for k in (0, 8)])


def pilot(table: CostTable) -> Pilot:
    return Pilot(Auto(table.copy(), LONGEST))


def serve(of: Pilot, seats: list[Seat], hits: dict[str, int], rounds: int, late: bool = True) -> list[int]:
    """Rounds in which each seat keeps at most `hits` drafts; told one round late, as the device engine does."""
    ks, waiting = [], []
    for _ in range(rounds):
        k, plan = of.choose(seats)
        ks.append(k)
        ms = of.policy.table.ms(k, len(seats))
        waiting.append((plan, [Served(s.name, k, min(k, hits[s.name]), ms, len(seats)) for s in seats if s.open]))
        if len(waiting) > late:
            of.observe(*waiting.pop(0))
    return ks


@pytest.mark.parametrize("size", ["e2b", "26b-a4b", "31b"])
def test_the_prior_grows_with_drafts_batch_and_context(size: str) -> None:
    table = prior_table(target_config(size), drafter_config(size))
    for batch in BATCHES:
        for context in CONTEXTS:
            times = table.times(batch, context)
            assert times == sorted(times)
            assert times[0] > 0
    assert table.ms(4, 8) > table.ms(4, 1)
    assert table.ms(0, 1, 65536) > table.ms(0, 1, 256)


def test_the_prior_prices_experts_dearer_than_dense_rows() -> None:
    """A mixture of experts reads more weights for each row; a dense model does not."""
    ratio = {}
    for size in ("26b-a4b", "31b"):
        table = prior_table(target_config(size), drafter_config(size))
        ratio[size] = table.ms(4) / table.ms(0)
    assert ratio["26b-a4b"] > 1.5 > ratio["31b"]


def test_only_lengths_that_have_a_graph_are_chosen() -> None:
    ks = serve(pilot(CHEAP), [Seat("a", 10, True)], {"a": 5}, 120)
    assert set(ks) <= set(DRAFTS)
    assert max(ks) > 3


def test_a_hopeless_batch_is_parked_and_probed_rarely_although_told_late() -> None:
    seats = [Seat(name, 10, True) for name in "abcd"]
    ks = serve(pilot(STEEP), seats, dict.fromkeys("abcd", 0), 400)
    assert sum(k > 0 for k in ks[100:]) <= 30
    assert sum(k > 0 for k in ks[100:]) >= 3


def test_one_k_for_all_goes_by_the_sum() -> None:
    """Seven that are never right outvote one that always is; alone it drafts."""
    seats = [Seat(name, 10, True) for name in "abcdefgh"]
    hits = dict.fromkeys("abcdefgh", 0) | {"a": 8}
    crowd = pilot(STEEP)
    serve(crowd, seats, hits, 200)
    assert serve(crowd, seats, hits, 20).count(0) >= 15
    alone = sorted(serve(crowd, seats[:1], hits, 40)[20:])
    assert alone[1] >= 4  # and at most one plain round, to learn what that takes


def test_seats_of_a_fixed_length_teach_nothing() -> None:
    one = pilot(CHEAP)
    serve(one, [Seat("a", 10, True), Seat("b", 10, False)], {"a": 2, "b": 0}, 20)
    assert set(one.policy.acceptance.requests) == {"a"}


def test_an_unknown_time_leaves_the_table_alone() -> None:
    one = pilot(CHEAP)
    k, plan = one.choose([Seat("a", 10, True)])
    before = one.policy.table.times()
    one.observe(plan, [Served("a", k, 0, 0.0)])
    one.observe(plan, [])
    assert one.policy.table.times() == before


def test_pooled_acceptance_is_that_of_those_who_get_there() -> None:
    assert pooled([[0.5, 0.5]]) == [0.5, 0.5]
    assert pooled([[1.0, 1.0], [0.0, 0.9]]) == [0.5, 1.0]
    assert pooled([[0.0, 1.0], [0.0, 1.0]]) == [0.0, 0.0]
