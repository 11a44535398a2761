"""Gemma 4 with its multi-token-prediction drafters: the same text, faster, and an honest number for how much."""

from typing import TYPE_CHECKING, Any

from paceline.errors import CheckpointError, ConfigError, PacelineError, PromptError, RollbackError, UsageError
from paceline.types import ChatMessage, Completion, Prompt, SamplingParams, Stats, TokenEvent, TokenLogprobs

if TYPE_CHECKING:
    from paceline.llm import LLM

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "ChatMessage",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "PacelineError",
    "Prompt",
    "PromptError",
    "RollbackError",
    "SamplingParams",
    "Stats",
    "TokenEvent",
    "TokenLogprobs",
    "UsageError",
]


def __getattr__(name: str) -> Any:
    """`LLM` on first use: it brings torch, which `paceline --help` need not wait for."""
    if name != "LLM":
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    from paceline.llm import LLM

    return LLM
