"""The requests whose rounds were heard of: what each is like, in one book that rounds of many are read from at once."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

import numpy as np

from paceline.control.belief import BEFORE, TEXTS, Belief, blank, usual
from paceline.control.logistic import Floats, Ints

REQUESTS = 1024  # remembered at once
RENEW = 4  # texts after which it is summed up anew what they were like, once there are so many


class Requests:
    """What is known of each request; of one not seen yet, what is usual of those before it."""

    def __init__(self) -> None:
        self.book = blank(REQUESTS)  # marks and odds, [REQUESTS, ..]
        self.known: OrderedDict[str, tuple[int, Belief]] = OrderedDict()
        self.texts, self.before, self.usual = 0, BEFORE, BEFORE
        self.last: tuple[tuple[str, ...], Ints] = (), np.zeros(0, np.int64)

    def start_from(self, other: Requests) -> None:
        """Takes what the other's texts were like for what was before any."""
        self.before = self.usual = other.so_far()

    def so_far(self) -> Floats:
        """What is usual by now."""
        latest = [at for at, _ in islice(reversed(self.known.values()), TEXTS)]
        found: Floats = usual(self.book, np.array(latest, np.int64), self.before)
        return found

    def of(self, name: str) -> Belief:
        """What is known of one."""
        found = self.known.get(name)
        return found[1] if found else self._new(name)[1]

    def places(self, names: tuple[str, ...]) -> Ints:
        """Where in the book some of them are, [n]."""
        if names != self.last[0]:
            self.last = names, np.array([(self.known.get(name) or self._new(name))[0] for name in names])
        return self.last[1]

    def _new(self, name: str) -> tuple[int, Belief]:
        self.texts += 1
        if self.texts < RENEW or self.texts % RENEW == 0:
            self.usual = self.so_far()
        at = len(self.known)
        if at == REQUESTS:
            (at, _), self.last = self.known.popitem(last=False)[1], ((), self.last[1])
        marks, odds = self.book
        found = self.known[name] = at, Belief(self.usual, (marks[at], odds[at]))
        return found
