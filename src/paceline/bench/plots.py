"""How every picture of a report is drawn: inline SVG whose colours follow the page. matplotlib waits for the first."""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from paceline.errors import UsageError

# matplotlib draws in these; the page's style sheet decides what they are, in the light and in the dark.
ON, OFF, THIRD, FOURTH = "#0a62ad", "#c2560a", "#7a4aa0", "#2b7a4b"
INK, SOFT, LINE, CARD = "#1d2329", "#59626c", "#dde1e6", "#fefefe"
VARIABLES = {ON: "--on", OFF: "--off", THIRD: "--third", FOURTH: "--fourth", INK: "--ink", SOFT: "--soft",
             LINE: "--line", CARD: "--card"}  # fmt: skip
WIDTH_IN = 4.7
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}
Floats = NDArray[np.float64]
Whisker = tuple[float, Sequence[float] | None]


def require_matplotlib() -> None:
    """Raises UsageError naming the mend when matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise UsageError("an HTML report needs matplotlib: pip install paceline[bench]") from None


def draw(name: str, says: str, heights_in: Sequence[float], paint: Callable[..., None]) -> str:
    """Lets `paint` fill one set of axes for each height, from the top, and returns an <svg> as wide as its place.

    says: what the picture shows, in words.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's browser has the glyphs that the font used for measuring widths may lack.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH_IN, sum(heights_in)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(heights_in), 1, squeeze=False, gridspec_kw={"height_ratios": list(heights_in)})
        paint(*panels[:, 0])
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return _inline(buffer.getvalue(), name, says)


def _inline(svg: str, name: str, says: str) -> str:
    """Fit to stand in a page: no fixed size, ids of its own, no style for others, and the page's colours and font."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", rest)
    rest = re.sub(r"'DejaVu Sans'[^;\"]*?sans-serif", "system-ui, sans-serif", rest)
    for color, variable in VARIABLES.items():
        rest = rest.replace(color, f"var({variable})")
    return f'{head} role="img" aria-label={quoteattr(says)}>{rest}'


def whiskers(axes: Any, points: Iterable[Whisker], floor: float = 1.0, across: bool = False) -> None:
    """Values at 0, 1, ... with their intervals; hollow where the interval does not leave out what noise reaches."""
    for place, (value, ci95) in enumerate(points):
        low, high = ci95 or (value, value)
        sure = ci95 is not None and (low > floor or high < 1 / floor)
        line, dot = ([low, high], [place, place]), ([value], [place])
        axes.plot(*(line if across else line[::-1]), color=ON, linewidth=2.4, solid_capstyle="round")
        axes.plot(*(dot if across else dot[::-1]), "o", color=ON, markersize=7, markeredgewidth=1.8,
                  markerfacecolor=ON if sure else CARD)  # fmt: skip


def one_line(axes: Any, across: bool = False) -> None:
    """Marks where nothing is gained and nothing lost."""
    (axes.axvline if across else axes.axhline)(1.0, color=INK, linewidth=1.1, zorder=1)


def label_places(axes: Any, names: Sequence[str], across: bool = False) -> None:
    """Names the places 0, 1, ..."""
    if across:
        axes.set_yticks(range(len(names)), list(names), parse_math=False)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(False, axis="y")
    else:
        axes.set_xticks(range(len(names)), list(names), parse_math=False)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.grid(False, axis="x")


def legend_above(axes: Any, columns: int = 2) -> None:
    """A legend in one line over the axes, where it hides nothing."""
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, handlelength=1.6, columnspacing=1.2)
    for text in legend.get_texts():
        text.set_parse_math(False)
