"""A document in GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from paceline.bench.document import Document, Passage, Section, Table

# As entities: what would be markup, mention a person, refer to an issue, or become a link.
SPECIAL = {ord(c): f"&#{ord(c)};" for c in "\\`*_{}[]<>#|~@&$"}
# Brackets around numbers stay brackets, unless what follows would make a link of them.
INTERVAL = re.compile(r"&#91;(\d[\d., ]*)&#93;(?![(\[:&])")


def escape(text: str) -> str:
    """Text that GitHub shows as it is, inside a table too."""
    shown = text.translate(SPECIAL).replace("://", "&#58;//").replace("www.", "www&#46;")
    return INTERVAL.sub(r"[\1]", shown)


def to_markdown(document: Document) -> str:
    """Verdict, labels, cautions, tables and facts. No figures: they are on the page."""
    return "\n".join(_blocks(document)).rstrip() + "\n"


def _blocks(document: Document) -> Iterator[str]:
    yield f"### {escape(document.verdict[0])}\n"
    yield from (f"{escape(sentence)}\n" for sentence in document.verdict[1:])
    if document.labels:
        yield f"Measured with: {', '.join(f'**{escape(label)}**' for label in document.labels)}\n"
    for note in document.notes:
        yield f"> {'**Caution:** ' if note.grave else ''}{escape(note.text)}\n"
    yield from map(_table, document.tables)
    if document.passages:
        yield f"**Where texts part**\n\n{escape(document.passages_note)}\n"
        yield "\n".join(map(_passage, document.passages)) + "\n"
    yield from map(_section, document.sections)


def _table(table: Table) -> str:
    rule = ["---", *["---" if table.words else "---:"] * (len(table.header) - 1)]
    rows = [[escape(cell) for cell in row] for row in (table.header, *table.rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:])]
    note = f"\n{escape(table.note)}\n" if table.note else ""
    return f"**{escape(table.title)}**\n\n" + "\n".join(lines) + "\n" + note


def _passage(passage: Passage) -> str:
    common, off, on = (f"<code>{escape(text)}</code>" for text in (passage.common, passage.off, passage.on))
    return f"- {escape(passage.title)}: {escape(passage.verdict)}<br>{common}<br>off: {off}<br>on: {on}"


def _section(section: Section) -> str:
    """Folded away: an issue is read for its verdict."""
    lines = [escape(text) + "\n" for text in section.paragraphs]
    lines += [f"- {escape(key)}: {escape(value)}" for key, value in section.facts]
    body = "\n".join(lines)
    return f"<details><summary>{escape(section.title)}</summary>\n\n{body}\n\n</details>\n"
