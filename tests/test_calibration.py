"""Round times measured at the start: what is timed, where it is kept, and when it is measured again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from shell import Shell
from zoo import ZOO, Model

from paceline import calibration, cli
from paceline.calibration import KS, Pair, calibrate, cost_decisions, table_for
from paceline.control import store
from paceline.control.cost import CostTable, Timing
from paceline.control.outlook import outlook
from paceline.drafters import MtpDraft, NgramDraft
from paceline.engine import Engine
from paceline.errors import UsageError
from paceline.hub import EMBEDDED_PAIR
from paceline.llm import LLM
from paceline.resolve import Options, resolve

pytestmark = pytest.mark.usefixtures("quiet_torch")
PAIR = Pair(EMBEDDED_PAIR / "target", EMBEDDED_PAIR / "assistant", "cpu")
TIMINGS = [Timing(1, k, 64, 1.0 + 0.25 * k) for k in KS]


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models("e2b", 8)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    return tmp_path


class Counted:
    """A clock that is a millisecond later for every token that is drafted, and one for every round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms, self.rounds = 0.0, 0
        real = calibration.speculate

        def timed(*arguments):  # type: ignore[no-untyped-def]
            done = real(*arguments)
            self.ms += 1.0 + done.drafted * (1.0 if isinstance(arguments[1], MtpDraft) else 0.25)
            self.rounds += 1
            return done

        monkeypatch.setattr(calibration, "speculate", timed)

    def __call__(self) -> float:
        return self.ms / 1e3


