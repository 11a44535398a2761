"""Describes a set of prompts: categories, lengths, scripts, and beginnings that a prefix cache would serve."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paceline.bench.prompts.prompt import BenchPrompt
from paceline.errors import UsageError

SHARED = 200  # characters that two prompts must begin with alike to count as sharing a beginning
LETTERS = 400  # letters of a prompt that are looked at to tell its script


@dataclass(frozen=True, slots=True)
class Lengths:
    """Least, median, 90th percentile, greatest and sum of some lengths."""

    least: int
    median: int
    p90: int
    greatest: int
    total: int


@dataclass(frozen=True, slots=True)
class Description:
    """What `describe` found; tokens are None without a tokenizer.

    `scripts` counts prompts by their commonest script, `with_history` those in which the assistant has spoken,
    `shared_beginning` those that begin as another does.
    """

    prompts: int
    categories: dict[str, int]
    characters: Lengths
    tokens: Lengths | None
    scripts: dict[str, int]
    with_history: int
    shared_beginning: int

    def record(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def describe(prompts: list[BenchPrompt], count_tokens: Callable[[str], int] | None = None) -> Description:
    """Counts; `count_tokens` gives the tokens of a text. Lengths are of the messages' text, without a chat template."""
    texts = [text_of(prompt) for prompt in prompts]
    beginnings = Counter(text[:SHARED] for text in texts if len(text) >= SHARED)
    return Description(
        prompts=len(prompts),
        categories=dict(Counter(prompt.category for prompt in prompts).most_common()),
        characters=lengths([len(text) for text in texts]),
        tokens=lengths([count_tokens(text) for text in texts]) if count_tokens else None,
        scripts=dict(Counter(map(_script, texts)).most_common()),
        with_history=sum(map(_has_history, prompts)),
        shared_beginning=sum(count for count in beginnings.values() if count > 1),
    )


def text_of(prompt: BenchPrompt) -> str:
    """All that the prompt's messages say, one after another."""
    if isinstance(prompt.prompt, str):
        return prompt.prompt
    return "\n\n".join(item["content"] for item in prompt.prompt if not isinstance(item, int))


def _has_history(prompt: BenchPrompt) -> bool:
    return any(item["role"] == "assistant" for item in prompt.prompt if isinstance(item, dict))


def lengths(values: list[int]) -> Lengths:
    """Of at least one value; percentiles are values that occur (nearest rank)."""
    ordered = sorted(values)

    def rank(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Lengths(ordered[0], rank(0.5), rank(0.9), ordered[-1], sum(ordered))


def _script(text: str) -> str:
    """The commonest script among a text's first letters, by the names of its characters; "none" without letters."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"  # most texts, told without looking up names
    letters = [character for character in text if character.isalpha()][:LETTERS]
    names = Counter(unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0].capitalize() for letter in letters)
    return names.most_common(1)[0][0] if names else "none"


def token_counter(folder: Path) -> Callable[[str], int]:
    """Counts tokens with the tokenizer.json in (or at) `folder`; UsageError where there is none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UsageError(f"no tokenizer.json at {folder}; give a checkpoint's folder")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise UsageError(f"{path} is no tokenizer: {error}") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
