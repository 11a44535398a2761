"""Fitting the speed model to a file of measured cells: constants found again, cells held out, tables, bad files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
pytest.importorskip("scipy")

import advisor_fit as driver
import advisor_measure
import advisor_tables
from readme_table import table

from paceline.advisor import speed
from paceline.advisor.machines import find
from paceline.advisor.speed import Costs, Load
from paceline.shapes import SHAPES, drafter_config, target_config

TRUE = replace(speed.fitted(), bandwidth_share=0.78, rate_share=0.33, round_s=4e-4, draft_s=1.4e-4, row_s=3e-7)
TERMS = ("bandwidth_share", "rate_share", "round_s", "draft_s", "row_s")


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a dry run of the measuring driver writes."""
    out = tmp_path_factory.mktemp("dry") / "dry.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["advisor_measure.py", "--dry-run", "--gpu", "h200", "--out", str(out)])
        advisor_measure.main()
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def timed(dry: dict[str, Any], costs: Costs = TRUE, noise: float = 0.01, slow: str = "") -> dict[str, Any]:
    """The same record as of a GPU: made-up times of a machine that has these constants, all but exactly.

    slow: a size whose rounds take a third more than they should.
    """
    record, rng = json.loads(json.dumps(dry)), np.random.default_rng(3)
    record["labels"], record["provenance"]["machine"]["gpu"] = ["random weights"], "NVIDIA H200"
    for key, cell in record["cells"].items():
        size = key.partition("/")[0]
        for row in cell["rows"]:
            load = Load(batch=row["batch"], k=row["k"], context=row["context"])
            row["distinct_experts"] = speed.experts(target_config(size), load)
            seconds = speed.round_seconds(target_config(size), drafter_config(size), load, find("h200"), costs)
            row["ms"] = 1e3 * seconds * float(np.exp(noise * rng.normal())) * (4 / 3 if size == slow else 1)
    record["cells"]["31b/32"] = {"refused": "it does not fit", "rows": []}
    return dict(record)


def fitted(monkeypatch: pytest.MonkeyPatch, folder: Path, record: dict[str, Any], *words: str) -> dict[str, Any]:
    """What the driver writes about errors; calibration.json and the picture go to the folder too."""
    rounds = folder / "h200.json"
    rounds.write_text(json.dumps(record), "utf-8")
    return run(monkeypatch, folder, "--rounds", str(rounds), *words)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> dict[str, Any]:
    files = {"--out": "error.json", "--calibration": "calibration.json", "--plot": "plot.svg"}
    outs = [word for flag, name in files.items() for word in (flag, str(folder / name))]
    monkeypatch.setattr(sys, "argv", ["advisor_fit.py", *outs, *words])
    driver.main()
    found: dict[str, Any] = json.loads((folder / "error.json").read_text("utf-8"))
    return found


