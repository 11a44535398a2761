"""The page in a real browser: its arithmetic against Python's on a grid, its sliders, and that it asks nobody."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shell import Shell

from paceline.advisor import memory, speed
from paceline.advisor.advise import Advice, Wish, advise
from paceline.advisor.forecast import at_length, best_k, seconds
from paceline.advisor.machines import Machine, find
from paceline.advisor.memory import PRECISIONS, Use
from paceline.advisor.page import html, page_data
from paceline.advisor.priors import SMALL, prior
from paceline.shapes import SHAPES, drafter_config, target_config

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path")
CLOSE = 0.005
GRID = [(size, precision, batch, context, k) for size in SHAPES for precision in PRECISIONS
        for batch, context in ((1, 1024), (8, 8192), (33, 100_000)) for k in (0, 3, 15)]  # fmt: skip
ON_GRID = """
({size, precision, batch, context, k}) => {
  const s = D.sizes.find((one) => one.size === size), int8 = s.int8_allowed && precision === "bf16";
  const load = {batch, k, context, bits: D.precisions[precision], overlap: 0, int8}, ends = profiles(s, 0);
  const seen = forecast(s, load, ends);
  return {...seen.speedup, plain: seen.plain, rate: seen.rate.middle, best: bestK(s, load, ends.middle),
    memory: memoryBytes(s, precision, batch, context, int8), first: firstTokenSeconds(s, load.bits, context)};
}"""


def advice(machine: str = "h100", **wish: Any) -> Advice:
    return advise(find(machine), Wish(**wish))


def in_browser(page: str, expression: str, folder: Path) -> Any:
    """What JavaScript makes of `expression` once the page stands, as JSON."""
    assert BROWSER is not None
    hook = f"<script>document.title = JSON.stringify({expression});</script>" if expression else ""
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"{hook}</body>"), "utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        profile,
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    return json.loads(entities.unescape(title[1]))


def expected(found: Advice, case: tuple[str, str, int, int, int]) -> dict[str, float]:
    """The same figures from Python."""
    size, precision, batch, context, k = case
    config, drafter, bits = target_config(size), drafter_config(size), PRECISIONS[precision]
    int8 = precision == "bf16" and not drafter.centroids
    load = speed.Load(batch=batch, k=k, context=context, weight_bytes=bits / 8, int8_head=int8)
    ends = prior(found.wish.category, found.wish.temperature, size in SMALL)
    seen = at_length(config, drafter, load, found.machine, ends)
    likely = replace(load, overlap=speed.OVERLAP / 2)
    times = [seconds(config, drafter, replace(likely, k=n), found.machine) for n in range(16)]
    held = memory.plan(config, drafter, bits, Use(batch=batch, context=context, int8_head=int8)).total
    first = speed.prompt_seconds(config, context, bits / 8, found.machine, speed.fitted())
    assert first is not None
    return {"low": seen.speedup.low, "middle": seen.speedup.middle, "high": seen.speedup.high, "plain": seen.plain_rate,
            "rate": seen.rate.middle, "best": best_k(times, ends.middle), "memory": held, "first": first}  # fmt: skip


def cases() -> str:
    names = ("size", "precision", "batch", "context", "k")
    return json.dumps([dict(zip(names, case, strict=True)) for case in GRID])


@needs_browser
def test_the_page_computes_what_python_computes(tmp_path: Path) -> None:
    found = advice(category="code", temperature=0.5)
    answers = in_browser(html(found), f"{cases()}.map({ON_GRID})", tmp_path)
    assert len(answers) == len(GRID)
    for case, answer in zip(GRID, answers, strict=True):
        assert answer == pytest.approx(expected(found, case), rel=CLOSE), case


@needs_browser
def test_another_constant_is_noticed(tmp_path: Path) -> None:
    found = advice()
    page = html(found).replace('"draft_s":', '"draft_s": 0.001, "was": ', 1)
    answers = in_browser(page, f"{cases()}.map({ON_GRID})", tmp_path)
    pairs = zip(GRID, answers, strict=True)
    assert any(answer != pytest.approx(expected(found, case), rel=CLOSE) for case, answer in pairs)


@needs_browser
@pytest.mark.parametrize(("machine", "wish"), [("rtx4090", {"context": 32768}), ("gb10", {"batch": 4}), ("phone", {}),
                                               ("h100", {"target": "26b-a4b", "batch": 8})])  # fmt: skip
def test_the_page_recommends_what_the_command_line_does(machine: str, wish: dict[str, Any], tmp_path: Path) -> None:
    found = advice(machine, **wish)
    rows = "everyRow(state).map((r) => [r.size.size, r.precision, r.fits, r.seen.k, r.cautions.length])"
    shown, best = in_browser(html(found), f"[{rows}, name(recommend(everyRow(state)))]", tmp_path)
    for row, decision in zip(shown, found.decisions, strict=True):
        assert decision.forecast is not None
        assert row[:4] == [decision.size, decision.precision, decision.fits, decision.forecast.k]
        assert not decision.fits or (row[4] > 0) == (decision.verdict != "fits")
    assert found.best is not None
    assert best.lower() == f"{found.best.size} {found.best.precision}"


MOVE = """
(() => {
  const seen = () => [at("answer").textContent, at("by-k").innerHTML, at("by-context").innerHTML];
  const move = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input")); return seen(); };
  const start = seen(), moved = {context: move("context", 16), acceptance: move("acceptance", 0.3), k: move("k", 2)};
  at("reset").click();
  return {start, moved, back: seen()};
})()"""


@needs_browser
def test_sliders_change_answer_and_curves_and_the_way_back_works(tmp_path: Path) -> None:
    found = in_browser(html(advice("rtx4090")), MOVE, tmp_path)
    start, moved = found["start"], found["moved"]
    assert "31B at 4.5 bit" in start[0]
    assert "31B at 4.5 bit" not in moved["context"][0]  # 64k tokens do not fit beside it
    assert moved["acceptance"][1] != moved["context"][1]
    assert "k = 2" in moved["k"][0]
    assert found["back"] == start


@needs_browser
def test_a_phone_shows_it_without_scrolling_sideways(tmp_path: Path) -> None:
    # A window of Chromium is never that narrow; a frame is.
    inner = entities.escape(html(advice("rtx4090")))
    frame = f'<body><iframe id="f" style="width:360px;border:0" srcdoc="{inner}"></iframe>'
    script = "f.onload = () => { document.title = JSON.stringify([root().scrollWidth, root().clientWidth]); }"
    hook = f"<script>const root = () => f.contentDocument.documentElement; {script}</script>"
    needed, given = in_browser(f"<title>[1, 0]</title>{frame}{hook}", "", tmp_path)
    assert needed <= given <= 360


@needs_browser
def test_an_unknown_bandwidth_leaves_speeds_out(tmp_path: Path) -> None:
    found = advise(Machine(name="</script><b>x", kind="any", memory=24e9), Wish())
    text = in_browser(html(found), "[document.body.innerText, document.querySelectorAll('b').length]", tmp_path)
    assert "give --bandwidth" in text[0]
    assert "What to run on </script><b>x" in text[0]


def test_nothing_is_fetched() -> None:
    page = html(advice())
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", page)
    assert "import " not in page.split("<script>")[1]
    assert "fetch(" not in page


def test_the_data_is_whole_and_says_what_it_is() -> None:
    data = json.loads(json.dumps(page_data(advice()), allow_nan=False))
    assert data["label"] == "predicted, not measured"
    assert len(data["commands"]) == 3 * len(SHAPES)
    assert all(row["commands"] for row in data["commands"])


def test_the_command_writes_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline import cli

    monkeypatch.setattr("sys.argv", ["paceline", "advise", "--gpu", "h100", "--html", "a.html"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert (shell.folder / "a.html").read_text("utf-8").startswith("<!doctype html>")
    shell.refuses_in_one_line("cannot write", "advise", "--gpu", "h100", "--html", "no/such/a.html")
