"""`paceline bench --trace`: what is recorded is what the run's texts were, and what cannot be traced is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shell import Shell

from paceline import cli
from paceline.bench.harness import Contest
from paceline.bench.tracing import Tracer
from paceline.control.cost import CostTable
from paceline.control.replay import Workbench, make
from paceline.control.trace import read_trace
from paceline.errors import UsageError

RUN = ["paceline", "bench", "--sample", "3", "--max-tokens", "24", "--temperature", "0", "--temperature", "1",
       "--device", "cpu", "--k", "2", "--out", "r.json"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a trace."""
    made = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setattr("sys.argv", [*RUN, "--trace", "t.jsonl"])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert not done.value.code
    return made


def test_every_text_of_the_run_is_there_with_what_drafts_would_have_come_to(folder: Path) -> None:
    run, trace = json.loads((folder / "r.json").read_text()), read_trace(folder / "t.jsonl")
    off = {f"{m['prompt_id']} at {m['temperature']:g}": m for m in run["measurements"] if m["arm"] == "off"}
    on = {f"{m['prompt_id']} at {m['temperature']:g}": m for m in run["measurements"] if m["arm"] == "on"}
    assert trace.every_position
    assert not trace.synthetic
    assert trace.step_ms > 0
    traced = {rows[0].request: rows for rows in trace.requests()}
    assert set(traced) == {name for name, m in off.items() if m["tokens"] > 8}
    for name, rows in traced.items():
        assert len(rows) == off[name]["tokens"] - 8  # of the last ones, it is not known what eight drafts come to
        assert rows[0].category == off[name]["category"]
        assert set(rows[0].round_ms) == set(range(9))
        assert all(len(row.confidences) == len(row.margins) == 8 for row in rows)
        # The run's own rounds of two drafts, walked on the trace: as many tokens a round as far as the trace goes.
        at = rounds = 0
        while at < len(rows):
            at, rounds = at + min(rows[at].accepted, 2) + 1, rounds + 1
        assert rounds <= on[name]["rounds"] <= rounds + 8


def test_simulate_reads_it(folder: Path) -> None:
    trace = read_trace(folder / "t.jsonl")
    stage = Workbench(trace, CostTable(trace.timings(), step_ms=trace.step_ms))
    result = stage.play(make("auto+stop", stage.table, stage.k_max), "auto+stop")
    assert sum(result.tokens) == len(trace.rows)


def test_other_engines_are_refused_before_they_are_asked(shell: Shell) -> None:
    nobody = ["--on", "http://127.0.0.1:9", "--off", "http://127.0.0.1:10"]
    shell.refuses_in_one_line("which other engines do not tell", "bench", *nobody, "--trace", "t.jsonl")


@pytest.mark.parametrize(
    ("words", "match"),
    [(["--drafter", "ngram"], "--trace needs an MTP drafter on the CPU"),
     (["--trace", "no/such/t.jsonl"], "cannot write no/such/t.jsonl"),
     (["--temperatures", "0,1"], "--trace does not go with --temperatures")],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_before_anything_runs(shell: Shell, words: list[str], match: str) -> None:
    err = shell.refuses("bench", "--trace", "t.jsonl", "--out", "r.json", "--sample", "1", "--device", "cpu", *words)
    assert match in err.splitlines()[-1]


def test_random_weights_have_no_texts_to_trace(shell: Shell) -> None:
    shell.refuses_in_one_line("--trace does not go with --shape", "bench", "--shape", "e2b", "--trace", "t.jsonl")


def test_arms_of_others_have_no_tracer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="other engines do not tell"):
        Tracer(Contest(off=object(), on={}), tmp_path / "t.jsonl")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
