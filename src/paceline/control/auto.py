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

import numpy as np

from paceline.control import belief, drift
from paceline.control.cost import CostTable
from paceline.control.guard import SCORED, Guard
from paceline.control.parking import PROBE_FIRST, PROBE_LAST, Parking
from paceline.control.policy import Served, State
from paceline.control.predict import Acceptance, Reading, expected_tokens
from paceline.control.requests import REQUESTS
from paceline.control.stop import Stop, surety
from paceline.control.view import REST, Plan, View

PARK, LEAVE = 1.01, 1.04  # drafts stop below this speed-up, and begin again above that
PROBE_SHARE, PROBE_WEIGHT = 0.01, 0.2  # of the time while parked; of the newest in the average of what they take
LOOK = 0.15  # acceptance from which a new request that would not draft is probed at once: some earlier ones were better
SWEPT = 1.8  # so many times what a probe takes itself is lost to it on a CPU, where plain rounds after it start cold
FEW = 8  # rounds from which the first of all are over
SHORT = 2  # drafts of those first few, and one more for each that was kept: what may be hopeless is tried cheaply
PLAIN_EVERY, NEAR = 64, 1.15  # rounds after which some are plain, to learn their time; rarer if drafts promise more
PLAIN_FIRST = (8, 15)  # of the rounds that draft, after which that is done once in any case
PLAIN_RUN = 3  # so many of them, where the first ones pay for what drafting swept from the caches
DEEPER_EVERY = 48  # rounds after which one is a draft longer, to learn of a position not seen
# The round that is of another length, where so little is known of its time that it may pay; and so many times later.
PRICED_FIRST, PRICED_AGAIN = 4, 1.3
THINK_EVERY = 24  # rounds of one choice where drafts end early by themselves; while parked, until the next probe
HELD, KNOWN = 7, 8  # rounds that a choice is kept for where each is asked about, of a request with so many drafts seen
AGAIN = 16  # divides the periods above: a choice that falls on one of them is made anew
# Of rounds that are parked or each asked about, one in so many is timed, once so many of any k were.
TOLD, TIMED = 4, 64
# Where drafts end early by themselves, rounds are scored at every other choice, and timed only there once so many were.
SCORED_ALONE, TIMED_ALONE = 2 * THINK_EVERY, 16
# But the first rounds that draft, of all and of each of the first texts, are of one choice each; and of these an heir
# has had some.
SLOW_START, SETTLED, TEXTS, HEIR = 16, 2, 8, 8
DOUBT = 0.5  # of what a guess must promise is enough to keep it: of those dropped nobody learns what they were worth
GAIN_ROUNDS, GAIN_MOST = 24.0, 1.5  # memory of what ending drafts early brings, and how much of it is believed
BATCH = "\0batch"  # the name that batches are parked under


