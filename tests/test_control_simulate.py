"""`paceline simulate` from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from shell import Shell

from paceline import cli
from paceline.control.synthetic import generate
from paceline.control.trace import write_trace

ROWS = [{"batch": 1, "k": k, "context": 100, "ms": 2.0 + 0.5 * k} for k in (0, 4)]


@pytest.fixture
def files(shell: Shell) -> Path:
    write_trace(Path("t.jsonl"), generate("mixed", 800, 4))
    Path("cost.json").write_text(json.dumps({"rows": ROWS}))
    return shell.folder


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    monkeypatch.setattr(sys, "argv", ["paceline", "simulate", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


@pytest.mark.usefixtures("files")
def test_simulate_tells_rates_and_regret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    summary, err = run(monkeypatch, capsys, "t.jsonl", "--cost", "cost.json", "--policies", "auto,k=2,k=0")
    assert list(summary["policies"]) == ["auto", "k=2", "k=0"]
    assert summary["synthetic"] is True
    assert "synthetic trace" in err
    assert summary["policies"]["k=2"] == summary["statics"]["k=2"]
    assert summary["policies"]["k=0"]["tokens_per_ms"] == pytest.approx(0.5)
    assert summary["policies"]["k=0"]["regret_clairvoyant_ms"] > 0
    assert summary["bounds"]["clairvoyant"]["over_best_static"] > 0


@pytest.mark.usefixtures("files")
def test_simulate_draws(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, capsys, "t.jsonl", "--cost", "cost.json", "--policies", "k=1", "--plot", "r.png")
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")


def test_recorded_times_need_no_table(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"request": "a", "drafted": 2, "accepted": 1, "round_ms": {"0": 2.0, "1": 2.5, "2": 3.0}}
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(5)))
    summary, _ = run(monkeypatch, capsys, "t.jsonl", "--policies", "heuristic")
    assert summary["replay"] == "round by round"
    assert summary["statics"]["k=1"]["tokens_per_ms"] == pytest.approx(2 / 2.5)


BAD = [
    ("cannot read none.jsonl", ["none.jsonl"]),
    ("no synthetic workload 'poetry'", ["synthetic:poetry"]),
    ("holds no round times; give --cost", ["t.jsonl"]),
    ("cannot read none.json", ["t.jsonl", "--cost", "none.json"]),
    ("t.jsonl is not JSON", ["t.jsonl", "--cost", "t.jsonl"]),
    ("cost.json, line 1: request is missing", ["cost.json", "--cost", "cost.json"]),
    ("there is no policy 'magic'", ["t.jsonl", "--cost", "cost.json", "--policies", "auto,magic"]),
    ("from 0 to 4, not '5'", ["t.jsonl", "--cost", "cost.json", "--policies", "k=5"]),
    ("no policy is named", ["t.jsonl", "--cost", "cost.json", "--policies", ","]),
    ("--plot draws .png", ["t.jsonl", "--cost", "cost.json", "--plot", "r.txt"]),
    ("name a file in a folder that exists", ["t.jsonl", "--cost", "cost.json", "--plot", "no/r.png"]),
]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("match", "words"), BAD)
def test_bad_input_is_refused_in_one_line(shell: Shell, match: str, words: list[str]) -> None:
    shell.refuses_in_one_line(match, "simulate", *words)


RECORDED = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "trace_embedded.jsonl"


def test_the_recorded_trace_of_the_embedded_pair_is_replayed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert RECORDED.stat().st_size < 300_000
    picture = tmp_path / "regret.png"
    words = (str(RECORDED), "--policies", "auto,auto+stop,stop=0.4,heuristic", "--plot", str(picture))
    summary, err = run(monkeypatch, capsys, *words)
    assert summary["synthetic"] is False
    assert "synthetic" not in err
    assert summary["replay"] == "every position"
    assert len({one["tokens"] for one in (*summary["policies"].values(), *summary["bounds"].values())}) == 1
    assert all(one["regret_clairvoyant_ms"] > 0 for one in summary["policies"].values())
    for name in ("auto", "auto+stop"):
        assert summary["policies"][name]["over_plain"] > 0
        assert summary["policies"][name]["tokens_per_ms"] > summary["policies"]["heuristic"]["tokens_per_ms"]
    assert picture.stat().st_size > 1000
