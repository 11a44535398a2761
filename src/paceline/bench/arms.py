"""What is measured: an arm answers one request and says what that cost. Two arms, one drafting, make a comparison.

Every engine is one class with the methods of `Arm`, in this process or behind HTTP. The harness decides who is asked
what and when, and keeps the time around each request; an arm only answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from paceline.errors import PacelineError
from paceline.types import Prompt, SamplingParams

Clock = Callable[[], float]
wall_clock: Clock = time.perf_counter


class ArmError(PacelineError):
    """An engine under measurement failed to answer: one sentence with the request's fate and the mend."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Two arms asked the same differ in nothing but drafting."""

    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Drafting:
    """What drafting did, in one answer or between two readings of an engine's counters.

    rounds: verification passes, None where the engine does not count them. By position, [k] each, where it tells:
    how many drafts were made there, how many of them accepted (so that all before them were too), and how many judged
    (all before them were).
    """

    drafted: int
    accepted: int
    rounds: int | None = None
    drafted_by_position: tuple[int, ...] = ()
    accepted_by_position: tuple[int, ...] = ()
    judged_by_position: tuple[int, ...] = ()

    def __sub__(self, before: Drafting) -> Drafting:
        """What happened since `before`, of the same engine's counters."""
        rounds = None if self.rounds is None or before.rounds is None else self.rounds - before.rounds
        return Drafting(
            self.drafted - before.drafted, self.accepted - before.accepted, rounds,
            _minus(self.drafted_by_position, before.drafted_by_position),
            _minus(self.accepted_by_position, before.accepted_by_position),
            _minus(self.judged_by_position, before.judged_by_position),
        )  # fmt: skip


def _minus(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(count - (before[i] if i < len(before) else 0) for i, count in enumerate(now))


@dataclass(slots=True)
class Answer:
    """A finished text, by the engine's own count of tokens.

    event_times_s: of each streamed event that brought text, seconds since the request was sent; the first is TTFT.
    event_tokens: how many tokens each of them brought, where the engine tells; else empty. cached_tokens: of the
    prompt, served from a prefix cache. finish_reason: "stop", "length", or the engine's own word. method: what the
    engine says it drafts with, where each answer tells. None is "not told" everywhere.
    """

    text: str
    tokens: int
    finish_reason: str
    event_times_s: list[float]
    event_tokens: list[int] = field(default_factory=list)
    token_ids: list[int] | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    drafting: Drafting | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What an arm is, found out before anything is timed.

    drafts: whether the engine drafts in this arm, None where nothing tells; `why` is how that is known, in words.
    k: the draft length in use, where known. acceptance: where acceptance comes from, in words ("nothing but time").
    identity: what two arms of one comparison must not share (a server's address), "" for one process.
    """

    engine: str
    version: str | None
    model: str
    drafts: bool | None
    why: str
    k: int | None = None
    method: str | None = None
    acceptance: str = "nothing but time"
    identity: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token at one place with its natural log-probability; `text` is the token's own."""

    text: str
    logprob: float


class Arm(Protocol):
    """One engine in one setting. Usable between `open` and `close`, which may start and stop a server."""

    async def open(self) -> None:
        """Makes it ready for requests. Raises ArmError with the engine's own last words when it does not come up."""

    async def close(self) -> None:
        """Lets go of everything it holds."""

    async def check(self) -> Facts:
        """What it is. Raises ArmError when it cannot be reached or does not have the model."""

    async def answer(self, ask: Ask) -> Answer:
        """Generates one text. Raises ArmError when the engine refuses, stalls, dies or talks nonsense."""

    async def counters(self) -> Drafting | None:
        """Totals since the engine started; None where single answers tell, or nothing does."""

    async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
        """The n likeliest tokens after the prompt and the text `so_far`, best first; None where it cannot be asked."""
