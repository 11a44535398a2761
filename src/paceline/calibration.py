"""Times an engine's rounds, so that the controller knows what drafting costs before it drafts.

Short: rounds of a few draft lengths in turns on one made-up text, until each was seen often enough or the budget is
spent. Served rounds correct the table later; what they cannot correct is a k that was never tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from paceline.cache import KVCache
from paceline.control import store
from paceline.control.cost import CostTable, Timing
from paceline.control.outlook import outlook
from paceline.control.stop import Stop
from paceline.drafters import Drafter, MtpDraft, NgramDraft, bounded
from paceline.engine import Engine
from paceline.kernels import Array
from paceline.models.gemma4 import Target
from paceline.resolve import Decision, Resolved
from paceline.sampling import Sampler
from paceline.shapes import size_of
from paceline.speculate import speculate, start
from paceline.steering import LONGEST
from paceline.types import SamplingParams

K_MAX = LONGEST
KS = (0, 1, 2, 4, K_MAX)
BUDGET_S, TURNS = 3.0, 6  # for each context: seconds even where a round takes one
RUN = 3  # rounds of one length that are timed one after another: what it costs to change is no part of them
CONTEXT = 64
ROUNDS = TURNS * (RUN + 1) * sum(k + 1 for k in KS)  # tokens that they come to at most

Clock = Callable[[], float]


class Echo:
    """Guesses the last token k times, at no cost: what remains is the time of verification."""

    def begin(self, tokens: Sequence[int], cache: KVCache, sampler: Sampler) -> None:
        """Nothing to remember."""

    def observe(self, hidden: Array, tokens: Sequence[int]) -> None:
        self.last = tokens[-1]

    def propose(self, k: int) -> list[int]:
        return [self.last] * k


def calibrate(
    engine: Engine, contexts: Sequence[int] = (CONTEXT,), budget_s: float = BUDGET_S, clock: Clock = time.perf_counter
) -> tuple[list[Timing], float]:
    """(round times by k and context, ms of a draft step that is thrown away). Takes about budget_s for each context."""
    # A look-up is free, and hardly ever as long as it is asked for: what counts is verification.
    drafter = Echo() if isinstance(engine.drafter, NgramDraft) else engine.drafter
    timings, steps = list[Timing](), list[float]()
    for context in contexts:
        found = _times(engine, drafter, context, budget_s, clock)
        timings += [Timing(1, k, context, ms) for k, ms in found.items()]
        if isinstance(drafter, MtpDraft):
            verified = _times(engine, Echo(), context, budget_s / 4, clock)
            steps.append(max(0.0, found[K_MAX] - verified[K_MAX]) / K_MAX)
    return timings, median(steps) if steps else 0.0


def _times(engine: Engine, drafter: Drafter, context: int, budget_s: float, clock: Clock) -> dict[int, float]:
    """Least ms of a round of each k behind `context` tokens: what else ran only adds to it.

    More drafts never take less time; where noise says so, those with fewer count as much. A drafter that can listen to
    itself does, as the controller has it do.
    """
    target, until = engine.target, clock() + budget_s
    cache = engine.cache_for(context + ROUNDS, K_MAX)
    sampler = Sampler(target.ops, SamplingParams(), engine.suppress)
    found: dict[int, list[float]] = {k: [] for k in KS}
    try:
        with bounded(drafter, 0.0):
            if isinstance(drafter, MtpDraft):
                drafter.stop = Stop()
            last = start(target, drafter, cache, sampler, [7 * i % target.config.vocab for i in range(context)])
            for k in KS * TURNS:
                for run in range(RUN + 1):
                    begun = clock()
                    last = speculate(target, drafter, cache, sampler, last, k).tokens[-1]
                    found[k] += [1e3 * (clock() - begun)] * (run > 0)
                    if run and clock() > until:
                        break
                if found[K_MAX] and clock() > until:
                    break
    finally:
        cache.release()
    least = [min(ms) for ms in found.values()]
    return {k: min(least[i:]) for i, k in enumerate(KS)}


@dataclass(frozen=True, slots=True)
class Pair:
    """What a cost table is about: `drafter` is a folder, "ngram" or None."""

    target: Path
    drafter: Path | str | None
    backend: str

    @classmethod
    def of(cls, resolved: Resolved) -> Pair:
        """What was resolved."""
        return cls(resolved.target, resolved.drafter, resolved.backend)

    @property
    def subject(self) -> store.Subject:
        """The pair on this machine, with the threads that its kernels would use."""
        if self.backend == "cpu":
            import numba

            threads = numba.get_num_threads()
        else:
            threads = torch.get_num_threads()
        return store.subject(self.target, self.drafter, self.backend, threads)


def cost_decisions(resolved: Resolved) -> list[Decision]:
    """Where the controller's cost table comes from and what it would do by it; nothing where no controller runs."""
    if not resolved.auto:
        return []
    if resolved.backend == "cuda":
        return [Decision("cost table", "predicted", "by bytes and operations; each served round corrects it")]
    found = store.load(Pair.of(resolved).subject)
    if found.table is None:
        return [Decision("cost table", "none yet", f"{found.origin}; timed in seconds when first needed, and kept")]
    plain, deep = found.table.ms(0), found.table.ms(found.table.k_max)
    shown = f"{plain:.2f} ms plain, {deep:.2f} ms with {found.table.k_max} drafts"
    return [Decision("cost table", shown, found.origin),
            Decision("auto would", "draft where it pays", outlook(found.table, LONGEST))]  # fmt: skip


def model_of(target: Target) -> store.Model:
    """What the table is about, for those who look for a size and have no checkpoint."""
    weight = target.embedding
    return store.Model(size=size_of(target.config), weight_bytes=round(weight.nbytes / (weight.rows * weight.cols)))


def table_for(engine: Engine, pair: Pair, contexts: Sequence[int] = ()) -> store.Stored:
    """The table that is kept for this pair on this machine; measured now, and kept, where there is none.

    contexts: measures afresh, behind so many tokens.
    """
    subject = pair.subject
    found = store.load(subject)
    if found.table is not None and not contexts:
        return found
    timings, step_ms = calibrate(engine, contexts or (CONTEXT,))
    kept = store.save(subject, timings, step_ms, model_of(engine.target))
    note = "" if contexts else f", since it was {found.origin}"
    return store.Stored(CostTable(timings, step_ms=step_ms), f"measured just now{note}; {kept}")
