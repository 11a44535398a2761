"""Records of every version in one shape, and files that are no records refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_samples import World, record_of, rows_of
from shell import Shell

from paceline.bench.stored import labels_of, read_record, tidy
from paceline.errors import UsageError

# Measured by an earlier version; its rows are cut to 300, and their times to 8.
FIRST = Path(__file__).parent / "records" / "first_version.json"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "r.json is not JSON"),
        ("[]", "schema None"),
        ('{"schema": "paceline-cuda-rounds/1"}', "'paceline-cuda-rounds/1', which is not a run"),
        ('{"schema": "paceline-bench/2", "summary": []}', "damaged (summary is not an object)"),
        ('{"schema": "paceline-bench/2", "arms": {}}', "damaged (arms is not a list)"),
        ('{"schema": "paceline-bench/2", "summary": {"by_category": {"a": 1}}}', "r.json is damaged"),
        ('{"schema": "paceline-bench/2", "measurements": [{"order": 1}]}', "r.json is damaged"),
        ('{"schema": "paceline-bench/2", "measurements": [1]}', "r.json is damaged"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        read_record(tmp_path / "r.json")
    assert says in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*gone\.json: No such file"):
        read_record(tmp_path / "gone.json")


def test_the_first_version_becomes_this_one() -> None:
    record = read_record(FIRST)
    assert record["plan"]["ks"] == [5]
    assert {row["k"] for row in record["measurements"]} == {0, 5}
    assert labels_of(record) == ["embedded miniature", "CPU"]
    assert record["summary"]["by_k"] == {}


def test_what_is_there_stays_as_it_is() -> None:
    record = record_of(rows_of(World(gains={"a": 1.5}, prompts=6)))
    kept: dict[str, Any] = json.loads(json.dumps(record))
    shown = tidy(record)
    assert {key for key in kept if shown[key] != kept[key]} <= {"summary"}
    changed = {key for key, value in kept["summary"].items() if shown["summary"][key] != value}
    assert {kept["summary"][key] for key in changed} <= {None}


def test_report_shows_a_stored_run(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from paceline import cli

    (tmp_path / "r.json").write_text(json.dumps(record_of(rows_of(World(gains={"a": 1.5}, prompts=6)))))
    monkeypatch.setattr("sys.argv", ["paceline", "report", "r.json", "--markdown", "r.md"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = shell.capsys.readouterr()
    assert done.value.code == 0
    assert json.loads(out.splitlines()[-1])["prompts"] == 6
    assert "On these 6 prompts" in err
    assert (tmp_path / "r.md").read_text().startswith("### On these 6 prompts")
    shell.refuses_in_one_line("cannot write missing/r.md", "report", "r.json", "--markdown", "missing/r.md")
    shell.refuses_in_one_line("cannot read gone.json", "report", "gone.json")
