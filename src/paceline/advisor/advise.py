"""The decision table: every size at every precision on one machine, with a verdict, its reason, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from paceline.advisor import memory, speed
from paceline.advisor.commands import HUB, Setup, commands
from paceline.advisor.forecast import Forecast, forecast
from paceline.advisor.machines import Machine
from paceline.advisor.measured import Found, Rounds
from paceline.advisor.memory import PRECISIONS, Plan, Use
from paceline.advisor.priors import SMALL, Prior, prior
from paceline.cache import PAGE
from paceline.config import DrafterConfig, TextConfig
from paceline.errors import UsageError
from paceline.shapes import SHAPES, drafter_config, target_config

FITS, CAUTION, TOO_LARGE = "fits", "fits, with a caution", "does not fit"
NO_STEP = "no step short of a larger machine or a smaller size makes it fit"
MIXTURE = "26b-a4b"
SMALL_DEVICE = 17e9
MODEST = 1.1e12
"""Bytes a second below which 26B-A4B's drafter is cautioned against at batch 1: reports of a gain there contradict
each other (DGX Spark from none to 2.3x, M1 Max 1.1x, M5 Max 0.7x at batch 4), and its authors warn of it."""
COMFORT = 10.0
"""Tokens a second of one sequence that a recommendation must reach: somewhat faster than people read."""
QUICKER = 1.25
"""How much faster a change must make it to be worth a sentence."""
CAUTIONS = {
    "mixture": (
        "at batch 1 on modest hardware drafts bring its experts' weights in as well, and reports of a gain contradict"
        " each other; batch 4 to 8 is where drafting is reported to pay"
    ),
    "small": "it is made for single users on small devices",
    "none": "drafting is expected to bring too little here, so run it without",
    "slower": "drafting may slow it down on texts that are hard to draft",
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted. context: tokens of a sequence in all; output: those of them that are the answer.

    prompt: tokens of a usual prompt, where they are known to be fewer than the context has room for; speeds are
    predicted for those. workload says in words where the lengths come from.
    """

    target: str = "any"
    batch: int = 1
    context: int = 8192
    output: int = 512
    category: str = "mixed"
    temperature: float = 0.0
    prompt: int | None = None
    workload: str = ""

    def __post_init__(self) -> None:
        if self.target != "any" and self.target not in SHAPES:
            raise UsageError(f"there is no size {self.target!r}; choose any, {', '.join(SHAPES)}")
        if self.context < 2:
            raise UsageError(f"a context holds a prompt and an answer, 2 tokens at least, not {self.context}")
        if not 1 <= self.output < self.context:
            raise UsageError(f"output must lie in 1 .. {self.context - 1} (the context holds it), not {self.output}")
        if not 1 <= self.batch <= 1024:
            raise UsageError(f"batch must lie in 1 .. 1024, not {self.batch}")

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt."""
        return self.context - self.output if self.prompt is None else self.prompt

    @property
    def sizes(self) -> list[str]:
        """The sizes to judge, smallest first."""
        return list(SHAPES) if self.target == "any" else [self.target]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One size at one precision. spare: bytes left over, below zero missing; longest: context that fits, in tokens."""

    size: str
    precision: str
    plan: Plan
    spare: float
    longest: int
    int8_head: bool
    forecast: Forecast | None
    first_token_s: float | None
    verdict: str
    reason: str
    change: str
    faster: str
    commands: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether it can run as asked."""
        return self.verdict != TOO_LARGE

    @property
    def name(self) -> str:
        """How sentences call it."""
        return f"{HUB[self.size]} at {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """All decisions; `best` is the recommended one, None where nothing fits. found: measured round times."""

    machine: Machine
    wish: Wish
    prior: Prior
    decisions: list[Decision]
    best: Decision | None
    found: Found = field(default_factory=Found)


@dataclass(frozen=True)
class Case:
    """One size at one precision, before it is judged. rounds: measured ones by size, in bf16."""

    machine: Machine
    wish: Wish
    size: str
    precision: str
    rounds: Mapping[str, Rounds] = field(default_factory=dict)

    @property
    def config(self) -> TextConfig:
        return target_config(self.size)

    @property
    def drafter(self) -> DrafterConfig:
        return drafter_config(self.size)

    @property
    def bits(self) -> float:
        return PRECISIONS[self.precision]

    def use(self, int8_head: bool = False) -> Use:
        """The memory asked for."""
        return Use(batch=self.wish.batch, context=self.wish.context, int8_head=int8_head, device=self.machine.kind)

    def spare(self, use: Use) -> float:
        """Bytes left over; none are enough for more positions than the size has."""
        if use.context > self.config.max_positions:
            return float("-inf")
        return memory.fits(memory.plan(self.config, self.drafter, self.bits, use), self.machine.room)


def advise(machine: Machine, wish: Wish, found: Found | None = None) -> Advice:
    """Judges the sizes asked for at every precision; `found` are measured rounds, which go before predicted ones.

    Raises UsageError for a wish that no size can hold.
    """
    found = found or Found()
    prior_ = prior(wish.category, wish.temperature)
    small = prior(wish.category, wish.temperature, small=True)
    most = max(target_config(size).max_positions for size in wish.sizes)
    if wish.context > most:
        raise UsageError(f"a context of {wish.context} tokens is more than {most}, the most these sizes take")
    cases = [Case(machine, wish, size, precision, found.rounds) for size in wish.sizes for precision in PRECISIONS]
    decisions = [decide(case, small if case.size in SMALL else prior_) for case in cases]
    return Advice(machine=machine, wish=wish, prior=prior_, decisions=decisions, best=recommend(decisions), found=found)


def recommend(decisions: list[Decision]) -> Decision | None:
    """The largest size that fits and is fast enough, at the most bits; else the fastest that fits."""
    order = list(SHAPES)
    fitting = sorted((d for d in decisions if d.fits), key=lambda d: (-order.index(d.size), -PRECISIONS[d.precision]))
    for decision in fitting:
        if decision.forecast is None or decision.forecast.rate.middle >= COMFORT:
            return decision
    return max(fitting, key=lambda d: d.forecast.rate.middle if d.forecast else 0.0, default=None)


def decide(case: Case, prior_: Prior) -> Decision:
    """The verdict on one case."""
    int8 = takes_int8_head(case)
    use = case.use(int8)
    found = memory.plan(case.config, case.drafter, case.bits, use)
    spare = memory.fits(found, case.machine.room)
    seen = forecast(case.config, case.drafter, _load(case, int8), case.machine, prior_)
    verdict, reason = judge(case, case.spare(use), seen)
    setup = Setup(size=case.size, precision=case.precision, k=_draft_length(seen), batch=case.wish.batch,
                  context=case.wish.context, kind=case.machine.kind, int8_head=int8)  # fmt: skip
    return Decision(
        size=case.size, precision=case.precision, plan=found, spare=spare, int8_head=int8, forecast=seen,
        longest=memory.longest_context(case.config, case.drafter, case.bits, use, case.machine.room),
        first_token_s=_first_token(case), verdict=verdict, reason=reason, change=change(case, verdict, prior_),
        faster=faster(case, seen) if spare >= 0 else "", commands={} if verdict == TOO_LARGE else commands(setup),
    )  # fmt: skip


def takes_int8_head(case: Case) -> bool:
    """Whether to halve what the drafter's dense head reads and holds: only Paceline does, on a GPU."""
    return case.precision == "bf16" and case.machine.kind in ("cuda", "any") and not case.drafter.centroids


