"""The whole instrument over real sockets against a mock server: what is planted is found, and faults are told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mock_server import MockServer, Plan
from planted import prompts

from paceline.bench.adapters.dialect import Wish
from paceline.bench.adapters.http import HttpArm
from paceline.bench.arms import ArmError
from paceline.bench.harness import Contest
from paceline.bench.plan import BenchOptions, plan
from paceline.bench.run import Output, run_bench
from paceline.errors import UsageError

FAST: dict[str, Any] = {"ttft_s": 0.0, "tpot_s": 0.0, "tokens": 12, "events": 6}
OPTIONS = BenchOptions(temperatures=(0.0,), max_tokens=40, warmup=1)


def contest(off: MockServer, on: MockServer, model: str | None = None, stall_s: float = 20.0) -> Contest:
    return Contest(
        HttpArm(off.url, Wish(model), stall_s=stall_s),
        {4: HttpArm(on.url, Wish(model, k=4, drafts=True), stall_s=stall_s)},
    )


def bench(out: Path, made: Contest, count: int, options: BenchOptions = OPTIONS, again: bool = False) -> dict[str, Any]:
    run_bench(made, prompts(count), options, Output(out, again=again))
    stored: dict[str, Any] = json.loads(out.read_text())
    return stored


def measured(tmp_path: Path, count: int, options: BenchOptions = OPTIONS, **faults: Any) -> dict[str, Any]:
    """A run against two servers, of which the one that drafts has the faults."""
    with MockServer(Plan(**FAST)) as off, MockServer(Plan(drafts=True, **FAST, **faults)) as on:
        return bench(
            tmp_path / "r.json", contest(off, on, stall_s=1.0 if faults.get("stall") else 20.0), count, options
        )


def test_times_and_acceptance_are_those_of_the_servers(tmp_path: Path) -> None:
    # Real time has no upper bound on a busy machine: that intervals cover what is planted is tested in virtual time.
    times = {"ttft_s": 0.05, "tpot_s": 0.004}
    with MockServer(Plan(**times)) as off, MockServer(Plan(drafts=True, speedup=4.0, accept=0.6, **times)) as on:
        stored = bench(tmp_path / "r.json", contest(off, on), 10)
    summary, rows = stored["summary"], stored["measurements"]
    # The servers say how long each text took until they sent its end, after a look and a warm-up: none was timed
    # shorter, on however busy a machine.
    took = {"off": iter(off.took_s[2:]), "on": iter(on.took_s[2:])}
    more = [row["seconds"] - next(took[row["arm"].removesuffix("2")]) for row in rows]
    assert min(more) > 0
    assert min(row["ttft_s"] for row in rows if row["arm"] == "off") >= 0.05
    assert summary["tpot_s"]["off"]["median"] >= 0.9 * 0.004
    assert summary["acceptance_length"] == pytest.approx(1 + 0.6 + 0.36 + 0.216 + 0.1296, rel=0.25)
    assert len(summary["acceptance_by_position"]) == 4
    assert summary["equal_outputs"] == summary["off_vs_off_equal_outputs"] == 1.0
    assert (summary["k"], summary["failures"], summary["over_long"]) == (4, 0, 0)
    assert {arm["arm"]: (arm["engine"], arm["drafts"]) for arm in stored["arms"]} == {
        "off": ("vllm", False), "on": ("vllm", True)
    }  # fmt: skip


def test_acceptance_of_several_in_flight_is_the_counters(tmp_path: Path) -> None:
    stored = measured(tmp_path, 16, BenchOptions(temperatures=(0.0,), concurrencies=(4,)), accept=0.6)
    told = [step for step in stored["steps"] if step["arm"] == "on"]
    assert all(step["drafted"] for step in told)
    rounds = sum(step["rounds"] for step in told)
    later = sum(step["tokens"] - step["texts"] for step in told)
    assert stored["summary"]["acceptance_length"] == pytest.approx(later / rounds)
    assert "counters" in stored["summary"]["counting"]


def test_one_changed_token_in_a_hundred_replies_is_caught(tmp_path: Path) -> None:
    options = BenchOptions(temperatures=(0.0,), max_tokens=40, repeats=2, concurrencies=(4,))
    summary = measured(tmp_path, 60, options, change_token=100)["summary"]
    assert summary["pairs"] == 120
    assert summary["equal_outputs"] == pytest.approx(119 / 120)
    assert summary["off_vs_off_equal_outputs"] == 1.0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("overrun", r"wrote \d+ tokens where 40 were asked for"),
        ("malformed", "streamed an event that is not JSON"),
        ("truncate", "ended a stream in the middle of a text"),
        ("no_usage", "sends no usage"),
        ("stall", r"sent nothing for 1 s"),
    ],
)
def test_a_faulty_answer_is_told_and_the_rest_is_measured(tmp_path: Path, fault: str, says: str) -> None:
    stored = measured(tmp_path, 12, **{fault: 7})
    # Requests 1 and 2 are the look at the server and the warm-up; 7 and 14 fail, so the 5th and the 12th prompt do.
    assert [failure["arm"] for failure in stored["failures"]] == ["on", "on"]
    for failure in stored["failures"]:
        assert Contains(says) == failure["why"]
    summary = stored["summary"]
    assert (summary["failures"], summary["pairs"], summary["equal_outputs"]) == (2, 10, 1.0)
    assert stored["complete"]
    # What failed can be asked again, and only that.
    with MockServer(Plan(**FAST)) as off, MockServer(Plan(drafts=True, **FAST)) as on:
        done = bench(tmp_path / "r.json", contest(off, on), 12, again=True)
        assert on.asked == 2 + 2
        assert off.asked == 0
    assert (done["summary"]["failures"], done["summary"]["pairs"]) == (0, 12)


class Contains:
    """Equal to a text in which the pattern is found, so that a failing test shows both."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def __eq__(self, text: object) -> bool:
        import re

        return re.search(self.pattern, str(text)) is not None

    def __repr__(self) -> str:
        return f"/{self.pattern}/"


