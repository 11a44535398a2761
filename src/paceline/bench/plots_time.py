"""Pictures of time: latency distributions, one text token by token, and drift over the run."""

from __future__ import annotations

from typing import Any

import numpy as np

from paceline.bench import plots
from paceline.bench.document import Figure
from paceline.bench.measurement import OFF, OFF_AGAIN, ON, ON_AGAIN, Measurement
from paceline.bench.plots import Floats, draw, legend_above
from paceline.bench.stats import Pair, pair_up
from paceline.bench.wording import milliseconds, name

LOOK = {"off": (plots.OFF, "--", "s"), "on": (plots.ON, "-", "o")}
BOTH = {"off": (OFF, OFF_AGAIN), "on": (ON, ON_AGAIN)}
MANY_TIMES = 20  # a spread that only a logarithmic axis shows
BINS, LEAST_IN_BIN = 12, 4
Times = dict[str, Floats]


def latency_figure(rows: list[Measurement]) -> Figure | None:
    """Which fraction of requests took at most so long: first token, later tokens, the whole. None without both arms."""
    paired = [row for pair in pair_up(rows) for row in pair]
    panels = [
        ("TTFT, ms", _times(paired, lambda row: row.ttft_s * 1e3)),
        ("TPOT, ms", _times(paired, lambda row: row.tpot_s * 1e3)),
        ("whole request, s", _times(paired, lambda row: row.seconds)),
    ]
    panels = [(label, times) for label, times in panels if all(len(values) > 1 for values in times.values())]
    if not panels:
        return None

    def paint(*axes: Any) -> None:
        for own, (label, times) in zip(axes, panels, strict=True):
            _distribution(own, times)
            own.set_xlabel(label)
        axes[0].set_ylabel("fraction of requests")
        legend_above(axes[0])

    medians = (f"{label} off {np.median(t['off']):.3g}, on {np.median(t['on']):.3g}" for label, t in panels)
    says = f"Cumulative distributions of latency. Medians: {'; '.join(medians)}."
    note = "How many were done within a time: further left is faster. TTFT: to the first token. TPOT: per later token."
    return Figure("How long requests took", draw("latency", says, [1.75] * len(panels), paint), note, says)


def _times(rows: list[Measurement], of: Any) -> Times:
    values = {arm: np.array([of(row) for row in rows if row.arm == arm]) for arm in ("off", "on")}
    return {arm: own[own > 0] for arm, own in values.items()}


def _distribution(axes: Any, times: Times) -> None:
    for arm, values in times.items():
        color, line, _ = LOOK[arm]
        edges = np.concatenate([values.min(keepdims=True), np.sort(values)])
        axes.step(edges, np.arange(len(edges)) / len(values), where="post", color=color, linestyle=line,
                  linewidth=1.9, label=f"drafting {arm}")  # fmt: skip
    from matplotlib.ticker import LogLocator

    least, most = (f(np.concatenate(list(times.values()))) for f in (np.min, np.max))
    if most > MANY_TIMES * least:
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)


def typical_pair(rows: list[Measurement]) -> Pair | None:
    """The pair whose ratio is nearest to the speed-up over all, so that the picture flatters nobody."""
    pairs = [pair for pair in pair_up(rows) if all(len(row.token_times_s) > 1 and row.seconds > 0 for row in pair)]
    if not pairs:
        return None
    overall = sum(off.seconds for off, _ in pairs) / sum(on.seconds for _, on in pairs)
    return min(pairs, key=lambda pair: abs(np.log(pair[0].seconds / pair[1].seconds / overall)))


def timeline_figure(pair: Pair) -> Figure:
    """Tokens out against time for one prompt, drafting off and on."""

    def paint(axes: Any) -> None:
        for row, (arm, (color, line, _)) in zip(pair, LOOK.items(), strict=True):
            axes.step(row.token_times_s, _tokens_by_event(row), where="post", color=color, linestyle=line,
                      linewidth=1.9, label=f"drafting {arm}")  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds since the request")
        axes.set_ylabel("tokens")
        legend_above(axes)

    off, on = pair
    says = (f"Tokens of one text over time: {off.tokens} tokens in {off.seconds:.3g} s without drafting,"
            f" {on.tokens} in {on.seconds:.3g} s with it.")  # fmt: skip
    note = f"Prompt {name(off.prompt_id)}, temperature {off.temperature:g}: the pair nearest the overall speed-up."
    return Figure("One text, token by token", draw("timeline", says, [2.7], paint), note, says)


def _tokens_by_event(row: Measurement) -> Floats:
    """How many tokens were out after each event; one each where the engine does not tell."""
    events = len(row.token_times_s)
    each = row.event_tokens if len(row.event_tokens) == events else [1] * events
    return np.cumsum(np.array(each, dtype=np.float64))


def drift_figure(rows: list[Measurement], drift: dict[str, Any]) -> Figure | None:
    """Time per output token over the run, both arms; None where moments are unknown or too few."""
    series = {arm: _over_time(rows, names) for arm, names in BOTH.items()}
    series = {arm: values for arm, values in series.items() if len(values) >= 2 * LEAST_IN_BIN}
    if not series or max(float(np.ptp(values[:, 0])) for values in series.values()) <= 0:
        return None
    minutes = max(float(values[:, 0].max()) for values in series.values()) > 180

    def paint(axes: Any) -> None:
        for arm, values in series.items():
            color, line, mark = LOOK[arm]
            moments = values[:, 0] / (60 if minutes else 1)
            axes.plot(moments, values[:, 1] * 1e3, mark, color=color, markersize=3, alpha=0.25, markeredgewidth=0)
            middle = _running_median(np.column_stack([moments, values[:, 1] * 1e3]))
            axes.plot(*middle.T, line, color=color, linewidth=2.2, label=f"drafting {arm}")
        axes.set_ylim(0, 1.15 * max(float(np.quantile(values[:, 1], 0.98)) for values in series.values()) * 1e3)
        axes.set_xlabel("minutes since the start" if minutes else "seconds since the start")
        axes.set_ylabel("TPOT, ms")
        legend_above(axes)

    medians = ", ".join(f"{arm} {milliseconds(float(np.median(v[:, 1])))} ms" for arm, v in series.items())
    steady = drift.get("steady")
    told = "" if steady is None else " Steady." if steady else " Not steady."
    says = f"Time per output token over the run; medians: {medians}.{told}"
    note = f"One dot per text; lines are medians of neighbours. Level lines mean that the machine held its speed.{told}"
    return Figure("Did the machine hold its speed?", draw("drift", says, [2.6], paint), note, says)


def _over_time(rows: list[Measurement], arms: tuple[str, str]) -> Floats:
    """[texts, 2] when a text was asked for and its seconds per token, in order of time."""
    found = sorted((row.started_s, row.tpot_s) for row in rows if row.arm in arms and row.tpot_s > 0)
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _running_median(values: Floats) -> Floats:
    """[bins, 2] medians of equal parts of the rows."""
    parts = np.array_split(values, max(2, min(BINS, len(values) // LEAST_IN_BIN)))
    return np.array([np.median(part, axis=0) for part in parts])
