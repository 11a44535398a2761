"""Prompts to measure on: the embedded set, or a JSON Lines file of the user's own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from paceline.errors import PromptError, UsageError
from paceline.types import ChatMessage, Prompt

EMBEDDED = "embedded prompts"
ROLES = ("system", "user", "assistant")
# Descriptions only: whatever else a line holds could change the answer, and is refused rather than ignored.
HARMLESS = {"source", "license", "subcategory", "reference", "n_tok", "metadata"}


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One prompt to measure on; `id` is unique in its set, `category` is what results are grouped by."""

    id: str
    category: str
    prompt: Prompt


def load_prompts(path: Path | None) -> list[BenchPrompt]:
    """Reads `path`, or the embedded set for None; a malformed line is a PromptError that names it."""
    text = files("paceline").joinpath("assets/prompts.jsonl").read_text("utf-8") if path is None else _read(path)
    return parse_prompts(text, EMBEDDED if path is None else str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise PromptError(f"cannot read the prompt file {path}: {error.strerror or error}") from None


def parse_prompts(text: str, name: str) -> list[BenchPrompt]:
    """Parses JSON Lines; `name` stands for the file in errors. Blank lines are skipped."""
    prompts: list[BenchPrompt] = []
    first_seen: dict[str, int] = {}
    # Not splitlines(): JSON strings may hold U+2028 and the like.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        prompt = _parse_line(line, where)
        if prompt.id in first_seen:
            raise PromptError(f"{where}: id {prompt.id!r} was already used on line {first_seen[prompt.id]}; change one")
        first_seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{name} holds no prompts; write one JSON object with id, category and messages on each line")
    return prompts


def _parse_line(line: str, where: str) -> BenchPrompt:
    row = _json_object(line, where)
    for key in ("id", "category"):
        if key not in row:
            raise PromptError(f'{where}: the key "{key}" is missing')
    unknown = sorted(row.keys() - HARMLESS - {"id", "category", "prompt", "messages"})
    if unknown:
        raise PromptError(f'{where}: unknown key "{unknown[0]}"; remove it, or put notes under "metadata"')
    if ("prompt" in row) == ("messages" in row):
        both = "both prompt and messages are" if "prompt" in row else "neither prompt nor messages is"
        raise PromptError(f"{where}: {both} given; give exactly one of them")
    identity, category = _text(row["id"], "id", where), _text(row["category"], "category", where)
    if "prompt" in row:
        return BenchPrompt(identity, category, _text(row["prompt"], "prompt", where))
    return BenchPrompt(identity, category, _messages(row["messages"], where))


def _json_object(line: str, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise PromptError(f"{where}: a key is given twice")
        return row

    try:
        row = json.loads(line, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError):
        raise PromptError(f"{where}: not usable JSON (nested too deeply or a number too long)") from None
    if not isinstance(row, dict):
        raise PromptError(f"{where}: each line must be a JSON object, not {type(row).__name__}")
    return row


def _text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f'{where}: "{key}" must be a string, not {type(value).__name__}')
    if not value.strip():
        raise PromptError(f'{where}: "{key}" is empty')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PromptError(f'{where}: "{key}" holds half a surrogate pair, which is no character')
    return value


def _messages(value: object, where: str) -> list[ChatMessage]:
    if not isinstance(value, list) or not value:
        raise PromptError(f'{where}: "messages" must be a list with at least one message')
    messages = [_message(item, f"messages[{i}]", where) for i, item in enumerate(value)]
    if messages[-1]["role"] != "user":
        raise PromptError(f'{where}: the last message must have the role "user", not "{messages[-1]["role"]}"')
    return messages


def _message(item: object, name: str, where: str) -> ChatMessage:
    if not isinstance(item, dict) or item.keys() != {"role", "content"}:
        raise PromptError(f"{where}: {name} must be an object with exactly the keys role and content")
    role = _text(item["role"], f"{name}.role", where)
    if role not in ROLES:
        raise PromptError(f"{where}: {name}.role is {role!r}; it must be one of {', '.join(ROLES)}")
    return ChatMessage(role=role, content=_text(item["content"], f"{name}.content", where))


def sample(prompts: list[BenchPrompt], n: int, seed: int) -> list[BenchPrompt]:
    """n prompts in a seeded order that takes turns over the categories, so any prefix is balanced.

    Raises UsageError when n is below 1 or above the number of prompts.
    """
    if not 1 <= n <= len(prompts):
        raise UsageError(f"cannot take {n} of {len(prompts)} prompts; choose 1 to {len(prompts)}")
    return list(_take_turns(prompts, random.Random(seed)))[:n]


def _take_turns(prompts: list[BenchPrompt], rng: random.Random) -> Iterable[BenchPrompt]:
    piles: dict[str, list[BenchPrompt]] = {}
    for prompt in prompts:
        piles.setdefault(prompt.category, []).append(prompt)
    queues = list(piles.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    while any(queues):
        yield from [queue.pop() for queue in queues if queue]
