"""Paceline itself, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from paceline.bench.arms import Answer, Ask, Candidate, Drafting, Facts
from paceline.bench.harness import Contest
from paceline.errors import UsageError
from paceline.types import AUTO, Completion, DraftLength, Prompt, SamplingParams


class Engine(Protocol):
    """paceline.llm.LLM, or a fake. `k` is the draft length, 0 for no drafting."""

    def generate(self, prompts: list[Prompt], params: SamplingParams, /, *, k: DraftLength) -> list[Completion]: ...


@runtime_checkable
class Described(Protocol):
    """An engine that says what it is: JSON data for the record; its "labels" are shown with every result."""

    def describe(self) -> Mapping[str, Any]: ...


class LocalArm:
    """One draft length, or "auto", of an engine in this process, which answers one text at a time."""

    def __init__(self, engine: Engine, k: DraftLength) -> None:
        self.engine, self.k = engine, k

    async def open(self) -> None:
        """Is loaded already."""

    async def close(self) -> None:
        """Stays loaded."""

    async def check(self) -> Facts:
        """An engine of ours does what it is told."""
        details = dict(self.engine.describe()) if isinstance(self.engine, Described) else {}
        return Facts(
            engine="paceline", version=None, model=str(details.get("checkpoint", "")), drafts=self.k != 0,
            why=f"k = {self.k} in each call", k=None if self.k == AUTO else self.k, details=details,
            acceptance="the engine's statistics of each text",
        )  # fmt: skip

    async def answer(self, ask: Ask) -> Answer:
        """Generates; whatever the engine raises is its own failure, and ends the run."""
        [completion] = self.engine.generate([ask.prompt], ask.params, k=self.k)
        return answer_of(completion)

    async def counters(self) -> Drafting | None:
        """Every answer tells."""
        return None

    async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
        """Texts are compared by token ids here; see `paceline.bench.divergence`."""
        return None


def local_contest(engine: Engine, ks: Sequence[int | None]) -> Contest:
    """The arms of one engine in this process; k = None is the controller's own choice, round by round.

    Raises UsageError for a draft length that drafts nothing.
    """
    check_lengths(ks)
    return Contest(LocalArm(engine, 0), {k: LocalArm(engine, AUTO if k is None else k) for k in ks})


def check_lengths(ks: Sequence[int | None]) -> None:
    """Raises UsageError for draft lengths that draft nothing, or twice the same; None is one that is not fixed."""
    if not ks or min((k for k in ks if k is not None), default=1) < 1 or len(set(ks)) < len(ks):
        raise UsageError(f"k must be at least 1 and each named once (off is always measured beside it), not {list(ks)}")


def answer_of(completion: Completion) -> Answer:
    """A completion as the benchmark sees it."""
    stats = completion.stats
    return Answer(
        text=completion.text, tokens=len(completion.token_ids), finish_reason=completion.finish_reason,
        event_times_s=list(stats.token_times_s), token_ids=list(completion.token_ids),
        prompt_tokens=stats.prompt_tokens,
        drafting=Drafting(sum(stats.drafted), sum(stats.accepted), stats.rounds, tuple(stats.drafted),
                          tuple(stats.accepted), tuple(stats.judged)),
    )  # fmt: skip
