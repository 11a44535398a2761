"""Traces: reading, writing, refusing, making up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.control.synthetic import WORKLOADS, generate
from paceline.control.trace import parse, read_trace, write_trace
from paceline.errors import UsageError

GOOD: dict[str, Any] = {"request": "a", "drafted": 2, "accepted": 1, "margins": [1.0, 2.0]}
BAD: list[tuple[str, str]] = [
    ("", "holds no rounds"),
    ("{", "line 1 is not JSON"),
    ("[1]", "line 1: expected an object"),
    ('{"schema": "other/1"}', "schema must be 'paceline-trace/1', not 'other/1'"),
    ('{"request": "a", "drafted": 2}', "line 1: accepted is missing"),
    (json.dumps(GOOD | {"accepted": 3}), "accepted 3 of 2 drafts"),
    (json.dumps(GOOD | {"drafted": 16}), "drafted must be a whole number from 1 to 15, not 16"),
    (json.dumps(GOOD | {"accepted": True}), "accepted must be a whole number"),
    (json.dumps(GOOD | {"margins": [1.0]}), "margins has 1 numbers for 2 drafts"),
    (json.dumps(GOOD | {"margins": [1.0, float("nan")]}), "margins must be a list of numbers from 0 up"),
    (json.dumps(GOOD | {"confidences": [0.5, 1.5]}), r"confidences must be a list of numbers in \[0, 1\]"),
    (json.dumps(GOOD | {"round_ms": {"0": -1}}), "round_ms must be an object of milliseconds"),
    (json.dumps(GOOD | {"batch": 0}), "batch must be a whole number from 1"),
    (json.dumps(GOOD) + "\n\nnonsense", "line 3 is not JSON"),
]


@pytest.mark.parametrize(("text", "match"), BAD)
def test_bad_lines_are_refused_with_their_number(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        parse(text.splitlines(), "t.jsonl")
    assert "\n" not in str(caught.value)


def test_keys_of_later_versions_are_left_out() -> None:
    assert parse([json.dumps(GOOD | {"mood": "new"})], "t").rows[0].margins == (1.0, 2.0)


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = generate("mixed", 900, 4, seed=3)
    write_trace(tmp_path / "t.jsonl", trace)
    assert read_trace(tmp_path / "t.jsonl") == trace


@pytest.mark.parametrize("workload", WORKLOADS)
def test_made_up_traces_say_so_and_have_every_position(workload: str) -> None:
    trace = generate(workload, 900, 6)
    assert trace.synthetic
    assert trace.source.startswith("synthetic: ")
    assert trace.every_position
    assert trace == generate(workload, 900, 6)
    assert trace.rows != generate(workload, 900, 6, seed=1).rows


def test_chat_survives_as_published() -> None:
    accepted = np.array([row.accepted for row in generate("chat", 20_000, 8).rows])
    survival = [float((accepted >= k).mean()) for k in (1, 4, 8)]
    assert survival == pytest.approx([0.76, 0.40, 0.21], abs=0.03)


def test_the_recorded_law_is_that_of_the_outcomes() -> None:
    rows = generate("chat", 20_000, 4).rows
    expected = [np.mean([np.prod(row.law[: k + 1]) for row in rows]) for k in range(4)]
    assert expected == pytest.approx([np.mean([row.accepted > k for row in rows]) for k in range(4)], abs=0.015)


def test_unknown_workloads_are_refused() -> None:
    with pytest.raises(UsageError, match="no synthetic workload 'poetry'"):
        generate("poetry")
