"""Reads a prompt file of any known kind; the kind is told by what the file holds, never by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import paceline.bench.prompts.chats as chats
import paceline.bench.prompts.columns as columns
import paceline.bench.prompts.files as files
from paceline.bench.prompts.prompt import json_object
from paceline.bench.prompts.requests import body_of, request
from paceline.bench.prompts.rows import Candidate, Options, Reading, Row, Skipped, gather
from paceline.bench.prompts.strict import parse_lines
from paceline.errors import PromptError


@dataclass(frozen=True)
class Shape:
    """A kind of row: its name for the user, how it is told, how it is read, the category of rows that give none."""

    name: str
    fits: Callable[[dict[str, Any]], bool]
    read: Callable[[Row, Options], Iterable[Candidate | Skipped]]
    category: str


def is_own(value: dict[str, Any]) -> bool:
    """Whether a row is meant as a line of Paceline's own files."""
    return {"id", "category"} <= value.keys() and ("prompt" in value or "messages" in value) and "model" not in value


def _has_versions(value: dict[str, Any]) -> bool:
    messages = value.get("messages")
    return isinstance(messages, list) and bool(messages) and isinstance(messages[0], dict) and "versions" in messages[0]


def _has_conversation(value: dict[str, Any]) -> bool:
    return "conversations" in value or isinstance(value.get("conversation"), list)


PLAIN = Shape("rows with columns", lambda value: True, columns.read_row, "uncategorised")
SHAPES = (
    Shape("a ChatGPT export", lambda value: "mapping" in value, chats.chatgpt, "chat"),
    Shape("a Claude export", lambda value: "chat_messages" in value, chats.claude, "chat"),
    Shape("an Open WebUI export", lambda value: isinstance(value.get("chat"), dict), chats.open_webui, "chat"),
    Shape("an LM Studio conversation", _has_versions, chats.lm_studio, "chat"),
    Shape("lists of from and value", _has_conversation, chats.sharegpt, "chat"),
    Shape("a log of requests", lambda value: body_of(value) is not None, request, "requests"),
    PLAIN,
)  # fmt: skip


def read_file(path: Path, options: Options | None = None) -> Reading:
    """Reads the prompts of a file; PromptError with file, line and mend for what cannot be read.

    Known are Paceline's own JSON Lines; JSON Lines, JSON and CSV with a column for the prompt; chat exports; and logs
    of OpenAI-style requests. The reading says which it was, and what was left out and why.
    """
    options = options or Options()
    kind = files.kind_of(path)
    rows = {"lines": _line_rows, "document": _document_rows, "table": columns.table_rows}[kind](path)
    first = next(rows, None)
    if first is None:
        raise PromptError(f"{path} holds no prompts; write one JSON object with id, category and messages on each line")
    if kind == "lines" and is_own(first.value) and options.column is None:
        prompts = parse_lines(files.lines(path), str(path))
        own, notes = gather((Candidate(p.prompt, p.id, p.category) for p in prompts), str(path), "")
        return Reading(own, "Paceline's own JSON Lines", notes)
    return _read(first, rows, options, path)


def _read(first: Row, rest: Iterator[Row], options: Options, path: Path) -> Reading:
    shape = PLAIN if options.column else _shape(first)
    stated: list[str] = []
    if shape is PLAIN:
        options = replace(options, column=columns.choose_column(first, options))
        stated = [columns.mapping_note(first, str(options.column))]

    def items() -> Iterator[Candidate | Skipped]:
        for row in chain([first], rest):
            if shape is not PLAIN and _shape(row) is not shape:
                raise PromptError(
                    f"{row.where}: {_shape(row).name} in a file that began as {shape.name}; split the file"
                )
            yield from shape.read(row, options)

    prompts, notes = gather(items(), path.stem, shape.category)
    return Reading(prompts, shape.name, stated + notes)


def _shape(row: Row) -> Shape:
    return next(shape for shape in SHAPES if shape.fits(row.value))


def _line_rows(path: Path) -> Iterator[Row]:
    for number, line in files.lines(path):
        yield Row(f"{path}:{number}", json_object(line, f"{path}:{number}"))


def _document_rows(path: Path) -> Iterator[Row]:
    value = files.document(path)
    values = value if isinstance(value, list) else [value]
    if values and all(isinstance(item, dict) and "role" in item and "content" in item for item in values):
        values = [{"messages": values}]
    for number, item in enumerate(values, start=1):
        if not isinstance(item, dict):
            raise PromptError(f"{path}, entry {number}: must be a JSON object, not {type(item).__name__}")
        yield Row(f"{path}, entry {number}", item)
