"""Prompts to measure on: sets that ship, sets that are fetched, and the user's own files."""

from paceline.bench.prompts.load import load_prompts
from paceline.bench.prompts.prompt import BenchPrompt, sample
from paceline.bench.prompts.strict import parse_prompts

__all__ = ["BenchPrompt", "load_prompts", "parse_prompts", "sample"]
