"""The numbers of a report, all of them functions of the raw rows and steps.

A setting is a temperature, a number of requests in flight and a draft length. The headline is one setting: nobody runs
a mixture of them. The grid holds every setting for every category; most other parts are places in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from paceline.bench.accepted import acceptance_by_position, acceptance_length, counting, survival_by_position
from paceline.bench.drift import drift
from paceline.bench.measurement import OFF, OFF_AGAIN, ON, ON_AGAIN, Measurement, StepRecord
from paceline.bench.stats import Pair, compare, equal_fraction, pair_up, spread
from paceline.errors import UsageError

SIDES = {OFF: (OFF, OFF_AGAIN), ON: (ON, ON_AGAIN)}
WORTH = 1.02  # a speed-up below this is not worth a second model in memory


@dataclass(frozen=True, slots=True)
class Prices:
    """What an hour of the machine costs and what it draws, where the user says so."""

    price_per_hour: float | None = None
    watts: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name, value in (("price per hour", self.price_per_hour), ("watts", self.watts)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"the {name} must be a number above 0, not {value!r}")

    def of(self, tokens_per_s: dict[str, float | None]) -> dict[str, Any]:
        """What tokens cost at these speeds of the arms; nothing for a price that is not known."""
        told: dict[str, Any] = {}
        if (hour := self.price_per_hour) is not None:
            per = {arm: None if not speed else hour / 3600 / speed * 1e6 for arm, speed in tokens_per_s.items()}
            told["cost_per_million_tokens"] = per
        if (watts := self.watts) is not None:
            per = {arm: None if speed is None else speed / watts for arm, speed in tokens_per_s.items()}
            told["tokens_per_joule"] = per
        return told


@dataclass(frozen=True, slots=True)
class Terms:
    """What rows do not hold: how many tokens were asked for, and what the machine costs."""

    max_tokens: int | None = None
    prices: Prices = Prices()


class Setting(NamedTuple):
    """What all texts of one comparison share."""

    temperature: float
    concurrency: int
    k: int | None


class Runs:
    """The rows and steps by setting. temperatures: as measured; concurrencies and ks ascend."""

    def __init__(self, rows: Sequence[Measurement], steps: Sequence[StepRecord]) -> None:
        self.rows, self.steps = rows, steps
        self.temperatures = list(dict.fromkeys(row.temperature for row in rows))
        self.concurrencies = sorted({row.concurrency for row in rows})
        self.ks = sorted({row.k for row in rows if row.arm in SIDES[ON]}, key=lambda k: -1 if k is None else k)
        self.categories = sorted({row.category for row in rows})
        self._rows = defaultdict[tuple[str, Setting], list[Measurement]](list)
        for row in rows:
            k = row.k if row.arm in SIDES[ON] else None
            self._rows[row.arm, Setting(row.temperature, row.concurrency, k)].append(row)
        self.block = cache(self._block)

    def own(self, arm: str, at: Setting) -> list[Measurement]:
        """The rows of one arm; those without drafting are the same for every k."""
        return self._rows[arm, at if arm in SIDES[ON] else at._replace(k=None)]

    def pairs(self, at: Setting, first: str = OFF, second: str = ON) -> list[Pair]:
        """Pairs of two arms in a setting."""
        return pair_up([*self.own(first, at), *self.own(second, at)], first, second)

    def compared(self, at: Setting, category: str | None = None) -> list[Pair]:
        """Off with on, and in alternating runs off again with on again: what drifts steadily falls out of the sum."""
        pairs = self.pairs(at) + self.pairs(at, OFF_AGAIN, ON_AGAIN)
        return pairs if category is None else [pair for pair in pairs if pair[0].category == category]

    def counted(self, side: str, at: Setting) -> list[StepRecord]:
        """The steps of the arms of one side in a setting; those of old records do not tell their temperature."""
        return [
            step for step in self.steps
            if step.arm in SIDES[side] and step.concurrency == at.concurrency
            and step.temperature in (None, at.temperature) and (side == OFF or step.k == at.k)
        ]  # fmt: skip

    def _block(self, category: str | None, at: Setting) -> dict[str, Any]:
        pairs = self.compared(at, category)
        speedup, interval = compare(pairs)
        steps = self.counted(ON, at) if category is None else []
        return {
            "speedup": speedup,
            "speedup_ci95": interval,
            "equal_outputs": equal_fraction(pairs),
            "acceptance_length": acceptance_length((on for _, on in pairs), steps),
            "prompts": len({off.prompt_id for off, _ in pairs}),
            "pairs": len(pairs),
        }

    def best(self, temperature: float, concurrency: int) -> Setting:
        """The draft length with the greatest speed-up; the first where none is known."""
        settings = [Setting(temperature, concurrency, k) for k in self.ks or [None]]
        return max(settings, key=lambda at: self.block(None, at)["speedup"] or 0.0)


def summarise(rows: Sequence[Measurement], steps: Sequence[StepRecord], terms: Terms = Terms()) -> dict[str, Any]:
    """The numbers of a report. Times in seconds; None where unknown.

    The headline setting is the first temperature measured, the fewest requests in flight, and of the draft lengths the
    one that gained most there: `k_chosen_here` where there were several, since the best of them looks a little better
    than it is. Equality of the texts is over all settings.
    """
    runs = Runs(rows, steps)
    at = runs.best(runs.temperatures[0], runs.concurrencies[0]) if rows else Setting(0.0, 1, None)
    everything = [pair for each in _settings(runs) for pair in runs.compared(each)]
    summary = {
        **runs.block(None, at),
        "equal_outputs": equal_fraction(everything),
        "pairs": len(everything),
        "timed_pairs": len(runs.compared(at)),
        "temperature": at.temperature if rows else None,
        "concurrency": at.concurrency if rows else None,
        "k": at.k,
        "ks": runs.ks,
        "k_chosen_here": len(runs.ks) > 1,
        **_drafting(runs, at),
        **_noise(runs, at),
        **_latency(runs, at, terms.prices),
        "over_long": None if terms.max_tokens is None else sum(row.tokens > terms.max_tokens for row in rows),
        "failures": sum(step.failed for step in steps),
        "drift": drift(rows),
        **_parts(runs, at, terms.prices),
    }
    return summary | {"advice": _advice(summary)}


def _settings(runs: Runs) -> list[Setting]:
    return [Setting(t, c, k) for t in runs.temperatures for c in runs.concurrencies for k in runs.ks]


def _drafting(runs: Runs, at: Setting) -> dict[str, Any]:
    rows, steps = [on for _, on in runs.compared(at)], runs.counted(ON, at)
    return {
        "acceptance_by_position": acceptance_by_position(rows, steps),
        "survival_by_position": survival_by_position(rows, steps),
        "counting": counting(rows, steps),
    }


def _noise(runs: Runs, at: Setting) -> dict[str, Any]:
    """Each arm against itself: what this machine adds by chance."""
    told: dict[str, Any] = {}
    for name, first, second in (("off_vs_off", OFF, OFF_AGAIN), ("on_vs_on", ON, ON_AGAIN)):
        pairs = runs.pairs(at, first, second)
        told[name], told[f"{name}_ci95"] = compare(pairs)
        told[f"{name}_equal_outputs"] = equal_fraction(pairs)
    return told


def _latency(runs: Runs, at: Setting, prices: Prices) -> dict[str, Any]:
    pairs = runs.compared(at)
    sides = {OFF: [off for off, _ in pairs], ON: [on for _, on in pairs]}
    paired = sides[OFF] + sides[ON]
    speeds = throughput(runs, at)
    return {
        "tokens_per_s": speeds,
        **prices.of(speeds),
        "ttft_s": {side: spread(row.ttft_s for row in own) for side, own in sides.items()},
        "tpot_s": {side: spread(row.tpot_s for row in own if row.tokens > 1) for side, own in sides.items()},
        "ended_naturally": sum(row.finish_reason == "stop" for row in paired) / len(paired) if paired else None,
    }


def throughput(runs: Runs, at: Setting) -> dict[str, float | None]:
    """Tokens per second of both sides over all requests in flight, prompt processing included.

    One at a time: of the texts that were compared. Several: by the wall time of whole steps, those with a failed
    request left out, and None where no step is whole.
    """
    if at.concurrency == 1:
        pairs = runs.compared(at)
        timed = [[(pair[side].tokens, pair[side].seconds) for pair in pairs] for side in (0, 1)]
    else:
        timed = [[(s.tokens, s.wall_s) for s in runs.counted(side, at) if not s.failed] for side in SIDES]
    return {side: _rate(own) for side, own in zip(SIDES, timed, strict=True)}


def _rate(timed: Iterable[tuple[int, float]]) -> float | None:
    timed = list(timed)
    seconds = sum(taken for _, taken in timed)
    return sum(tokens for tokens, _ in timed) / seconds if seconds > 0 else None


def _parts(runs: Runs, at: Setting, prices: Prices) -> dict[str, Any]:
    return {
        "by_category": {name: runs.block(name, at) for name in runs.categories},
        "by_temperature": {str(t): runs.block(None, at._replace(temperature=t)) for t in runs.temperatures},
        "by_k": {str(k): runs.block(None, at._replace(k=k)) for k in runs.ks},
        "by_concurrency": {str(c): _at_concurrency(runs, at, c, prices) for c in runs.concurrencies},
        "grid": [
            {"category": name, **each._asdict(), **runs.block(name, each)}
            for name in (None, *runs.categories) for each in _settings(runs) if runs.block(name, each)["pairs"]
        ],
    }  # fmt: skip


def _at_concurrency(runs: Runs, at: Setting, concurrency: int, prices: Prices) -> dict[str, Any]:
    best = runs.best(at.temperature, concurrency)
    block, speeds = runs.block(None, best), throughput(runs, best)
    noise, noise_interval = compare(runs.pairs(best, OFF, OFF_AGAIN))
    return {
        **block, "k": best.k, "tokens_per_s": speeds, **prices.of(speeds), "off_vs_off": noise,
        "off_vs_off_ci95": noise_interval, "worth_it": _worth(block),
    }  # fmt: skip


def _worth(block: dict[str, Any]) -> bool | None:
    """Whether drafting gains enough there; None where the interval allows both."""
    speedup, interval = block["speedup"], block["speedup_ci95"]
    if interval is None:
        return None
    if speedup < WORTH or interval[1] <= 1.0:
        return False
    return True if interval[0] > 1.0 else None


def _advice(summary: dict[str, Any]) -> dict[str, Any]:
    """What to do: the draft length (0 is off), by category, and from how many requests in flight on it is off."""
    overall = _effect(summary)
    return {
        "k": {"on": summary["k"], "off": 0}.get(overall or ""),
        "categories": {name: _effect(block) for name, block in summary["by_category"].items()},
        "off_from": _off_from(summary["by_concurrency"]),
    }


def _effect(block: dict[str, Any]) -> str | None:
    """A difference that could be chance is none; None where there are too few prompts to tell."""
    interval = block["speedup_ci95"]
    if interval is None:
        return None
    return "on" if interval[0] > 1.0 else "off" if interval[1] < 1.0 else "no difference"


def _off_from(by_concurrency: dict[str, dict[str, Any]]) -> int | None:
    """The fewest requests in flight at which drafting is not worth it, nor seen to be at any more of them."""
    off_from = None
    for concurrency, block in reversed(by_concurrency.items()):
        if block["worth_it"]:
            break
        if block["worth_it"] is False:
            off_from = int(concurrency)
    return off_from
