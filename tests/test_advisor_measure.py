"""The driver that measures what the advisor predicts, without a GPU: dry runs, going on, limits, comparisons."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import advisor_measure as driver
import common

from paceline.advisor.machines import find
from paceline.errors import UsageError
from paceline.shapes import SHAPES

H100 = find("h100")


def main(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["advisor_measure.py", *map(str, words)])
    driver.main()


def new() -> dict[str, Any]:
    return {**common.head(driver.SCHEMA, ["random weights"], {}), "cells": {}}


def test_a_dry_run_predicts_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dry.json"
    main(monkeypatch, "--dry-run", "--out", out)
    record = json.loads(out.read_text("utf-8"))
    assert set(record["cells"]) == {f"{size}/{batch}" for size in SHAPES for batch in (1, 8, 32)}
    assert "dry run: predicted only" in record["labels"]
    for cell in record["cells"].values():
        assert [row["k"] for row in cell["rows"]] == [0, 2, 4, 8]
        times = [row["predicted_ms"] for row in cell["rows"]]
        assert times == sorted(times)
    assert record["cells"]["31b/1"]["fits"]
    assert not record["cells"]["31b/32"]["fits"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["complete"]


def test_options_are_those_of_the_bench() -> None:
    for cell in driver.cells(list(SHAPES), [1, 8, 32]):
        assert cell.options.batches == (cell.batch,)
        assert cell.options.shape == cell.size


def test_a_row_is_compared_with_the_experts_it_met() -> None:
    cell = driver.Cell("26b-a4b", 1)
    row = {"batch": 1, "k": 4, "context": 1024, "ms": 6.0, "times_ms": [6.0], "distinct_experts": 20.0}
    found = driver.beside(cell, row, H100)
    assert found["predicted_ms"] < found["predicted_uniform_ms"]
    assert found["error"] == pytest.approx(found["predicted_ms"] / 6.0 - 1)
    held = driver.memory_row(cell, 10, int(60e9))
    assert held["error"] == pytest.approx(held["planned_bytes"] / 60e9 - 1)
    assert held["planned_bytes"] < sum(held["planned"].values())


def fake(seen: list[str], fails: str = "") -> Any:
    def measure(cell: driver.Cell) -> dict[str, Any]:
        seen.append(cell.key)
        if cell.key == fails:
            raise UsageError("it does not fit")
        return {"rows": [{"error": 0.1}, {"error": -0.3}], "memory": {"error": 0.02}}

    return measure


def test_another_call_goes_on_where_one_stopped(tmp_path: Path) -> None:
    out, seen = tmp_path / "r.json", list[str]()
    todo = driver.cells(["e2b", "12b"], [1, 8])
    assert not driver.run(todo, new(), fake(seen), -1.0, out)
    assert not seen
    record = new()
    assert driver.run(todo[:2], record, fake(seen), 60.0, out)
    again = driver.opened(out, new())
    assert driver.run(todo, again, fake(seen, fails="12b/8"), 60.0, out)
    assert seen == ["e2b/1", "e2b/8", "12b/1", "12b/8"]
    assert again["cells"]["12b/8"]["refused"] == "it does not fit"
    kept = json.loads(out.read_text("utf-8"))["summary"]
    assert kept == {"cells": 4, "rounds": {"rows": 6, "median": 0.2, "worst": 0.3},
                    "memory": {"rows": 3, "median": 0.02, "worst": 0.02}}  # fmt: skip


def test_a_failure_loses_no_cell(tmp_path: Path) -> None:
    out = tmp_path / "r.json"

    def measure(cell: driver.Cell) -> dict[str, Any]:
        if cell.batch == 8:
            raise RuntimeError("a kernel failed")
        return {"rows": []}

    with pytest.raises(RuntimeError):
        driver.run(driver.cells(["e2b"], [1, 8]), new(), measure, 60.0, out)
    assert set(json.loads(out.read_text("utf-8"))["cells"]) == {"e2b/1"}


def test_another_machines_record_is_not_gone_on_with(tmp_path: Path) -> None:
    out, head = tmp_path / "r.json", new()
    driver.run([], head, fake([]), 1.0, out)
    head["provenance"]["machine"]["gpu"] = "NVIDIA Imaginary 9000"
    out.write_text(json.dumps(head), "utf-8")
    with pytest.raises(UsageError, match="not begun by this driver on this machine"):
        driver.opened(out, new())


def test_without_a_gpu_it_says_so(no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"this needs a GPU, .*--dry-run"):
        main(monkeypatch, "--out", tmp_path / "r.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="cannot write"):
        main(monkeypatch, "--dry-run", "--out", tmp_path / "no" / "r.json")
