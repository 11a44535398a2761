"""`paceline prompts ...` from the command line: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from shell import Shell

from paceline import cli
from paceline.bench.prompts import load_prompts
from paceline.bench.prompts.sets import SETS


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "320")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*words: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["paceline", "prompts", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        return capsys.readouterr()

    return run


LOG = {"model": "m", "messages": [{"role": "user", "content": "I am Ada, ada@firm.org"}], "temperature": 0.5}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(LOG)}\n" * 2 + json.dumps({**LOG, "tools": [{}]}))
    return path


def test_list_names_every_set(run) -> None:  # type: ignore[no-untyped-def]
    out, _ = run("list")
    for prompt_set in SETS.values():
        line = next(line for line in out.splitlines() if f" {prompt_set.name} " in line)
        assert prompt_set.licence in line
        assert ("shipped" if prompt_set.file else "to be fetched") in line
    out, _ = run("list", "--json")
    assert json.loads(out)["rag"] == {
        "prompts": 30,
        "source": SETS["rag"].source,
        "licence": SETS["rag"].licence,
        "where": "shipped",
    }


def test_show_describes_and_samples(run, log: Path) -> None:  # type: ignore[no-untyped-def]
    out, _ = run("show", "mt-bench", "--n", 2)
    assert "read from the set mt-bench: 80 prompts" in out
    assert "categories: writing 10, roleplay 10" in out
    assert out.count("mt-bench-") == 2
    assert out == run("show", "mt-bench", "--n", 2)[0] != run("show", "mt-bench", "--n", 2, "--seed", 1)[0]
    out, err = run("show", log, "--json")
    found = json.loads(out)
    assert (found["kind"], found["prompts"], found["scripts"]) == ("a log of requests", 1, {"Latin": 1})
    assert found["tokens"]["total"] > 0
    assert "1 skipped: offers tools" in found["notes"]
    assert "I am Ada" in err
    out, _ = run("show", log, "--n", 0, "--tokenizer", "none")
    assert "Ada" not in out
    assert "tokens" not in out


def test_sample_writes_what_bench_reads(run, log: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out, err = run("sample", "embedded", "--n", 12, "--seed", 3, "--out", "new/twelve.jsonl")
    assert not out
    assert "12 prompts in new/twelve.jsonl" in err
    chosen = load_prompts(tmp_path / "new" / "twelve.jsonl")
    assert len(chosen) == 12
    assert len({prompt.category for prompt in chosen}) == 6
    _, err = run("sample", log, "--out", "all.jsonl")
    assert "temperature is set to 0.5 (2 times) in the file, and not used here" in err
    assert load_prompts("all.jsonl")[0].prompt == LOG["messages"]


def test_redact_writes_a_clean_file_that_tells_no_tales(run, log: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "words.txt").write_text("Ada\n")
    _, err = run("redact", log, "clean.jsonl", "--redact-words", "words.txt")
    assert "1 name (1 different), 1 email (1 different)" in err
    assert "No redaction is complete" in err
    written = (tmp_path / "clean.jsonl").read_text()
    assert "Ada" not in written
    assert "firm.org" not in written
    assert str(log.parent) not in written
    prompt = load_prompts("clean.jsonl")[0]
    assert prompt.prompt == [{"role": "user", "content": "I am Name1, person1@example.com"}]
    run("sample", log, "--redact", "--out", "mails.jsonl")
    assert load_prompts("mails.jsonl")[0].prompt == [{"role": "user", "content": "I am Ada, person1@example.com"}]


def test_refusals_leave_nothing_behind(shell: Shell, log: Path) -> None:
    for words, says in (
        (("show", "mt-bank"), "neither a file nor a prompt set"),
        (("show", "spec-bench"), "`paceline prompts fetch spec-bench` gets it"),
        (("show", "none.jsonl"), "cannot read the prompt file none.jsonl"),
        (("show", "rag", "--column", "x"), "--column and --turns are for files; rag is a set"),
        (("show", log, "--turns", "odd"), "--turns must be one of first, last, all, not 'odd'"),
        (("show", log, "--column", "x"), "there is no column 'x'; there are model, messages, temperature"),
        (("show", "rag", "--n", "-1"), "--n must be 0 or more"),
        (("show", "rag", "--tokenizer", "none.json"), "no tokenizer.json at none.json"),
        (("show", "rag", "--tokenizer", log), "is no tokenizer"),
        (("sample", "rag", "--n", "31", "--out", "x.jsonl"), "cannot take 31 of 30 prompts"),
        (("sample", "rag", "--out", log), "exists already; choose another name"),
        (("redact", log, log), "exists already"),
        (("redact", log, "x.jsonl", "--redact-words", "none.txt"), "cannot read the list of words none.txt"),
        (("redact", log, log / "x.jsonl"), "cannot write"),
        (("fetch", "rag"), "rag ships with Paceline"),
        (("fetch", "nothing"), "no prompt set is called 'nothing'"),
    ):
        shell.refuses_in_one_line(says, "prompts", *words)


def test_fetch_says_whose_it_is_before_it_fetches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["paceline", "prompts", "fetch", "spec-bench", "--from", str(log)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("spec-bench: hemingkx/Spec-Bench, licence Apache-2.0; texts: WMT14")
    assert "log.jsonl is not the file at https://raw.githubusercontent.com/hemingkx/Spec-Bench/" in err
