"""Tables and plain JSON Lines: which column is the prompt, and how its cell becomes one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from paceline.bench.prompts.files import whole_text
from paceline.bench.prompts.messages import clean, prompts_of, said
from paceline.bench.prompts.prompt import checked_text
from paceline.bench.prompts.rows import SAMPLING, Candidate, Options, Row, Skipped, settings_of
from paceline.errors import PromptError, UsageError

COLUMNS = ("messages", "turns", "prompt", "question", "instruction", "query")
IDS = ("id", "question_id", "task_id", "prompt_id")
# Alpaca and Dolly keep what an instruction is about in a column beside it.
BESIDE = {"instruction": ("input", "context")}
TURNS_LEFT = "with later turns left out: they need the model's own answers"
MAX_CELL = 1 << 25


def choose_column(first: Row, options: Options) -> str:
    """The column that holds the prompts: the one asked for, or the only one with a name that says so."""
    keys = list(first.value)
    if options.column is not None:
        if options.column not in keys:
            raise UsageError(f"{first.where}: there is no column {options.column!r}; there are {', '.join(keys)}")
        return options.column
    found = [key for key in COLUMNS if key in keys]
    if len(found) == 1:
        return found[0]
    if found:
        raise PromptError(f"{first.where}: {' and '.join(found)} could each be the prompt; choose one with --column")
    raise PromptError(f"{first.where}: none of {', '.join(COLUMNS)} is among the columns ({', '.join(keys)[:200]});"
                      " name the one that holds the prompt with --column")  # fmt: skip


def mapping_note(first: Row, column: str) -> str:
    """Which columns are used for what, in a sentence."""
    beside = [key for key in BESIDE.get(column, ()) if key in first.value]
    used = {column, *beside, *IDS, *SAMPLING, "category"}
    rest = [key for key in first.value if key not in used]
    left = f"; not used: {', '.join(rest)}" if rest else ""
    return f'prompts are taken from "{column}"{"".join(f" and {key}" for key in beside)}{left}'


def read_row(row: Row, options: Options) -> Iterator[Candidate | Skipped]:
    """The prompts of one row; `options.column` must be chosen. A cell of another kind than text is a PromptError."""
    column = str(options.column)
    where = row.where
    if column not in row.value:
        raise PromptError(f'{where}: the column "{column}" is missing, which the first row has; split the file')
    value = row.value[column]
    notes: tuple[str, ...] = ()
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        notes = (TURNS_LEFT,) if len(value) > 1 else ()
        value = value[0]
    if isinstance(value, list):
        found: Iterable[Any] = prompts_of([said(message, where) for message in value], options.turns)
    else:
        text = "\n\n".join([checked_text(value, column, where), *_beside(row, column)])
        found = [[{"role": "user", "content": text}]]
    for prompt in found:
        yield prompt if isinstance(prompt, Skipped) else _candidate(row, prompt, notes)


def _beside(row: Row, column: str) -> list[str]:
    texts = [row.value.get(key) for key in BESIDE.get(column, ())]
    return [clean(text, row.where) for text in texts if isinstance(text, str) and text.strip()]


def _candidate(row: Row, prompt: Any, notes: tuple[str, ...]) -> Candidate:
    identity = next((str(row.value[key]) for key in IDS if row.value.get(key) not in (None, "")), None)
    category = row.value.get("category")
    category = category if isinstance(category, str) and category.strip() else None
    return Candidate(prompt, identity, category, settings_of(row.value), notes)


def table_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header, split at commas, semicolons or tabs; lopsided rows are refused."""
    csv.field_size_limit(MAX_CELL)
    text = whole_text(path)
    header = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _header(cells, f"{path}:{reader.line_num}")
                continue
            if len(cells) != len(names):
                raise PromptError(f"{path}:{reader.line_num}: {len(cells)} cells under {len(names)} headings; quote"
                                  " cells that hold separators or line breaks")  # fmt: skip
            yield Row(f"{path}:{reader.line_num}", dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise PromptError(f"{path}:{reader.line_num}: not a CSV table ({error})") from None


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not all(names):
        raise PromptError(
            f"{where}: the heading {twice[0] if twice else ''!r} is {'given twice' if twice else 'empty'}"
        )
    if not any(name in COLUMNS for name in names) and len(names) == 1 and len(names[0].split()) > 3:
        raise PromptError(f"{where}: neither JSON nor a table with headings; give JSON Lines, or CSV whose first line"
                          " names its columns (prompt, and if you like id and category)")  # fmt: skip
    return names
