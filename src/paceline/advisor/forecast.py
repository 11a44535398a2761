"""What drafting is expected to bring a size on a machine: round times, the best draft length, and a range of speeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from paceline.acceptance import POSITIONS, Profile, expected_tokens
from paceline.advisor import speed
from paceline.advisor.machines import Machine
from paceline.advisor.priors import Prior
from paceline.config import DrafterConfig, TextConfig

WORTH_IT = 1.05
"""Speed-up below which a drafter is not worth its memory."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values with the acceptance at its low end, in the middle, and at its high end."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted, not measured. Rates are tokens a second of one sequence; k is the best draft length, 0 for none.

    speedup: over plain decoding of the same batch. plain_s, round_s: seconds of a round without and with k drafts.
    ceiling: the rate if a round took no longer than its bytes need at the datasheet's bandwidth.
    """

    k: int
    plain_s: float
    round_s: float
    plain_rate: float
    rate: Range
    speedup: Range
    tokens_per_round: Range
    ceiling: float | None

    @property
    def of_ceiling(self) -> float | None:
        """The middle of the rates as a share of the ceiling, where the bandwidth is known."""
        return self.rate.middle / self.ceiling if self.ceiling else None


def forecast(
    config: TextConfig, drafter: DrafterConfig, load: speed.Load, machine: Machine, prior: Prior
) -> Forecast | None:
    """The best draft length for the middle of the prior, and what it brings.

    None where neither the bandwidth is known nor rounds were measured.
    """
    if machine.bandwidth is None and load.measured is None:
        return None
    longest = POSITIONS if load.measured is None else min(POSITIONS, load.measured.k_max)
    likely = replace(load, overlap=speed.OVERLAP / 2)
    times = [seconds(config, drafter, replace(likely, k=k), machine) for k in range(longest + 1)]
    return at_length(config, drafter, replace(load, k=best_k(times, prior.middle)), machine, prior)


def at_length(config: TextConfig, drafter: DrafterConfig, load: speed.Load, machine: Machine, prior: Prior) -> Forecast:
    """What the load's own k brings: the low end with independent experts, the high end with the published overlap."""
    plain = seconds(config, drafter, replace(load, k=0), machine)
    overlaps = (0.0, speed.OVERLAP / 2, speed.OVERLAP)
    rounds = [seconds(config, drafter, replace(load, overlap=overlap), machine) for overlap in overlaps]
    tokens = [expected_tokens(profile, load.k) for profile in (prior.low, prior.middle, prior.high)]
    rate = _range(n / s for n, s in zip(tokens, rounds, strict=True))
    moved = speed.round_bytes(config, drafter, replace(load, overlap=overlaps[1]))
    return Forecast(k=load.k, plain_s=plain, round_s=rounds[1], plain_rate=1 / plain, rate=rate,
                    speedup=scaled(rate, plain), tokens_per_round=_range(tokens),
                    ceiling=tokens[1] * machine.bandwidth / moved if machine.bandwidth else None)  # fmt: skip


def seconds(config: TextConfig, drafter: DrafterConfig, load: speed.Load, machine: Machine) -> float:
    """A round with the constants that ship."""
    return speed.round_seconds(config, drafter, load, machine, speed.fitted())


def _range(values: Iterable[float]) -> Range:
    low, middle, high = values
    return Range(low=low, middle=middle, high=high)


def best_k(times: list[float], profile: Profile) -> int:
    """The draft length with the most expected tokens a second, 0 where it gains less than `WORTH_IT`.

    times[k] are seconds of a round of k drafts.
    """
    rates = [expected_tokens(profile, k) / seconds for k, seconds in enumerate(times)]
    best = rates.index(max(rates))
    return best if rates[best] >= WORTH_IT * rates[0] else 0


def scaled(values: Range, by: float) -> Range:
    """Each value times `by`."""
    return Range(low=values.low * by, middle=values.middle * by, high=values.high * by)
