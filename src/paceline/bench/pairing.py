"""Which target and drafter an arm runs, and whether they belong together: from its facts, names and config files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from paceline.bench.arms import Facts

SIZE = re.compile(r"gemma-?4-?(e2b|e4b|12b|26b-a4b|31b)", re.IGNORECASE)
TARGET_FLAGS = ("--model", "--model-path", "-m")
DRAFTER_FLAGS = (
    "-md", "--model-draft", "--spec-draft-model", "--draft-model", "--speculative-draft-model-path", "--spec-model",
    "--speculative-model",
)  # fmt: skip
CONFIG_FLAGS = ("--speculative-config", "-sc")


def command_of(facts: Facts) -> list[str]:
    """The words of the command line that started the arm, without `-m module`; empty where it is not known."""
    command = facts.details.get("command", ())
    words = _split(command) if isinstance(command, str) else [str(word) for word in command]
    return words[:1] + words[3:] if words[1:2] == ["-m"] and "python" in words[0] else words


def _split(command: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(command)
    return command.split()


def after_flag(words: Sequence[str], flags: Sequence[str]) -> str | None:
    """The value of the first of these flags that is there, written after it or with "="."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in flags and (equals or i + 1 < len(words)):
            return value if equals else words[i + 1]
    return None


def decision(facts: Facts, what: str) -> str | None:
    """What Paceline settled on, without its reason."""
    told = facts.details.get("decisions")
    value = told.get(what) if isinstance(told, Mapping) else None
    return value.rsplit(" (", 1)[0] if isinstance(value, str) else None


def speculative_config(words: Sequence[str]) -> dict[str, Any]:
    """vLLM's --speculative-config; empty without one."""
    with suppress(ValueError):
        config = json.loads(after_flag(words, CONFIG_FLAGS) or "{}")
        return config if isinstance(config, dict) else {}
    return {}


def pair_of(facts: Facts) -> tuple[str | None, str | None]:
    """Target and drafter of an arm, as folders or names; None for what is not known."""
    words = command_of(facts)
    served = words[words.index("serve") + 1] if "serve" in words[:-1] else None
    target = facts.details.get("target") or decision(facts, "target") or after_flag(words, TARGET_FLAGS) or served
    told = facts.details.get("drafter") or decision(facts, "drafter") or after_flag(words, DRAFTER_FLAGS)
    drafter = told or speculative_config(words).get("model")
    return str(target or facts.model) or None, None if drafter in (None, "none", "ngram") else str(drafter)


def mismatch(target: str, drafter: str) -> tuple[bool | None, str]:
    """Whether a drafter is another size's, and how that is known; None where neither names nor files tell."""
    configs = read_config(target), read_config(drafter)
    if configs[0] and configs[1] and "backbone_hidden_size" in configs[1]:
        return _by_config(*configs)
    sizes = [match and match.group(1).lower() for match in map(SIZE.search, (target, drafter))]
    if None in sizes:
        return None, "neither config files nor names tell their sizes"
    if sizes[0] != sizes[1]:
        return True, f"the target is a {sizes[0]} and the drafter a {sizes[1]}'s, by their names"
    tuned = ["qat" in name.lower() for name in (target, drafter)]
    if tuned[0] != tuned[1]:
        return None, "one of target and drafter is of the QAT release and the other is not, by their names"
    return False, f"both are {sizes[0]}, by their names"


def _by_config(target: dict[str, Any], drafter: dict[str, Any]) -> tuple[bool, str]:
    text, own = target.get("text_config", target), drafter.get("text_config", drafter)
    wide = text.get("hidden_size"), drafter["backbone_hidden_size"]
    if wide[0] != wide[1]:
        return True, f"the drafter's backbone_hidden_size is {wide[1]}, the target's hidden_size {wide[0]}"
    words = text.get("vocab_size"), own.get("vocab_size")
    if words[0] != words[1]:
        return True, f"the drafter's vocab_size is {words[1]}, the target's {words[0]}"
    return False, f"hidden size {wide[0]} and vocabulary {words[0]} agree"


def read_config(folder: str) -> dict[str, Any]:
    """config.json of a folder on this machine; empty where there is none."""
    with suppress(OSError, ValueError):
        config = json.loads((Path(folder).expanduser() / "config.json").read_text("utf-8"))
        return config if isinstance(config, dict) else {}
    return {}
