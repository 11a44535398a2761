"""What drafting is expected to bring a size on a machine: round times, the best draft length, and a range of speeds."""

from __future__ import annotations

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
    """

    k: int
    plain_s: float
    round_s: float
    plain_rate: float
    rate: Range
    speedup: Range
    tokens_per_round: Range


def forecast(
    config: TextConfig, drafter: DrafterConfig, load: speed.Load, machine: Machine, prior: Prior
) -> Forecast | None:
    """The best draft length for the middle of the prior, and what it brings; None where the bandwidth is unknown."""
    if machine.bandwidth is None:
        return None
    costs = speed.fitted()
    times = [speed.round_seconds(config, drafter, replace(load, k=k), machine, costs) for k in range(POSITIONS + 1)]
    k = best_k(times, prior.middle)
    tokens = Range(low=expected_tokens(prior.low, k), middle=expected_tokens(prior.middle, k),
                   high=expected_tokens(prior.high, k))  # fmt: skip
    rate = scaled(tokens, 1 / times[k])
    return Forecast(k=k, plain_s=times[0], round_s=times[k], plain_rate=1 / times[0], rate=rate,
                    speedup=scaled(rate, times[0]), tokens_per_round=tokens)  # fmt: skip


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
