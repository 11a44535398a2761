"""A controller for each kind of request."""

from __future__ import annotations

from collections import OrderedDict

from paceline.control.auto import Auto
from paceline.control.policy import Served, State
from paceline.control.stop import Stop

KINDS = 16  # remembered at once


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

    @property
    def patience(self) -> int:
        """Rounds that the last choice stands for."""
        return self.now.patience

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
