"""The controller: as many drafts as promise the most tokens a millisecond, none where drafting does not pay.

E[tokens | k] / T(k) over k = 0 .. k_max, with acceptance from `Acceptance` and times from `CostTable`, both corrected
by every served round. It parks at k = 0 with hysteresis, and then probes rarely, with one draft. A guard keeps score
of what the best constant k would have done on the same rounds and lets it decide while it leads.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from paceline.control.cost import CostTable, Floats
from paceline.control.guard import Guard
from paceline.control.policy import Served, State
from paceline.control.predict import REQUESTS, Acceptance, expected_tokens

PARK, LEAVE = 1.0, 1.015  # drafts stop below this speed-up, and begin again above that
PROBE_SHARE = 0.0135  # of the time while parked
PROBE_FIRST, PROBE_LAST = 4, 30  # rounds between probes: doubles from the first with each that fails
PROBE_NEWS = 3.0  # what a probe says counts for so many rounds: it is all that is heard of a parked request
PLAIN_EVERY, NEAR = 64, 1.15  # rounds after which one is plain where drafting promises less: to learn its time
DEEPER_EVERY = 48  # rounds after which one is a draft longer, to learn of a position not seen


@dataclass(slots=True)
class Parking:
    """Whether a request drafts, rounds since it last did, and how many to wait before a probe."""

    parked: bool = False
    since: int = 0
    wait: int = PROBE_FIRST
    probing: bool = False


class Auto:
    """`choose` returns k in 0 .. k_max; `reason` explains it."""

    def __init__(self, table: CostTable, k_max: int, guard: bool = True) -> None:
        self.table, self.k_max = table, min(k_max, table.k_max)
        self.acceptance = Acceptance(self.k_max)
        self.guard = Guard(self.k_max) if guard else None
        self.parking: OrderedDict[str, Parking] = OrderedDict()
        self.last = Parking()
        self.rounds, self.reason = 0, ""

    def choose(self, state: State) -> int:
        self.rounds += 1
        times = self.table.times(state.batch, state.context, state.overlap)[: self.k_max + 1]
        law = self.acceptance.law(state.request)
        own = self._own(state.request, expected_tokens(law), times)
        if self.guard is None:
            return own
        # A probe is worth what is learnt, not what it yields: the guard would always be against it.
        k = self.guard.choose(own, law, times, spared=self._parking(state.request).probing)
        if k != own:
            self.reason = f"guard: a constant k = {k} leads by {self.guard.lead:.1%} on these rounds"
        return k

    def observe(self, served: Served) -> None:
        self.table.observe(served.k, served.ms, served.batch, served.context)
        if self.guard:
            self.guard.observe(served)
        parking = self._parking(served.request)
        news = PROBE_NEWS if parking.probing else 1.0
        self.acceptance.observe(served.request, served.accepted, served.certainty, news)
        self._after(parking, served)

    def _own(self, request: str, tokens: Floats, times: Floats) -> int:
        """The choice without the guard."""
        rates = tokens / times
        best = 1 + int(np.argmax(rates[1:]))
        gain = float(rates[best] / rates[0])
        parking = self._parking(request)
        parking.parked = gain < (LEAVE if parking.parked else PARK)
        if parking.parked:
            return self._parked(parking, best, tokens, times)
        if gain < NEAR and self.rounds % PLAIN_EVERY == 0:
            self.reason = f"no draft, to time a plain round: {_drafts(best)} promise only {gain - 1:.0%} more"
            return 0
        k = self._deeper(best)
        self.reason = f"{_drafts(k)}: {tokens[k]:.1f} tokens in {times[k]:.1f} ms, against 1 in {times[0]:.1f} ms" + (
            ", one more than pays best, to learn of it" if k != best else ""
        )
        return k

    def _parked(self, parking: Parking, best: int, tokens: Floats, times: Floats) -> int:
        costs = f"{_drafts(best)} would cost {times[best] - times[0]:.1f} ms and win {tokens[best] - 1:.1f} tokens"
        longest = math.ceil(float(times[1] / times[0] - 1) / PROBE_SHARE)
        parking.probing = parking.since >= min(parking.wait, max(PROBE_FIRST, min(longest, PROBE_LAST)))
        self.reason = f"probe: one draft, to see whether {costs} still" if parking.probing else f"parked: {costs}"
        return int(parking.probing)

    def _deeper(self, best: int) -> int:
        """Now and then one draft more, where that position was hardly ever verified."""
        if best < self.k_max and self.rounds % DEEPER_EVERY == 0 and self.acceptance.samples[best].seen < 64:
            return best + 1
        return best

    def _after(self, parking: Parking, served: Served) -> None:
        parking.since = parking.since + 1 if served.k == 0 else 0
        if parking.probing:
            # A probe that hits is followed up at once; one that misses makes the next wait longer.
            parking.wait = 1 if served.accepted else min(max(2 * parking.wait, PROBE_FIRST), PROBE_LAST)
            parking.probing = False
        elif not parking.parked:
            parking.wait = PROBE_FIRST
        self.last = parking

    def _parking(self, request: str) -> Parking:
        if request not in self.parking:
            # A new request goes on waiting where the last one stood, else many short ones would be mostly probes.
            self.parking[request] = Parking(since=self.last.since, wait=max(self.last.wait, PROBE_FIRST))
            if len(self.parking) > REQUESTS:
                self.parking.popitem(last=False)
        return self.parking[request]


def _drafts(k: int) -> str:
    return "1 draft" if k == 1 else f"{k} drafts"
