"""Lengths and category from a file of prompts, and which way they were counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from shell import Shell

import paceline
from paceline import cli
from paceline.advisor import workload as module
from paceline.advisor.advise import Wish, advise
from paceline.advisor.machines import find
from paceline.advisor.workload import by_characters, counter, from_prompts, workload
from paceline.errors import PromptError, UsageError
from paceline.text import Text


def lines(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(i), **row}) for i, row in enumerate(rows)), "utf-8")
    return path


SHORT: dict[str, object] = {"category": "code", "prompt": "x" * 40}
LONG: dict[str, object] = {"category": "code", "messages": [{"role": "user", "content": "y" * 4000}]}


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.huggingface_hub, "try_to_load_from_cache", lambda *asked: None)


def test_characters_over_four_where_no_tokenizer_is_at_hand(tmp_path: Path) -> None:
    found = workload(lines(tmp_path, SHORT, LONG))
    assert (found.typical, found.longest, found.category) == (505, 1000, "code")
    assert "2 prompts of mine.jsonl: 505 tokens on average, 1000 the longest" in found.words
    assert "characters / 4" in found.words
    assert by_characters("abc") == 1


def test_a_gemma_tokenizer_on_this_machine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(paceline.__file__).parent / "assets" / "pair" / "target"
    seen: list[str] = []

    def cached(name: str, file: str) -> str | None:
        seen.append(name)
        return str(folder / file) if name == "google/gemma-4-12B-it" else None

    monkeypatch.setattr(module.huggingface_hub, "try_to_load_from_cache", cached)
    count, how = counter()
    assert "tokenizer" in how
    assert seen[0] == "google/gemma-4-E2B-it"
    text = Text.from_folder(folder)
    assert text is not None
    chat = [{"role": "user", "content": "What is a list in Python?"}]
    assert count(chat) == len(text.encode(chat)) != by_characters(chat)  # type: ignore[arg-type]


def test_the_longest_prompt_sets_the_memory_and_the_usual_one_the_speed(tmp_path: Path) -> None:
    given = from_prompts(lines(tmp_path, SHORT, LONG), output=100, context=None, category=None)
    assert given["context"] == 1152  # 1000 + 100 in whole pages of 64
    assert given["category"] == "code"
    usual, longest = (advise(find("h100"), Wish(output=100, **{**given, "prompt": n})) for n in (505, 1052))
    for a, b in zip(usual.decisions, longest.decisions, strict=True):
        assert a.plan == b.plan
        assert a.first_token_s is not None
        assert b.first_token_s is not None
        assert a.first_token_s <= b.first_token_s  # as long as weights take longer to read than to multiply, equal
        assert a.forecast is not None
        assert b.forecast is not None
        assert a.forecast.plain_rate > b.forecast.plain_rate


def test_what_was_asked_for_by_hand_stands(tmp_path: Path) -> None:
    path = lines(tmp_path, SHORT, LONG)
    assert from_prompts(path, 100, 5000, "chat")["context"] == 5000
    assert from_prompts(path, 100, 5000, "chat")["category"] == "chat"
    with pytest.raises(UsageError, match="give --context 1100 or more"):
        from_prompts(path, 100, 1099, None)


def test_several_kinds_of_text_are_mixed(tmp_path: Path) -> None:
    assert workload(lines(tmp_path, SHORT, {**LONG, "category": "maths"})).category == "mixed"
    assert workload(lines(tmp_path, {**LONG, "category": "maths"})).category == "math"
    assert workload(lines(tmp_path, {**LONG, "category": "letters"})).category == "mixed"


def test_bad_files_are_refused(tmp_path: Path, shell: Shell) -> None:
    with pytest.raises(PromptError, match="cannot read"):
        workload(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("{")
    shell.refuses_in_one_line("not JSON", "advise", "--gpu", "h100", "--prompts", "bad.jsonl")
    path = lines(tmp_path, LONG)
    shell.refuses_in_one_line("give --context 1512", "advise", "--gpu", "h100", "--prompts", path, "--context", 1000)
    shell.refuses_in_one_line("2 tokens at least", "advise", "--gpu", "h100", "--context", 0)


def test_the_command_says_where_lengths_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path, SHORT, LONG)
    monkeypatch.setattr(
        sys, "argv", ["paceline", "advise", "--gpu", "h100", "--prompts", str(path), "--output", "9000"]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    out = capsys.readouterr().out
    assert "Workload: 2 prompts of mine.jsonl" in out
    assert "10048 tokens each, code" in out
