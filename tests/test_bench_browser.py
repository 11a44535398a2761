"""The pages in a real browser: quiet, offline, and fit for a telephone and a desk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from report_samples import World, full_record, record_of, rows_of
from test_bench_page import hostile_record

from paceline.bench.compare import Side, compare_runs
from paceline.bench.compare_report import document_of
from paceline.bench.page import to_html
from paceline.bench.report import html_report
from paceline.bench.stored import tidy

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no browser on PATH; install chromium to test the pages in one")
WINDOWS = [(360, 740, False), (1280, 900, False), (1280, 900, True)]
PICTURES = {"run": 8, "hostile": 6, "comparison": 2, "empty": 0}
# What reaches over the right edge, but for tables, which scroll in a frame of their own.
TOO_WIDE = """(width => [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && !e.closest('svg')
  && e.getBoundingClientRect().right > width + 1).map(e => e.tagName))"""
# Text that is painted in a colour too near to what is behind it (WCAG: a contrast of 4.5).
CONTRAST = """(() => {
  const linear = x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(x => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('h1, p, li, dt, dd, th, td, figcaption, b, svg text')].map(e => {
    const s = getComputedStyle(e), c = e.tagName == 'text' ? s.fill : s.color;
    const [a, b] = [light(c), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.tagName]; }).filter(x => x[0] < 4.5); })()"""
OUT_OF_FRAME = """[...document.querySelectorAll('svg text')].filter(e => {
  const t = e.getBoundingClientRect(), r = e.closest('figure').getBoundingClientRect();
  return t.left < r.left || t.right > r.right || t.top < r.top || t.bottom > r.bottom; }).map(e => e.textContent)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sides = []
    for label in ("first", "other"):
        rows = rows_of(World(gains={"chat": 1.3, "code": 1.9}))
        sides.append(Side(label, tidy(record_of(rows)), rows))
    texts = {
        "run": html_report(full_record()), "hostile": html_report(hostile_record()),
        "comparison": to_html(document_of(compare_runs(sides))), "empty": html_report(record_of([])),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("pages")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    assert PROGRAM is not None
    with browser.Browser(PROGRAM, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(("width", "height", "dark"), WINDOWS)
def test_a_page_opens_whole_and_quiet(
    reader: browser.Browser, pages: dict[str, Path], name: str, width: int, height: int, dark: bool
) -> None:
    reader.open(pages[name], width, height, dark)
    assert reader.trouble == []
    assert reader.requests == [pages[name].as_uri()]
    assert reader.value("document.documentElement.scrollWidth") <= width
    assert reader.value(f"{TOO_WIDE}({width})") == []
    verdict = reader.value("(r => [r.top, r.bottom])(document.querySelector('h1').getBoundingClientRect())")
    assert 0 <= verdict[0] < verdict[1] <= height
    sizes = reader.value("[...document.querySelectorAll('svg')].map(e => [e.clientWidth, e.clientHeight])")
    assert len(sizes) == PICTURES[name]
    assert all(wide > 250 and high > 80 for wide, high in sizes)
    assert reader.value(CONTRAST) == []
    paper = reader.value("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 24, 28)" if dark else "rgb(251, 251, 250)")


@pytest.mark.parametrize("name", ["run", "hostile", "comparison"])
def test_pictures_fit_their_frames_and_can_be_read_on_a_telephone(
    reader: browser.Browser, pages: dict[str, Path], name: str
) -> None:
    reader.open(pages[name], 360, 740)
    assert reader.value(OUT_OF_FRAME) == []
    heights = reader.value("[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)")
    assert len(heights) > 10
    assert min(heights) > 9


def test_the_browser_would_see_a_page_that_misbehaves(reader: browser.Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta name='viewport' content='width=device-width'><h1 style='width:900px;color:#eee'>x</h1>"
        "<img src='gone.png'><figure style='width:9px'><svg><text x='99'>y</text></svg></figure>"
        "<script>console.log(1); throw Error()</script>"
    )
    reader.open(page, 360, 740)
    assert {event["method"] for event in reader.trouble} >= {"Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
    assert len(reader.requests) == 2
    assert reader.value("document.documentElement.scrollWidth") > 360
    assert reader.value(f"{TOO_WIDE}(360)") == ["H1"]
    assert reader.value(CONTRAST)[0][1] == "H1"
    assert reader.value(OUT_OF_FRAME) == ["y"]
