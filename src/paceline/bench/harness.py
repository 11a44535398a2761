"""Takes the measurements: per prompt, drafting off, on, and off again, in random order, one text at a time."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from paceline.bench.measurement import ARMS, ON, Measurement
from paceline.bench.prompts import BenchPrompt
from paceline.errors import UsageError
from paceline.types import Completion, Prompt, SamplingParams

Clock = Callable[[], float]
# How many texts long enough to draft in may pass without a draft before the run is given up.
PATIENCE = 3


class Engine(Protocol):
    """What is measured: paceline.llm.LLM, or a fake. `k` is the draft length, 0 for no drafting."""

    def generate(self, prompts: list[Prompt], params: SamplingParams, /, *, k: int) -> list[Completion]: ...


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How to measure. `repeats` per prompt and temperature; `warmup` prompts run in both ways before, unrecorded."""

    k: int = 4
    repeats: int = 1
    max_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 1.0)
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    warmup: int = 1

    def __post_init__(self) -> None:
        checks = (
            (self.k >= 1, "k must be at least 1 (off is always measured beside it)", self.k),
            (self.repeats >= 1, "repeats must be at least 1", self.repeats),
            (self.warmup >= 0, "warmup must be 0 or greater", self.warmup),
            (len(self.temperatures) >= 1, "temperatures must name at least one", self.temperatures),
            (len(set(self.temperatures)) == len(self.temperatures), "temperatures must differ", self.temperatures),
            (all(map(math.isfinite, self.temperatures)), "temperatures must be finite", self.temperatures),
        )
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

    def count(self, prompts: int) -> int:
        """How many measurements a run over so many prompts takes."""
        return prompts * len(self.temperatures) * self.repeats * len(ARMS)


def measure(
    engine: Engine, prompts: list[BenchPrompt], options: BenchOptions, clock: Clock = time.perf_counter
) -> Iterator[Measurement]:
    """Warms up, then yields each measurement as it is taken, so that an interrupted run keeps what it has.

    Repeats are outermost: a run stopped early has seen every prompt about equally often.
    """
    check_prompts(prompts)
    warm_up(engine, prompts, options)
    orders = arm_orders(options.seed)
    numbers = itertools.count()
    for repeat, prompt, temperature in itertools.product(range(options.repeats), prompts, options.temperatures):
        params = options.params(temperature, derive_seed(options.seed, prompt.id, repeat))
        for arm in next(orders):
            begin = clock()
            [completion] = engine.generate([prompt.prompt], params, k=options.k if arm == ON else 0)
            yield record(completion, Place(next(numbers), prompt, arm, repeat), params, clock() - begin)


def check_prompts(prompts: list[BenchPrompt]) -> None:
    """Raises UsageError for no prompts or for ids that are not unique."""
    if not prompts:
        raise UsageError("there are no prompts to measure on; give at least one")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise UsageError("two prompts have the same id; results are grouped by id, so make them unique")


def warm_up(engine: Engine, prompts: list[BenchPrompt], options: BenchOptions) -> None:
    """Runs the first prompts in every arm's way, so that compiling and first touches are not timed."""
    for prompt, temperature in itertools.product(prompts[: options.warmup], options.temperatures):
        for k in (0, options.k):
            engine.generate([prompt.prompt], options.params(temperature, options.seed), k=k)


def arm_orders(seed: int) -> Iterator[tuple[str, ...]]:
    """Random orders of the arms without end: each block of 6 holds every order once, so no arm is favoured by luck."""
    rng = random.Random(f"arm order {seed}")
    while True:
        block = list(itertools.permutations(ARMS))
        rng.shuffle(block)
        yield from block


def derive_seed(seed: int, prompt_id: str, repeat: int) -> int:
    """The sampling seed (64 bits) of a prompt and repeat: the same in all arms, different elsewhere."""
    digest = hashlib.sha256(f"{seed}\n{repeat}\n{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the run a measurement was taken."""

    order: int
    prompt: BenchPrompt
    arm: str
    repeat: int


def record(completion: Completion, place: Place, params: SamplingParams, seconds: float) -> Measurement:
    """Turns a completion into a row of the raw record."""
    stats = completion.stats
    return Measurement(
        order=place.order,
        prompt_id=place.prompt.id,
        category=place.prompt.category,
        arm=place.arm,
        temperature=params.temperature,
        repeat=place.repeat,
        seed=params.seed,
        seconds=seconds,
        ttft_s=stats.ttft_s,
        tpot_s=stats.tpot_s,
        prompt_tokens=stats.prompt_tokens,
        tokens=len(completion.token_ids),
        rounds=stats.rounds,
        drafted=list(stats.drafted),
        accepted=list(stats.accepted),
        token_times_s=[round(moment, 6) for moment in stats.token_times_s],
        token_sha256=hashlib.sha256(",".join(map(str, completion.token_ids)).encode()).hexdigest(),
        finish_reason=completion.finish_reason,
    )


def check_arms(rows: list[Measurement], finished: bool) -> None:
    """Raises UsageError when an arm is not what it is called: on never drafted, or off did."""
    if any(row.arm != ON and sum(row.drafted) for row in rows):
        raise UsageError("the off arm drafted tokens, so nothing was compared; the engine must not draft when k is 0")
    own = [row for row in rows if row.arm == ON]
    long_enough = sum(row.tokens > 2 for row in own)
    if not any(sum(row.drafted) for row in own) and (finished or long_enough >= PATIENCE):
        raise UsageError(
            f"the on arm never drafted in {len(own)} texts, so nothing was compared;"
            " load a drafter, and let texts be longer than 2 tokens"
        )
