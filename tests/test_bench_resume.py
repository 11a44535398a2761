"""A run that was interrupted goes on from its own file: nothing lost, nothing measured twice, no other plan."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import virtual_time
from planted import Machine, PlantedArm, contest, prompts

from paceline.bench.arms import Answer, ArmError, Ask
from paceline.bench.harness import Contest
from paceline.bench.plan import BenchOptions, plan
from paceline.bench.run import Output, Tools, run_bench
from paceline.errors import UsageError

OPTIONS = BenchOptions(temperatures=(0.0,), max_tokens=200, concurrencies=(1, 2), warmup=0)
ALTERNATE = BenchOptions(temperatures=(0.0,), max_tokens=200, alternate=True, warmup=0)


@pytest.fixture(autouse=True)
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncio.run`, as the benchmark calls it, in virtual time."""
    monkeypatch.setattr(asyncio, "run", virtual_time.run)


class Stops(PlantedArm):
    """Somebody presses Ctrl-C while it answers a request of that number, from 0."""

    at: int | None = None

    async def answer(self, ask: Ask) -> Answer:
        if self.asked == self.at:
            signal.raise_signal(signal.SIGINT)
        return await super().answer(ask)


def arms(alone: bool = False, at: int | None = None) -> Contest:
    machine = Machine(seed=1)
    off, on = Stops(machine, False), Stops(machine, True)
    on.at = at
    return Contest(off, {4: on}, alone=alone)


def bench(where: Path, made: Contest, again: bool = False, options: BenchOptions = OPTIONS) -> dict[str, Any]:
    # The clock is asked before the loop runs too.
    def clock() -> float:
        try:
            return virtual_time.clock()
        except RuntimeError:
            return 0.0

    run_bench(made, prompts(16), options, Output(where, again=again), Tools(clock))
    stored: dict[str, Any] = json.loads(where.read_text())
    return stored


def keys(stored: dict[str, Any]) -> Counter[tuple[object, ...]]:
    names = ("arm", "k", "prompt_id", "temperature", "repeat", "concurrency")
    return Counter(tuple(row[name] for name in names) for row in stored["measurements"])


def planned(options: BenchOptions) -> set[tuple[object, ...]]:
    return {
        (step.arm.name, step.arm.k, cell.prompt.id, cell.temperature, cell.repeat, step.concurrency)
        for step in plan(prompts(16), options, [4])
        for cell in step.cells
    }


@pytest.mark.parametrize("options", [OPTIONS, ALTERNATE], ids=["interleaved", "alternating"])
@pytest.mark.parametrize("at", [1, 7, 15, 20, 31])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path, at: int, options: Any) -> None:
    out, alone = tmp_path / "r.json", options.alternate
    with pytest.raises(KeyboardInterrupt):
        bench(out, arms(alone, at), options=options)
    half = json.loads(out.read_text())
    assert half["complete"] is False
    second = arms(alone)
    done = bench(out, second, again=True, options=options)
    assert done["complete"] is True
    assert set(keys(done)) == planned(options)
    assert set(keys(done).values()) == {1}
    # What stood in the file is there still, number for number, and no text was asked for again.
    assert done["measurements"][: len(half["measurements"])] == half["measurements"]
    asked = second.off.asked + second.on[4].asked  # type: ignore[attr-defined]
    assert asked == len(done["measurements"]) - len(half["measurements"])
    assert [row["order"] for row in done["measurements"]] == list(range(len(done["measurements"])))
    assert sum(step["texts"] for step in done["steps"]) == len(done["measurements"])
    assert {arm["arm"] for arm in done["arms"]} == {"off", "on"}


def test_time_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench(out, arms(at=9))
    half = json.loads(out.read_text())["measurements"]
    done = bench(out, arms(), again=True)["measurements"]
    assert done[len(half)]["started_s"] == pytest.approx(max(row["started_s"] + row["seconds"] for row in half))


