"""What readers hand on: rows that might be prompts, what was set aside, and the set gathered from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from paceline.bench.prompts.prompt import BenchPrompt
from paceline.errors import PromptError, UsageError
from paceline.types import Prompt

TURNS = ("first", "last", "all")
# They decide the text, so a benchmark that took them over unasked would compare unlike things.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "max_tokens", "max_completion_tokens",
    "max_output_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "response_format",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """How to read a file: the column that holds the prompt, and which turns of a chat become prompts."""

    column: str | None = None
    turns: str = "last"

    def __post_init__(self) -> None:
        if self.turns not in TURNS:
            raise UsageError(f"--turns must be one of {', '.join(TURNS)}, not {self.turns!r}")


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object or table row of a file; `where` names its place, as "mine.csv:7"."""

    where: str
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt as its file gives it; `notes` and `settings` are for the user to see, not for the benchmark."""

    prompt: Prompt
    id: str | None = None
    category: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is no usable prompt, and why, as "an image"."""

    reason: str


@dataclass(frozen=True)
class Reading:
    """The prompts of a file, the kind of file it was, and what became of the rest, in sentences."""

    prompts: list[BenchPrompt]
    kind: str
    notes: list[str] = field(default_factory=list)


def fields(value: object) -> dict[str, Any]:
    """`value` where it is an object, else an empty one: exports leave out and null what they do not need."""
    return value if isinstance(value, dict) else {}


def settings_of(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The sampling parameters that `row` sets, with their values as JSON."""
    return tuple((key, json.dumps(row[key])[:40]) for key in SAMPLING if row.get(key) is not None)


def gather(items: Iterable[Candidate | Skipped], name: str, category: str) -> tuple[list[BenchPrompt], list[str]]:
    """Prompts with an id and a category each, without duplicates, and notes on all that was left out."""
    prompts: dict[str, BenchPrompt] = {}
    taken: set[str] = set()
    skipped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    settings: Counter[tuple[str, str]] = Counter()
    for number, item in enumerate(items, start=1):
        if isinstance(item, Skipped):
            skipped[item.reason] += 1
            continue
        noted.update(item.notes)
        settings.update(item.settings)
        key = json.dumps(item.prompt, sort_keys=True)
        if key not in prompts:
            identity = _unused(item.id or f"{name}-{number}", taken)
            prompts[key] = BenchPrompt(identity, item.category or category, item.prompt)
        else:
            noted["dropped: the same prompt again"] += 1
    notes = _sentences(skipped, noted, settings)
    if not prompts:
        raise PromptError(f"{name} holds no prompts{': ' + '; '.join(notes) if notes else ''}")
    return list(prompts.values()), notes


def _unused(identity: str, taken: set[str]) -> str:
    number, name = 1, identity
    while name in taken:
        number += 1
        name = f"{identity}-{number}"
    taken.add(name)
    return name


def _sentences(skipped: Counter[str], noted: Counter[str], settings: Counter[tuple[str, str]]) -> list[str]:
    notes = [f"{count} skipped: {reason}" for reason, count in skipped.most_common()]
    notes += [f"{count} {note}" for note, count in noted.most_common()]
    values: dict[str, list[str]] = {}
    for (key, value), count in settings.most_common():
        values.setdefault(key, []).append(f"{value} ({count} times)")
    notes += [f"{key} is set to {_few(found)} in the file, and not used here" for key, found in values.items()]
    return notes


def _few(values: list[str]) -> str:
    return ", ".join(values[:3]) + (f" and {len(values) - 3} more values" if len(values) > 3 else "")
