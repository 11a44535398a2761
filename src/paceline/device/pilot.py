"""Draft lengths of requests that leave them open, on a GPU: one k for each round, from rounds that were read before.

Nothing waits for it. The host chooses for round r + 1 while round r runs and round r - 1 is known, and the times are
those between events that the rounds leave behind them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from paceline.config import DrafterConfig, TextConfig
from paceline.control.auto import Auto
from paceline.control.cost import CostTable, Timing
from paceline.control.kinds import Kinds
from paceline.control.policy import Policy, Served
from paceline.control.view import Plan
from paceline.roofline import Round as Work
from paceline.roofline import pass_flops, traffic
from paceline.steering import LONGEST

DRAFTS = (0, 1, 2, 3, 4, 6, LONGEST)  # each costs a graph, so not every length is offered
# Rounds at most that a batch's choice is kept for where the device waits for the host's thinking, or soon would: where
# the host is busy so much of a round without it; and choices after which it is one more.
RESTS, BUSY, RESTS_EVERY = 16, 0.5, 2
# Of a round that keeps the choice before it only the time is heard, and that of one in so many.
STANDING, SILENT, HEARD = Plan(), Plan(), 8
CAPTURE_EVERY = 8  # rounds from one new graph to the next: a capture may take as long as a hundred rounds
BATCHES, CONTEXTS = (1, 2, 4, 8, 16, 32, 64), (256, 8192, 65536)
# Bytes and operations a second. Of these and of the seconds below only ratios matter, and served rounds correct them.
BANDWIDTH, OPERATIONS = 3e12, 1.6e15


class Beside(NamedTuple):
    """Seconds that a round takes beside its bytes and operations, and that each draft and each verified row add."""

    pass_s: float
    draft_s: float
    row_s: float = 1.2e-5


IN_GRAPH = Beside(7e-4, 6e-5)
HOSTED = Beside(2e-3, 1.2e-3)  # a draft brings two rows of logits to the host, which draws from each


def prior_table(target: TextConfig, drafter: DrafterConfig | None, beside: Beside = IN_GRAPH) -> CostTable:
    """Round times by what must be moved and multiplied. Predicted, and nothing measured: to begin with."""

    def ms(b: int, c: int, k: int) -> float:
        rows = b * (k + 1)
        moved = traffic(target, drafter, Work(batch=b, context=c, k=k)).seconds(BANDWIDTH)
        multiplied = pass_flops(target, rows, c).total / OPERATIONS
        return 1e3 * (moved + multiplied + beside.pass_s + k * beside.draft_s + rows * beside.row_s)

    rounds = ((b, c, k) for b in BATCHES for c in CONTEXTS for k in range(LONGEST + 1))
    return CostTable((Timing(b, k, c, ms(b, c, k)) for b, c, k in rounds), vague=True)


class Seat(NamedTuple):
    """A sequence of a round: a name for its request, the length of its text so far, and whether its k is open."""

    name: str
    context: int
    open: bool


@dataclass
class Pilot:
    """Asks the controller before a round is launched, and tells it once the round was read.

    alone: chooses for texts whose tokens the host chooses, each of which has rounds of its own.
    """

    policy: Auto
    offered: Sequence[int] = field(default=DRAFTS)
    alone: Policy | None = None
    waited: int = CAPTURE_EVERY
    last: tuple[int, int] = (0, 0)  # of the last choice: k, and places
    choices: int = 0
    spare: int = 0  # rounds that the last choice may be kept for; rests: that it is kept for yet
    rests: int = 0
    thought: bool = False  # of a batch, since the last launch

    def reason(self, alone: bool = False) -> str:
        """Why the last round of the batch, or of a text alone, drafted what it did, in words."""
        return self.alone.reason if alone and self.alone else self.policy.reason

    def choose(self, seats: Iterable[Seat], size: int) -> tuple[int, Plan]:
        """(k, the plan to be told with the round) for those seats whose k is open.

        size: places that the round is captured for, which is what it costs.
        """
        if self.rests and size == self.last[1]:
            self.rests -= 1
            return self.last[0], SILENT if self.rests % HEARD else STANDING
        seats = list(seats)
        longest = max([seat.context for seat in seats])
        names = tuple([seat.name for seat in seats if seat.open])
        wanted, self.rests, self.choices = self.policy.choose_batch(names, size, longest), 0, self.choices + 1
        plan = self.policy.plan
        self.thought = len(names) > 1 and plan.view is not None
        self.last, self.spare = (self._offer(wanted, plan), size), self._spare(len(names), plan)
        return self.last[0], plan

    def _spare(self, count: int, plan: Plan) -> int:
        """A batch tells as much in few rounds as one text does in many, and more is news at first than later.

        One that is to be timed stands for as long as that takes; of those made to learn, and those that took no
        thinking, none does.
        """
        if count == 1 or plan.view is None or plan.probing:
            return 0
        if plan.timing:
            return 1
        return min(count, RESTS, self.choices // RESTS_EVERY) if plan.k == plan.view.best else 0

    def launched(self, idle: bool) -> bool:
        """A round was launched; idle: the device had run out of work. Whether a batch was thought about for it.

        If so, and that takes time, the choice that was just made is kept for a while.
        """
        thought, self.thought = self.thought, False
        if thought and self.spare and (idle or self._busy()):
            self.rests, self.spare = self.rests or self.spare, 0
        return thought

    def _busy(self) -> bool:
        (k, size), table = self.last, self.policy.table
        return table.host_ms.get(size, 0.0) > BUSY * table.ms(k, size)

    def hosted(self, ms: float, batch: int) -> None:
        """What the host did for a round of so many places, without thinking about it, took so long."""
        self.policy.table.observe_host(ms, batch)

    def _offer(self, wanted: int, plan: Plan) -> int:
        """The length on offer that is nearest: of a shorter and a longer one, that of more tokens a millisecond.

        But not the one that pays best anyway, where another is to be timed.
        """
        if wanted in self.offered or plan.view is None:
            return max(k for k in self.offered if k <= wanted)
        tokens, times = plan.view.tokens, plan.view.times
        near = {max(k for k in self.offered if k < wanted), min((k for k in self.offered if k > wanted), default=0)}
        if plan.timing:
            near -= {plan.view.best}
        return max(near, key=lambda k: tokens[k] / times[k] if k < len(times) else 0.0)

    def affordable(self, k: int, plan: Plan, ready: Sequence[int]) -> int:
        """k, or the nearest length whose graph is there where a new one has to wait; none and a probe never wait."""
        self.waited += 1
        if k in ready:
            return k
        if ready and k and not plan.probing and self.waited < CAPTURE_EVERY:
            k = min(ready, key=lambda other: abs(other - k))
            self.last = k, self.last[1]
            return k
        self.waited = 0
        return k

    def observe(self, plan: Plan, served: Sequence[Served]) -> None:
        """A round was read."""
        if plan is STANDING:
            for one in served[:1]:
                self.policy.table.observe(one.k, one.ms, one.batch, one.context)
        elif served and plan is not SILENT:
            self.policy.observe_batch(served, plan)
            self.thought |= len(served) > 1 and plan.view is not None


def first_pilot(target: TextConfig, drafter: DrafterConfig) -> Pilot:
    """A pilot that knows predicted times only."""
    alone = Auto(prior_table(target, drafter, HOSTED), LONGEST, listens=True)
    return Pilot(Auto(prior_table(target, drafter), LONGEST), alone=Kinds(alone))
