"""What a checkpoint advises for generating: generation_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paceline.config import Keys, read_json

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What generation_config.json advises; None where it says nothing.

    sampling: names and values of SamplingParams, unchecked; none where it advises greedy decoding.
    """

    eos_ids: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    draft_tokens: int | None = None
    draft_confidence: float | None = None
    sampling: tuple[tuple[str, float], ...] = ()


def read_generation(folder: Path) -> GenerationDefaults:
    """generation_config.json, where there is one."""
    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationDefaults()
    keys = Keys(read_json(path), str(path))
    advised = [(name, keys.get(name)) for name in SAMPLING] if keys.get("do_sample") is True else []
    return GenerationDefaults(
        eos_ids=keys.ids("eos_token_id"),
        suppress=keys.ids("suppress_tokens"),
        draft_tokens=None if keys.get("num_assistant_tokens") is None else keys.size("num_assistant_tokens"),
        draft_confidence=keys.get("assistant_confidence_threshold"),
        sampling=tuple((name, value) for name, value in advised if value is not None),
    )
