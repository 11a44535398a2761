"""The controller: as many drafts as promise the most tokens a millisecond, none where drafting does not pay.

E[tokens | k] / T(k) over k = 0 .. k_max, with acceptance from `Acceptance` and times from `CostTable`, both corrected
by every served round. It parks at k = 0 with hysteresis, and then probes rarely, with one draft. A guard keeps score
of what the best constant k would have done on the same rounds and lets it decide while it leads.

Where the drafter can listen to itself (`listens`), k is only a ceiling: each round's draft ends at the guess whose next
step would bring fewer tokens a millisecond than the request's pace.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.control.cost import CostTable
from paceline.control.guard import SCORED, Guard
from paceline.control.policy import Served, State
from paceline.control.predict import REQUESTS, Acceptance, Reading, expected_tokens
from paceline.control.stop import Stop, surety

PARK, LEAVE = 1.0, 1.015  # drafts stop below this speed-up, and begin again above that
PROBE_SHARE = 0.010  # of the time while parked
PROBE_FIRST, PROBE_LAST = 4, 40  # rounds between probes: doubles from the first with each that fails
PROBE_NEWS = 3.0  # what a probe says counts for so many rounds: it is all that is heard of a parked request
PLAIN_EVERY, NEAR = 64, 1.15  # rounds after which one is plain where drafting promises less: to learn its time
DEEPER_EVERY = 48  # rounds after which one is a draft longer, to learn of a position not seen
THINK_EVERY, SLOW_START = 6, 24  # rounds of one choice where drafts end early by themselves; not for the first ones
LOOK_EVERY = 8  # rounds after which a parked request is looked at although nothing was heard of it
GAIN_ROUNDS, GAIN_MOST = 50.0, 1.5  # memory of what ending drafts early brings, and the most that is believed of it
KINDS = 16  # remembered at once
BATCH = "\0batch"  # the name that batches are parked under


@dataclass(slots=True)
class Parking:
    """Whether a request drafts, rounds since it last did, how many to wait before a probe, and how long at most.

    hopeful: the last probe hit, so another follows at once.
    """

    parked: bool = False
    since: int = 0
    wait: int = PROBE_FIRST
    longest: int = PROBE_LAST
    probing: bool = False
    hopeful: bool = False

    @property
    def due(self) -> bool:
        """Whether it is time for a probe."""
        return self.since >= min(self.wait, self.longest)

    def told(self, hit: bool) -> None:
        """What a probe came to: the next comes later each time that one misses."""
        self.hopeful = hit
        if not hit:
            self.wait = min(max(2 * self.wait, PROBE_FIRST), PROBE_LAST)


@dataclass(slots=True)
class View:
    """A round as the controller sees it beforehand: conditional acceptance [k_max], tokens and ms by k [k_max + 1]."""

    law: Sequence[float]
    tokens: Sequence[float]
    times: Sequence[float]
    best: int = 1
    pace: float = 0.0

    def __post_init__(self) -> None:
        for k in range(1, len(self.times)):
            rate = self.tokens[k] / self.times[k]
            if rate > self.pace:
                self.best, self.pace = k, rate


@dataclass(slots=True)
class Plan:
    """What was chosen for a round; view is None for a parked round of which nothing was asked."""

    view: View | None = None
    k: int = 0
    stop: Stop | None = None
    probing: bool = False


REST = Plan()


class Auto:
    """`choose` returns k in 0 .. k_max; `reason` explains it. `plan` is the last choice.

    Where rounds are told of late, `observe` needs the plan that was theirs.
    """

    def __init__(self, table: CostTable, k_max: int, guard: bool = True, listens: bool = False) -> None:
        self.table, self.k_max, self.listens = table, min(k_max, table.k_max), listens
        self.acceptance, self.reading = Acceptance(self.k_max), Reading()
        self.guard = Guard(self.k_max) if guard else None
        self.parking: OrderedDict[str, Parking] = OrderedDict()
        self.last = Parking()
        self.rounds, self.drafting = 0, 0
        self.stop: Stop | None = None
        self.plan, self.chosen = REST, 0
        self.untold, self.patience = list[Served](), 1
        self.won = self.promised = GAIN_ROUNDS
        self.say: Callable[[], str] = str

    @property
    def reason(self) -> str:
        """Why the last choice was made, in words."""
        return self.say()

    def heir(self) -> Auto:
        """A controller for another kind of text, which starts from what this one knows and learns on its own."""
        other = Auto(self.table.copy(), self.k_max, self.guard is not None, self.listens)
        other.acceptance.start_from(self.acceptance)
        other.reading.law = self.reading.law
        return other

    def choose(self, state: State) -> int:
        """How many tokens the coming round of one sequence drafts, at most."""
        if self.untold and state.request == self.untold[-1].request and len(self.untold) < self.patience:
            self.rounds += 1
            return self.chosen
        if self.untold:
            self._catch_up()
        self.chosen = self._afresh(state)
        if not self.listens or self.plan.probing or self.rounds <= SLOW_START:
            self.patience = 1
        else:
            self.patience = LOOK_EVERY if self.plan is REST else THINK_EVERY
        return self.chosen

    def _afresh(self, state: State) -> int:
        self.rounds += 1
        parking = self._parking(state.request)
        led = self.guard and self.guard.holds and self.guard.constant
        if parking.parked and not parking.due and not parking.hopeful and self.rounds % LOOK_EVERY and not led:
            self.stop, self.plan = None, REST  # nothing was heard since it parked
            return 0
        return self._choose(state, parking, self.acceptance.law(state.request))

    def choose_batch(self, states: Sequence[State]) -> int:
        """How many tokens each sequence of a batch drafts: those of most tokens a millisecond over all of them."""
        if len(states) == 1:
            return self.choose(states[0])
        self.rounds += 1
        return self._choose(states[0], self._parking(BATCH), pooled([self.acceptance.law(s.request) for s in states]))

    def _choose(self, state: State, parking: Parking, law: Sequence[float]) -> int:
        times = self.table.times(state.batch, state.context, state.overlap)[: self.k_max + 1]
        view = View(law, expected_tokens(law), times)
        self.stop = None
        own = self._own(parking, view)
        self.plan = Plan(view, own, self.stop, parking.probing)
        return self._guarded(own, parking, view) if self.guard else own

    def observe(self, served: Served) -> None:
        """The round last chosen has finished."""
        # Learnt from a few at a time: most of what thinking costs, between passes that sweep the caches with a model's
        # weights, is to fetch this code and its numbers again.
        self.untold.append(served)
        if self.patience == 1:
            self._catch_up()

    def _catch_up(self) -> None:
        told = self.untold
        if self.plan is REST:  # plain rounds tell what they cost, and one is enough for that
            told = self.untold[-1:]
            self._parking(told[0].request).since += len(self.untold) - 1
        for served in told:
            self.observe_batch([served], self.plan)
        self.untold.clear()

    def observe_batch(self, batch: Sequence[Served], plan: Plan) -> None:
        """A round of several sequences has finished, chosen as `plan` says."""
        one, view = batch[0], plan.view
        step = self.table.step_ms if one.unmade is not None else 0.0
        known = view.times[one.k] if view and one.k < len(view.times) else None
        if one.k <= self.table.k_max:
            self.table.observe(one.k, one.ms - step, one.batch, one.context, known)
        for served in batch:
            if view and known and self.rounds % SCORED == 0:
                self._score(plan, view, served)
            if served.k or served.unmade is not None:
                self._learn(plan, served)
        parking = self._parking(one.request if len(batch) == 1 else BATCH)
        drafted = one.k > 0 or one.unmade is not None  # in a batch all draft alike
        hit = 2 * sum(served.accepted > 0 for served in batch) >= len(batch)
        self._after(parking, plan.probing, drafted, hit)

    def _learn(self, plan: Plan, served: Served) -> None:
        news, unmade = PROBE_NEWS if plan.probing else 1.0, None
        if served.unmade is not None:
            unmade = surety(served.unmade), self.reading.stop(0.0, 0.0).chance(served.k, served.unmade)
        self.acceptance.observe(served.request, served.accepted, served.certainty, news, unmade)
        if served.confidences:
            self.reading.observe(served.accepted, served.confidences)

    # ---- before a round ---------------------------------------------------------------------------------------------

    def _own(self, parking: Parking, view: View) -> int:
        """The choice without the guard."""
        gain = view.pace * self._bonus() * view.times[0]
        parking.parked, parking.probing = gain < (LEAVE if parking.parked else PARK), False
        if parking.parked:
            return self._parked(parking, view)
        if gain < NEAR and self.rounds % PLAIN_EVERY == 0:
            self.say = lambda: f"no draft, to time a plain round: drafts promise only {gain - 1:.0%} more"
            return 0
        return self._listening(view) if self.listens else self._ahead(view)

    def _ahead(self, view: View) -> int:
        """The k of most tokens a millisecond; now and then one more, where that position was hardly ever verified."""
        best, samples = view.best, self.acceptance.samples
        deeper = best < self.k_max and self.rounds % DEEPER_EVERY == 0 and samples[best].seen < 64
        k = best + deeper
        self.say = lambda: (
            f"{_drafts(k)}: {view.tokens[k]:.1f} tokens in {view.times[k]:.1f} ms, against 1 in {view.times[0]:.1f} ms"
            + (", one more than pays best, to learn of it" if deeper else "")
        )
        return k

    def _listening(self, view: View) -> int:
        """All k, ended by a stop at the pace of this request. Now and then nothing is dropped, to learn of it."""
        self.drafting += 1
        pace, times = view.pace * self._bonus(), view.times
        more = (times[-1] - times[1]) / (self.k_max - 1) if self.k_max > 1 else times[1] - times[0]
        row = max(more - self.table.step_ms, more / 5)
        keep = pace * row if self.drafting % DEEPER_EVERY else 0.0
        go = min(0.95, pace * more / view.law[min(1, self.k_max - 1)])
        self.stop = self.reading.stop(min(keep, go), go)
        self.say = lambda: (
            f"up to {_drafts(self.k_max)}, as long as all are kept with a chance of {go:.0%}: {pace:.2f} tokens a ms,"
            f" against {1 / times[0]:.2f} without"
        )
        return self.k_max

    def _parked(self, parking: Parking, view: View) -> int:
        best, tokens, times = view.best, view.tokens, view.times
        parking.longest = max(PROBE_FIRST, min(math.ceil((times[1] / times[0] - 1) / PROBE_SHARE), PROBE_LAST))
        parking.probing = probing = parking.due or parking.hopeful
        parking.hopeful = False
        if probing:
            parking.since = 0  # known to be under way, even where rounds are told of late

        def say() -> str:
            costs = f"{_drafts(best)} would cost {times[best] - times[0]:.1f} ms and win {tokens[best] - 1:.1f} tokens"
            return f"probe: one draft, to see whether {costs} still" if probing else f"parked: {costs}"

        self.say = say
        return int(probing)

    def _guarded(self, own: int, parking: Parking, view: View) -> int:
        assert self.guard is not None
        # A probe is worth what is learnt, not what it yields: the guard would always be against it.
        if self.rounds % SCORED == 0:
            k = self.guard.choose(own, view.law, view.times, spared=parking.probing)
        else:
            k = self.guard.constant if self.guard.holds and not parking.probing else own
        if self.guard.holds and not parking.probing and (k != own or self.stop):
            lead = self.guard.lead
            self.stop = Stop() if self.listens else None  # hears all of the draft, and ends nothing
            self.say = lambda: f"guard: a constant k = {k} leads by {lead:.1%} on these rounds"
        return k

    # ---- after a round ----------------------------------------------------------------------------------------------

    def _score(self, plan: Plan, view: View, served: Served) -> None:
        """What the round says of the guard's arms and of ending drafts early."""
        own, stop = min(plan.k, self.k_max), plan.stop
        steps, heard = own, served.confidences if served.unmade is None else (*served.confidences, served.unmade)
        if stop and self.stop is stop:  # its own draft, and not the guard's
            own, steps = served.k, len(heard)
        elif stop:
            own, steps = stop.length(heard, own)
        own_ms = view.times[own] + (steps - own) * self.table.step_ms
        if self.guard and not plan.probing:
            self.guard.observe(served, own, own_ms)
        if stop:
            whole, tokens = 1.0, 1.0
            for j in range(min(own, len(heard))):
                whole *= stop.chance(j, heard[j])
                tokens += whole
            self.won += tokens - self.won / GAIN_ROUNDS
            self.promised += view.pace * own_ms - self.promised / GAIN_ROUNDS

    def _bonus(self) -> float:
        """What ending drafts early multiplies the pace of the best k by."""
        return min(max(self.won / self.promised, 1.0), GAIN_MOST) if self.listens else 1.0

    def _after(self, parking: Parking, probed: bool, drafted: bool, hit: bool) -> None:
        parking.since = 0 if drafted else parking.since + 1
        if probed:
            parking.told(hit)
        elif not parking.parked:
            parking.wait = PROBE_FIRST
        self.last = parking

    def _parking(self, request: str) -> Parking:
        found = self.parking.get(request)
        if found is None:
            # A new request goes on waiting where the last one stood, else many short ones would be mostly probes.
            found = self.parking[request] = Parking(since=self.last.since, wait=max(self.last.wait, PROBE_FIRST))
            if len(self.parking) > REQUESTS:
                self.parking.popitem(last=False)
        return found


