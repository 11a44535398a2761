"""Fills in every "auto", and keeps the reason of each choice: `paceline explain` prints them, benchmarks store them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from paceline.available import check_device
from paceline.available import obstacle as missing_device
from paceline.cache import MAX_TENTATIVE, PAGE
from paceline.config import TextConfig, read_drafter, read_target
from paceline.draft_weights import int8_parts
from paceline.errors import CheckpointError, ConfigError, UsageError
from paceline.generation import GenerationDefaults, read_generation
from paceline.hub import find_drafter, resolve_checkpoint
from paceline.models.mtp import check_pair
from paceline.steering import LONGEST
from paceline.types import AUTO
from paceline.weights import Header, drafter_headers, matrix_dtypes, target_headers

DEFAULT_K = 4
MOST_SEQUENCES = 64
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Decision:
    """One choice: what was decided, the value, and why."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class _Pair:
    """The checkpoints found."""

    target: Path
    config: TextConfig
    drafter: Path | str | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the caller asked for; "auto" leaves the choice to `resolve`.

    drafter: "auto", None (plain decoding), "ngram", or an MTP checkpoint (folder or hub name).
    On a GPU: context tokens are set aside for each of so many sequences; draft_weights "int8" halves what the drafter
    reads, "int8-head" what its dense head does (guesses may change, the text cannot).
    """

    target: str
    drafter: str | None = "auto"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    draft_position: str = "n"
    min_confidence: float | None = None
    context: int | None = None
    sequences: int | None = None
    draft_weights: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Every choice made. `drafter` is a folder, "ngram" or None; `k` the fixed draft length that is advised.

    min_confidence holds for fixed draft lengths, and asked_confidence, which a caller named, for all.
    dtype: of matrices on a GPU; None keeps each as it is stored. int8: whether the drafter's (head, body) are in int8.
    """

    target: Path
    drafter: Path | str | None
    backend: str
    dtype: torch.dtype | None
    context: int | None
    sequences: int | None
    int8: tuple[bool, bool]
    k: int
    draft_position: str
    min_confidence: float
    asked_confidence: float
    generation: GenerationDefaults
    decisions: tuple[Decision, ...]

    @property
    def auto(self) -> bool:
        """Whether the controller chooses draft lengths when a call names none."""
        return self.drafter is not None