def test_constants_are_found_again_from_measured_cells(
    dry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = fitted(monkeypatch, tmp_path, timed(dry))
    kept = json.loads((tmp_path / "calibration.json").read_text("utf-8"))
    assert kept == found["calibration"]
    for name in TERMS[:2]:
        assert kept["costs"][name] == pytest.approx(getattr(TRUE, name), rel=0.05)
    assert found["rounds"]["median"] < 0.02
    assert found["held_out_cells"]["worst"] < 0.06
    assert set(found["held_out_cells"]["cells"]) == {*(f"12b/{n}" for n in (1, 8, 32)), *(f"{s}/8" for s in SHAPES)}
    assert found["rounds"]["rows"] + found["held_out_cells"]["rows"] == len(found["each"]) == 4 * 14
    assert set(found["held_out"]) == set(SHAPES)
    assert found["before"]["gpu"] == speed.calibration()["provenance"]["gpu"]
    assert found["before"]["median"] > 3 * found["held_out_cells"]["median"]  # another machine's constants
    assert kept["provenance"]["gpu"] == "NVIDIA H200"
    assert kept["provenance"]["rounds"] == "h200.json"
    assert kept["provenance"]["bandwidth_gbs"] == [find("h200").bandwidth / 1e9]  # type: ignore[operator]
    speed.Costs(**kept["costs"])


def test_a_cell_that_is_held_out_is_not_fitted_to(
    dry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A size that is unlike the others shows in its own error and nowhere else; fitted to, it bends the rest."""
    slow = timed(dry, slow="12b")
    apart = fitted(monkeypatch, tmp_path, slow, "--hold-out", "12b/*")
    assert apart["rounds"]["worst"] < 0.04
    assert apart["held_out_cells"]["median"] == pytest.approx(0.25, abs=0.05)
    assert [row["held_out"] for row in apart["each"]] == [row["size"] == "12b" for row in apart["each"]]
    whole = fitted(monkeypatch, tmp_path, slow, "--hold-out", "")
    assert whole["held_out_cells"] is None
    assert whole["rounds"]["rows"] == 4 * 14
    assert whole["rounds"]["worst"] > 0.1


def test_tables_and_the_picture_tell_them_apart(
    dry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = fitted(monkeypatch, tmp_path, timed(dry))
    shown = advisor_tables.error_table(table)(found)
    assert "| 12B |  |  |  | 12 |" in shown
    assert "| left out of the fit | median error | worst | without the size: median | worst |" in shown
    assert "Left out of the fit: E2B at batch 8," in shown
    assert f"The constants fitted to {speed.calibration()['provenance']['gpu']} alone: median error" in shown
    line = advisor_tables.error_line(found)
    assert f"of {found['held_out_cells']['rows']} rounds on NVIDIA H200 that the constants were not" in line
    whole = fitted(monkeypatch, tmp_path, timed(dry), "--hold-out", "")
    assert "left out" not in advisor_tables.error_table(table)(whole)
    assert "to which the constants were fitted" in advisor_tables.error_line(whole)
    assert "</svg>" in (tmp_path / "plot.svg").read_text("utf-8")


def test_two_gpus_are_fitted_together(dry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = timed(dry, speed.fitted())
    both = fitted(monkeypatch, tmp_path, own, "--rounds", str(driver.ROUNDS[0]))
    assert both["calibration"]["provenance"]["gpu"] == "NVIDIA H200, NVIDIA H100 80GB HBM3"
    assert both["before"] is None
    assert len(both["each"]) == 4 * 14 + 56
    assert both["rounds"]["median"] < 0.05


def test_without_words_it_gives_the_constants_that_ship_from_their_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = speed.calibration()
    names = shipped["provenance"]["rounds"].split(", ")
    words = [word for name in names for word in ("--rounds", str(driver.common.RESULTS / name))]
    found = run(monkeypatch, tmp_path, *words)["calibration"]["costs"]
    assert found == pytest.approx(shipped["costs"], rel=1e-3)


BAD = {
    "{": "is not JSON; give what advisor_measure.py wrote",
    "[]": "is no record of cuda_rounds.py or advisor_measure.py",
    '{"schema": "x"}': "is no record of cuda_rounds.py or advisor_measure.py",
    '{"schema": "paceline-advisor-measure/1", "labels": []}': "is no record of",
}


@pytest.mark.parametrize("content", BAD)
def test_other_files_are_refused_in_one_sentence(content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    refused(monkeypatch, tmp_path, BAD[content], "--rounds", str(tmp_path / "x.json"))


def refused(monkeypatch: pytest.MonkeyPatch, folder: Path, match: str, *words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, folder, *words)
    assert str(caught.value).startswith("advisor_fit: ")
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "calibration.json").exists()


def test_what_cannot_be_fitted_is_refused(dry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rounds = tmp_path / "h200.json"
    words = ("--rounds", str(rounds))
    refused(monkeypatch, tmp_path, "cannot read", *words)
    rounds.write_text(json.dumps(dry))
    refused(monkeypatch, tmp_path, "is a dry run, which holds predictions only", *words)
    rounds.write_text(json.dumps(timed(dry)))
    refused(monkeypatch, tmp_path, "names 13b/*, which is no cell; there are e2b/1,", *words, "--hold-out", "13b/*")
    refused(monkeypatch, tmp_path, "leaves fewer than two sizes", *words, "--hold-out", "*")
    unknown = timed(dry)
    unknown["options"]["machine"]["bandwidth"] = None
    rounds.write_text(json.dumps(unknown))
    refused(monkeypatch, tmp_path, "add it to machines.json to fit to it", *words)
