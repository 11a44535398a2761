"""The page, the console and Markdown: all there is, nothing from outside, and foreign text as text."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_samples import World, full_record, record_of, rows_of
from rich.console import Console

from paceline.bench import report
from paceline.bench.figures import figures_of
from paceline.bench.markdown import escape
from paceline.bench.stored import tidy

EVIL = "<script>alert(1)</script> $x^$ 数学 & \"more\" 'too' | `x` @you #1 [a](http://b.example) \u202eevil"
# Measured by an earlier version; its rows are cut to 300, and their times to 8.
FIRST = Path(__file__).parent / "records" / "first_version.json"
VOID = {"meta", "br", "path", "use"}


class Tags(HTMLParser):
    """Collects tags, everything that could load something, ids, and labels; notices tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        self.open += [tag] if tag not in VOID else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def hostile_record() -> dict[str, Any]:
    """A run in which every text a user or an engine can choose is hostile."""
    world = World(gains={EVIL: 1.5, "نص عربي طويل": 1.2, "x" * 300: 1.3, "_": 1.4, "": 1.1}, prompts=50)
    record = record_of(rows_of(world))
    for row in record["measurements"]:
        row["prompt_id"] = f"{EVIL} {row['prompt_id']}"
    found = {"prompt_id": EVIL, "category": EVIL, "k": 3, "temperature": 0.0, "repeat": 0, "concurrency": 1,
             "at_char": 1, "common": f"{EVIL}\n</code>", "off": EVIL, "on": "", "gap_nats": None, "verdict": EVIL,
             "source": EVIL, "why": EVIL}  # fmt: skip
    record["divergences"] = {"compared": 9, "differ": 1, "unexplained": 1, "found": [found] * 30}
    record["health"] = [{"gate": EVIL, "ok": False, "says": EVIL}]
    record["labels"], record["complete"], record["failure"] = [f"<b>{EVIL}</b>"], False, EVIL
    record["arms"] = [{"arm": EVIL, "k": None, "engine": EVIL, "version": EVIL, "model": EVIL, "drafts": None,
                       "why": EVIL, "acceptance": EVIL, "details": {EVIL: {EVIL: [EVIL, 1]}}}]  # fmt: skip
    record["failures"] = [{"arm": EVIL, "why": EVIL}]
    record["provenance"]["command"] = [EVIL]
    record["prices"] = {"price_per_hour": 1.0, "watts": None, "currency": EVIL}
    record["summary"] |= {"cost_per_million_tokens": {"off": 1.0, "on": None}, "counting": EVIL}
    return record


@pytest.fixture(scope="module")
def full() -> tuple[dict[str, Any], str]:
    record = full_record()
    return record, report.html_report(record)


