"""Round times by batch, draft length and context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paceline.control.cost import CostTable, Timing, read_table
from paceline.errors import UsageError

LINE = [Timing(1, 0, 100, 10.0), Timing(1, 2, 100, 12.0), Timing(1, 4, 100, 16.0)]
FULL = [*LINE, Timing(1, 0, 200, 20.0), Timing(1, 4, 200, 24.0), Timing(4, 0, 100, 40.0), Timing(4, 4, 100, 64.0)]


def test_times_are_linear_between_what_was_measured() -> None:
    table = CostTable(FULL)
    assert table.times(1, 100) == pytest.approx([10, 11, 12, 14, 16])
    assert table.ms(0, context=150) == pytest.approx(15)
    assert table.ms(4, context=150) == pytest.approx(20)
    assert table.ms(0, batch=2, context=100) == pytest.approx(20)
    assert table.ms(4, batch=99, context=1) == pytest.approx(64)


def test_a_bucket_of_few_k_takes_the_shape_of_the_fullest() -> None:
    table = CostTable(FULL)
    assert table.ms(2, context=200) == pytest.approx(12 * (20 / 10 + 24 / 16) / 2)


def test_served_rounds_correct_the_table() -> None:
    table = CostTable(LINE)
    for _ in range(300):
        table.observe(2, 18.0, context=100)
    assert table.ms(2, context=100) == pytest.approx(18.0, rel=0.01)
    # A machine grown slower makes no k look cheap that was not in use.
    assert table.ms(0, context=100) > 11.5


def test_a_stall_hardly_moves_the_table_and_nonsense_does_not() -> None:
    table = CostTable(LINE)
    table.observe(2, 5000.0, context=100)
    assert 12.0 < table.ms(2, context=100) < 12.0 * 1.05
    before = table.times(1, 100)
    for ms in (0.0, -1.0, float("nan"), float("inf")):
        table.observe(2, ms, context=100)
    assert table.times(1, 100) == before


def test_what_all_rounds_share_is_learnt_before_what_is_one_lengths_own() -> None:
    """A table a third too high, of which only one length is tried: the others must not look dear beside it."""
    table = CostTable(LINE)
    before = table.times(1, 100)
    for _ in range(20):
        table.observe(2, before[2] / 1.33, context=100)
    assert table.ms(2, context=100) == pytest.approx(before[2] / 1.33, rel=0.03)
    assert table.ms(0, context=100) / table.ms(2, context=100) == pytest.approx(before[0] / before[2], rel=0.05)


def test_a_length_that_was_priced_wrong_is_put_right_in_a_few_rounds() -> None:
    table = CostTable(LINE)
    before = table.times(1, 100)
    for turn in range(30):
        k = turn % 2
        table.observe(k, before[k] * (1.3 if k else 1.0), context=100)
    ratio = table.ms(1, context=100) / table.ms(0, context=100)
    assert ratio == pytest.approx(1.3 * before[1] / before[0], rel=0.08)


@pytest.mark.parametrize(("machine", "drafts"), [(0.5, 1.0), (1.0, 2.0), (0.5, 1.8), (2.0, 0.5)])
def test_two_lengths_tell_of_all_others_where_times_were_only_predicted(machine: float, drafts: float) -> None:
    table, truth = CostTable(LINE, vague=True), [10.0, 11.0, 12.0, 14.0, 16.0]
    real = [machine * (10.0 + drafts * (ms - 10.0)) for ms in truth]
    for k in (4, 4, 4, 1, 4, 4, 1, 4, 4):
        table.observe(k, real[k], context=100)
    assert table.times(1, 100) == pytest.approx(real, rel=0.06)


def test_one_length_alone_counts_as_the_machines() -> None:
    table = CostTable(LINE, vague=True)
    for _ in range(50):
        table.observe(4, 8.0, context=100)
    assert table.times(1, 100) == pytest.approx([ms / 2 for ms in (10.0, 11.0, 12.0, 14.0, 16.0)], rel=0.06)


def test_nothing_makes_a_round_faster_than_it_is() -> None:
    """A slow round may have stalled; one that took half the time has not, and is believed."""
    table = CostTable(LINE)
    for _ in range(60):
        table.observe(0, 10.0, context=100)
    slow, fast = table.copy(), table.copy()
    slow.observe(0, 20.0, context=100)
    fast.observe(0, 5.0, context=100)
    assert slow.ms(0, context=100) == pytest.approx(10.0, rel=0.05)
    assert fast.ms(0, context=100) < 8.0


@pytest.mark.parametrize("settled", [True, False])
def test_a_machine_that_is_now_and_then_slow_makes_no_other_length_cheap(settled: bool) -> None:
    """The control: if quick rounds alone told of the machine for good, each turn would leave a trace."""
    table, ratios = CostTable(LINE), []
    for i in range(6000):
        slow = 1.4 if i // 150 % 2 else 1.0
        table.observe(0, 10.0 * slow * (1.0 + 0.02 * (i * 7 % 5 - 2)), context=100)
        if not settled:
            next(iter(table.drifts.values())).rounds = 0
        ratios.append(table.ms(1, context=100) / table.ms(0, context=100) / 1.1)
    mean = sum(ratios) / len(ratios)
    assert mean == pytest.approx(1.0, abs=0.015) if settled else mean < 0.98


def test_a_batch_that_is_new_starts_from_how_fast_the_machine_was_in_the_last() -> None:
    table = CostTable(FULL)
    for _ in range(20):
        table.observe(4, 32.0, batch=1, context=100)
    table.observe(4, 128.0, batch=4, context=100)
    assert table.ms(0, batch=4, context=100) == pytest.approx(80.0, rel=0.1)


def test_dropped_steps_are_priced_by_what_they_took() -> None:
    table = CostTable(LINE, step_ms=0.1)
    for ms in [0.3] * 40 + [float("nan"), 50.0]:
        table.observe_step(ms)
    assert table.step_ms == pytest.approx(0.35, abs=0.06)  # a stall counts as three steps at most


@pytest.mark.parametrize(("context", "bucket"), [(1, 100), (150, 100), (151, 200), (9999, 200)])
def test_a_round_is_learnt_by_the_bucket_it_is_nearest_to(context: int, bucket: int) -> None:
    table = CostTable(FULL)
    for _ in range(40):
        table.observe(4, 30.0, context=context)
    assert list(table.drifts) == [(0, (100, 200).index(bucket))]


def test_a_copy_learns_alone() -> None:
    table = CostTable(LINE)
    table.copy().observe(2, 15.0, context=100)
    assert table.ms(2, context=100) == pytest.approx(12.0)


GOOD: dict[str, Any] = {"batch": 1, "k": 0, "context": 0, "ms": 2.0}
LONGER = {**GOOD, "k": 4, "ms": 3.0}
BAD: list[tuple[Any, str]] = [
    ([], "holds no rows"),
    ({"rows": []}, "holds no rows"),
    ({"rows": [GOOD]}, "at least one longer k"),
    ({"rows": [3]}, "row 1: expected an object"),
    ({"rows": [GOOD, {**LONGER, "k": 16}]}, "row 2: k must be a whole number from 0 to 15, not 16"),
    ({"rows": [GOOD, {**LONGER, "batch": 0}]}, "batch must be a whole number from 1"),
    ({"rows": [GOOD, {**LONGER, "ms": 0}]}, "row 2: ms must be a positive number, not 0"),
    ({"rows": [GOOD, LONGER], "step_ms": -1}, "step_ms must be a number from 0 up"),
]


@pytest.mark.parametrize(("data", "match"), BAD)
def test_bad_tables_are_refused(tmp_path: Path, data: Any, match: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=match):
        read_table(path)


def test_a_file_of_bench_shape_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"schema": "paceline-shape/1", "rows": [GOOD | {"distinct_experts": None}, LONGER]}))
    assert read_table(path).times() == pytest.approx([2.0, 2.25, 2.5, 2.75, 3.0])


def test_no_round_takes_less_than_the_host_does() -> None:
    table = CostTable([Timing(b, k, 0, ms) for b in (1, 8) for k, ms in ((0, 1.0), (1, 2.0), (2, 3.0))])
    table.observe_host(2.2, 8)
    assert table.times(8) == [2.2, 2.2, 3.0]
    assert table.times(1) == [1.0, 2.0, 3.0]  # of a batch of another size it takes another time
    assert table.copy().times(8) == [1.0, 2.0, 3.0]
    table.observe_host(100.0, 8)  # a hiccup
    assert table.times(8)[0] < 2.4
    for _ in range(60):
        table.observe_host(0.1, 8)
    assert table.times(8) == [1.0, 2.0, 3.0]
    for at in range(90):
        table.observe_host(5.0 if at % 5 == 0 else 1.5, 8)
        table.observe(0, 1.2, 8)
    assert table.times(8)[0] == pytest.approx(1.5, rel=0.05)  # their median, and not their mean
    for _ in range(60):
        table.observe_host(0.1, 8)
    assert table.times(8)[0] == pytest.approx(1.2, abs=0.01)  # what the device takes was learnt beneath
