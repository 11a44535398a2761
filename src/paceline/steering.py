"""Who says how many tokens each round of a request drafts: a number that was asked for, or a policy, round by round.

A policy is asked before a round and told of it afterwards; it never sees the round it chooses for.
"""

from __future__ import annotations

from collections.abc import Callable

from paceline.control.policy import Policy, Served, State, Turns
from paceline.drafters import Drafter, MtpDraft
from paceline.processors import reshapes
from paceline.speculate import Round
from paceline.types import SamplingParams, Stats

LONGEST = 8  # drafts of a round that a policy may choose


class Asked:
    """Always the k that was asked for."""

    def __init__(self, k: int) -> None:
        self.longest = k

    def before(self, length: int, room: int) -> int:
        """Drafts of the coming round, of which only `room` are wanted."""
        return min(self.longest, room)

    def after(self, done: Round) -> None:
        """Learns nothing."""

    def describe(self, stats: Stats) -> str:
        """How draft lengths were chosen, in words."""
        return asked(self.longest)


class Steered:
    """What a policy chooses, on times by the engine's clock.

    The round behind a prompt is not timed: its first draft step pays for what the prompt swept from the caches, which
    says nothing of the rounds that follow.
    """

    longest = LONGEST

    def __init__(
        self, policy: Policy, drafter: Drafter, request: str, kind: str, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self.policy, self.request, self.kind, self.clock = policy, request, kind, clock
        self.turns, self.first = Turns(policy), True
        self.listens = drafter if isinstance(drafter, MtpDraft) else None

    def before(self, length: int, room: int) -> int:
        """Drafts of the coming round, of which only `room` are wanted; the cache holds `length` tokens."""
        turns = self.turns
        if not turns.left:
            turns.choose(State(self.request, 1, length, self.kind))
            if self.listens:
                self.listens.stop = self.policy.stop
        if turns.left == 1:
            self.length, self.begun = length, self.clock()
        return min(turns.k, room)

    def after(self, done: Round) -> None:
        """The round is over."""
        turns, first = self.turns, self.first
        self.first = False
        if not turns.over(done.drafted, done.accepted):
            return
        ms = 0.0 if first else 1e3 * (self.clock() - self.begun)
        k, heard = done.drafted, self.listens.confidences if self.listens else ()
        unmade = heard[k] if len(heard) > k else None
        self.policy.observe(
            Served(self.request, k, done.accepted, ms, 1, self.length, (), tuple(heard[:k]), unmade, self.kind,
                   turns.tries, turns.hits)
        )  # fmt: skip

    def describe(self, stats: Stats) -> str:
        """How draft lengths were chosen, in words."""
        return chosen(stats, self.policy.reason)


def asked(k: int) -> str:
    """A fixed draft length in words."""
    return f"k = {k}, as asked for" if k else "no drafts, as asked for"


def chosen(stats: Stats, reason: str) -> str:
    """What a policy drafted for a text, and why the last round was as it was."""
    if not stats.rounds:
        return "auto: no round"
    plain = stats.rounds - (stats.drafted[0] if stats.drafted else 0)
    mean = sum(stats.drafted) / stats.rounds
    return f"auto: {mean:.1f} drafts a round, none in {plain} of {stats.rounds} rounds; last: {reason}"


def kind_of(params: SamplingParams) -> str:
    """Requests whose rounds cost alike and whose drafts are kept alike: by how their tokens are chosen."""
    cut = params.temperature > 0 and bool(params.top_k or params.top_p < 1.0 or params.min_p)
    return f"{params.temperature:g}{' cut' * cut}{' processed' * reshapes(params)}"
