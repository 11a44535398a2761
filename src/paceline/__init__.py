"""Gemma 4 with its multi-token-prediction drafters: the same text, faster, and an honest number for how much."""

__version__ = "0.1.0"
