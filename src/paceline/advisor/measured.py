"""Round times that were measured: of a file that the user names, or those that `paceline calibrate` keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paceline.advisor.commands import HUB
from paceline.advisor.machines import HERE, Machine
from paceline.control import store
from paceline.control.cost import CostTable, read_table
from paceline.control.store import Entry
from paceline.errors import UsageError

ANEW = "`paceline calibrate` measures anew"
LOOKUPS = ("ngram", "None")  # drafters that are no model: their rounds are another matter


@dataclass(frozen=True)
class Rounds:
    """A size's round times in bf16, and where they come from, in words."""

    table: CostTable
    origin: str


@dataclass(frozen=True)
class Found:
    """Round times by size, and a sentence about those that were left out; empty where none were."""

    rounds: dict[str, Rounds] = field(default_factory=dict)
    left_out: str = ""


def of_file(path: Path, target: str, batch: int) -> Found:
    """The file's rounds, of the one size wished for.

    Raises UsageError for a file that is none, where no size is named, and for more texts than it was measured with.
    """
    if target == "any":
        raise UsageError(f"{path} holds the rounds of one size; say with --target which")
    table = read_table(path)
    if batch > table.batches[-1]:
        raise UsageError(f"{path} knows rounds of at most {table.batches[-1]} texts, not of --batch {batch}")
    return Found({target: Rounds(table, path.name)})


def kept_here(machine: Machine, sizes: Sequence[str], batch: int) -> Found:
    """What `paceline calibrate` keeps of these sizes, where the machine asked for is this one's CPU.

    Left out are tables of another machine, of other versions, and of fewer texts side by side. Raises UsageError for a
    kept file that is none.
    """
    if machine.name != HERE:
        return Found()
    named = [entry for entry in store.entries() if entry.model.size in sizes and entry.model.weight_bytes == 2]
    named = [entry for entry in named if entry.subject.drafter not in LOOKUPS]
    reasons = [(entry, _obstacle(entry, batch)) for entry in named]
    rounds: dict[str, Rounds] = {}
    for entry, reason in reasons:
        if not reason:
            rounds.setdefault(str(entry.model.size), Rounds(entry.table, _origin(entry)))
    return Found(rounds, _left_out((entry, reason) for entry, reason in reasons if entry.model.size not in rounds))


def _obstacle(entry: Entry, batch: int) -> str:
    """Why the table does not serve; empty where it does."""
    if entry.subject.machine != store.machine():
        return f"on another machine ({entry.subject.machine})"
    other = [f"{name} {entry.versions.get(name)}" for name, now in store.versions().items()
             if entry.versions.get(name) != now]  # fmt: skip
    if other:
        return f"with {', '.join(other)}"
    most = entry.table.batches[-1]
    return f"for at most {most} text{'s' if most > 1 else ''} side by side" if batch > most else ""


def _origin(entry: Entry) -> str:
    ends = sorted({entry.table.contexts[0], entry.table.contexts[-1]})
    behind = " to ".join(str(end) for end in ends)
    return f"here on {entry.date} by `paceline calibrate`, behind {behind} tokens"


def _left_out(reasons: Iterable[tuple[Entry, str]]) -> str:
    """One sentence; of a size that is named twice for one reason, once."""
    told = dict.fromkeys(f"{HUB[str(entry.model.size)]}'s, measured {reason}" for entry, reason in reasons)
    return f"Round times left out: {'; '.join(told)}; {ANEW}." if told else ""
