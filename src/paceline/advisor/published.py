"""Published speed-ups of other people's runs with their sources, and what is predicted for each: a check, not a fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from paceline.advisor import machines
from paceline.advisor.forecast import Range, at_length
from paceline.advisor.memory import PRECISIONS
from paceline.advisor.priors import SMALL, prior
from paceline.advisor.speed import Load
from paceline.shapes import drafter_config, target_config

CONTEXT = 1024
"""Tokens in the cache of every run: none states its own."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One published speed-up, as one figure or both ends of several. assumed: what its source does not state.

    note: why the prediction is off, where it is.
    """

    size: str
    machine: str
    engine: str
    precision: str
    batch: int
    k: int
    category: str
    low: float
    high: float
    source: str
    assumed: str = ""
    note: str = ""

    @property
    def middle(self) -> float:
        """What is compared."""
        return (self.low + self.high) / 2


@cache
def runs() -> tuple[Run, ...]:
    """The table that ships, in its order."""
    text = files("paceline.advisor").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(Run(**row) for row in json.loads(text)["rows"])


def predicted(run: Run) -> Range:
    """The range of speed-ups at the run's own draft length; nothing in it knows what was published."""
    load = Load(batch=run.batch, k=run.k, context=CONTEXT, weight_bytes=PRECISIONS[run.precision] / 8)
    ends = prior(run.category, small=run.size in SMALL)
    return at_length(target_config(run.size), drafter_config(run.size), load, machines.find(run.machine), ends).speedup


def inside(run: Run, found: Range) -> bool:
    """Whether the middle of what was published lies in the range."""
    return found.low <= run.middle <= found.high
