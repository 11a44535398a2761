"""Fills in every "auto", and keeps the reason of each choice: `paceline explain` prints them, benchmarks store them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from paceline.cache import MAX_TENTATIVE
from paceline.config import GenerationDefaults, TextConfig, read_drafter, read_generation, read_target
from paceline.errors import ConfigError, UsageError
from paceline.hub import find_drafter, resolve_checkpoint
from paceline.models.mtp import check_pair

DEFAULT_K = 4


@dataclass(frozen=True)
class Decision:
    """One choice: what was decided, the value, and why."""

    what: str
    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the caller asked for; "auto" leaves the choice to `resolve`.

    drafter: "auto", None (plain decoding), "ngram", or an MTP checkpoint (folder or hub name).
    """

    target: str
    drafter: str | None = "auto"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    draft_position: str = "n"
    min_confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Every choice made. `drafter` is a folder, "ngram" or None; `k` the draft length when a call names none."""

    target: Path
    drafter: Path | str | None
    backend: str
    k: int
    draft_position: str
    min_confidence: float
    generation: GenerationDefaults
    decisions: tuple[Decision, ...]


def resolve(options: Options) -> Resolved:
    """Finds (and if need be downloads) the checkpoints and settles every open choice. Loads no weights."""
    target = resolve_checkpoint(options.target)
    decisions = [Decision("target", str(target), f"asked for as {options.target!r}")]
    config = read_target(target)
    generation = _generation(target, config.vocab)
    drafter = _drafter(options, config, decisions)
    _device(options, decisions)
    backend = _backend(options, decisions)
    _dtype(options, backend, decisions)
    k = _draft_length(drafter, decisions)
    return Resolved(
        target=target, drafter=drafter, backend=backend, k=k, draft_position=options.draft_position,
        min_confidence=_confidence(options, drafter, decisions), generation=generation, decisions=tuple(decisions),
    )  # fmt: skip


def _generation(target: Path, vocab: int) -> GenerationDefaults:
    generation = read_generation(target)
    wrong = [i for i in (*generation.eos_ids, *generation.suppress) if i >= vocab]
    if wrong:
        raise ConfigError(f"{target}/generation_config.json names token {wrong[0]}, outside the vocabulary of {vocab}")
    return generation


def _drafter(options: Options, config: TextConfig, decisions: list[Decision]) -> Path | str | None:
    if options.draft_position not in ("n", "n-1"):
        raise UsageError(f"the drafter's position is 'n' or 'n-1', not {options.draft_position!r}")
    name, why = options.drafter, "asked for"
    if name == "auto":
        found = find_drafter(options.target)
        name, why = (found.name, found.why) if found else (None, "no -assistant checkpoint belongs to this target")
    if name is None or name == "ngram":
        decisions.append(Decision("drafter", name or "none", why))
        return name
    folder = resolve_checkpoint(name)
    check_pair(read_drafter(folder), config)  # a wrong drafter is refused before gigabytes are read
    decisions.append(Decision("drafter", str(folder), why))
    return folder


def _device(options: Options, decisions: list[Decision]) -> None:
    if options.device not in ("auto", "cpu"):
        raise UsageError(f"device {options.device!r} is not supported yet; this version runs on the CPU: use 'cpu'")
    decisions.append(Decision("device", "cpu", "the only device of this version"))


def _backend(options: Options, decisions: list[Decision]) -> str:
    if options.backend not in ("auto", "cpu", "reference"):
        raise UsageError(f"unknown backend {options.backend!r}; choose 'auto', 'cpu' or 'reference'")
    name, why = options.backend, "asked for"
    if name == "auto":
        compiled = importlib.util.find_spec("numba") is not None
        name = "cpu" if compiled else "reference"
        why = (
            "Numba kernels: bit-equal rows for any row count"
            if compiled
            else "Numba is missing, so plain PyTorch: slower, and equal text with drafting only up to rounding"
        )
    decisions.append(Decision("backend", name, why))
    return name


def _dtype(options: Options, backend: str, decisions: list[Decision]) -> None:
    if options.dtype not in ("auto", "stored"):
        raise UsageError(f"dtype {options.dtype!r} is not supported; weights stay as stored: use 'auto'")
    decisions.append(Decision("dtype", "weights as stored, sums in fp32", "bf16 weights cost half the memory traffic"))


def _confidence(options: Options, drafter: Path | str | None, decisions: list[Decision]) -> float:
    value, why = options.min_confidence, "asked for"
    if value is None and isinstance(drafter, Path):
        value, why = read_generation(drafter).draft_confidence, "assistant_confidence_threshold of the drafter"
    if value is None:
        value, why = 0.0, "nothing advises to stop drafting early"
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise UsageError(f"the lowest confidence to draft at must lie in [0, 1), not {value!r} ({why})")
    decisions.append(Decision("min_confidence", f"{value:g}", why))
    return float(value)


def _draft_length(drafter: Path | str | None, decisions: list[Decision]) -> int:
    k, why = DEFAULT_K, "the recommended length for most Gemma 4 drafters"
    if drafter is None:
        k, why = 0, "there is no drafter"
    elif isinstance(drafter, Path):
        advised = read_generation(drafter).draft_tokens
        if advised is not None:
            k = min(advised, MAX_TENTATIVE - 1)
            why = f"num_assistant_tokens is {advised} in the drafter's generation_config.json"
    decisions.append(Decision("k", str(k), why))
    return k
