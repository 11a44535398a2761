"""`paceline report` and `paceline compare`: records that were measured before, as pages, Markdown and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from paceline.bench.document import Document
from paceline.bench.record import check_writable, write_text

Html = Annotated[Path | None, typer.Option(help="Self-contained page with plots.")]
Markdown = Annotated[Path | None, typer.Option(help="Tables and verdict, for an issue or a pull request.")]


def report(
    record: Annotated[Path, typer.Argument(help="JSON file of paceline bench, complete or not.")],
    html: Html = None, markdown: Markdown = None,
) -> None:  # fmt: skip
    """Show a run measured before; the last line of stdout is its summary as JSON."""
    from paceline.bench.report import document_of
    from paceline.bench.stored import read_record

    check_files(html, markdown)
    stored = read_record(record)
    _write(document_of(stored), html, markdown)
    print(json.dumps(stored["summary"], allow_nan=False))


def compare(
    records: Annotated[list[Path], typer.Argument(help="JSON files of paceline bench; the first is held against.")],
    html: Html = None, markdown: Markdown = None,
) -> None:  # fmt: skip
    """Put runs, engines or versions side by side; the last line of stdout is one JSON object."""
    from paceline.bench.compare import compare_runs, load_sides
    from paceline.bench.compare_report import document_of

    check_files(html, markdown)
    comparison = compare_runs(load_sides(records))
    _write(document_of(comparison), html, markdown)
    print(json.dumps(comparison.data(), allow_nan=False))


def check_files(html: Path | None, markdown: Path | None) -> None:
    """Raises UsageError for files that could not be written, and when a page is wanted without matplotlib."""
    from paceline.bench.plots import require_matplotlib

    for path in (html, markdown):
        if path is not None:
            check_writable(path)
    if html is not None:
        require_matplotlib()


def _write(document: Document, html: Path | None, markdown: Path | None) -> None:
    from paceline.bench.console import to_console
    from paceline.bench.markdown import to_markdown
    from paceline.bench.page import to_html

    if html is not None:
        write_text(html, to_html(document))
    if markdown is not None:
        write_text(markdown, to_markdown(document))
    Console(stderr=True).print(to_console(document))
