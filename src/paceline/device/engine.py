"""Serves requests on a GPU: who sits where, which round comes next, and what the last one brought.

The host launches round r + 1 before it reads round r, so a slow host never keeps the device waiting. It may therefore
stop a text one round late; what that round brought is dropped, never emitted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.control.policy import Served
from paceline.control.view import Plan
from paceline.device.beginning import Beginnings
from paceline.device.graphs import Graphs
from paceline.device.hosted import Host, to_host
from paceline.device.pilot import SILENT, STANDING, Pilot
from paceline.device.request import Request
from paceline.device.round import DeviceModel, How, Shape, span_of
from paceline.errors import UsageError
from paceline.kernels.gpu.accept import COUNT, FINISHED, MARGINS
from paceline.kernels.gpu.launch import pow2
from paceline.kernels.gpu.rows import MARGIN_UNIT, mode_of
from paceline.processors import reshapes
from paceline.speculate import Round
from paceline.types import AUTO, TokenLogprobs


class Ticket:
    """A round under way: what it will bring, copied to the host behind it.

    plan: the choice of its draft length, where that was open; timed: whether nothing but the round came in between;
    host_ms: what the host did for it once the round before the last was there, 0 if rounds to come take another time.
    """

    def __init__(
        self, outcome: Tensor, seated: dict[int, Request], drafted: int, reports: Tensor | None = None
    ) -> None:  # fmt: skip
        self.seated, self.drafted = dict(seated), drafted
        self.plan: Plan | None = None
        self.timed, self.host_ms, self.there_s = False, 0.0, 0.0
        self.outcome, self.reports = to_host(outcome), None if reports is None else to_host(reports)
        self.rows: list[list[int]] = []
        self.event = torch.cuda.Event(enable_timing=True) if outcome.is_cuda else None  # type: ignore[no-untyped-call]
        if self.event:
            self.event.record()
        self.made_s = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether it could be read without waiting."""
        return bool(self.event and self.event.query())  # type: ignore[no-untyped-call]

    def read(self) -> Iterator[tuple[int, Request, Round, bool]]:
        """Waits, then gives (place, request, round, whether its text ended) for each request that was seated."""
        if self.event:
            self.event.synchronize()
        self.there_s = time.perf_counter()
        self.rows = self.outcome.tolist()
        for place, request in self.seated.items():
            row = self.rows[place]
            if row[COUNT]:
                done = Round(row[: row[COUNT]], self.drafted and min(self.drafted, request.most))
                yield place, request, done, bool(row[FINISHED])

    def logprobs(self, place: int, count: int) -> list[TokenLogprobs]:
        """Of the first `count` tokens that it brought to a place; it was read."""
        assert self.reports is not None
        return [TokenLogprobs(chosen) for chosen in self.reports[place, :count].tolist()]

    def margins(self, place: int, count: int) -> tuple[float, ...]:
        """How sure the drafter was of the first `count` drafts at a place, in logits; none where it does not tell."""
        told = self.rows[place][MARGINS : MARGINS + count]
        return tuple([margin / MARGIN_UNIT for margin in told]) if any(told) else ()

    def ms_after(self, before: Ticket) -> float:
        """Time from the end of the ticket before to the end of this one; both were read."""
        if self.event and before.event:
            return float(before.event.elapsed_time(self.event))
        return 1e3 * (self.made_s - before.made_s)


class Wishes(NamedTuple):
    """What those who are seated want: how tokens are chosen, the greatest k that was asked for, whether any is open."""

    how: How
    asked: int
    open: bool

    @classmethod
    def of(cls, requests: Collection[Request]) -> Wishes:
        """Those of these requests."""
        how = How(
            mode_of([r.params for r in requests]),
            any(reshapes(r.params) for r in requests),
            any(r.reported for r in requests),
        )
        asked = [r.k for r in requests if r.k != AUTO]
        return cls(how, max(asked, default=0), len(asked) < len(requests))