def test_page_is_self_contained_and_reads_from_the_verdict_down(full: tuple[dict[str, Any], str]) -> None:
    record, page = full
    tags = parsed(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(tags.tags)
    assert all(load.startswith("#") for load in tags.loads)
    assert len(tags.ids) == len(set(tags.ids))
    assert {load[1:] for load in tags.loads} <= set(tags.ids)
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page
    assert 'name="viewport"' in page
    order = ("<h1>", "Caution:", 'class="key"', "In pictures", "<svg", "In numbers", "<table", "Where texts part",
             "How it was measured", "Machine, versions and command")  # fmt: skip
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert page.index("synthetic") < page.index("<svg")
    for measurement in record["measurements"][:5]:
        assert measurement["token_sha256"] not in page


def test_page_is_accessible(full: tuple[dict[str, Any], str]) -> None:
    tags = parsed(full[1])
    pictures = [attributes for tag, attributes in tags.attributes if tag == "svg"]
    assert len(pictures) == 8
    assert all(picture["role"] == "img" and len(picture["aria-label"] or "") > 30 for picture in pictures)
    assert tags.tags.count("caption") == tags.tags.count("table") > 5
    assert {attributes.get("scope") for tag, attributes in tags.attributes if tag == "th"} == {"col", "row"}
    assert tags.tags.count("h1") == 1
    levels = [int(tag[1]) for tag in tags.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert ("html", {"lang": "en"}) in tags.attributes


def test_pictures_take_the_colours_of_the_page(full: tuple[dict[str, Any], str]) -> None:
    pictures = "".join(re.findall("<svg.*?</svg>", full[1], re.DOTALL))
    assert "var(--on)" in pictures
    assert re.findall(r"#[0-9a-f]{6}\b(?!-)", re.sub(r"(href|url\()[^)\s>]*", "", pictures)) == []
    assert "DejaVu" not in pictures


def test_foreign_text_stays_text() -> None:
    record = hostile_record()
    page = report.html_report(record)
    tags = parsed(page)
    assert "script" not in tags.tags
    assert tags.tags.count("b") == sum(note.grave for note in report.document_of(record).notes)
    assert all(load.startswith("#") for load in tags.loads)
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "The first 20 of 30 are shown" in page
    assert tags.tags.count("code") == 60


def test_markdown_holds_foreign_text_and_tables_together() -> None:
    text = report.markdown_report(hostile_record())
    assert "<script" not in text
    assert not re.search(r"(?<!&)[#@]\w*you|http://", text)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    widths = [line.count("|") for line in tables]
    header = [i for i, line in enumerate(tables) if set(line) <= set("| -:")]
    assert len(header) >= 5
    for start, end in zip([i - 1 for i in header], [*(i - 1 for i in header[1:]), len(tables)], strict=True):
        assert len(set(widths[start:end])) == 1
    assert escape("| 1.5x [1.4, 1.6]") == "&#124; 1.5x [1.4, 1.6]"
    assert "[" not in escape("[1](x) [1][x] [1]: x [a]")


def test_markdown_says_what_the_page_says(full: tuple[dict[str, Any], str]) -> None:
    document = report.document_of(full[0])
    text = report.markdown_report(full[0])
    assert text.startswith("### On these 32 prompts")
    assert text.count("**Caution:**") == sum(note.grave for note in document.notes)
    assert "**synthetic**" in text
    for table in document.tables:
        assert f"**{escape(table.title)}**" in text
    assert "<code> Berlin.</code>" in text or "<code>Berlin.</code>" in text


def test_console_shows_markup_as_text_and_keeps_numbers_whole() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    world = World(gains={"[red]c[/red]": 1.5, "d": 1.2})
    console.print(report.console_report(record_of(rows_of(world))))
    text = console.export_text()
    assert "[red]c" in text
    assert re.search(r"\[\d\.\d\d, \d\.\d\d\]", text)
    assert "synthetic" in text


@pytest.mark.parametrize("changes", [{}, {"told": False}, {"prompts": 2}, {"ks": (1, 3)}])
def test_only_pictures_with_data_are_drawn(changes: dict[str, Any]) -> None:
    record = tidy(record_of(rows_of(World(gains={"a": 1.5, "b": 1.2}, **changes))))
    titles = {figure.title for figure in figures_of(record)}
    assert ("Accepted drafts by position" in titles) == ("told" not in changes)
    assert ("Which draft length" in titles) == ("ks" in changes)
    assert ("Did the machine hold its speed?" in titles) == ("prompts" not in changes)
    assert "How many requests at once" not in titles
    assert {"Speed-up by category", "Is it more than noise?", "How long requests took"} <= titles


def test_an_empty_run_still_has_a_page() -> None:
    page = report.html_report(record_of([], complete=False, failure="ArmError: no answer"))
    parsed(page)
    assert "Nothing can be said" in page
    assert "no answer" in page
    assert "<svg" not in page
    assert report.markdown_report(record_of([])).startswith("### Nothing can be said")


def test_a_run_without_a_second_off_has_no_noise_picture() -> None:
    rows = [row for row in rows_of(World(gains={"a": 1.5})) if row.arm != "off2"]
    assert "Is it more than noise?" not in {figure.title for figure in figures_of(tidy(record_of(rows)))}


def test_a_record_of_the_first_version_still_renders() -> None:
    record = json.loads((FIRST).read_text())
    page = report.html_report(record)
    parsed(page)
    assert "embedded miniature" in page
    assert f"k\u00a0=\u00a0{record['options']['k']}" in page
    assert page.count("<svg") == 5
