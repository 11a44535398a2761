"""The record on disk, interrupted runs, and what is refused before anything is measured."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import FakeEngine, make_prompts

from paceline.bench import record, report
from paceline.bench.plan import BenchOptions
from paceline.bench.prompts import BenchPrompt
from paceline.bench.run import Output, Tools, run_bench
from paceline.errors import UsageError

OPTIONS = BenchOptions(max_tokens=30, temperatures=(0.0, 1.0))
SUMMARY_KEYS = {
    "speedup", "speedup_ci95", "equal_outputs", "acceptance_length", "acceptance_by_position", "off_vs_off",
    "off_vs_off_ci95", "tokens_per_s", "ttft_s", "tpot_s", "prompts", "pairs", "k", "by_category", "by_temperature",
}  # fmt: skip


def bench(tmp_path: Path, engine: FakeEngine, prompts: list[BenchPrompt] | None = None) -> dict[str, Any]:
    run_bench(engine.contest(), prompts or make_prompts(12), OPTIONS, Output(tmp_path / "r.json"), Tools(engine.clock))
    stored: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    return stored


def test_record_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(1.5)
    engine.describe = lambda: {"checkpoint": "tiny", "labels": ["random weights"]}  # type: ignore[attr-defined]
    output = Output(tmp_path / "r.json", tmp_path / "r.html", markdown=tmp_path / "r.md")
    summary = run_bench(engine.contest(), make_prompts(12), OPTIONS, output, Tools(engine.clock))["summary"]
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["summary"] == json.loads(json.dumps(summary))
    assert set(summary) >= SUMMARY_KEYS
    assert stored["complete"] is True
    assert stored["labels"] == ["random weights"]
    assert len(stored["measurements"]) == 72
    assert record.rows_as_data(record.rows_from_data(stored["measurements"])) == stored["measurements"]
    assert stored["provenance"]["machine"]["cores"] >= 1
    assert {"command", "versions", "date_utc", "git", "load_before", "load_after"} <= stored["provenance"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json", "r.md"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "gains 1.5" in err
    assert "gains 1.5" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("engine broke"), MemoryError()])
def test_interrupted_run_keeps_what_it_has(tmp_path: Path, error: BaseException) -> None:
    engine = FakeEngine(1.5)
    engine.fails_at = (40, error)
    with pytest.raises(type(error)):
        bench(tmp_path, engine)
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["complete"] is False
    assert type(error).__name__ in stored["failure"]
    assert len(stored["measurements"]) == 36
    assert stored["summary"]["pairs"] == 12
    assert "stopped early" in report.document_of(stored).notes[0].text


def test_failure_before_the_first_text_still_writes(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.fails_at = (0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path, engine)
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["summary"]["speedup"] is None
    assert report.document_of(stored).verdict[0].startswith("Nothing can be said")
    assert "<h1><bdi>Nothing can be said" in report.html_report(stored)


def test_never_drafting_stops_early(tmp_path: Path) -> None:
    engine = FakeEngine(drafts=False)
    with pytest.raises(UsageError, match="never drafted"):
        bench(tmp_path, engine)
    assert len(engine.calls) < 20


def test_missing_matplotlib_is_told_before_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    engine = FakeEngine()
    with pytest.raises(UsageError, match=re.escape("pip install paceline[bench]")):
        run_bench(engine.contest(), make_prompts(2), OPTIONS, Output(tmp_path / "r.json", tmp_path / "r.html"))
    assert engine.calls == []


@pytest.mark.parametrize("where", ["", "missing/r.json"])
def test_unwritable_output_is_told_before_measuring(tmp_path: Path, where: str) -> None:
    engine = FakeEngine()
    with pytest.raises(UsageError, match="cannot write"):
        run_bench(engine.contest(), make_prompts(2), OPTIONS, Output(tmp_path / where))
    assert engine.calls == []


def test_unwritable_markdown_is_told_before_measuring(tmp_path: Path) -> None:
    engine = FakeEngine()
    output = Output(tmp_path / "r.json", markdown=tmp_path / "missing" / "r.md")
    with pytest.raises(UsageError, match=r"cannot write .*r\.md"):
        run_bench(engine.contest(), make_prompts(2), OPTIONS, output)
    assert engine.calls == []


def test_write_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="Out of range"):
        record.write_record(path, {"x": float("nan")})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UsageError, match="No space left"):
        record.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_provenance_survives_a_bare_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr("subprocess.run", refuse)
    monkeypatch.setattr("os.getloadavg", refuse)
    monkeypatch.setattr("os.sysconf", refuse)
    monkeypatch.setattr(record, "_proc_field", lambda *_: None)
    told = record.provenance()
    assert told["git"] is None
    assert told["machine"]["memory_bytes"] is None
    assert record.load_average() is None
    assert record._version("no-such-package") is None
    json.dumps(told, allow_nan=False)


def test_an_unknown_cpu_is_null_not_an_error() -> None:
    assert record._proc_field("/no/such/file", "model name") is None
