"""What a report consists of, whichever way it is shown: console, page or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Row = list[str]


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader must know before believing the verdict. grave: the verdict may be wrong, or a text changed."""

    text: str
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """The first column names the row, the others hold numbers, or words where `words` is set."""

    title: str
    header: Row
    rows: list[Row]
    note: str = ""
    words: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture as SVG. says: what it shows, in words, for those who cannot see it."""

    title: str
    svg: str
    note: str
    says: str


@dataclass(frozen=True, slots=True)
class Section:
    """Prose and facts at the end."""

    title: str
    paragraphs: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """Where two texts part: what both said, then what each did."""

    title: str
    common: str
    off: str
    on: str
    verdict: str
    grave: bool


def _none() -> list[Figure]:
    return []


@dataclass(frozen=True, kw_only=True)
class Document:
    """A report. verdict: its sentences, the first for everybody. key_figures: what, how much, and beside it.

    figures: draws them, on demand, since only the page shows any. passages_note: what stands above the passages.
    """

    title: str
    verdict: list[str]
    labels: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    key_figures: list[tuple[str, str, str]] = field(default_factory=list)
    figures: Callable[[], list[Figure]] = _none
    tables: list[Table] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    passages_note: str = ""
    sections: list[Section] = field(default_factory=list)