def resolve(options: Options) -> Resolved:
    """Finds (and if need be downloads) the checkpoints and settles every open choice. Loads no weights."""
    target = resolve_checkpoint(options.target)
    decisions = [Decision("target", str(target), f"asked for as {options.target!r}")]
    config = read_target(target)
    generation = _generation(target, config.vocab)
    drafter = _drafter(options, config, decisions)
    pair = _Pair(target, config, drafter)
    device = _device(options, pair, decisions)
    backend = _backend(options, device, decisions)
    dtype = _dtype(options, pair, device, decisions)
    k = _draft_length(drafter, decisions)
    context = _set_aside("context", options.context, (PAGE, config.max_positions), device, decisions)
    sequences = _set_aside("sequences", options.sequences, (1, MOST_SEQUENCES), device, decisions)
    return Resolved(
        target=target, drafter=drafter, backend=backend, dtype=dtype, k=k, context=context,
        draft_position=options.draft_position, sequences=sequences,
        int8=_draft_weights(options, drafter, device, decisions), generation=generation,
        min_confidence=_confidence(options, drafter, device, decisions),
        asked_confidence=options.min_confidence or 0.0, decisions=tuple(decisions),
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


def _device(options: Options, pair: _Pair, decisions: list[Decision]) -> str:
    if options.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {options.device!r}; choose 'auto', 'cpu' or 'cuda'")
    if options.device == "cuda" or (options.device == "auto" and options.backend == "cuda"):
        name, why = "cuda", f"asked for: {check_device()}"
        if pair.drafter == "ngram":
            raise UsageError("the n-gram drafter runs on the CPU only; use device 'cpu' or another drafter")
    elif obstacle := _obstacle(options, pair):
        name, why = "cpu", obstacle
    else:
        name, why = "cuda", f"a GPU is there: {check_device()}"
    decisions.append(Decision("device", name, why))
    return name


def _obstacle(options: Options, pair: _Pair) -> str:
    """Why "auto" does not mean the GPU; empty where it does."""
    if options.device == "cpu":
        return "asked for"
    if options.backend in ("cpu", "reference"):
        return f"the backend {options.backend!r} was asked for"
    if why := missing_device():
        return why
    if pair.drafter == "ngram":
        return "the n-gram drafter runs there only"
    halves = matrix_dtypes(target_headers(pair.target, pair.config)).get(torch.float16)
    return f"the GPU engine has no fp16, in which {halves.file.name} is stored" if halves else ""


def _backend(options: Options, device: str, decisions: list[Decision]) -> str:
    if options.backend not in ("auto", "cpu", "reference", "cuda"):
        raise UsageError(f"unknown backend {options.backend!r}; choose 'auto', 'cpu', 'reference' or 'cuda'")
    name, why = options.backend, "asked for"
    if name != "auto" and (name == "cuda") != (device == "cuda"):
        raise UsageError(f"backend {name!r} does not run on device {device!r}; leave one of them 'auto'")
    if name == "auto" and device == "cuda":
        name, why = "cuda", "Triton kernels: bit-equal rows for any row count and batch"
    elif name == "auto":
        compiled = importlib.util.find_spec("numba") is not None
        name = "cpu" if compiled else "reference"
        why = (
            "Numba kernels: bit-equal rows for any row count"
            if compiled
            else "Numba is missing, so plain PyTorch: slower, and equal text with drafting only up to rounding"
        )
    decisions.append(Decision("backend", name, why))
    return name


def _set_aside(
    name: str, value: int | None, limits: tuple[int, int], device: str, decisions: list[Decision]
) -> int | None:
    """What a GPU sets aside for texts; None leaves it to the memory that is free when the model is loaded."""
    low, high = limits
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise UsageError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    if device == "cuda":
        why = "settled at load, by the memory that is free" if value is None else "asked for"
        decisions.append(Decision(name, "auto" if value is None else str(value), why))
    elif value is not None:
        raise UsageError(f"{name} is set aside on a GPU only; leave it out on device 'cpu'")
    return value


def _draft_weights(
    options: Options, drafter: Path | str | None, device: str, decisions: list[Decision]
) -> tuple[bool, bool]:
    value = options.draft_weights
    int8 = int8_parts(value, read_drafter(drafter) if isinstance(drafter, Path) else None)
    if any(int8) and device != "cuda":
        raise UsageError(f"draft_weights {value!r} is for the GPU engine; leave it 'auto' on the CPU")
    if device == "cuda" and drafter is not None:
        why = "asked for" if value != "auto" else "as stored"
        decisions.append(Decision("draft_weights", value if any(int8) else "stored", why))
    return int8


def _dtype(options: Options, pair: _Pair, device: str, decisions: list[Decision]) -> torch.dtype | None:
    """What matrices are kept in on a GPU, or None: on the CPU each stays as it is stored."""
    if options.dtype not in ("auto", "stored"):
        raise UsageError(f"dtype {options.dtype!r} is not supported; weights stay as stored: use 'auto'")
    if device != "cuda":
        why = "bf16 weights cost half the memory traffic"
        decisions.append(Decision("dtype", "weights as stored, sums in fp32", why))
        return None
    stored = matrix_dtypes(target_headers(pair.target, pair.config))
    dtype = torch.float32 if torch.float32 in stored else torch.bfloat16
    _check_stored(stored, dtype)
    if isinstance(pair.drafter, Path):
        _check_stored(matrix_dtypes(drafter_headers(pair.drafter)), dtype)
    mixed = "; its bf16 matrices are widened, which changes no number" if len(stored) > 1 else ""
    name = NAMES[dtype]
    decisions.append(Decision("dtype", f"{name}, sums in fp32", f"the target is stored in {name}{mixed}"))
    return dtype


def _check_stored(stored: dict[torch.dtype, Header], dtype: torch.dtype) -> None:
    """Refuses matrices that `dtype` would round; what is narrower is widened, and keeps its values."""
    for found, header in stored.items():
        if found not in (dtype, torch.bfloat16):
            raise CheckpointError(
                f"{header.file}: {header.stored_name} is stored in {NAMES[found]}, which the GPU engine would have to"
                f" round to {NAMES[dtype]}; use device 'cpu', or convert the checkpoint"
            )


def _confidence(options: Options, drafter: Path | str | None, device: str, decisions: list[Decision]) -> float:
    value, why = options.min_confidence, "asked for"
    if value is None and isinstance(drafter, Path):
        value, why = read_generation(drafter).draft_confidence, "assistant_confidence_threshold of the drafter"
    if value is None:
        value, why = 0.0, "nothing advises to stop drafting early"
    if not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise UsageError(f"the lowest confidence to draft at must lie in [0, 1), not {value!r} ({why})")
    if value and device == "cuda":
        if options.min_confidence:
            raise UsageError("min_confidence is for the CPU engine, and the GPU drafts k tokens; use device 'cpu'")
        value, why = 0.0, f"the GPU drafts k tokens whatever the {why} says"
    elif value and options.min_confidence is None:
        why += "; the controller has a rule of its own, so this holds where k is a number"
    decisions.append(Decision("min_confidence", f"{value:g}", why))
    return float(value)


def _draft_length(drafter: Path | str | None, decisions: list[Decision]) -> int:
    """The advised draft length, which holds where the controller is not to choose."""
    k, why = DEFAULT_K, "the recommended length for most Gemma 4 drafters"
    if drafter is None:
        decisions.append(Decision("k", "0", "there is no drafter"))
        return 0
    if isinstance(drafter, Path):
        advised = read_generation(drafter).draft_tokens
        if advised is not None:
            k = min(advised, MAX_TENTATIVE - 1)
            why = f"num_assistant_tokens is {advised} in the drafter's generation_config.json"
    rule = f"as many drafts as pay, round by round, 0 to {LONGEST}; a fixed length would be {k}: {why}"
    decisions.append(Decision("k", AUTO, rule))
    return k