class Kinds:
    """A controller for each kind of request, since what a round costs and wins depends on how tokens are chosen.

    A kind not seen before starts from what was learnt of the last one.
    """

    def __init__(self, first: Auto) -> None:
        self.now, self.known = first, OrderedDict[str, Auto]()

    @property
    def stop(self) -> Stop | None:
        """Ends the coming round's draft early."""
        return self.now.stop

    @property
    def reason(self) -> str:
        """Why the last choice was made, in words."""
        return self.now.reason

    def choose(self, state: State) -> int:
        self.now = self._of(state.kind)
        return self.now.choose(state)

    def observe(self, served: Served) -> None:
        self._of(served.kind).observe(served)

    def _of(self, kind: str) -> Auto:
        found = self.known.get(kind)
        if found is None:
            found = self.known[kind] = self.now.heir() if self.known else self.now
            if len(self.known) > KINDS:
                self.known.popitem(last=False)
        return found


def pooled(laws: Sequence[Sequence[float]]) -> list[float]:
    """Conditional acceptance by position of all sequences together: of those that reach it, how many pass."""
    alive, law = [1.0] * len(laws), list[float]()
    for j in range(len(laws[0])):
        reached = sum(alive)
        alive = [whole * one[j] for whole, one in zip(alive, laws, strict=True)]
        law.append(sum(alive) / reached if reached else 0.0)
    return law


def _drafts(k: int) -> str:
    return "1 draft" if k == 1 else f"{k} drafts"
