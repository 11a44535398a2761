"""The Monte Carlo cases of `test_verification_law.py`, which `benchmarks/verification_law.py` runs with more draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import worlds
from worlds import Play, World

from paceline import verification as v

CHUNK = 50_000  # draws at once, so that memory stays small


def counts(world: World, play: Play, tokens: int, draws: int, base: int = 0) -> Any:
    """How often each text [V^tokens] came out for the seeds base .. base + draws - 1."""
    total = np.zeros(world.columns**tokens, dtype=np.int64)
    for start in range(base, base + draws, CHUNK):
        seeds = np.arange(start, min(start + CHUNK, base + draws), dtype=np.uint64)
        total += worlds.simulate(world, play, tokens, seeds)
    return total


def plays() -> Iterator[tuple[str, Play]]:
    """Every mode with drawn and with argmax drafts, at full length and with a controller."""
    for mode in v.ACCEPT_MODES:
        for greedy in (False, True):
            for name, more in (("always", worlds.always), ("confident", worlds.confident(0.5))):
                yield f"{mode}, {'argmax' if greedy else 'drawn'} drafts, {name}", Play(mode, 2, more, greedy)


def joint(draws: int, tokens: int = 3) -> dict[str, float]:
    """p-value of the first tokens' joint law, for each case."""
    found = {}
    for number, (name, play) in enumerate(plays()):
        world = World.make(100 + number, 3, tokens + 1, floor=0.1)
        # Other seeds for each case: the p-values are to be independent.
        texts = counts(world, play, tokens, draws, (number + 1) << 32)
        found[name] = worlds.g_test(texts, world.plain(tokens))
    return found


def holm(p_values: list[float]) -> float:
    """The least p-value, corrected for how many there are. Holm's procedure rejects something when it is small."""
    return min(1.0, min(p_values) * len(p_values))


def uniformity(mode: v.AcceptMode, cases: int, draws: int, wrong: Play | None = None) -> tuple[float, list[float]]:
    """Kolmogorov-Smirnov p-value of the p-values of random cases being uniform, and those p-values."""
    from scipy.stats import kstest

    found = []
    for case in range(cases):
        world = World.make(1000 + case, 3, 3, floor=0.3)
        play = replace(wrong or Play(mode, 2, worlds.arbitrary(case)), greedy=case % 4 == 3)
        found.append(worlds.g_test(counts(world, play, 2, draws, (case + 1) << 32), world.plain(2)))
    return float(kstest(found, "uniform").pvalue), found


def caught(draws: int) -> dict[str, float]:
    """p-value of every negative control; those that break only the noise need ten times the draws."""
    found = {}
    for controls, times in ((worlds.controls(), 1), (worlds.drawn(), 10)):
        for name, c in controls.items():
            found[name] = worlds.g_test(counts(c.world, c.play, 3, draws * times), c.target.plain(3))
    return found
