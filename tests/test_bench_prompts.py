"""The embedded prompts, prompt files with every kind of fault, and balanced sampling."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from paceline.bench.prompts import BenchPrompt, load_prompts, parse_prompts, sample
from paceline.errors import PromptError, UsageError

GOOD = '{"id": "a", "category": "chat", "prompt": "Hello"}'


def test_embedded_set_is_real_balanced_and_licensed() -> None:
    prompts = load_prompts(None)
    counts = Counter(prompt.category for prompt in prompts)
    assert len(counts) >= 5
    assert len(prompts) == 344
    assert min(counts.values()) >= 12
    assert len({str(prompt.prompt) for prompt in prompts}) == len(prompts)
    rows = [
        json.loads(line) for line in files("paceline").joinpath("assets/prompts.jsonl").read_text("utf-8").splitlines()
    ]
    shippable = ("MIT", "Apache-2.0", "public (Universal Declaration of Human Rights)")
    assert {row["license"] for row in rows} <= set(shippable)
    assert max(len(row["messages"][0]["content"]) for row in rows) <= 900
    assert all(row["source"] for row in rows)


def test_good_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    chat = {
        "id": "b",
        "category": "x",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u\u2028v"}],
    }
    path.write_text(f"\ufeff{GOOD}\n\n{json.dumps(chat, ensure_ascii=False)}\r\n", encoding="utf-8")
    first, second = load_prompts(path)
    assert first == BenchPrompt("a", "chat", "Hello")
    assert second.prompt == chat["messages"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{nope", "not JSON"),
        ("[1]", "must be a JSON object, not list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"category": "c", "prompt": "x"}', '"id" is missing'),
        ('{"id": "b", "prompt": "x"}', '"category" is missing'),
        ('{"id": "b", "category": "c"}', "neither prompt nor messages"),
        ('{"id": "b", "category": "c", "prompt": "x", "messages": []}', "both prompt and messages"),
        ('{"id": "b", "category": "c", "prompt": "x", "temperature": 1}', 'unknown key "temperature"'),
        ('{"id": "b", "category": "c", "prompt": " "}', '"prompt" is empty'),
        ('{"id": "b", "category": "c", "prompt": 5}', "must be a string, not int"),
        ('{"id": "b", "category": "c", "prompt": "\\ud800"}', "surrogate"),
        ('{"id": 3, "category": "c", "prompt": "x"}', '"id" must be a string'),
        ('{"id": "b", "id": "c", "category": "c", "prompt": "x"}', "given twice"),
        ('{"id": "a", "category": "c", "prompt": "x"}', "already used on line 1"),
        ('{"id": "b", "category": "c", "messages": []}', "at least one message"),
        ('{"id": "b", "category": "c", "messages": ["x"]}', "exactly the keys role and content"),
        ('{"id": "b", "category": "c", "messages": [{"role": "user", "content": "x", "tool": 1}]}', "exactly the keys"),
        ('{"id": "b", "category": "c", "messages": [{"role": "robot", "content": "x"}]}', "robot"),
        ('{"id": "b", "category": "c", "messages": [{"role": "assistant", "content": "x"}]}', "last message"),
        ('{"id": "b", "category": "c", "messages": [{"role": "user", "content": ""}]}', "messages[0].content"),
    ],
)
def test_malformed_line_is_named(line: str, says: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_prompts(f"{GOOD}\n{line}\n", "mine.jsonl")
    assert str(caught.value).startswith("mine.jsonl:2: ")
    assert says in str(caught.value)


def test_unusable_files(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, says in (
        (empty, "no prompts"),
        (binary, "UTF-8"),
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path, "Is a dir"),
    ):
        with pytest.raises(PromptError, match=says):
            load_prompts(path)


def test_sample_is_balanced_seeded_and_bounded() -> None:
    prompts = [BenchPrompt(f"{c}{i}", c, "x") for c, n in (("a", 10), ("b", 10), ("c", 2)) for i in range(n)]
    chosen = sample(prompts, 9, seed=1)
    assert chosen == sample(prompts, 9, seed=1) != sample(prompts, 9, seed=2)
    assert sorted(Counter(prompt.category for prompt in chosen).values()) == [2, 3, 4]
    assert len({prompt.category for prompt in chosen[:3]}) == 3
    assert sorted(p.id for p in sample(prompts, 22, seed=0)) == sorted(p.id for p in prompts)
    for n in (0, -1, 23):
        with pytest.raises(UsageError, match="choose 1 to 22"):
            sample(prompts, n, seed=0)