class DeviceEngine:
    """Batches of requests over one `DeviceModel`. `least_batch` bounds how many sizes of batch are captured.

    pilot: chooses draft lengths for requests whose k is "auto".
    """

    def __init__(self, model: DeviceModel, graphs: bool = True, pilot: Pilot | None = None) -> None:
        self.model, self.graphs, self.pilot = model, Graphs(model, graphs), pilot
        self.last_read: Ticket | None = None
        self.waiting: deque[Request] = deque()
        self.seated: dict[int, Request] = {}
        self.pending: deque[Ticket] = deque()
        self.least_batch, self.hosting, self.seating = 1, False, False
        self.known: Wishes | None = None  # of those seated; None once that may have changed
        self.beginnings = Beginnings(model, self.graphs)
        self.host = Host(model, self.graphs, pilot.alone if pilot else None)

    def submit(self, request: Request) -> None:
        """Queues a request; `step` serves it."""
        self.waiting.append(request)

    def step(self) -> list[Request]:
        """Seats who fits, launches a round, reads what came before it, then serves those whose tokens the host chooses.

        Returns the requests that got tokens, and those that failed.
        """
        while self.waiting and self._seat(self.waiting[0]):
            self.waiting.popleft()
        if self.seated:
            self._launch()
        changed = dict[Request, None]()
        while len(self.pending) > bool(self.seated):  # all but the newest, and that too once nobody is seated
            changed.update(dict.fromkeys(self._read()))
        hosted = self.host.rounds()
        self.hosting = bool(hosted)
        return [*changed, *hosted]

    @property
    def busy(self) -> bool:
        """Whether anything is waiting, running or unread."""
        return bool(self.waiting or self.seated or self.pending or self.host.texts)

    def cancel(self, request: Request) -> None:
        """Ends a text from the host's side, a stop string for instance."""
        for place, seated in list(self.seated.items()):
            if seated is request:
                self._leave(place)
        self.host.leave(request)
        if request in self.waiting:
            self.waiting.remove(request)
        request.finished = True

    # ---- seats ------------------------------------------------------------------------------------------------------

    def _seat(self, request: Request) -> bool:
        cache = self.model.cache
        free = [place for place in range(cache.places) if place not in cache.held]
        if not free or not cache.can_hold(request.tokens):
            return False
        if request.hosted:
            self.host.seat(request, free[-1])  # the last: a batch's round runs over all places up to its own last
            return True
        cache.reserve(free[0], request.tokens)
        self.seated[free[0]], self.known = request, None
        self._begin(request, free[0], self.graphs.prompt(request.prompt, cache.where(free[0])))
        return True

    def _leave(self, place: int) -> None:
        """Frees a place, and fills it with the last one where that makes the batch smaller."""
        del self.seated[place]
        self.known = None
        self.model.cache.release(place)
        self._idle(place)
        highest = max(self.seated, default=-1)
        if highest > place and pow2(highest + 1) > pow2(len(self.seated)):
            self.seated[place] = self.seated.pop(highest)
            self.model.cache.move(highest, place)
            drafter = self.model.drafter
            for state in self.model.places.tensors() + (drafter.state if drafter else []):
                state[place].copy_(state[highest])
            self._idle(highest)

    def _idle(self, place: int) -> None:
        """Nothing to write, and nothing to read either: a stale length could exceed the span of the others' rounds."""
        sequences = self.model.places.sequences
        sequences.remaining[place].zero_()  # `x[place] = 0` would wait for the round under way
        sequences.length[place].zero_()

    def _begin(self, request: Request, place: int, hidden: Tensor) -> None:
        """The text whose prompt has been read comes to the rounds, its first token to the host."""
        desk = self.beginnings.begin(request, place, hidden)
        self.seating = True
        self.pending.append(Ticket(desk.outcome, {0: request}, 0, desk.reports if request.reported else None))

    # ---- rounds -----------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        k, plan = self._draft_length()
        shape = self._shape(k)
        if self.pilot and plan:
            ready = [k] if self.graphs.has(shape) else self._ready(shape)
            shape = shape._replace(k=self.pilot.affordable(k, plan, ready))
        captured = self.graphs.has(shape)
        # Asking the device takes a call, so it is asked only where something hangs on it.
        idle = bool(self.pending) and plan not in (None, SILENT) and self.pending[-1].done
        self.graphs.round(shape)
        places = self.model.places  # whole: views of all its parts would be made for two of them
        reports = places.reports[: shape.batch] if shape.report else None
        ticket = Ticket(places.outcome[: shape.batch], self.seated, shape.k, reports)
        ticket.plan = plan
        if self.pilot and plan:
            self._time(ticket, self.pilot.launched(idle or self.seating), captured and not self.hosting, idle)
        self.seating = False
        self.pending.append(ticket)

    def _time(self, ticket: Ticket, thought: bool, alone: bool, idle: bool) -> None:
        """The first round behind a prompt waits for the host, as any does that finds the device idle: of that only the
        host's work is news, unless it thought. alone: the first of a shape waits for its graph, some for hosted texts.
        """
        alone = alone and not self.seating
        ticket.timed = alone and not idle
        if alone and not thought and self.last_read and ticket.event:
            ticket.host_ms = 1e3 * (ticket.made_s - self.last_read.there_s)

    @property
    def wishes(self) -> Wishes:
        """Of those seated."""
        self.known = self.known or Wishes.of(self.seated.values())
        return self.known

    def _ready(self, shape: Shape) -> list[int]:
        """Draft lengths on offer, none shorter than asked for, whose rounds of this shape are captured."""
        assert self.pilot
        return self.graphs.ready(shape, [k for k in self.pilot.offered if k >= self.wishes.asked])

    def _draft_length(self) -> tuple[int, Plan | None]:
        """The longest draft that anyone seated asked for, or that pays for those who leave it open, and that choice."""
        if not self.model.drafter:
            return 0, None
        if not self.wishes.open:
            return self.wishes.asked, None
        if self.pilot is None:
            raise UsageError("k='auto' needs a pilot; give the engine one, or requests a number")
        k, plan = self.pilot.choose((r.seat for r in self.seated.values()), self._batch())
        return max(k, self.wishes.asked), plan

    def _batch(self) -> int:
        """Places of the smallest captured round that serves everyone seated."""
        return min(pow2(max(self.seated) + 1, self.least_batch), self.model.cache.places)

    def _shape(self, k: int) -> Shape:
        """The smallest captured round of k drafts that serves everyone seated."""
        ahead = 1 + len(self.pending)
        reach = max([len(r.prompt) + r.emitted + (ahead + 1) * (r.most + 1) for r in self.seated.values()])
        how = self.wishes.how
        span = span_of(reach, self.model.cache.context)
        return Shape(self._batch(), k, how.mode, span, how.rules, how.report)

    def _read(self) -> list[Request]:
        """What the oldest round under way brought."""
        changed, ticket, served = [], self.pending.popleft(), dict[int, tuple[Request, Round]]()
        for at, request, done, ended in ticket.read():
            if request.finished:
                continue
            if request.reported:
                request.logprobs += ticket.logprobs(at, len(done.tokens))
            served[at] = request, done
            request.rounds.append(done)
            request.emitted += len(done.tokens)
            changed.append(request)
            if ended:
                request.finished = True
                place = next((p for p, r in self.seated.items() if r is request), None)
                if place is not None:
                    self._leave(place)
        self._tell(ticket, served)
        return changed

    def _tell(self, ticket: Ticket, served: dict[int, tuple[Request, Round]]) -> None:
        """Tells the pilot of a round that it chose; its time is known where another was read just before."""
        before, self.last_read = self.last_read, ticket if self.pending or self.seated else None
        if self.pilot is None or ticket.plan is None:
            return
        if ticket.host_ms:
            self.pilot.hosted(ticket.host_ms, len(ticket.outcome))
        if ticket.plan is SILENT:
            return
        ms = ticket.ms_after(before) if before and ticket.timed else 0.0  # 0 is taken for unknown
        told = ((at, *one) for at, one in served.items() if one[0].k == AUTO)
        self.pilot.observe(ticket.plan, [
            Served(request.name, done.drafted, done.accepted, ms, len(ticket.outcome), request.context,
                   ticket.margins(at, done.drafted))
            for at, request, done in islice(told, 1 if ticket.plan is STANDING else None)
        ])  # fmt: skip
