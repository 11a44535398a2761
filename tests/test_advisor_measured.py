"""Round times that `paceline calibrate` keeps, found by `paceline advise`; and those that must not be taken."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from shell import Shell
from test_advisor_advise import run
from zoo import Model

from paceline.advisor.advise import Advice, Wish, advise
from paceline.advisor.machines import HERE, Machine, find
from paceline.advisor.measured import kept_here
from paceline.advisor.report import show
from paceline.calibration import model_of
from paceline.control import store
from paceline.control.cost import Timing
from paceline.control.store import Model as Kept
from paceline.control.store import Subject
from paceline.engine import Engine
from paceline.llm import LLM
from paceline.shapes import SHAPES

MACHINE = Machine(name=HERE, kind="cpu", memory=64e9)
TIMINGS = [Timing(1, k, context, 100.0 + 5 * k + context / 64) for k in (0, 1, 2, 4, 8) for context in (64, 512)]
OURS = Subject(machine=store.machine(), threads=2, target="f00d", drafter="beef", backend="cpu")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    return tmp_path / "costs"


def keep(size: str | None = "e2b", of: Subject = OURS, **changed: object) -> Path:
    """A kept table, some of whose file is changed afterwards."""
    store.save(of, TIMINGS, 0.5, Kept(size=size, weight_bytes=2))
    of.path.write_text(json.dumps(json.loads(of.path.read_text()) | changed))
    return of.path


def asked(machine: Machine = MACHINE, **wish: object) -> Advice:
    wanted = Wish(**{"target": "e2b", **wish})  # type: ignore[arg-type]
    return advise(machine, wanted, kept_here(machine, wanted.sizes, wanted.batch))


def shown(advice: Advice, explain: bool = False) -> str:
    out = io.StringIO()
    show(advice, Console(file=out, width=200), explain)
    return out.getvalue()


def test_times_measured_here_go_before_predictions() -> None:
    keep()
    with_times, without = asked(), advise(MACHINE, Wish(target="e2b"))
    measured, blind = (
        next(d.forecast for d in found.decisions if d.precision == "bf16") for found in (with_times, without)
    )
    assert blind is None  # the bandwidth of this machine is not known
    assert measured is not None
    assert measured.plain_s == pytest.approx(0.108)  # behind 512 tokens, the most that were timed
    assert all(d.forecast is None for d in with_times.decisions if d.precision != "bf16")
    day = store.entries()[0].date
    told = f"E2B at bf16 were measured (here on {day} by `paceline calibrate`, behind 64 to 512 tokens)"
    assert told in shown(with_times)
    assert f"Rounds: round times of {told}; the others are predicted." in shown(with_times, explain=True)
    assert "were measured (" not in shown(without, explain=True)


def test_several_sizes_may_have_been_timed_and_the_newest_table_counts() -> None:
    for size, target in (("e2b", "a"), ("e4b", "b"), (None, "c")):
        keep(size, replace(OURS, target=target))
    rows = [vars_of(Timing(1, k, 64, 7.0 + k)) for k in (0, 4)]
    keep("e2b", replace(OURS, target="later"), rows=rows, date_utc="2999-01-01T00:00:00")
    found = kept_here(MACHINE, list(SHAPES), 1)
    assert set(found.rounds) == {"e2b", "e4b"}
    assert found.left_out == ""
    assert found.rounds["e2b"].table.times() == [7.0, 8.0, 9.0, 10.0, 11.0]
    assert found.rounds["e2b"].origin == "here on 2999-01-01 by `paceline calibrate`, behind 64 tokens"
    assert kept_here(MACHINE, ["31b"], 1).rounds == {}


def vars_of(timing: Timing) -> dict[str, object]:
    return {"batch": timing.batch, "k": timing.k, "context": timing.context, "ms": timing.ms}


OLD = {**store.versions(), "paceline": "0.0.1", "numba": "0.1"}
LEFT_OUT = {
    "another machine": ({"of": replace(OURS, machine="Z80, 1 cores")}, {}, "on another machine (Z80, 1 cores)"),
    "other versions": ({"versions": OLD}, {}, "with paceline 0.0.1, numba 0.1"),
    "more texts": ({}, {"batch": 4}, "for at most 1 text side by side"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_does_not_hold_here_is_left_out_with_a_note(name: str) -> None:
    changed, wish, reason = LEFT_OUT[name]
    keep(**changed)  # type: ignore[arg-type]
    found = asked(**wish)
    assert found.found.rounds == {}
    assert found.found.left_out == (
        f"Round times left out: E2B's, measured {reason}; `paceline calibrate` measures anew."
    )
    assert shown(found).count("Round times left out") == 1
    assert all(d.forecast is None for d in found.decisions)


def test_no_note_where_a_fitting_table_stands_beside_it() -> None:
    keep(of=replace(OURS, machine="Z80, 1 cores"))
    keep(of=replace(OURS, target="old"), versions=OLD, date_utc="2999-01-01T00:00:00")
    keep()
    found = asked().found
    assert found.rounds["e2b"].table.ms(0, 1, 64) == 101.0
    assert found.left_out == ""


@pytest.mark.parametrize("drafter", ["ngram", "None"])
def test_rounds_without_the_mtp_drafter_are_another_matter(drafter: str) -> None:
    keep(of=replace(OURS, drafter=drafter))
    assert asked().found.rounds == {}


def test_weights_of_another_width_and_other_machines_have_nothing_of_it() -> None:
    keep(model={"size": "e2b", "weight_bytes": 4})
    assert asked().found.rounds == {}
    keep()
    assert asked().found.rounds
    for machine in (find("h100"), Machine(name="as given", kind="any", memory=64e9, bandwidth=1e11)):
        assert asked(machine) == advise(machine, Wish(target="e2b"))


BROKEN = ["{", "[]", "{}", "\xff", '{"schema": "paceline-costs/1"}']
CHANGED: list[dict[str, object]] = [
    {"rows": []}, {"rows": [{"k": 0}]}, {"subject": {"machine": "x"}}, {"schema": "other/1"}, {"versions": 3},
    {"model": {"colour": "red"}}, {"step_ms": "much"},
]  # fmt: skip


@pytest.mark.parametrize("content", [*BROKEN, *CHANGED], ids=str)
def test_a_broken_file_is_refused_in_one_sentence(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, content: str | dict[str, object]
) -> None:
    monkeypatch.setattr("paceline.advisor.machines.detect", lambda: MACHINE)
    path = keep()
    if isinstance(content, str):
        path.write_bytes(content.encode("latin-1"))
    else:
        keep(**content)  # type: ignore[arg-type]
    shell.refuses_in_one_line(f"{path} holds no round times; delete it", "advise", "--target", "e2b")


def test_the_command_line_finds_them_and_a_page_leaves_them_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keep()
    monkeypatch.setattr("paceline.advisor.machines.detect", lambda: MACHINE)
    run(monkeypatch, "--target", "e2b", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]["e2b"].startswith("here on 20")
    assert found["measured_left_out"] == ""
    run(monkeypatch, "--target", "e2b", "--html", str(tmp_path / "a.html"))
    assert "measured (here" not in capsys.readouterr().out
    assert "</html>" in (tmp_path / "a.html").read_text()


@pytest.mark.usefixtures("quiet_torch")
def test_calibrating_says_what_was_timed(models: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Model = models("e2b", 8)  # type: ignore[operator]
    assert model_of(model.target) == Kept(size=None, weight_bytes=4)  # a miniature is no published size
    llm = LLM.from_pretrained("embedded")
    assert isinstance(llm.engine, Engine)
    monkeypatch.setattr("paceline.calibration.BUDGET_S", 0.0)
    llm.time_rounds([64])
    (entry,) = store.entries()
    assert entry.model == Kept(size=None, weight_bytes=2)
    assert entry.subject.machine == store.machine()
