"""Synthetic acceptance: how often drafts would be kept, for timing models of random weights and for nothing else.

Random weights never agree with a random drafter, so a round with rejections can only be timed by deciding beforehand
what is accepted. A speed from here says what an engine would reach if drafts were accepted like this; it is labelled
so wherever it is shown. The published figures behind the profiles come from other people's models, prompts and
machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from paceline.errors import UsageError

POSITIONS = 15
"""Draft positions of a profile: the longest draft of a round."""


@dataclass(frozen=True)
class Profile:
    """conditional[j]: the probability that draft j + 1 is accepted where all before it were; `basis` says why so."""

    name: str
    conditional: tuple[float, ...]
    basis: str

    def __post_init__(self) -> None:
        if len(self.conditional) != POSITIONS or not all(0 <= p <= 1 for p in self.conditional):
            raise UsageError(f"an acceptance profile is {POSITIONS} numbers in [0, 1], not {self.conditional!r}")


def _from_survival(*published: float, beyond: float) -> tuple[float, ...]:
    """Conditional probabilities from the share of drafts that survive each position; `beyond` for all later ones."""
    ratios = [here / before for before, here in zip((1.0, *published), published, strict=False)]
    return (*ratios, *[beyond] * (POSITIONS - len(ratios)))


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "speed-bench",
            tuple(0.80 - 0.01 * j for j in range(POSITIONS)),
            "an assumption through two published points: vLLM on one H100, Gemma 4 31B with its drafter, k = 8, greedy,"
            " 880 SPEED-Bench prompts, accepted about 80% at position 1 and under 20% at position 8; here 0.80, and a"
            " hundredth less at each position",
        ),
        Profile(
            "chat",
            _from_survival(0.844, 0.599, 0.385, 0.271, beyond=0.70),
            "acceptance by position published for Gemma 4 26B-A4B (NVFP4, DGX Spark, k = 4), prompts not stated;"
            " 0.70 at later positions is an assumption",
        ),
        Profile(
            "code",
            (0.88,) * POSITIONS,
            "an assumption, one probability for all positions, close to the published 5.37 tokens a round of Gemma 4"
            " 31B at k = 7 on SPEED-Bench's coding prompts (vLLM, temperature 1)",
        ),
        Profile("hopeless", (0.02,) * POSITIONS, "made up: drafts that are nearly always wrong"),
        Profile("perfect", (1.0,) * POSITIONS, "made up: drafts that are always right"),
    )
}


def survival(profile: Profile) -> tuple[float, ...]:
    """The probability that each position's draft is kept: that it and all before it were right."""
    return tuple(accumulate(profile.conditional, mul))


def expected_tokens(profile: Profile, k: int) -> float:
    """Mean tokens of a round of k drafts, the target's own token counted; UsageError outside 0 .. 15."""
    if not 0 <= k <= POSITIONS:
        raise UsageError(f"a round has 0 to {POSITIONS} drafts, not {k}")
    return 1.0 + sum(survival(profile)[:k])


def parse(text: str) -> Profile:
    """A profile as the command line gives it: a name, or numbers in [0, 1] with commas, the last one for all later.

    Raises UsageError, which names the profiles or the number at fault.
    """
    if text in PROFILES:
        return PROFILES[text]
    parts = text.split(",")
    if len(parts) == 1 and not _is_number(text):
        raise UsageError(f"there is no acceptance profile {text!r}; choose {', '.join(PROFILES)}, or give numbers")
    if len(parts) > POSITIONS:
        raise UsageError(f"an acceptance profile has at most {POSITIONS} numbers, not {len(parts)}")
    numbers = [_probability(part) for part in parts]
    return Profile(text, (*numbers, *numbers[-1:] * (POSITIONS - len(numbers))), "numbers given by hand")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _probability(text: str) -> float:
    if not _is_number(text) or not 0 <= float(text) <= 1:
        raise UsageError(f"an acceptance profile holds numbers in [0, 1], not {text.strip()!r}")
    return float(text)