def test_a_step_with_a_failure_is_done_again_whole(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    first = arms(at=30)
    first.off.fails = {35}  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        bench(out, first)
    half = json.loads(out.read_text())
    assert half["summary"]["failures"] == 1
    assert half["failures"][0]["why"] == "planted failure"
    broken = next(step for step in half["steps"] if step["failed"])
    done = bench(out, arms(), again=True)
    assert set(keys(done)) == planned(OPTIONS)
    assert set(keys(done).values()) == {1}
    assert done["summary"]["failures"] == 0
    assert [step for step in done["steps"] if step["failed"]] == []
    assert broken["texts"] + broken["failed"] == 8
    assert sum(step["texts"] for step in done["steps"]) == len(done["measurements"])


def test_arms_that_are_done_keep_their_facts(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench(out, arms(True, at=20), options=ALTERNATE)  # in its second pass: off is done
    second = arms(True)
    done = bench(out, second, again=True, options=ALTERNATE)
    assert second.off.opened == 0  # type: ignore[attr-defined]
    assert {arm["arm"] for arm in done["arms"]} == {"off", "on"}


def other(**changes: Any) -> BenchOptions:
    names = OPTIONS.__dataclass_fields__
    return BenchOptions(**{**{name: getattr(OPTIONS, name) for name in names}, **changes})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (other(max_tokens=100), "measured with other max_tokens"),
        (other(temperatures=(1.0,)), "measured with other temperatures"),
        (other(concurrencies=(1,)), "measured with other concurrencies"),
        (other(seed=5), "measured with other seed"),
        (other(alternate=True), "measured with other alternate"),
    ],
)
def test_another_plan_is_refused_and_the_file_left_alone(tmp_path: Path, options: BenchOptions, says: str) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench(out, arms(at=5))
    before, second = out.read_bytes(), arms()
    with pytest.raises(UsageError, match=says):
        bench(out, second, again=True, options=options)
    assert out.read_bytes() == before
    assert second.off.opened == 0  # type: ignore[attr-defined]


def test_other_prompts_and_other_draft_lengths_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench(out, arms(at=5))
    with pytest.raises(UsageError, match="other prompts"):
        run_bench(arms(), prompts(17), OPTIONS, Output(out, again=True))
    more = contest(Machine(k=3))
    with pytest.raises(UsageError, match="other draft lengths"):
        run_bench(more, prompts(16), OPTIONS, Output(out, again=True))


def lose(path: Path, key: str) -> None:
    """Takes a part out of a record."""
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))


def test_a_complete_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    bench(out, arms())
    before = out.read_bytes()
    with pytest.raises(UsageError, match="is complete"):
        bench(out, arms(), again=True)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "cannot go on from .*No such file"),
        (lambda path: path.write_text("{"), "is not JSON"),
        (lambda path: path.write_text("[1]"), "holds no run of this version"),
        (lambda path: path.write_text('{"schema": "paceline-bench/1"}'), "holds no run of this version"),
        (lambda path: path.write_text('{"schema": "paceline-bench/2"}'), "holds no run of this version"),
        (lambda path: lose(path, "measurements"), "it is damaged .*measurements"),
        (lambda path: lose(path, "arms"), "it is damaged .*arms"),
        (lambda path: lose(path, "complete"), "it is damaged .*complete"),
    ],
)
def test_a_file_that_holds_no_run_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench(out, arms(at=5))
    spoil(out)
    with pytest.raises(UsageError, match=says):
        bench(out, arms(), again=True)


def test_an_arm_that_dies_leaves_what_was_measured_and_the_run_can_be_finished(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    first = arms()
    first.on[4].fails = set(range(12, 10_000))  # type: ignore[attr-defined]
    with pytest.raises(ArmError, match=r"3 requests in a row failed in the arm on \(k = 4\); the last: planted"):
        bench(out, first)
    half = json.loads(out.read_text())
    assert half["failure"].startswith("ArmError: 3 requests in a row")
    assert half["summary"]["speedup"] is not None
    assert half["summary"]["failures"] == 3
    done = bench(out, arms(), again=True)
    assert done["complete"]
    assert set(keys(done)) == planned(OPTIONS)
    assert set(keys(done).values()) == {1}
