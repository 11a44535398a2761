"""The pictures of a report, as inline SVG. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from paceline.bench.measurement import OFF, OFF_AGAIN, ON, Measurement
from paceline.bench.stats import Pair, pair_up, seconds_by_prompt
from paceline.errors import UsageError

ON_COLOR, OFF_COLOR, INK, FAINT = "#0b7a5b", "#8a6d3b", "#22272e", "#d5d9de"
WIDTH_IN = 4.6
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def require_matplotlib() -> None:
    """Raises UsageError naming the mend when matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise UsageError("an HTML report needs matplotlib: pip install paceline[bench]") from None


def draw(name: str, height_in: float, paint: Callable[[Any], None]) -> str:
    """Lets `paint` fill one set of axes and returns an <svg> element that scales to the width it is given."""
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's browser has the glyphs that the font used for measuring widths may lack.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure.subplots())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The bare element: no prolog, a scalable size, and ids that cannot clash with those of another picture."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", rest)
    return f'{head} role="img" aria-label="{name}">{rest}'


def category_plot(summary: dict[str, Any]) -> str:
    """Speed-up with its 95% interval, by category and over all, against the line at 1."""
    blocks = {**summary["by_category"], "all": summary}
    known = [(_label(name), block) for name, block in blocks.items() if block["speedup"] is not None]

    def paint(axes: Any) -> None:
        axes.axvline(1.0, color=INK, linewidth=1.2)
        for i, (_, block) in enumerate(reversed(known)):
            low, high = block["speedup_ci95"] or [block["speedup"]] * 2
            axes.plot([low, high], [i, i], color=ON_COLOR, linewidth=3 if i == 0 else 2, solid_capstyle="butt")
            axes.plot([block["speedup"]], [i], "D" if i == 0 else "o", color=ON_COLOR, markersize=7)
        axes.set_yticks(range(len(known)), [name for name, _ in reversed(known)], parse_math=False)
        axes.set_ylim(-0.6, len(known) - 0.4)
        axes.grid(False, axis="y")
        axes.set_xlabel("times as fast as without drafting")

    return draw("speed-up-by-category", 1.0 + 0.3 * len(known), paint)


def acceptance_plot(summary: dict[str, Any]) -> str:
    """Acceptance by draft position: given all before, and in all drafts made."""
    given, overall = summary["acceptance_by_position"], summary["survival_by_position"]

    def paint(axes: Any) -> None:
        places = np.arange(1, len(given) + 1)
        axes.bar(places, given, width=0.6, color=ON_COLOR, alpha=0.35, label="if all before it were")
        axes.plot(places[: len(overall)], overall[: len(given)], "o-", color=ON_COLOR, label="of all drafts made")
        axes.set_ylim(0, 1.02)
        axes.set_xticks(places)
        axes.set_xlabel("draft position")
        axes.set_ylabel("fraction accepted")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=9)

    return draw("acceptance-by-position", 2.8, paint)


def typical_pair(rows: list[Measurement]) -> Pair | None:
    """The pair whose ratio is nearest to the speed-up over all, so that the picture flatters nobody."""
    pairs = [pair for pair in pair_up(rows) if min(len(row.token_times_s) for row in pair) > 1]
    if not pairs:
        return None
    overall = sum(off.seconds for off, _ in pairs) / sum(on.seconds for _, on in pairs)
    return min(pairs, key=lambda pair: abs(np.log(pair[0].seconds / pair[1].seconds / overall)))


def timeline_plot(pair: Pair) -> str:
    """Tokens out against time for one prompt, drafting off and on."""

    def paint(axes: Any) -> None:
        for row, color, label in zip(pair, (OFF_COLOR, ON_COLOR), ("off", "on"), strict=True):
            moments = np.array(row.token_times_s)
            axes.step(moments, np.arange(1, len(moments) + 1), where="post", color=color, label=label, linewidth=1.8)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the request")
        axes.set_ylabel("tokens")
        axes.legend(frameon=False, loc="lower right", title="drafting")

    return draw("token-timeline", 2.6, paint)


def noise_plot(rows: list[Measurement]) -> str:
    """One dot per prompt: off against off, which should be 1, and off against on."""
    lanes = [("off / off", OFF_AGAIN, OFF_COLOR), ("off / on", ON, ON_COLOR)]

    def paint(axes: Any) -> None:
        axes.axvline(1.0, color=INK, linewidth=1.2)
        for i, (_, arm, color) in enumerate(lanes):
            first, second = seconds_by_prompt(pair_up(rows, OFF, arm))
            # An even spread in height keeps dots apart; it means nothing.
            height = i + 0.5 * (np.arange(len(first)) * 0.618 % 1 - 0.5)
            axes.plot(first / second, height, "o", color=color, markersize=4, alpha=0.6, markeredgewidth=0)
        axes.set_yticks(range(len(lanes)), [name for name, _, _ in lanes])
        axes.set_ylim(-0.6, len(lanes) - 0.4)
        axes.grid(False, axis="y")
        axes.set_xlabel("ratio of seconds, one dot per prompt")

    return draw("noise", 1.8, paint)


def _label(text: str) -> str:
    return text if len(text) <= 20 else text[:19] + "…"
