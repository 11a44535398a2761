"""What a file of prompts asks for: how long they are, and what kind of text is written."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub

from paceline.advisor.commands import HUB
from paceline.advisor.priors import RANGES
from paceline.bench.prompts import BenchPrompt, load_prompts
from paceline.cache import PAGE
from paceline.errors import UsageError
from paceline.text import Text
from paceline.types import Prompt

CHARACTERS = 4  # of a token, in English prose and most code
CATEGORIES = {"maths": "math", "writing": "prose", **{name: name for name in RANGES}}
"""Names of prompt files and the kind of text that each is taken for."""
Count = Callable[[Prompt], int]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Lengths in tokens of the prompts of a file; category: what all of them are, or "mixed". words: said to people."""

    typical: int
    longest: int
    category: str
    words: str

    def context(self, output: int, asked: int | None) -> int:
        """Tokens that hold the longest prompt and its answer, in whole pages; UsageError if fewer were asked for."""
        needed = self.longest + output
        if asked is not None and asked < needed:
            raise UsageError(
                f"the longest prompt takes {self.longest} tokens and the answer {output}: a context of {asked} is too"
                f" short; give --context {needed} or more, or leave it out"
            )
        return asked or -(-needed // PAGE) * PAGE


def workload(path: Path) -> Workload:
    """Reads a prompt file as `paceline bench` takes it. Raises PromptError for what it refuses."""
    prompts = load_prompts(path)
    count, how = counter()
    lengths = [count(prompt.prompt) for prompt in prompts]
    typical, longest = round(statistics.mean(lengths)), max(lengths)
    said = f"{len(prompts)} prompts of {path.name}: {typical} tokens on average, {longest} the longest, counted {how}"
    return Workload(typical=typical, longest=longest, category=kind_of(prompts), words=said)


def counter() -> tuple[Count, str]:
    """How to count tokens, and in words: with a Gemma 4 tokenizer that is on this machine, or by characters."""
    text = tokenizer()
    if text is None:
        return by_characters, f"as characters / {CHARACTERS}, because no Gemma 4 tokenizer is on this machine"
    if text.template is None:
        return lambda prompt: len(text.encode(words(prompt))), "by Gemma 4's tokenizer, without a chat template"
    return lambda prompt: len(text.encode(prompt)), "by Gemma 4's tokenizer and chat template"


def tokenizer() -> Text | None:
    """The tokenizer of any size that was downloaded before; all sizes have the same."""
    for size in HUB.values():
        for name in (f"google/gemma-4-{size}-it", f"google/gemma-4-{size}-it-assistant"):
            found = huggingface_hub.try_to_load_from_cache(name, "tokenizer.json")
            if isinstance(found, str):
                return Text.from_folder(Path(found).parent)
    return None


def by_characters(prompt: Prompt) -> int:
    """Characters over four, at least one token."""
    return max(1, -(-len(words(prompt)) // CHARACTERS))


def words(prompt: Prompt) -> str:
    """All the text of a prompt: raw, or of each message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(part["content"] if isinstance(part, dict) else str(part) for part in prompt)


def kind_of(prompts: list[BenchPrompt]) -> str:
    """The one kind of text that all prompts are of, where it is a known one; else mixed."""
    found = {CATEGORIES.get(prompt.category, "mixed") for prompt in prompts}
    return found.pop() if len(found) == 1 else "mixed"


def from_prompts(path: Path, output: int, context: int | None, category: str | None) -> dict[str, Any]:
    """What a file of prompts says of a `Wish`; what was asked for by hand stands."""
    found = workload(path)
    return {
        "context": found.context(output, context), "prompt": found.typical, "workload": found.words,
        "category": category or found.category,
    }  # fmt: skip
