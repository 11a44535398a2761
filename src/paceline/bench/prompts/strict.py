"""Paceline's own prompt files: JSON Lines in which nothing unknown is tolerated."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paceline.bench.prompts.prompt import BenchPrompt, checked_messages, checked_text, json_object
from paceline.errors import PromptError, UsageError

# Descriptions only: whatever else a line holds could change the answer, and is refused rather than ignored.
HARMLESS = {"source", "license", "subcategory", "reference", "n_tok", "metadata"}


def parse_prompts(text: str, name: str) -> list[BenchPrompt]:
    """Parses JSON Lines; `name` stands for the file in errors. Blank lines are skipped."""
    # Not splitlines(): JSON strings may hold U+2028 and the like.
    return parse_lines(enumerate(text.split("\n"), start=1), name)


def parse_lines(lines: Iterable[tuple[int, str]], name: str) -> list[BenchPrompt]:
    """The same for lines with their numbers, which may come one at a time."""
    prompts: list[BenchPrompt] = []
    first_seen: dict[str, int] = {}
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}:{number}"
        prompt = parse_row(json_object(line, where), where)
        if prompt.id in first_seen:
            raise PromptError(f"{where}: id {prompt.id!r} was already used on line {first_seen[prompt.id]}; change one")
        first_seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{name} holds no prompts; write one JSON object with id, category and messages on each line")
    return prompts


def parse_row(row: dict[str, Any], where: str) -> BenchPrompt:
    """The prompt of one line; a missing, unknown or unusable key is a PromptError."""
    for key in ("id", "category"):
        if key not in row:
            raise PromptError(f'{where}: the key "{key}" is missing')
    unknown = sorted(row.keys() - HARMLESS - {"id", "category", "prompt", "messages"})
    if unknown:
        raise PromptError(f'{where}: unknown key "{unknown[0]}"; remove it, or put notes under "metadata"')
    if ("prompt" in row) == ("messages" in row):
        both = "both prompt and messages are" if "prompt" in row else "neither prompt nor messages is"
        raise PromptError(f"{where}: {both} given; give exactly one of them")
    identity, category = checked_text(row["id"], "id", where), checked_text(row["category"], "category", where)
    if "prompt" in row:
        return BenchPrompt(identity, category, checked_text(row["prompt"], "prompt", where))
    return BenchPrompt(identity, category, checked_messages(row["messages"], where))


def write_prompts(prompts: Iterable[BenchPrompt], path: Path, source: str) -> None:
    """Writes a file that `parse_prompts` reads; `source` goes on every line. An existing file is refused.

    The file appears whole or not at all.
    """
    if path.exists():
        raise UsageError(f"{path} exists already; choose another name, or remove it first")
    lines = [json.dumps(_as_row(prompt, source), ensure_ascii=False) for prompt in prompts]
    part = path.with_name(f".{path.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def _as_row(prompt: BenchPrompt, source: str) -> dict[str, Any]:
    key = "prompt" if isinstance(prompt.prompt, str) else "messages"
    return {"id": prompt.id, "category": prompt.category, key: prompt.prompt, "source": source}
