"""Whole simulated runs with a planted truth, counted: how often intervals cover it, and wrong ways caught missing it.

Each run is a new machine with new prompts, through the real plan, harness and summary, in virtual time. Shared by the
tests, which take a few runs, and by benchmarks/instrument_truth.py, which takes many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from planted import Machine, Order, simulate

from paceline.bench.measurement import Measurement
from paceline.bench.plan import BenchOptions, Step
from paceline.bench.stats import pair_up, ratio_interval
from paceline.bench.summary import summarise

GREEDY = BenchOptions(temperatures=(0.0,), warmup=0)
Interval = list[float] | None
Estimator = Callable[[list[Measurement]], Interval]


@dataclass(frozen=True)
class Case:
    """A design and a machine. drift: by what factor the machine slows over a run, about."""

    name: str
    prompts: int
    machine: Machine = field(default_factory=Machine)
    options: BenchOptions = GREEDY
    drift: float = 1.0

    def made(self, seed: int) -> Machine:
        """The machine of one run."""
        machine = replace(self.machine, seed=seed, slow={})
        if self.drift != 1.0:
            texts = self.prompts * (4 if self.options.alternate else 3) * self.options.repeats
            machine.drift = self.drift ** (1000 / (0.62 * texts / max(self.options.concurrencies)))
        return machine


SEVERAL = replace(GREEDY, concurrencies=(4,))
ALTERNATE = replace(GREEDY, alternate=True)
AGAIN = replace(GREEDY, repeats=3)
SPEEDUPS = (1.0, 1.05, 1.5, 0.8)


def planted(speedup: float) -> list[Case]:
    """Every design with this speed-up, on a machine whose noise is that of each request."""
    # Requests in flight do not slow each other here: the ends of a block, where fewer run, would favour an arm.
    machine = Machine(speedup=speedup, crowd=0.0)
    return [
        *(Case(f"{n} prompts", n, machine) for n in (12, 24, 60)),
        Case("48 prompts, 4 in flight", 48, machine, SEVERAL),
        Case("24 prompts, alternating servers", 24, machine, ALTERNATE),
    ]


def harder() -> list[Case]:
    """Machines that are not steady: slowing by a tenth over the run, or 1% faster or slower for 3 seconds at a time."""
    machine, bursts = Machine(crowd=0.0), Machine(crowd=0.0, bursts=0.01)
    return [
        Case("24 prompts, the machine slows by a tenth", 24, machine, drift=1.1),
        Case("24 prompts, alternating servers, the machine slows by a tenth", 24, machine, ALTERNATE, 1.1),
        Case("24 prompts, bursts", 24, bursts),
        Case("48 prompts, 4 in flight, bursts", 48, bursts, SEVERAL),
        Case("24 prompts, alternating servers, bursts", 24, bursts, ALTERNATE),
    ]


def run(case: Case, seed: int) -> dict[str, Any]:
    """One run: what it found, and whether it covers the truth."""
    rows, steps = simulate(case.made(seed), case.prompts, case.options)
    summary = summarise(rows, steps)
    return {
        "speedup": summary["speedup"],
        "covers": covers(summary["speedup_ci95"], case.machine.speedup),
        "a_a_rejects": not covers(summary["off_vs_off_ci95"], 1.0),
        "steady": summary["drift"]["steady"],
    }


def covers(interval: Interval, truth: float) -> bool:
    """Whether the truth lies in the interval."""
    return interval is not None and interval[0] <= truth <= interval[1]


def study(case: Case, seeds: Iterable[int]) -> dict[str, Any]:
    """Fractions over many runs."""
    runs = [run(case, seed) for seed in seeds]
    found = np.array([each["speedup"] for each in runs])
    return {
        "case": case.name, "planted": case.machine.speedup, "runs": len(runs), "mean_speedup": float(found.mean()),
        "coverage": fraction(each["covers"] for each in runs),
        "a_a_rejects": fraction(each["a_a_rejects"] for each in runs),
        "said_to_drift": fraction(each["steady"] is False for each in runs),
    }  # fmt: skip


def fraction(values: Iterable[bool]) -> float:
    """How many of them hold."""
    return float(np.mean(list(values)))


def by_arm(steps: list[Step]) -> list[Step]:
    """The wrong order: all of one arm, then all of the other."""
    return sorted(steps, key=lambda step: step.arm.name)


def pairs_as_prompts(rows: list[Measurement]) -> Interval:
    """The wrong clusters: repeats of a prompt as if they were prompts."""
    pairs = pair_up(rows)
    found = ratio_interval(*(np.array([pair[i].seconds for pair in pairs]) for i in (0, 1)))
    return None if found is None else found.tolist()


def mean_of_ratios(rows: list[Measurement]) -> Interval:
    """The wrong estimator: short texts count as much as long ones."""
    ratios = np.array([off.seconds / on.seconds for off, on in pair_up(rows)])
    found = ratio_interval(ratios, np.ones_like(ratios))
    return None if found is None else found.tolist()


def controls(seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Coverage of the wrong way beside that of the right one, on the same runs."""
    seeds = list(seeds)
    # Short texts gain, long ones lose: what a user waits for is the sum.
    bound = Machine(bond=-0.9, gains=0.5)
    repeats, lengths = Case("", 16, options=AGAIN), Case("", 60, bound)
    return [
        _control("repeats of a prompt counted as prompts", repeats, 1.5, (seeds, pairs_as_prompts)),
        _control("mean of ratios", lengths, true_speedup(bound), (seeds, mean_of_ratios)),
        unpaired(seeds),
    ]


def _control(name: str, case: Case, truth: float, way: tuple[list[int], Estimator]) -> dict[str, Any]:
    seeds, wrong = way
    right, missed = [], []
    for seed in seeds:
        rows, steps = simulate(case.made(seed), case.prompts, case.options)
        right.append(covers(summarise(rows, steps)["speedup_ci95"], truth))
        missed.append(covers(wrong(rows), truth))
    return {"control": name, "runs": len(seeds), "coverage": fraction(missed), "coverage_right": fraction(right)}


def true_speedup(machine: Machine, count: int = 40_000) -> float:
    """The ratio of expected sums over all prompts there could be, by drawing many of them."""
    texts = [machine.text(f"truth {i}") for i in range(count)]
    off = np.array([machine.ttft_s + machine.tpot_s * (tokens - 1) for tokens, _ in texts])
    return machine.speedup * float(off.sum() / (off / np.array([gain for _, gain in texts])).sum())


def unpaired(seeds: list[int]) -> dict[str, Any]:
    """One arm after the other on a machine that slows, beside the plan's own order."""
    case, found = Case("", 24, drift=1.5), {}
    orders: dict[str, Order] = {"coverage": by_arm, "coverage_right": list}
    for name, order in orders.items():
        runs = [summarise(*simulate(case.made(seed), case.prompts, case.options, order=order)) for seed in seeds]
        found[name] = fraction(covers(each["speedup_ci95"], case.machine.speedup) for each in runs)
    return {"control": "one arm after the other while the machine slows by half", "runs": len(seeds), **found}


def drifting() -> list[Case]:
    """Designs on a machine that slows by a fifth over the run."""
    designs = [("24 prompts", 24, GREEDY), ("60 prompts", 60, GREEDY), ("24 prompts, 3 repeats", 24, AGAIN),
               ("24 prompts, alternating servers", 24, ALTERNATE)]  # fmt: skip
    return [Case(name, count, options=options, drift=1.2) for name, count, options in designs]
