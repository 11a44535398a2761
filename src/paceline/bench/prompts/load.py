"""Prompts by the name of a set or by a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from paceline.bench.prompts.fetch import fetched_prompts
from paceline.bench.prompts.prompt import BenchPrompt
from paceline.bench.prompts.readers import read_file
from paceline.bench.prompts.rows import Options, Reading
from paceline.bench.prompts.sets import EMBEDDED, SETS, shipped_prompts
from paceline.errors import PromptError, UsageError

SET_NAME = re.compile(r"(?P<name>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?::(?P<category>[^/\\]+))?")


def load_prompts(spec: str | Path | None, tell: Callable[[str], object] | None = None) -> list[BenchPrompt]:
    """The prompts of a set ("embedded", "mt-bench", "mt-bench:coding" for one category) or of a file.

    None is the embedded set; a file wins over a set of the same name. What was left out of a file, and why, goes
    to `tell`, by default to stderr. Raises PromptError or UsageError with the mend.
    """
    reading = read(spec)
    for note in reading.notes:
        (tell or _to_stderr)(f"{spec}: {note}")
    return reading.prompts


def read(spec: str | Path | None, options: Options | None = None) -> Reading:
    """The same with the kind of file and all notes."""
    text = EMBEDDED if spec is None else str(spec)
    path = Path(text).expanduser()
    match = SET_NAME.fullmatch(text)
    if match is None or path.is_file():
        return read_file(path, options)
    if match["name"] not in SETS:
        raise PromptError(f"{text!r} is neither a file nor a prompt set; there are the sets {', '.join(SETS)}")
    if options and options != Options():
        raise UsageError(f"--column and --turns are for files; {text} is a set")
    prompt_set, category = SETS[match["name"]], match["category"]
    prompts = shipped_prompts(prompt_set) if prompt_set.file else fetched_prompts(prompt_set)
    return Reading(prompts if category is None else _only(prompts, category, match["name"]), f"the set {text}")


def _only(prompts: list[BenchPrompt], category: str, name: str) -> list[BenchPrompt]:
    chosen = [prompt for prompt in prompts if prompt.category == category]
    if not chosen:
        there = ", ".join(dict.fromkeys(prompt.category for prompt in prompts))
        raise UsageError(f"{name} has no category {category!r}; there are {there}")
    return chosen


def _to_stderr(note: str) -> None:
    print(f"paceline: {note}", file=sys.stderr)
