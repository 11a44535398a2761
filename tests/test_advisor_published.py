"""Published speed-ups beside predictions: the table is sound, and the record is what the model says today."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import advisor_published  # noqa: E402
import advisor_tables  # noqa: E402
from readme_table import table  # noqa: E402

from paceline.advisor import published  # noqa: E402
from paceline.advisor.forecast import Range  # noqa: E402
from paceline.shapes import SHAPES  # noqa: E402

RECORD = json.loads((ROOT / "benchmarks" / "results" / "advisor_published.json").read_text("utf-8"))


def test_every_run_has_a_source_and_every_size_is_there() -> None:
    assert len(published.runs()) >= 12
    assert {run.size for run in published.runs()} == set(SHAPES)
    for run in published.runs():
        assert run.source
        assert 0 < run.low <= run.high
        assert run.k > 0


def test_the_record_is_what_the_model_says() -> None:
    again = json.loads(json.dumps([advisor_published.compared(run) for run in published.runs()]))
    assert again == RECORD["rows"]
    assert RECORD["summary"]["inside"] == sum(row["inside"] for row in again)


def test_every_miss_is_explained() -> None:
    assert [row["source"] for row in RECORD["rows"] if not row["inside"] and not row["note"]] == []


def test_ranges_do_not_hold_everything() -> None:
    for run in published.runs():
        found = published.predicted(run)
        assert 0 < found.low < found.middle < found.high < run.k + 1.001
        assert found.high < 4 * found.low
        assert not published.inside(replace(run, low=run.k + 2, high=run.k + 2), found)


def test_the_draft_length_and_the_batch_count() -> None:
    run = published.runs()[0]
    assert published.predicted(replace(run, k=2)).high < published.predicted(run).high
    assert published.predicted(replace(run, batch=64)).high < published.predicted(run).high


@pytest.mark.parametrize(("figure", "side"), [(9.0, "above"), (0.1, "below")])
def test_the_table_shows_a_miss_and_its_reason(figure: float, side: str) -> None:
    run = replace(published.runs()[0], low=figure, high=figure, note="some reason", assumed="bf16")
    row = advisor_published.compared(run)
    counts = {name: {"inside": 0, "runs": int(name == run.size)} for name in SHAPES}
    shown = advisor_tables.published_table(table)(
        {"rows": [row], "summary": {"inside": 0, "runs": 1, "by_size": counts}}
    )
    assert f"**{side}**" in shown
    assert "some reason" in shown
    assert "; bf16" in shown
    assert "0 of 1 published" in shown


def test_ends_count_as_inside() -> None:
    run = replace(published.runs()[0], low=2.0, high=3.0)
    assert published.inside(run, Range(low=2.5, middle=2.6, high=2.7))
    assert not published.inside(run, Range(low=2.51, middle=2.6, high=2.7))