def keys(stored: dict[str, Any]) -> Counter[tuple[object, ...]]:
    names = ("arm", "k", "prompt_id", "temperature", "repeat", "concurrency")
    return Counter(tuple(row[name] for name in names) for row in stored["measurements"])


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_dies_leaves_what_was_measured_and_the_run_goes_on(tmp_path: Path, concurrency: int) -> None:
    out, options = tmp_path / "r.json", BenchOptions(temperatures=(0.0,), max_tokens=40, concurrencies=(concurrency,))
    with (
        MockServer(Plan(**FAST)) as off,
        MockServer(Plan(drafts=True, dies_after=27, **FAST)) as on,
        pytest.raises(ArmError, match=r"requests in a row failed in the arm on \(k = 4\)"),
    ):
        bench(out, contest(off, on), 40, options)
    half = json.loads(out.read_text())
    assert half["complete"] is False
    assert "ArmError" in half["failure"]
    assert half["summary"]["speedup"] is not None
    assert {failure["arm"] for failure in half["failures"]} == {"on"}
    whole = sum(count for count in keys(half).values())
    with MockServer(Plan(**FAST)) as off, MockServer(Plan(drafts=True, **FAST)) as on:
        done = bench(out, contest(off, on), 40, options, again=True)
    assert done["complete"]
    assert set(keys(done).values()) == {1}
    steps = plan(prompts(40), options, [4])
    assert len(done["measurements"]) == sum(len(step.cells) for step in steps) == 120
    kept = [row for row in half["measurements"] if row in done["measurements"]]
    assert len(kept) >= whole - 16  # all but those of the step in which it died
    assert done["summary"]["equal_outputs"] == 1.0


def test_input_that_cannot_be_measured_is_refused_before_anything_is(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with MockServer(Plan(**FAST)) as off, MockServer(Plan(drafts=True, **FAST)) as on:
        nobody = MockServer(Plan(), port=1)
        for made, says in (
            (contest(off, on, "other"), "does not serve 'other'; it has: mock-model"),
            (contest(on, on), "the arm off must not draft, but vllm drafts"),
            (contest(off, off), r"the arm on \(k = 4\) must draft, but vllm does not draft"),
            (contest(off, nobody), "cannot reach http://127.0.0.1:1"),
        ):
            with pytest.raises((ArmError, UsageError), match=says):
                bench(out, made, 8)
        assert max(off.asked, on.asked) <= 4  # a look at each, and no more
    assert not out.exists()
