"""The record of a run as a document, and that on the console, as a page, and as Markdown."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Group

from paceline.bench.console import to_console
from paceline.bench.document import Document
from paceline.bench.figures import figures_of
from paceline.bench.markdown import to_markdown
from paceline.bench.origin import passages_of, sections_of
from paceline.bench.page import to_html
from paceline.bench.stored import labels_of, tidy
from paceline.bench.tables import tables_of
from paceline.bench.verdict import key_figures, notes, verdict


def document_of(record: dict[str, Any]) -> Document:
    """What there is to say about a run, from a record of any version, complete or not."""
    record = tidy(record)
    passages, passages_note = passages_of(record)
    return Document(
        title="What drafting is worth", verdict=verdict(record), labels=labels_of(record), notes=notes(record),
        key_figures=key_figures(record), figures=partial(figures_of, record), tables=tables_of(record),
        passages=passages, passages_note=passages_note, sections=sections_of(record),
    )  # fmt: skip


def console_report(record: dict[str, Any]) -> Group:
    """Verdict, labels, cautions and tables for a terminal."""
    return to_console(document_of(record))


def html_report(record: dict[str, Any]) -> str:
    """One HTML page without outside resources. Raises UsageError when matplotlib is missing."""
    return to_html(document_of(record))


def markdown_report(record: dict[str, Any]) -> str:
    """Verdict, cautions and tables, fit for an issue or a pull request."""
    return to_markdown(document_of(record))
