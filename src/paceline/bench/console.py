"""A document on a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from paceline.bench.document import Document, Table

LEFT_OUT = ("Arms",)  # of the tables: what the user just gave on the command line


def to_console(document: Document) -> Group:
    """Verdict, labels, cautions and tables; texts are shown as they are, never as markup."""
    labels = [Text(f"Measured with: {', '.join(document.labels)}", style="yellow")] if document.labels else []
    notes = [Text(f"! {note.text}", style="red" if note.grave else "yellow") for note in document.notes]
    tables = [_table(table) for table in document.tables if table.title not in LEFT_OUT]
    return Group(Text(" ".join(document.verdict), style="bold"), *labels, *notes, *tables)


def _table(table: Table) -> RichTable:
    shown = RichTable(title=Text(table.title), title_justify="left", caption=Text(table.note) if table.note else None,
                      caption_justify="left")  # fmt: skip
    for i, name in enumerate(table.header):
        number = i > 0 and not table.words
        # Numbers keep their line, and where a terminal is narrow the names give way.
        title = Text(name.replace(" ", "\n") if number else name)
        shown.add_column(title, justify="right" if number else "left", no_wrap=number, vertical="bottom")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
