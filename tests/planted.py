"""An engine in virtual time with everything planted: TTFT, TPOT, acceptance, a speed-up, noise, drift, faults."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import virtual_time

from paceline.bench.arms import Answer, ArmError, Ask, Candidate, Drafting, Facts
from paceline.bench.harness import Contest, Outcome, Stage, measure
from paceline.bench.measurement import Measurement, StepRecord
from paceline.bench.plan import BenchOptions, Step, plan
from paceline.bench.prompts import BenchPrompt

Order = Callable[[list[Step]], list[Step]]


@dataclass
class Machine:
    """What both arms run on. Everything random is of its own seed.

    speedup: all seconds off over all seconds on, in expectation over prompts. lengths, gains: how far prompts differ in
    tokens and in what drafting is worth to them (log standard deviations). noise: of each request; bursts: of the
    machine, for as long as `burst_s`. drift: by what factor everything has slowed after 1000 seconds. crowd: what each
    further request in flight adds to the time of all. bond: of length and gain; the speed-up is planted for 0. piece:
    tokens of a streamed event.
    """

    seed: int = 0
    speedup: float = 1.5
    ttft_s: float = 0.05
    tpot_s: float = 0.02
    tokens: float = 30.0
    lengths: float = 0.5
    gains: float = 0.25
    bond: float = 0.0
    noise: float = 0.03
    bursts: float = 0.0
    burst_s: float = 3.0
    drift: float = 1.0
    crowd: float = 0.1
    accept: float = 0.7
    k: int = 4
    piece: int = 12
    in_flight: int = 0
    most_in_flight: int = 0
    slow: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(f"machine {self.seed}")

    def pace(self, now: float) -> float:
        """How slow the machine is at a moment: 1 on average, at the start."""
        burst = int(now / self.burst_s)
        if burst not in self.slow:
            self.slow[burst] = self.random.gauss(1.0, self.bursts)
        return self.slow[burst] * self.drift ** (now / 1000) * (1 + self.crowd * (self.in_flight - 1))

    def text(self, prompt: str) -> tuple[int, float]:
        """Tokens of a prompt's text, and its own gain: the mean of 1 / gain over prompts is 1, whatever the length."""
        own = random.Random(f"{self.seed} {prompt}")
        long = own.gauss(0.0, 1.0)
        gain = self.bond * long + math.sqrt(1 - self.bond**2) * own.gauss(0.0, 1.0)
        count = max(2, round(self.tokens * math.exp(self.lengths * long)))
        return count, math.exp(self.gains**2 / 2 + self.gains * gain)

    def rounds(self, tokens: int) -> Drafting:
        """Drafting of a text: each draft is accepted with the planted probability while all before it were."""
        drafted, accepted, rounds, left = [0] * self.k, [0] * self.k, 0, tokens - 1
        while left > 0:
            tried = min(self.k, left - 1)
            kept = next((i for i in range(tried) if self.random.random() > self.accept), tried)
            for i in range(tried):
                drafted[i] += 1
                accepted[i] += i < kept
            rounds, left = rounds + 1, left - kept - 1
        return Drafting(sum(drafted), sum(accepted), rounds, tuple(drafted), tuple(accepted))


class PlantedArm:
    """One arm of a machine. fails: numbers of requests (from 0, warm-up included) that bring an ArmError."""

    def __init__(self, machine: Machine, drafts: bool, tells: bool = True) -> None:
        self.machine, self.drafts, self.tells = machine, drafts, tells
        self.asked = self.opened = self.closed = 0
        self.fails: set[int] = set()
        self.counted = Drafting(0, 0, 0, (0,) * machine.k, (0,) * machine.k)

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1

    async def check(self) -> Facts:
        return Facts("planted", None, "m", self.drafts, "planted", k=self.machine.k if self.drafts else 0)

    async def answer(self, ask: Ask) -> Answer:
        machine, self.asked = self.machine, self.asked + 1
        if self.asked - 1 in self.fails:
            raise ArmError("planted failure")
        tokens, gain = machine.text(str(ask.prompt))
        machine.in_flight += 1
        machine.most_in_flight = max(machine.most_in_flight, machine.in_flight)
        try:
            return await self._stream(str(ask.prompt), tokens, machine.speedup * gain if self.drafts else 1.0)
        finally:
            machine.in_flight -= 1

    async def _stream(self, prompt: str, tokens: int, faster: float) -> Answer:
        machine, begin = self.machine, virtual_time.clock()
        each = machine.random.gauss(1.0, machine.noise) / faster
        later, rest = divmod(tokens - 1, machine.piece)
        times, pieces = [], [1, *[machine.piece] * later, *[rest] * (rest > 0)]
        for piece in pieces:
            pause = machine.tpot_s * piece if times else machine.ttft_s
            await asyncio.sleep(pause * each * machine.pace(virtual_time.clock()))
            times.append(virtual_time.clock() - begin)
        done = machine.rounds(tokens) if self.drafts else None
        if done:
            self.counted = plus(self.counted, done)
        return Answer(
            text=prompt, tokens=tokens, finish_reason="stop", event_times_s=times, event_tokens=pieces,
            drafting=done if self.tells else None,
        )  # fmt: skip

    async def counters(self) -> Drafting | None:
        return None if self.tells else self.counted

    async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
        return None


def plus(a: Drafting, b: Drafting) -> Drafting:
    return a - (Drafting(0, 0, 0, (0,) * len(b.drafted_by_position), (0,) * len(b.drafted_by_position)) - b)


def prompts(n: int, categories: int = 1) -> list[BenchPrompt]:
    return [BenchPrompt(f"p{i}", f"cat{i % categories}", f"prompt {i}") for i in range(n)]


def contest(machine: Machine, tells: bool = True, alone: bool = False) -> Contest:
    return Contest(PlantedArm(machine, False, tells), {machine.k: PlantedArm(machine, True, tells)}, alone=alone)


def outcomes(arms: Contest, steps: Sequence[Step], options: BenchOptions) -> list[Outcome]:
    """What each step of a plan brings."""

    async def collect() -> list[Outcome]:
        return [outcome async for outcome in measure(Stage(arms, options), steps, virtual_time.clock)]

    return virtual_time.run(collect())


def simulate(
    machine: Machine, count: int, options: BenchOptions, tells: bool = True, order: Order = list
) -> tuple[list[Measurement], list[StepRecord]]:
    """Rows and steps of a whole run through the real plan and harness, over `count` prompts.

    order: what becomes of the planned order of steps.
    """
    arms = contest(machine, tells, options.alternate)
    steps = order(plan(prompts(count), options, list(arms.on)))
    found = outcomes(arms, steps, options)
    return [row for outcome in found for row in outcome.rows], [outcome.record for outcome in found]
