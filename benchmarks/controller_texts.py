"""The draft-length controller on short texts of one sequence, as an H100 would serve them. No model runs.

Rounds take what was measured (benchmarks/results/cuda_rounds.json), but the controller begins with times that were only
predicted, and hears of a round one round late, as on the device. Drafts are kept with the probabilities of
`paceline.acceptance`; rates count the tokens that these come to in the mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from paceline.acceptance import PROFILES, expected_tokens, survival
from paceline.control.auto import Auto
from paceline.control.cost import CostTable
from paceline.control.policy import Served
from paceline.device.pilot import DRAFTS, Pilot, Seat, prior_table
from paceline.shapes import drafter_config, target_config
from paceline.steering import LONGEST

CONTEXT, LENGTHS = 170, (96, 256, 512)  # tokens
TEXTS, FIRST = 9, 3  # of a run, and those of them after which it has seen a few
NOISE = 0.01  # of the time of a round
Turns = tuple[tuple[str, ...], ...]
TURNS: dict[str, Turns] = {
    "hopeless": (("hopeless",),),
    "chat": (("chat",),),
    "code": (("code",),),
    "perfect": (("perfect",),),
    "mixed": (("code",), ("hopeless",), ("chat",)),
    "changing": (("code", "hopeless", "code"),),
}
"""Texts in turn, each of which passes through its profiles in equal parts, as benchmarks/controller_gpu.py has them."""


@dataclass
class Texts:
    """What texts in turn came to: expected tokens and milliseconds, rounds by text, seconds that choosing took."""

    tokens: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    ks: list[list[int]] = field(default_factory=list)
    thinking_s: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a millisecond."""
        return sum(self.tokens) / sum(self.ms)

    @property
    def thinking_us(self) -> float:
        """Microseconds of choosing and learning in a round."""
        return 1e6 * self.thinking_s / sum(map(len, self.ks))


class Late:
    """A pilot on one sequence. It is told of a round when the next one was chosen, and never of its last.

    begins: what its first rounds of all take of their time.
    """

    def __init__(self, real: CostTable, prior: CostTable, seed: int, begins: Sequence[float] = ()) -> None:
        self.times, self.begins = real.times(1, CONTEXT), iter(begins)
        self.pilot, self.chance = Pilot(Auto(prior.copy(), LONGEST)), np.random.default_rng(seed)
        self.names = count()

    def write(self, turn: tuple[str, ...], length: int, into: Texts) -> None:
        """One text of so many tokens."""
        name, written, waiting = f"{next(self.names)}", 0, None
        tokens, ms, ks = 0.0, 0.0, list[int]()
        while written < length:
            profile = PROFILES[turn[min(written * len(turn) // length, len(turn) - 1)]]
            begun = time.perf_counter()
            k, plan = self.pilot.choose([Seat(name, CONTEXT + written, True)], 1)
            if waiting:
                self.pilot.observe(*waiting)
            into.thinking_s += time.perf_counter() - begun
            hits = int(np.sum(self.chance.random() < np.array(survival(profile)[:k])))
            took = self.times[k] * self.chance.normal(1.0, NOISE) * next(self.begins, 1.0)
            waiting = plan, [Served(name, k, hits, took, 1, CONTEXT + written)]
            written, tokens, ms = written + hits + 1, tokens + expected_tokens(profile, k), ms + self.times[k]
            ks.append(k)
        into.tokens.append(tokens)
        into.ms.append(ms)
        into.ks.append(ks)


def auto(real: CostTable, prior: CostTable, turns: Turns, length: int, seed: int) -> Texts:
    """The controller, which knows of nothing before, on TEXTS texts or some more: all turns equally often."""
    return write(Late(real, prior, seed), turns, length)


def write(late: Late, turns: Turns, length: int) -> Texts:
    """TEXTS texts or some more: all turns equally often."""
    found = Texts()
    for text in range(len(turns) * math.ceil(TEXTS / len(turns))):
        late.write(turns[text % len(turns)], length, found)
    return found


def fixed(real: CostTable, turns: Turns) -> dict[int, float]:
    """Tokens a millisecond of every fixed k that a device offers."""
    times, parts = real.times(1, CONTEXT), [PROFILES[name] for turn in turns for name in turn]
    return {k: len(parts) / sum(times[k] / expected_tokens(part, k) for part in parts) for k in DRAFTS}


def oracle(real: CostTable, turns: Turns) -> float:
    """Tokens a millisecond where the profile is known, and the best k of it drafted."""
    parts = [(name,) for turn in turns for name in turn]
    return len(parts) / sum(1.0 / max(fixed(real, (part,)).values()) for part in parts)


def compare(size: str, real: CostTable, seeds: int, lengths: tuple[int, ...] = LENGTHS) -> Iterator[dict[str, Any]]:
    """Every workload at every length of text: the controller over the best fixed k and over k = 0, mean and worst."""
    prior = prior_table(target_config(size), drafter_config(size))
    for name, turns in TURNS.items():
        statics = fixed(real, turns)
        best = max(statics, key=lambda k: statics[k])
        for length in lengths:
            runs = [auto(real, prior, turns, length, seed) for seed in range(seeds)]
            rates = np.array([run.rate for run in runs])
            later = sum(sum(run.tokens[FIRST:]) for run in runs) / sum(sum(run.ms[FIRST:]) for run in runs)
            yield {
                "size": size, "workload": name, "tokens": length, "best": f"k={best}",
                "over_best": float(rates.mean()) / statics[best], "over_best_worst": float(rates.min()) / statics[best],
                "over_best_later": later / statics[best],
                "over_plain": float(rates.mean()) / statics[0],
                "oracle": oracle(real, turns) / statics[best],
                "thinking_us": float(np.mean([run.thinking_us for run in runs])),
            }  # fmt: skip


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What of the aims is reached, by the worst workload and length; each figure is a mean over seeds."""
    alike = [row for row in rows if row["workload"] not in ("mixed", "changing")]
    aims = {
        "stationary, over the best k": (alike, "over_best", 0.98),
        "stationary, over the best k, once a few texts were seen": (alike, "over_best_later", 0.985),
        "mixed, over the best k": ([row for row in rows if row["workload"] == "mixed"], "over_best", 1.05),
        "anywhere, over k = 0": (rows, "over_plain", 0.98),
    }
    found = {}
    for name, (some, what, aim) in aims.items():
        row = min(some, key=lambda row: row[what])
        found[name] = {"where": f"{row['size']} {row['workload']}, {row['tokens']} tokens", "figure": row[what],
                       "aim": aim, "reached": row[what] >= aim}  # fmt: skip
    return found


COLUMNS = ("size", "texts", "tokens", "best", "auto over it", "worst", "later texts", "over k = 0", "oracle", "us")


def line(row: dict[str, Any]) -> list[str]:
    """A row of a table."""
    ratios = [f"{row[key]:.3f}" for key in ("over_best", "over_best_worst", "over_best_later", "over_plain", "oracle")]
    return [row["size"], row["workload"], str(row["tokens"]), row["best"], *ratios, f"{row['thinking_us']:.0f}"]