class Auto:
    """`choose` returns k in 0 .. k_max; `reason` explains it. `plan` is the last choice.

    Where rounds are told of late, `observe` needs the plan that was theirs.
    """

    def __init__(self, table: CostTable, k_max: int, guard: bool = True, listens: bool = False) -> None:
        drift.warm_up()
        belief.warm_up()
        self.table, self.k_max, self.listens = table, min(k_max, table.k_max), listens
        self.acceptance, self.reading = Acceptance(self.k_max), Reading()
        self.guarded, self.guards = guard, dict[int, Guard]()
        self.parking: OrderedDict[str, Parking] = OrderedDict()
        self.last, self.request = Parking(), ""
        self.rounds, self.first, self.drafting = 0, 0, 0
        self.before, self.scoring, self.timing, self.priced = 0, True, False, PRICED_FIRST
        self.stop: Stop | None = None
        self.plan, self.patience = REST, 1
        self.won = self.promised = GAIN_ROUNDS
        self.probe_ms, self.kept, self.resting = 0.0, 0, 0
        self.say: Callable[[], str] = str
        self.names: tuple[str, ...] = ()
        self.chosen, self.held, self.news = 0, 0, 0

    @property
    def reason(self) -> str:
        """Why the last choice was made, in words."""
        return self.say()

    def heir(self) -> Auto:
        """A controller for another kind of text, which starts from what this one knows and learns on its own."""
        other = Auto(self.table.copy(), self.k_max, self.guarded, self.listens)
        other.acceptance.start_from(self.acceptance)
        other.reading.law, other.drafting = self.reading.law, HEIR
        return other

    def choose(self, state: State) -> int:
        """How many tokens the coming rounds of one sequence draft, at most: so many as `patience` says."""
        if self.resting:
            self.last.since += self.resting // 2  # the text ended within them, nobody says where
        k = self.choose_batch((state.request,), state.batch, state.context)
        self.patience = self._patience(k)
        self.rounds += self.patience - 1
        self.resting = 0 if k else self.patience - 1
        return k

    def choose_batch(self, names: tuple[str, ...], batch: int, context: int) -> int:
        """How many tokens each sequence of a batch drafts in the coming round: those of most tokens a millisecond."""
        self.rounds, self.patience = self.rounds + 1, 1
        self.before, self.first = self.first, self.rounds
        self.scoring = self._crossed(SCORED_ALONE if self.listens and self.drafting > SLOW_START else SCORED)
        if names == self.names and self._holds():
            return self.chosen
        self.names, self.held, self.news = names, 0, 0
        request = names[0] if len(names) == 1 else BATCH
        parking = self._parking(request)
        self.last, self.request = parking, request
        view = self._view(names, self.table.times(batch, context)[: self.k_max + 1], parking)
        self.stop = None
        self.timing = False
        own = self._own(parking, view)
        self.plan = Plan(view, own, self.stop, parking.probing, self.timing)
        k = self._guarded(own, self.plan, batch) if self.guarded else own
        if k == 0 and parking.parked:
            self.plan = REST
        parking.since = 0 if k else parking.since + 1
        self.chosen = k
        return k

    def _view(self, names: tuple[str, ...], times: Sequence[float], parking: Parking) -> View:
        law = self.acceptance.law(*names)
        view = View(law, expected_tokens(law), times)
        if parking.heard < 2 * KNOWN and len(names) == 1 and not self.listens and view.pace * times[0] > PARK:
            view.best = self.acceptance.cheapest(names[0], times)
        return view

    def _holds(self) -> bool:
        """Whether the last choice stands: parked and no probe is due, or one of a few rounds that show nothing new."""
        parking = self.last
        if self.plan is REST:
            parking.since += parking.rest > 0 and not self.news
            return parking.rest > 0 and not self.news
        if self.news > 1 or self._crossed(AGAIN):
            return False
        self.held += 1
        settled = parking.heard >= KNOWN and not self.acceptance.told  # what is heard of certainty is news each round
        return settled and self.held <= HELD and not (self.plan.probing or self.plan.timing)

    def _patience(self, k: int) -> int:
        """Rounds that a choice stands for: one as long as much is learnt from each."""
        parking = self.last
        if parking.parked and not k:
            return parking.rest + 1  # this round counts as rested already
        settled = parking.heard >= (SETTLED if self.acceptance.requests.texts < TEXTS else 1)
        if not self.listens or parking.probing or self.drafting <= SLOW_START or not settled:
            return 1
        return THINK_EVERY if k else PLAIN_RUN

    def observe(self, served: Served) -> None:
        """The last round of those last chosen has finished."""
        if served.request == self.request:
            self.last.since += self.resting
            self.resting = 0
            self.observe_batch([served], self.plan)

    def observe_batch(self, batch: Sequence[Served], plan: Plan) -> None:
        """A round of several sequences has finished, chosen as `plan` says."""
        one, view = batch[0], plan.view
        if plan is REST and not one.k and self._familiar(plan):
            return
        known = view.times[one.k] if view and one.k < len(view.times) else None
        self._time(one, plan, known)
        if plan is not REST:
            self.news += 2 * sum(not served.accepted for served in batch) >= len(batch)
        if view and known and self.scoring and plan.guard:
            self._score(plan.guard, plan, view, batch)
        self._learn(plan, batch)
        parking = self._parking(one.request if len(batch) == 1 else BATCH)
        if one.k or one.unmade is not None:  # in a batch all draft alike
            parking.heard += 1
        if plan.probing and view:
            parking.told(2 * sum(served.accepted > 0 for served in batch) >= len(batch), view.law[0])
        elif not parking.parked:
            parking.wait = PROBE_FIRST

    def _time(self, one: Served, plan: Plan, known: float | None) -> None:
        """A round took one.ms, of which so many were `known` beforehand."""
        if not one.ms:
            return
        if plan.probing and known:
            # After rounds without drafts it pays for fetching the drafter's code anew, which further ones would not:
            # they take that long at most.
            self.probe_ms += (min(one.ms, 3 * known) - self.probe_ms) * (PROBE_WEIGHT if self.probe_ms else 1.0)
            if one.ms < known:
                self.table.observe(one.k, one.ms, one.batch, one.context)
        elif one.unmade is not None and known:
            self.table.observe_step(one.ms - known)
        elif one.k <= self.table.k_max and not self._familiar(plan):
            self.table.observe(one.k, one.ms, one.batch, one.context)

    def _familiar(self, plan: Plan) -> bool:
        """Whether rounds like this one were timed just before."""
        if plan.timing:
            return False
        if self.listens:
            return plan is not REST and self.table.rounds > TIMED_ALONE and not self.scoring
        if self.table.rounds <= TIMED:
            return False
        if plan is REST or self.acceptance.told:
            return bool((self.last.since if plan is REST else self.rounds) % TOLD)
        return self.held > 1

    def _learn(self, plan: Plan, batch: Sequence[Served]) -> None:
        served, unmade = batch[0], None
        if served.tries:
            self.acceptance.hear(served.request, served.tries, served.hits)
        if not served.k and served.unmade is None:
            return
        self.kept += sum([one.accepted for one in batch])
        if len(batch) > 1:
            self.acceptance.observe_batch(batch, plan.probing)
            return
        if served.unmade is not None:
            unmade = surety(served.unmade), self.reading.stop(0.0, 0.0).chance(served.k, served.unmade)
        self.acceptance.observe(served.request, served.accepted, served.certainty, plan.probing, unmade)
        if served.confidences:
            self.reading.observe(served.accepted, served.confidences)

    def _crossed(self, period: int) -> bool:
        """Whether it is time for what is done at one choice in so many rounds."""
        return self.first // period > self.before // period

    # ---- before a round ---------------------------------------------------------------------------------------------

    def _own(self, parking: Parking, view: View) -> int:
        """The choice without the guard."""
        gain = view.pace * self._bonus() * view.times[0]
        parked = gain < (LEAVE if parking.parked else PARK)
        if parking.parked and not parked:
            parking.heard = 0
        elif parked and not parking.parked and not parking.heard:
            parking.hopeful = view.law[0] > LOOK
        parking.parked, parking.probing = parked, False
        if parking.parked:
            return self._parked(parking, view)
        if self._crossed(PLAIN_EVERY if gain < NEAR else 4 * PLAIN_EVERY) or self.drafting in PLAIN_FIRST:
            self.drafting += 1
            self.timing = True
            self.say = lambda: f"no draft, to time a plain round: drafts promise only {gain - 1:.0%} more"
            return 0
        return self._listening(view) if self.listens else self._ahead(view)

    def _ahead(self, view: View) -> int:
        """The k of most tokens a millisecond; now and then another one, to learn of its last position or its time."""
        best, seen, why = view.best, self.acceptance.samples.seen, ""
        k = best
        if best < self.k_max and self._crossed(DEEPER_EVERY) and seen[best] < 64:
            k, why = best + 1, ", one more than pays best, to learn of it"
        elif self.first >= self.priced:
            k, self.priced = self._hoped(view), math.ceil(PRICED_AGAIN * self.first)
            self.timing = k != best
            why = ", to time it: it may pay better" if self.timing else ""
        self.say = lambda: (
            f"{_drafts(k)}: {view.tokens[k]:.1f} tokens in {view.times[k]:.1f} ms, against 1 in {view.times[0]:.1f} ms"
            + why
        )
        return k

    def _hoped(self, view: View) -> int:
        """The k of most tokens a millisecond if each took as little as it well may beside the best."""
        drift = self.table.latest
        if drift is None:
            return view.best
        rates = np.array(view.tokens) / np.array(view.times) * np.exp(drift.doubts(view.best)[: len(view.times)])
        return 1 + int(np.argmax(rates[1:]))

    def _listening(self, view: View) -> int:
        """All k, ended by a stop at the pace of this request. Now and then nothing is dropped, to learn of it."""
        self.drafting += 1
        pace, times = view.pace * self._bonus(), view.times
        more = (times[-1] - times[1]) / (self.k_max - 1) if self.k_max > 1 else times[1] - times[0]
        row = max(more - self.table.step_ms, more / 5)
        keep = DOUBT * pace * row if self.drafting % DEEPER_EVERY else 0.0
        go = min(0.95, pace * more / view.law[min(1, self.k_max - 1)])
        self.stop = self.reading.stop(min(keep, go), go)
        self.say = lambda: (
            f"up to {_drafts(self.k_max)}, as long as all are kept with a chance of {go:.0%}: {pace:.2f} tokens a ms,"
            f" against {1 / times[0]:.2f} without"
        )
        return self.k_max if self.acceptance.rounds >= FEW else min(self.k_max, SHORT + self.kept)

    def _parked(self, parking: Parking, view: View) -> int:
        best, tokens, times = view.best, view.tokens, view.times
        dearer = (max(self.probe_ms, times[1]) / times[0] - 1) * (SWEPT if self.listens else 1.0)
        parking.longest = max(PROBE_FIRST, min(math.ceil(dearer / PROBE_SHARE), PROBE_LAST))
        parking.probing = probing = not parking.rest
        parking.hopeful = False

        def say() -> str:
            costs = f"{_drafts(best)} would cost {times[best] - times[0]:.1f} ms and win {tokens[best] - 1:.1f} tokens"
            return f"probe: one draft, to see whether {costs} still" if probing else f"parked: {costs}"

        self.say = say
        return int(probing)

    def _guarded(self, own: int, plan: Plan, batch: int) -> int:
        """The choice of the arm that decides in batches of this size."""
        size, view = (batch - 1).bit_length(), plan.view
        assert view
        guard = self.guards.get(size)
        if guard is None:
            guard = self.guards[size] = Guard(self.k_max)
        # These are worth what is learnt, not what they yield: the guard would always be against them.
        spared = plan.probing or plan.timing
        plan.guard = None if spared else guard
        if self.scoring or not guard.pace:
            k = guard.choose(own, view.law, view.times, spared)
        else:
            k = guard.constant if guard.holds and not spared else own
        if guard.holds and not spared and (k != own or self.stop):
            self.stop = Stop() if self.listens else None  # hears all of the draft, and ends nothing
            lead = guard.lead
            self.say = lambda: f"guard: a constant k = {k} leads by {lead:.1%} on these rounds"
        return k

    # ---- after a round ----------------------------------------------------------------------------------------------

    def _score(self, guard: Guard, plan: Plan, view: View, batch: Sequence[Served]) -> None:
        """What the round says of the guard's arms and of ending drafts early."""
        saved, stop = 0.0, plan.stop
        for served in batch:
            own, steps = min(plan.k, self.k_max), min(plan.k, self.k_max)
            heard = served.confidences if served.unmade is None else (*served.confidences, served.unmade)
            if stop and self.stop is stop:  # its own draft, and not the guard's
                own, steps = served.k, len(heard)
            elif stop:
                own, steps = stop.length(heard, own)
            own_ms = view.times[own] + (steps - own) * self.table.step_ms
            beyond = stop.chance(served.k, served.unmade) if stop and served.unmade is not None else None
            saved += guard.score(served, own, own_ms, beyond)
            if stop:
                self._reap(1 + min(own, served.accepted), view.pace * own_ms)
        guard.observe(saved / len(batch))

    def _reap(self, tokens: int, promised: float) -> None:
        """A draft that ended where its stop said came to so many tokens, where its time promised others.

        What came counts, not what its confidence made likely: a drafter that is sure and wrong would be believed.
        """
        self.won += tokens - self.won / GAIN_ROUNDS
        self.promised += promised - self.promised / GAIN_ROUNDS

    def _bonus(self) -> float:
        """What ending drafts early multiplies the pace of the best k by: never less than 1, which that k itself has.

        Before a text is known its rounds come to less than they promise, and a parked one would never learn better.
        """
        return min(max(self.won / self.promised, 1.0), GAIN_MOST) if self.listens else 1.0

    def _parking(self, request: str) -> Parking:
        found = self.parking.get(request)
        if found is None:
            alike = (request == BATCH) == (self.request == BATCH)
            found = self.parking[request] = self.last.next() if alike else Parking()
            if len(self.parking) > REQUESTS:
                self.parking.popitem(last=False)
        return found


def _drafts(k: int) -> str:
    return "1 draft" if k == 1 else f"{k} drafts"
