"""Pictures of speed-ups and acceptance: by category, by position, by draft length, by requests at once, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paceline.bench import plots
from paceline.bench.document import Figure
from paceline.bench.measurement import OFF, OFF_AGAIN, ON, Measurement
from paceline.bench.plots import draw, label_places, legend_above, one_line, whiskers
from paceline.bench.stats import pair_up, seconds_by_prompt
from paceline.bench.tables import in_order
from paceline.bench.verdict import floor_of
from paceline.bench.wording import listing, name, times_in

Summary = dict[str, Any]
MOST_CATEGORIES = 24  # more would be a picture nobody reads; the table has all
HOLLOW = "Hollow: could be noise."


def category_figure(summary: Summary) -> Figure:
    """Speed-up with its 95% interval, by category and over all, against the line at 1."""
    ranked = sorted(_known(summary["by_category"].items()), key=lambda item: -item[1]["speedup"])
    shown = [(name(key, 20), block) for key, block in ranked[:MOST_CATEGORIES]] + [("all", summary)]
    shown.reverse()

    def paint(axes: Any) -> None:
        one_line(axes, across=True)
        whiskers(axes, [_whisker(block) for _, block in shown], floor_of(summary), across=True)
        label_places(axes, [label for label, _ in shown], across=True)
        axes.axhline(0.5, color=plots.LINE, linewidth=1.5)
        axes.set_xlabel("times as fast as without drafting")

    says = f"Speed-up by category: {_told((label, block) for label, block in reversed(shown))}."
    left_out = len(ranked) - MOST_CATEGORIES
    note = f"Lines are 95% intervals; right of 1 drafting is faster. {HOLLOW}"
    note += f" {left_out} more in the table." if left_out > 0 else ""
    return Figure("Speed-up by category", draw("categories", says, [0.75 + 0.3 * len(shown)], paint), note, says)


def acceptance_figure(summary: Summary) -> Figure:
    """Acceptance by draft position: given all before, and in all drafts made."""
    given, overall = summary["acceptance_by_position"], summary["survival_by_position"]

    def paint(axes: Any) -> None:
        places = np.arange(1, len(given) + 1)
        axes.bar(places, given, width=0.6, color=plots.ON, alpha=0.3, label="if all before it were")
        axes.plot(places[: len(overall)], overall[: len(given)], "o-", color=plots.ON, label="of all drafts made")
        axes.set_ylim(0, 1.02)
        axes.set_xticks(places)
        axes.grid(False, axis="x")
        axes.set_xlabel("draft position")
        axes.set_ylabel("fraction accepted")
        legend_above(axes)

    says = f"Fraction of drafts accepted by position, given all before: {listing([f'{x:.2f}' for x in given])}."
    note = "A draft counts only while every draft before it in its round was accepted."
    return Figure("Accepted drafts by position", draw("acceptance", says, [2.8], paint), note, says)


def k_figure(summary: Summary) -> Figure | None:
    """Speed-up, and tokens per round where known, against the draft length; None with fewer than two."""
    known = _known((key, block) for key, block in in_order(summary["by_k"]) if key != "None")
    if len(known) < 2:
        return None
    lengths = [block["acceptance_length"] for _, block in known]
    told = all(length is not None for length in lengths)

    def paint(axes: Any, lower: Any = None) -> None:
        one_line(axes)
        whiskers(axes, [_whisker(block) for _, block in known], floor_of(summary))
        axes.set_ylabel("speed-up")
        for panel in (axes, lower) if told else (axes,):
            label_places(panel, [key for key, _ in known])
        if told:
            lower.plot(range(len(known)), lengths, "s-", color=plots.THIRD, markersize=5)
            lower.set_ylabel("tokens/round")
        (lower if told else axes).set_xlabel("draft length k")

    says = f"Speed-up by draft length: {_told((f'k {key}', block) for key, block in known)}."
    note = f"Longer drafts bring more tokens a round, and cost more. Lines are 95% intervals. {HOLLOW}"
    return Figure("Which draft length", draw("lengths", says, [2.0, 1.6] if told else [2.4], paint), note, says)


def concurrency_figure(summary: Summary) -> Figure | None:
    """Speed-up and tokens/s against requests at once; None with fewer than two."""
    known = _known(in_order(summary["by_concurrency"]))
    if len(known) < 2:
        return None
    speeds = [block.get("tokens_per_s") or {} for _, block in known]
    told = all(speed.get(arm) is not None for speed in speeds for arm in ("off", "on"))

    def paint(axes: Any, lower: Any = None) -> None:
        one_line(axes)
        whiskers(axes, [_whisker(block) for _, block in known], floor_of(summary))
        axes.set_ylabel("speed-up")
        for panel in (axes, lower) if told else (axes,):
            label_places(panel, [key for key, _ in known])
        if told:
            _throughput(lower, speeds)
        (lower if told else axes).set_xlabel("requests at once")

    says = f"Speed-up by requests at once: {_told(known)}."
    note = f"Lines are 95% intervals. {HOLLOW}" + (" Tokens/s: all requests in flight together." if told else "")
    return Figure("How many requests at once", draw("load", says, [2.0, 1.9] if told else [2.4], paint), note, says)


def _throughput(axes: Any, speeds: Sequence[dict[str, float]]) -> None:
    for arm, mark, color in (("off", "s--", plots.OFF), ("on", "o-", plots.ON)):
        axes.plot(range(len(speeds)), [speed[arm] for speed in speeds], mark, color=color, markersize=5, label=arm)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens/s")
    axes.legend(title="drafting", loc="best")


def noise_figure(rows: list[Measurement]) -> Figure | None:
    """One dot per prompt: off against off, which should be 1, and off against on. None without the first."""
    lanes = [("off / off", OFF_AGAIN, plots.OFF, "s"), ("off / on", ON, plots.ON, "o")]
    pairs = [seconds_by_prompt(pair_up(rows, OFF, arm)) for _, arm, _, _ in lanes]
    if not all(len(first) for first, _ in pairs):
        return None
    ratios = [first / second for first, second in pairs]

    def paint(axes: Any) -> None:
        one_line(axes, across=True)
        for i, (_, _, color, mark) in enumerate(lanes):
            # An even spread in height keeps dots apart; it means nothing.
            height = i + 0.6 * (np.arange(len(ratios[i])) * 0.618 % 1 - 0.5)
            axes.plot(ratios[i], height, mark, color=color, markersize=4, alpha=0.55, markeredgewidth=0)
        label_places(axes, [label for label, _, _, _ in lanes], across=True)
        axes.set_xlabel("ratio of seconds, one dot per prompt")

    middle = [float(np.median(values)) for values in ratios]
    says = f"Seconds of off over off again by prompt, median {middle[0]:.2f}; off over on, median {middle[1]:.2f}."
    note = "Off against off compares the same work with itself: its spread is what this machine adds by chance."
    return Figure("Is it more than noise?", draw("noise", says, [2.1], paint), note, says)


def _known(blocks: Any) -> list[tuple[str, Summary]]:
    return [(key, block) for key, block in blocks if block["speedup"] is not None]


def _whisker(block: Summary) -> plots.Whisker:
    return block["speedup"], block["speedup_ci95"]


def _told(blocks: Any) -> str:
    return ", ".join(f"{name(key)} {times_in(block['speedup'], block['speedup_ci95'])}" for key, block in blocks)
