"""How often drafts may be kept, by kind of text, as a range low .. high with its source: published, or assumed.

Nothing here was measured with the user's model on the user's prompts, and published figures disagree, so every speed
made of these is a range. The middle is the mean of both ends at each position.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.acceptance import POSITIONS, PROFILES, Profile
from paceline.errors import UsageError

SMALL = ("e2b", "e4b")
SAMPLING_LOSS = 0.2
"""Share of acceptance that sampling at temperature 1 may cost: the low end of every range is lowered by it."""
SAMPLING_BASIS = (
    "at temperature 1 the low end is a fifth lower, and in proportion between: the shipped miniature keeps 2.09 tokens"
    " a round where it keeps 2.82 at 0; the high end stays, since 5.37 tokens a round at k = 7 were published at 1"
)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Profiles of conditional acceptance at both ends and between them."""

    category: str
    low: Profile
    middle: Profile
    high: Profile

    @property
    def basis(self) -> str:
        """Where the range comes from."""
        return f"low: {self.low.basis}; high: {self.high.basis}"


def _flat(value: float, basis: str) -> Profile:
    return Profile("flat", (value,) * POSITIONS, basis)


def _moved(by: float, basis: str) -> Profile:
    around = PROFILES["speed-bench"].conditional
    return Profile("moved", tuple(min(1.0, p + by) for p in around), basis)


_E_CODE = Profile(
    "code on a small size", (0.74, 0.665, *(0.537,) * (POSITIONS - 2)),
    "0.740, 0.492, 0.264 of drafts kept by position, an E size, greedy code, k = 3 (vllm-ascend #11399)",
)  # fmt: skip
SMALL_BASIS = f"for E2B and E4B never above {_E_CODE.basis}"
_AROUND = "the published SPEED-Bench points of 31B (80% at position 1, under 20% at 8)"
RANGES: dict[str, tuple[Profile, Profile]] = {
    "mixed": (_moved(-0.08, f"{_AROUND}, less 0.08 (assumed)"), _moved(0.06, f"{_AROUND}, plus 0.06 (assumed)")),
    "code": (_E_CODE, PROFILES["code"]),
    "math": (_E_CODE, PROFILES["code"]),  # other drafters keep as many in mathematics as in code
    "chat": (_flat(0.58, "31% of drafts kept in prose, community report, k taken as 4"), PROFILES["chat"]),
    "prose": (
        _flat(0.48, "a tenth below the community report of 31% of drafts kept in prose (assumed)"),
        _flat(0.70, "assumed: what conversation keeps at later positions"),
    ),
    "any": (_flat(0.48, "prose, of which least is kept (assumed)"), PROFILES["code"]),
    "json": (
        _flat(0.25, "8% of drafts kept, community report, k taken as 4"),
        _flat(0.97, "97% of drafts kept, llama.cpp thread on 12B: reports on JSON contradict each other"),
    ),
}


def prior(category: str, temperature: float = 0.0, small: bool = False) -> Prior:
    """The range for this kind of text; `small` sizes (E2B, E4B) have a lower low end, see `SMALL_BASIS`.

    Raises UsageError for an unknown kind or a temperature outside 0 .. 2.
    """
    if category not in RANGES:
        raise UsageError(f"there is no category {category!r}; choose {', '.join(RANGES)}")
    if not 0 <= temperature <= 2:
        raise UsageError(f"temperature must lie in 0 .. 2, not {temperature}")
    low, high = RANGES[category]
    if small:
        least = tuple(min(pair) for pair in zip(low.conditional, _E_CODE.conditional, strict=True))
        low = Profile(low.name, least, f"{low.basis}; {SMALL_BASIS}")
    low = Profile(low.name, tuple(p * (1 - SAMPLING_LOSS * temperature) for p in low.conditional), low.basis)
    middle = tuple((a + b) / 2 for a, b in zip(low.conditional, high.conditional, strict=True))
    return Prior(category=category, low=low, high=high, middle=Profile("middle", middle, "the mean of both ends"))
