"""The record on disk, interrupted runs, the verdict's wording, and a page that holds no surprises."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import FakeEngine, make_prompts
from rich.console import Console

from paceline.bench import record, report
from paceline.bench.plan import BenchOptions
from paceline.bench.prompts import BenchPrompt
from paceline.bench.run import Output, run_bench
from paceline.errors import UsageError

OPTIONS = BenchOptions(max_tokens=30, temperatures=(0.0, 1.0))
SUMMARY_KEYS = {
    "speedup", "speedup_ci95", "equal_outputs", "acceptance_length", "acceptance_by_position", "off_vs_off",
    "off_vs_off_ci95", "tokens_per_s", "ttft_s", "tpot_s", "prompts", "pairs", "k", "by_category", "by_temperature",
}  # fmt: skip


def bench(tmp_path: Path, engine: FakeEngine, prompts: list[BenchPrompt] | None = None) -> dict[str, Any]:
    run_bench(engine.contest(), prompts or make_prompts(12), OPTIONS, Output(tmp_path / "r.json"), engine.clock)
    stored: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    return stored


def test_record_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = FakeEngine(1.5)
    engine.describe = lambda: {"checkpoint": "tiny", "labels": ["random weights"]}  # type: ignore[attr-defined]
    output = Output(tmp_path / "r.json", tmp_path / "r.html")
    summary = run_bench(engine.contest(), make_prompts(12), OPTIONS, output, engine.clock)
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["summary"] == json.loads(json.dumps(summary))
    assert set(summary) >= SUMMARY_KEYS
    assert stored["complete"] is True
    assert stored["labels"] == ["random weights"]
    assert len(stored["measurements"]) == 72
    assert record.rows_as_data(record.rows_from_data(stored["measurements"])) == stored["measurements"]
    assert stored["provenance"]["machine"]["cores"] >= 1
    assert {"command", "versions", "date_utc", "git", "load_before", "load_after"} <= stored["provenance"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "was faster: 1.5" in err


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
    assert "stopped early" in " ".join(report.cautions(stored))


def test_failure_before_the_first_text_still_writes(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.fails_at = (0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path, engine)
    stored = json.loads((tmp_path / "r.json").read_text())
    assert stored["summary"]["speedup"] is None
    assert report.verdict(stored).startswith("Nothing can be said")
    assert "<h1>Nothing can be said" in report.html_report(stored)


def test_never_drafting_stops_early(tmp_path: Path) -> None:
    engine = FakeEngine(drafts=False)
    with pytest.raises(UsageError, match="never drafted"):
        bench(tmp_path, engine)
    assert len(engine.calls) < 20


@pytest.mark.parametrize(
    ("speedup", "prompts", "says"),
    [
        (1.5, 12, "was faster: 1.5"),
        (0.8, 12, "was slower: 0.8"),
        (1.0, 12, "made no difference that this run could measure"),
        (1.5, 3, "too few prompts for an interval; outputs equal on 100% of 6 pairs"),
    ],
)
def test_verdict(tmp_path: Path, speedup: float, prompts: int, says: str) -> None:
    assert says in report.verdict(bench(tmp_path, FakeEngine(speedup), make_prompts(prompts)))


def test_verdict_says_when_outputs_differ(tmp_path: Path) -> None:
    engine = FakeEngine(1.5)
    engine.differs_from = 60
    stored = bench(tmp_path, engine)
    assert 0 < stored["summary"]["equal_outputs"] < 1
    assert re.search(r"but outputs differ on \d+ of 24 pairs", report.verdict(stored))


def test_cautions_for_noise_and_load(tmp_path: Path) -> None:
    stored = bench(tmp_path, FakeEngine())
    stored["summary"] |= {"off_vs_off_ci95": [1.02, 1.05], "off_vs_off_equal_outputs": 0.9}
    stored["provenance"]["load_before"] = [99.0, 1.0, 1.0]
    text = " ".join(report.cautions(stored))
    for says in ("leaves out 1", "not repeatable", "busy at the start"):
        assert says in text


class Tags(HTMLParser):
    """Collects tags and everything that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> $x^$ 数学 & more"
    prompts = [BenchPrompt(f"{evil}{i}", evil, "x") for i in range(6)]
    stored = bench(tmp_path, FakeEngine(1.5), prompts)
    stored["labels"] = ["<b>CPU</b>"]
    page = report.html_report(stored)
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.tags
    assert "b" not in tags.tags
    assert "link" not in tags.tags
    assert tags.tags.count("svg") == 4
    assert all(load.startswith("#") for load in tags.loads)
    assert len(tags.ids) == len(set(tags.ids))
    assert {load[1:] for load in tags.loads} <= set(tags.ids)
    assert "@import" not in page
    assert 'name="viewport"' in page
    assert page.index("<h1>") < page.index("<svg")
    assert "&lt;script&gt;" in page


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


def test_console_shows_markup_as_text(tmp_path: Path) -> None:
    prompts = [BenchPrompt(f"p{i}", "[red]c[/red]", "x") for i in range(6)]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.console_report(bench(tmp_path, FakeEngine(), prompts)))
    assert "[red]c[/red]" in console.export_text()


def test_an_unknown_cpu_is_null_not_an_error() -> None:
    assert record._proc_field("/no/such/file", "model name") is None
