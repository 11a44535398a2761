"""Fetches prompt sets that may not be shipped, checks them against their hash, and keeps them in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from paceline.bench.prompts.prompt import BenchPrompt
from paceline.bench.prompts.sets import SETS, PromptSet
from paceline.bench.prompts.strict import parse_lines, write_prompts
from paceline.errors import PromptError, UsageError

TIMEOUT_S = 60
LIMIT_MIB = 64


def cache_path(prompt_set: PromptSet) -> Path:
    """Where a fetched set lies: under $XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "paceline" / "prompts" / f"{prompt_set.name}.jsonl"


def named(name: str) -> PromptSet:
    """The set of that name; UsageError with the names there are."""
    if name not in SETS:
        raise UsageError(f"no prompt set is called {name!r}; there are {', '.join(SETS)}")
    return SETS[name]


def fetch(prompt_set: PromptSet, given: Path | None = None) -> Path:
    """The cached file of a set, fetched unless it is there; `given` is a copy of the set's file at hand instead.

    Raises PromptError where there is no network, or the file is not the one that was meant.
    """
    if prompt_set.recipe is None:
        raise UsageError(f"{prompt_set.name} ships with Paceline; there is nothing to fetch")
    path = cache_path(prompt_set)
    if not path.exists():
        data = _download(prompt_set.recipe.url) if given is None else _read(given)
        prompts = prompt_set.recipe.prompts(data, str(given or prompt_set.recipe.url.rsplit("/", 1)[-1]))
        write_prompts(prompts, path, f"{prompt_set.source} ({prompt_set.licence})")
    return path


def fetched_prompts(prompt_set: PromptSet) -> list[BenchPrompt]:
    """The prompts of a set that was fetched before; nothing is downloaded without being asked for."""
    path = cache_path(prompt_set)
    if not path.exists():
        raise PromptError(f"the set {prompt_set.name} does not ship with Paceline because of its licence"
                          f" ({prompt_set.licence}); `paceline prompts fetch {prompt_set.name}` gets it")  # fmt: skip
    return parse_lines(enumerate(path.read_text("utf-8").split("\n"), start=1), str(path))


def _download(url: str) -> bytes:
    import urllib.request  # slow to import, and `paceline --help` comes past here

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read((LIMIT_MIB << 20) + 1)
    except OSError as error:  # URLError is one
        reason = getattr(error, "reason", None) or error
        raise PromptError(f"cannot fetch {url} ({reason}); get the file on another machine and give it with --from"
                          ) from None  # fmt: skip
    if len(data) > LIMIT_MIB << 20:
        raise PromptError(f"{url} is longer than {LIMIT_MIB} MiB, so it is not the file that was meant")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from None