def test_rounds_of_each_length_are_timed_in_full(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = MtpDraft(model.mtp, model.target, min_confidence=0.9)  # which must not cut the timed drafts short
    timings, step_ms = calibrate(Engine(model.target, drafter), (16, 32), clock=Counted(monkeypatch))
    assert [(t.k, t.context) for t in timings] == [(k, c) for c in (16, 32) for k in KS]
    assert [t.ms for t in timings] == pytest.approx([1.0 + k for k in KS] * 2)
    assert step_ms == pytest.approx(0.75)  # of the whole millisecond, 0.25 are verification
    assert drafter.min_confidence == 0.9


def test_look_ups_cost_what_verification_does(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    timings, step_ms = calibrate(Engine(model.target, NgramDraft()), clock=Counted(monkeypatch))
    assert [t.ms for t in timings] == pytest.approx([1.0 + 0.25 * k for k in KS])
    assert step_ms == 0.0


def test_a_slow_machine_gets_few_rounds_and_never_none(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Counted(monkeypatch)
    timings, _ = calibrate(Engine(model.target, ZOO["mtp"](model, [])), budget_s=0.0, clock=clock)
    assert len(timings) == len(KS)
    assert clock.rounds == 2 * 2 * len(KS)  # a warm-up and a measured turn, drafting and verifying


def test_the_cache_goes_back_to_the_engine(model: Model) -> None:
    engine = Engine(model.target, ZOO["mtp"](model, []))
    calibrate(engine, budget_s=0.0)
    assert engine.storage is not None
    assert len(engine.storage.free_rings) == 1


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_a_table_is_kept_and_found_again(cache: Path) -> None:
    of = PAIR.subject
    assert store.load(of) == store.Stored(None, "not measured on this machine before")
    assert store.save(of, TIMINGS, 0.125) == f"kept in {of.path}"
    found = store.load(of)
    assert found.table is not None
    assert found.table.times(context=64) == pytest.approx([1.0 + 0.25 * k for k in range(9)])
    assert found.table.step_ms == 0.125
    assert "measured on this machine on 20" in found.origin
    assert [path.name for path in of.path.parent.iterdir()] == [of.path.name]  # no half-written file beside it


@pytest.mark.parametrize(
    ("content", "why"),
    [("{", "unreadable"), ("[]", "about another pair"), ("{}", "about another pair"),
     ({"subject": {}}, "about another pair"), ({"versions": {"paceline": "0.0.1"}}, "other versions"),
     ({"rows": []}, "unusable"), ({"step_ms": "much"}, "unusable"), ({"rows": [{"k": 0}]}, "unusable")],
)  # fmt: skip
def test_a_damaged_or_stale_table_counts_as_none(cache: Path, content: object, why: str) -> None:
    of = PAIR.subject
    store.save(of, TIMINGS, 0.0)
    if isinstance(content, dict) and content:
        content = json.dumps(json.loads(of.path.read_text()) | content)
    of.path.write_text(str(content))
    found = store.load(of)
    assert found.table is None
    assert why in found.origin


def test_another_model_machine_or_thread_count_has_another_file(cache: Path) -> None:
    of = PAIR.subject
    others = [replace(of, threads=of.threads + 1), replace(of, machine="other"), replace(of, backend="reference"),
              Pair(PAIR.drafter, PAIR.drafter, "cpu").subject, Pair(PAIR.target, "ngram", "cpu").subject]  # type: ignore[arg-type]  # fmt: skip
    assert len({one.path for one in (of, *others)}) == 6


def test_a_cache_that_cannot_be_written_stops_nothing(cache: Path, model: Model) -> None:
    (cache / "costs").write_text("a file where a folder should be")
    found = table_for(Engine(model.target, ZOO["mtp"](model, [])), PAIR)
    assert found.table is not None
    assert "not kept: " in found.origin


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "own"))
    assert store.folder() == tmp_path / "own"
    monkeypatch.delenv("PACELINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.folder() == tmp_path / "paceline"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert store.folder() == Path.home() / ".cache" / "paceline"


def test_the_first_use_measures_and_the_next_one_reads(
    cache: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model.target, ZOO["mtp"](model, []))
    first = table_for(engine, PAIR)
    assert "measured just now, since it was not measured on this machine before" in first.origin
    monkeypatch.setattr(calibration, "calibrate", None)  # measuring again would fail
    assert table_for(engine, PAIR).origin.startswith("measured on this machine on ")
    PAIR.subject.path.write_text("damaged")
    monkeypatch.undo()
    monkeypatch.setenv("PACELINE_CACHE", str(cache))
    again = table_for(engine, PAIR)
    assert "since it was unreadable" in again.origin
    assert store.load(PAIR.subject).table is not None


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_explain_tells_where_the_table_comes_from_and_what_auto_would_do(cache: Path) -> None:
    resolved = resolve(Options(target="embedded", device="cpu"))
    assert resolved.auto
    [none] = cost_decisions(resolved)
    assert (none.what, none.value) == ("cost table", "none yet")
    store.save(Pair.of(resolved).subject, TIMINGS, 0.1)
    table, would = cost_decisions(resolved)
    assert table.value == "1.00 ms plain, 3.00 ms with 8 drafts"
    assert would.why.startswith("guesses kept 90% of the time: k = 6, 2.09x; ")
    assert would.why.endswith("none below 25%")
    assert cost_decisions(resolve(Options(target="embedded", drafter=None, device="cpu"))) == []


def test_the_outlook_of_drafts_that_never_pay() -> None:
    dear = CostTable([Timing(1, 0, 0, 1.0), Timing(1, 8, 0, 100.0)])
    assert outlook(dear, 8) == "never drafts: a round of drafts takes too long to pay"


def test_calibrate_on_the_command_line(shell: Shell, cache: Path) -> None:
    shell.monkeypatch.setattr(sys, "argv", ["paceline", "calibrate", "--contexts", "24", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    out, _ = shell.capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert len(summary["ms"]["24"]) == 9
    assert list((cache / "costs").iterdir())
    for bad in ("0", "x", "64,", "-4"):
        shell.refuses_in_one_line("--contexts takes whole numbers", "calibrate", f"--contexts={bad}", "--device", "cpu")
    shell.refuses_in_one_line("load a drafter", "calibrate", "--drafter", "none", "--device", "cpu")


def test_rounds_are_timed_with_a_drafter_only() -> None:
    with pytest.raises(UsageError, match="load a drafter"):
        LLM.from_pretrained("embedded", None, device="cpu").time_rounds([16])
