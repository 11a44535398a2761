"""What the controller knows of a round before it chooses, and what it chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.control.guard import Guard
from paceline.control.stop import Stop


@dataclass(slots=True)
class View:
    """A round as the controller sees it beforehand: conditional acceptance [k_max], tokens and ms by k [k_max + 1].

    pace: most tokens a millisecond of any k from 1 up; best: that k, or a better one to find out what a text is like.
    """

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


@dataclass(slots=True, eq=False)
class Plan:
    """What was chosen for a round; view is None for a parked round of which nothing was asked.

    guard: who scores it.
    """

    view: View | None = None
    k: int = 0
    stop: Stop | None = None
    probing: bool = False
    timing: bool = False
    guard: Guard | None = None


REST = Plan()
