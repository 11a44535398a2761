"""One prompt to measure on, what makes it valid, and a balanced choice of several."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from paceline.errors import PromptError, UsageError
from paceline.types import ChatMessage, Prompt

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One prompt to measure on; `id` is unique in its set, `category` is what results are grouped by."""

    id: str
    category: str
    prompt: Prompt


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object that `line` holds; anything else, or a key given twice, is a PromptError that names `where`."""

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


def checked_text(value: object, key: str, where: str) -> str:
    """`value` where it is a string with something to read; PromptError otherwise."""
    if not isinstance(value, str):
        raise PromptError(f'{where}: "{key}" must be a string, not {type(value).__name__}')
    if not value.strip():
        raise PromptError(f'{where}: "{key}" is empty')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PromptError(f'{where}: "{key}" holds half a surrogate pair, which is no character')
    return value


def checked_messages(value: object, where: str) -> list[ChatMessage]:
    """`value` where it is a list of messages that ends with the user's; PromptError otherwise."""
    if not isinstance(value, list) or not value:
        raise PromptError(f'{where}: "messages" must be a list with at least one message')
    messages = [_message(item, f"messages[{i}]", where) for i, item in enumerate(value)]
    if messages[-1]["role"] != "user":
        raise PromptError(f'{where}: the last message must have the role "user", not "{messages[-1]["role"]}"')
    return messages


def _message(item: object, name: str, where: str) -> ChatMessage:
    if not isinstance(item, dict) or item.keys() != {"role", "content"}:
        raise PromptError(f"{where}: {name} must be an object with exactly the keys role and content")
    role = checked_text(item["role"], f"{name}.role", where)
    if role not in ROLES:
        raise PromptError(f"{where}: {name}.role is {role!r}; it must be one of {', '.join(ROLES)}")
    return ChatMessage(role=role, content=checked_text(item["content"], f"{name}.content", where))


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
