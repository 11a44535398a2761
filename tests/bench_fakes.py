"""A fake engine with a planted speed-up and a clock of its own, for the benchmark's tests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from paceline.bench.adapters.local import local_contest
from paceline.bench.harness import Contest, Stage, measure
from paceline.bench.measurement import Measurement
from paceline.bench.plan import BenchOptions, plan
from paceline.bench.prompts import BenchPrompt
from paceline.types import Completion, Prompt, SamplingParams, Stats


class FakeEngine:
    """Texts depend on prompt, seed and temperature only; `speedup` and 2% noise decide the time."""

    def __init__(self, speedup: float = 1.5, drafts: bool = True, seed: int = 0) -> None:
        self.speedup, self.drafts = speedup, drafts
        self.now = 0.0
        self.calls: list[tuple[Prompt, SamplingParams, int]] = []
        self.rng = random.Random(seed)
        self.differs_from: int | None = None
        self.fails_at: tuple[int, BaseException] | None = None

    def clock(self) -> float:
        return self.now

    def contest(self, ks: Sequence[int] = (4,)) -> Contest:
        return local_contest(self, ks)

    def generate(self, prompts: list[Prompt], params: SamplingParams, *, k: int) -> list[Completion]:
        if self.fails_at and len(self.calls) == self.fails_at[0]:
            raise self.fails_at[1]
        self.calls.append((prompts[0], params, k))
        return [self.complete(prompt, params, k) for prompt in prompts]

    def complete(self, prompt: Prompt, params: SamplingParams, k: int) -> Completion:
        text_rng = random.Random(f"{prompt}|{params.temperature}|{params.seed if params.temperature else 0}")
        length = text_rng.randint(10, params.max_tokens)
        token_ids = [text_rng.randrange(1000) for _ in range(length)]
        if k and self.differs_from is not None and len(self.calls) >= self.differs_from:
            token_ids[-1] += 1
        stats = Stats(prompt_tokens=7)
        step = 0.01 * self.rng.gauss(1.0, 0.02) / (self.speedup if k else 1.0)
        stats.token_times_s = [step * (i + 1) for i in range(length)]
        if k and self.drafts:
            for _ in range(length // 2):
                stats.count_round(k, text_rng.randint(0, k))
        self.now += step * length
        return Completion("", token_ids, "length" if length == params.max_tokens else "stop", stats)


def make_prompts(n: int, categories: int = 2) -> list[BenchPrompt]:
    return [BenchPrompt(f"p{i}", f"cat{i % categories}", f"text {i}") for i in range(n)]


def run_fake(
    engine: FakeEngine, prompts: list[BenchPrompt], options: BenchOptions, ks: Sequence[int] = (4,)
) -> list[Measurement]:
    """All rows of a run over a fake engine, on its own clock."""
    stage = Stage(engine.contest(ks), options)

    async def collect() -> list[Measurement]:
        steps = plan(prompts, options, list(ks))
        return [row async for outcome in measure(stage, steps, engine.clock) for row in outcome.rows]

    return asyncio.run(collect())
