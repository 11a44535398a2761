"""Who is asked what, in which order: the design of the experiment, as arithmetic.

Interleaved: for each prompt (or block of prompts, where several are in flight at once) every arm in turn, in random
order, drafting off twice. Slow changes of the machine fall on all arms alike.

Alternating, for a machine that holds one server at a time: whole passes over all prompts, B A A B with the drafting
arms outside. A drift that is steady over the run falls out of off + off2 against on + on2.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paceline.bench.measurement import OFF, OFF_AGAIN, ON, ON_AGAIN
from paceline.bench.prompts import BenchPrompt
from paceline.errors import UsageError
from paceline.types import SamplingParams

BLOCK = 4  # prompts of a block for each request in flight: its ends, where fewer run, must not weigh much


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How to measure. `repeats` per prompt and temperature; `warmup` prompts run in every arm before, unrecorded.

    concurrencies: requests in flight at once. alternate: one arm at a time (see the module).
    """

    repeats: int = 1
    max_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 1.0)
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    warmup: int = 1
    concurrencies: tuple[int, ...] = (1,)
    alternate: bool = False

    def __post_init__(self) -> None:
        checks = (
            (self.repeats >= 1, "repeats must be at least 1", self.repeats),
            (self.warmup >= 0, "warmup must be 0 or greater", self.warmup),
            (len(self.temperatures) >= 1, "temperatures must name at least one", self.temperatures),
            (len(set(self.temperatures)) == len(self.temperatures), "temperatures must differ", self.temperatures),
            (all(map(math.isfinite, self.temperatures)), "temperatures must be finite", self.temperatures),
            (len(self.concurrencies) >= 1, "concurrencies must name at least one", self.concurrencies),
            (len(set(self.concurrencies)) == len(self.concurrencies), "concurrencies must differ", self.concurrencies),
            (all(1 <= c <= 1024 for c in self.concurrencies), "concurrency must lie in 1 .. 1024", self.concurrencies),
        )  # fmt: skip
        for good, rule, value in checks:
            if not good:
                raise UsageError(f"{rule}, not {value!r}")
        for temperature in self.temperatures:
            self.params(temperature, seed=0)

    def params(self, temperature: float, seed: int) -> SamplingParams:
        """The sampling parameters of one measurement; raises UsageError for values out of range."""
        return SamplingParams(
            temperature=temperature, top_k=self.top_k, top_p=self.top_p, seed=seed, max_tokens=self.max_tokens
        )


@dataclass(frozen=True, slots=True)
class ArmKey:
    """Which arm: its name, and the draft length it is known by (0 without drafting, None where not known)."""

    name: str
    k: int | None

    @property
    def drafts(self) -> bool:
        """Whether this arm is to draft."""
        return self.name in (ON, ON_AGAIN)


@dataclass(frozen=True, slots=True)
class Cell:
    """One text to generate, whichever arm does it."""

    prompt: BenchPrompt
    temperature: float
    repeat: int


@dataclass(frozen=True, slots=True)
class Step:
    """One arm over some texts, so many of them in flight at once."""

    arm: ArmKey
    cells: tuple[Cell, ...]
    concurrency: int


def plan(prompts: Sequence[BenchPrompt], options: BenchOptions, ks: Sequence[int | None]) -> list[Step]:
    """All steps of a run, in order; `ks` are the draft lengths of the arms that draft.

    Raises UsageError for no prompts, ids that are not unique, and more requests in flight than there are prompts.
    """
    _check(prompts, options)
    shuffled = list(prompts)
    random.Random(f"prompts {options.seed}").shuffle(shuffled)
    steps = _alternating if options.alternate else _interleaved
    return list(steps(shuffled, options, list(ks)))


def check_prompts(prompts: Sequence[BenchPrompt]) -> None:
    """Raises UsageError for no prompts or for ids that are not unique."""
    if not prompts:
        raise UsageError("there are no prompts to measure on; give at least one")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise UsageError("two prompts have the same id; results are grouped by id, so make them unique")


def _check(prompts: Sequence[BenchPrompt], options: BenchOptions) -> None:
    check_prompts(prompts)
    if max(options.concurrencies) > len(prompts):
        raise UsageError(
            f"{max(options.concurrencies)} requests in flight need as many prompts, and there are {len(prompts)};"
            " give more prompts or a lower concurrency"
        )


def _interleaved(prompts: list[BenchPrompt], options: BenchOptions, ks: list[int | None]) -> Iterator[Step]:
    # Repeats are outermost: a run stopped early has seen every prompt about equally often.
    arms = [ArmKey(OFF, 0), *(ArmKey(ON, k) for k in ks), ArmKey(OFF_AGAIN, 0)]
    orders = arm_orders(arms, options.seed)
    for repeat, concurrency in itertools.product(range(options.repeats), options.concurrencies):
        for block in blocks(prompts, concurrency):
            for temperature in options.temperatures:
                cells = tuple(Cell(prompt, temperature, repeat) for prompt in block)
                yield from (Step(arm, cells, concurrency) for arm in next(orders))


def _alternating(prompts: list[BenchPrompt], options: BenchOptions, ks: list[int | None]) -> Iterator[Step]:
    # The arms that draft come first: whether they do is then known before anything is timed.
    forth = [*(ArmKey(ON, k) for k in ks), ArmKey(OFF, 0)]
    back = [ArmKey(OFF_AGAIN, 0), *(ArmKey(ON_AGAIN, k) for k in reversed(ks))]
    for repeat, arm in itertools.product(range(options.repeats), (*forth, *back)):
        for concurrency, temperature in itertools.product(options.concurrencies, options.temperatures):
            for block in blocks(prompts, concurrency):
                yield Step(arm, tuple(Cell(prompt, temperature, repeat) for prompt in block), concurrency)


def blocks(prompts: list[BenchPrompt], concurrency: int) -> Iterator[list[BenchPrompt]]:
    """Prompts in parts of about equal size: single ones where one request is in flight, else some for each."""
    size = 1 if concurrency == 1 else BLOCK * concurrency
    count = max(1, len(prompts) // size)
    for i in range(count):
        yield prompts[i * len(prompts) // count : (i + 1) * len(prompts) // count]


def arm_orders(arms: Sequence[ArmKey], seed: int) -> Iterator[tuple[ArmKey, ...]]:
    """Random orders of the arms without end: in every so many, each arm stands once at each place (a Latin square)."""
    rng = random.Random(f"arm order {seed}")
    while True:
        shuffled = rng.sample(list(arms), len(arms))
        turns = [tuple(shuffled[i:] + shuffled[:i]) for i in range(len(arms))]
        yield from rng.sample(turns, len(turns))


def derive_seed(seed: int, prompt_id: str, repeat: int) -> int:
    """The sampling seed (63 bits, which every server takes) of a prompt and repeat: the same in all arms."""
    digest = hashlib.sha256(f"{seed}\n{repeat}\n{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