def _load(case: Case, int8_head: bool) -> speed.Load:
    """A round halfway through the answer."""
    wish = case.wish
    rounds = case.rounds.get(case.size) if case.precision == "bf16" else None
    # Beyond the texts it was measured with, a table would have more of them cost nothing.
    measured = rounds.table if rounds and wish.batch <= rounds.table.batches[-1] else None
    return speed.Load(batch=wish.batch, context=wish.prompt_tokens + wish.output - wish.output // 2,
                      weight_bytes=case.bits / 8, int8_head=int8_head, measured=measured)  # fmt: skip


def _first_token(case: Case) -> float | None:
    return speed.prompt_seconds(case.config, case.wish.prompt_tokens, case.bits / 8, case.machine, speed.fitted())


def _draft_length(seen: Forecast | None) -> int:
    """The k to run with: 4, as the models' guide has it, where speeds are unknown."""
    return 4 if seen is None else seen.k


def judge(case: Case, spare: float, seen: Forecast | None) -> tuple[str, str]:
    """Verdict and reason, each reason a sentence without its full stop."""
    if spare < 0:
        return TOO_LARGE, _why_too_large(case, spare)
    left = f"{spare / 1e9:.1f} GB stay free"
    warnings = list(cautions(case, seen))
    if warnings:
        return CAUTION, f"{left}, but {'; '.join(warnings)}"
    if case.size in SMALL:
        return FITS, f"{left}; made for a single user on a small device, as this is"
    return FITS, left


