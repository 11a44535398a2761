"""What drafting did: acceptance from whatever the engine tells, and in words how it was counted.

An engine may tell with each answer, through counters that cover a step, by position or as sums, with the rounds of
verification or without. Engines also differ in whether drafts count that were accepted beyond the end of a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paceline.bench.measurement import Measurement, StepRecord

WITH_ANSWERS = "told with each answer"
BY_COUNTERS = "differences of the engine's counters over each step"


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over some texts. rounds: None where the engine does not count them. By position: [k], or empty.

    Judged: of the drafts made at a position those before which all were accepted; empty where not every text tells.
    """

    source: str
    texts: int
    tokens: int
    accepted: int
    rounds: int | None
    drafted_by_position: list[int]
    accepted_by_position: list[int]
    judged_by_position: list[int]

    @property
    def later(self) -> int:
        """Tokens after the first of each text, which reading the prompt brings: those that rounds brought."""
        return self.tokens - self.texts

    @property
    def beyond(self) -> int:
        """Accepted drafts that cannot be in the texts: an engine may count what lies beyond an end token."""
        return 0 if self.rounds is None else max(0, self.accepted + self.rounds - self.later)


def tally(rows: Iterable[Measurement], steps: Iterable[StepRecord] = ()) -> Tally | None:
    """Sums of the rows that tell; where not all do, of the steps that were counted; None where nothing tells.

    The steps must be those of the rows. One with a failed request is left out: its counters hold what no text shows.
    """
    rows = list(rows)
    telling = [row for row in rows if row.accepted_tokens is not None or row.drafted]
    counted = [step for step in steps if step.accepted is not None and not step.failed]
    if counted and len(telling) < len(rows):
        return _of_steps(counted)
    return _of_rows(telling) if telling else None


def _of_rows(rows: Sequence[Measurement]) -> Tally:
    told = all(row.rounds or not (row.drafted_tokens or row.accepted_tokens) for row in rows)
    judged = [row.judged for row in rows if row.drafted]
    return Tally(
        WITH_ANSWERS,
        texts=sum(row.tokens > 0 for row in rows),
        tokens=sum(row.tokens for row in rows),
        accepted=sum(sum(row.accepted) if row.accepted_tokens is None else row.accepted_tokens for row in rows),
        rounds=sum(row.rounds for row in rows) if told else None,
        drafted_by_position=_added(_tried(row.drafted, row.accepted, row.rounds) for row in rows),
        accepted_by_position=_added(row.accepted for row in rows),
        judged_by_position=_added(judged) if all(judged) else [],
    )


def _of_steps(steps: Sequence[StepRecord]) -> Tally:
    rounds = [step.rounds for step in steps if step.rounds is not None]
    by_position = [_tried(s.drafted_by_position, s.accepted_by_position, s.rounds or 0) for s in steps]
    return Tally(
        BY_COUNTERS,
        texts=sum(step.texts for step in steps),
        tokens=sum(step.tokens for step in steps),
        accepted=sum(step.accepted or 0 for step in steps),
        rounds=sum(rounds) if len(rounds) == len(steps) else None,
        drafted_by_position=_added(by_position),
        accepted_by_position=_added(step.accepted_by_position for step in steps),
        judged_by_position=[],
    )


def _tried(drafted: Sequence[int], accepted: Sequence[int], rounds: int) -> Sequence[int]:
    """Drafts made at each position; an engine that counts only the accepted ones by position drafts k a round."""
    return drafted or [rounds] * len(accepted)


def _added(lists: Iterable[Sequence[int]]) -> list[int]:
    total: list[int] = []
    for values in lists:
        total += [0] * (len(values) - len(total))
        for i, value in enumerate(values):
            total[i] += value
    return total


def acceptance_length(rows: Iterable[Measurement], steps: Iterable[StepRecord] = ()) -> float | None:
    """Mean tokens per round after the first token, the bonus token counted; 1.0 would be plain decoding.

    Drafts accepted beyond the end of a text do not count. Where rounds are not told they are what the tokens leave:
    tokens - texts - accepted drafts. None where nothing tells.
    """
    found = tally(rows, steps)
    if found is None:
        return None
    rounds = found.later - found.accepted if found.rounds is None else found.rounds
    return 1.0 + (found.accepted - found.beyond) / rounds if rounds > 0 else None


def survival_by_position(rows: Iterable[Measurement], steps: Iterable[StepRecord] = ()) -> list[float]:
    """[k] of the drafts made at a position, the fraction accepted (so all before them were accepted too)."""
    found = tally(rows, steps)
    if found is None:
        return []
    return [a / d for a, d in zip(found.accepted_by_position, found.drafted_by_position, strict=False) if d]


def acceptance_by_position(rows: Iterable[Measurement], steps: Iterable[StepRecord] = ()) -> list[float]:
    """[k] of the drafts made at a position after all earlier ones were accepted, the fraction accepted.

    Where the engine does not tell which these are, rates are divided: rounds cut short near the end of a text draft
    fewer positions. That holds where k is fixed; where drafts end early as they become unlikely, it would say too much.
    """
    found = tally(rows, steps)
    if found and found.judged_by_position:
        return [a / n for a, n in zip(found.accepted_by_position, found.judged_by_position, strict=False) if n]
    survival = survival_by_position(rows, steps)
    return [min(1.0, now / before) for before, now in zip([1.0, *survival], survival, strict=False) if before]


def counting(rows: Iterable[Measurement], steps: Iterable[StepRecord] = ()) -> str | None:
    """How acceptance was counted, in words; None where nothing tells."""
    found = tally(rows, steps)
    if found is None:
        return None
    if found.rounds is None:
        return f"{found.source}, without rounds; those are tokens - texts - accepted drafts"
    if not found.beyond:
        return found.source
    return (
        f"{found.source}; {found.beyond} of {found.accepted} accepted drafts lie beyond the ends of the texts: tokens"
        " per round leave them out, acceptance by position cannot"
    )
