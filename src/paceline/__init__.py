"""Gemma 4 with its multi-token-prediction drafters: the same text, faster, and an honest number for how much."""

from paceline.errors import CheckpointError, ConfigError, PacelineError, PromptError, RollbackError, UsageError
from paceline.llm import LLM
from paceline.types import ChatMessage, Completion, Prompt, SamplingParams, Stats, TokenEvent

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
    "UsageError",
]