def _why_too_large(case: Case, spare: float) -> str:
    if spare == float("-inf"):
        return f"it takes at most {case.config.max_positions} tokens of context, and {case.wish.context} are asked for"
    return f"{-spare / 1e9:.1f} GB are missing"


def cautions(case: Case, seen: Forecast | None) -> Iterator[str]:
    """What is known to disappoint."""
    wish, machine = case.wish, case.machine
    modest = machine.bandwidth is None or machine.bandwidth < MODEST
    if case.size == MIXTURE and wish.batch == 1 and modest:
        yield CAUTIONS["mixture"]
    if case.size in SMALL and (wish.batch > 1 or machine.room > SMALL_DEVICE):
        yield CAUTIONS["small"]
    if seen is not None and seen.k == 0:
        yield CAUTIONS["none"]
    elif seen is not None and seen.speedup.low < 1:
        yield CAUTIONS["slower"]


def change(case: Case, verdict: str, prior_: Prior) -> str:
    """The cheapest step: what makes it fit, or what its caution asks for; empty where nothing is to be changed."""
    if verdict == TOO_LARGE:
        return next(steps(case), NO_STEP)
    if case.size == MIXTURE and verdict == CAUTION and case.wish.batch == 1:
        return f"serve 4 to 8 texts side by side ({_side_by_side(case, prior_)}), or run it without the drafter"
    return ""


def _side_by_side(case: Case, prior_: Prior) -> str:
    """What four texts together are predicted to bring."""
    four = replace(case, wish=replace(case.wish, batch=4))
    seen = forecast(case.config, case.drafter, _load(four, takes_int8_head(four)), case.machine, prior_)
    if seen is None:
        return "--batch 4"
    return f"--batch 4: {4 * seen.rate.low:.0f} to {4 * seen.rate.high:.0f} tokens/s together, predicted"


def faster(case: Case, seen: Forecast | None) -> str:
    """The cheapest change that is predicted to make it `QUICKER` times as fast: fewer bits, else a smaller size."""
    if seen is None:
        return ""
    for other in _quicker(case):
        int8 = takes_int8_head(other)
        prior_ = prior(case.wish.category, case.wish.temperature, small=other.size in SMALL)
        found = forecast(other.config, other.drafter, _load(other, int8), case.machine, prior_)
        if found and other.spare(other.use(int8)) >= 0 and found.rate.middle >= QUICKER * seen.rate.middle:
            rates = f"{found.rate.low:.0f} to {found.rate.high:.0f} tokens/s for each text"
            return f"{HUB[other.size]} at {other.precision}: {rates}, predicted"
    return ""


def _quicker(case: Case) -> Iterator[Case]:
    """The same size with fewer bits, then smaller sizes, the next smaller first."""
    yield from (replace(case, precision=name) for name, bits in PRECISIONS.items() if bits < case.bits)
    order = list(SHAPES)
    yield from (replace(case, size=size) for size in reversed(order[: order.index(case.size)]))


def steps(case: Case) -> Iterator[str]:
    """Changes that make it fit, cheapest first: what is cut of the work before what is cut of the model."""
    use, room = case.use(), case.machine.room
    positions = case.config.max_positions
    if use.context > positions:
        use = replace(use, context=positions)
    longest = memory.longest_context(case.config, case.drafter, case.bits, use, room)
    if longest >= max(case.wish.output + PAGE, use.context // 4):
        yield f"a context of {min(longest, use.context)} tokens fits"
    if use.batch > 1 and (batch := _batch(case, use)):
        yield f"{batch} of the {use.batch} texts side by side fit{'s' if batch == 1 else ''}"
    for name, bits in PRECISIONS.items():
        if bits < case.bits and Case(case.machine, case.wish, case.size, name).spare(use) >= 0:
            yield f"at {name} it fits"
    if case.spare(replace(use, drafter=False)) >= 0:
        yield "without its drafter it fits"
    if longest:
        yield f"a context of {longest} tokens fits, and no more"


def _batch(case: Case, use: Use) -> int:
    """The most sequences that fit, 0 for none."""
    return next((n for n in range(use.batch - 1, 0, -1) if case.spare(replace(use, batch=n)) >= 0), 0)
