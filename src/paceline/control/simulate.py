"""`paceline simulate`: what each policy would have reached on a trace, as a table, a picture and one line of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from paceline.control.cost import CostTable, read_table
from paceline.control.replay import Result, Workbench, make, regret
from paceline.control.synthetic import generate
from paceline.control.trace import Trace, read_trace
from paceline.errors import UsageError

SYNTHETIC = "synthetic:"


def simulate(source: str, policies: str, cost: Path | None, plot: Path | None) -> dict[str, Any]:
    """Replays the policies (names with commas between) on a trace; shows them on stderr and returns the summary.

    source: a JSONL file, or synthetic:WORKLOAD for a made-up trace. Raises UsageError for bad input, before it replays.
    """
    names = [name.strip() for name in policies.split(",") if name.strip()]
    if not names:
        raise UsageError("no policy is named; give --policies auto, or several with commas between")
    trace = generate(source.removeprefix(SYNTHETIC)) if source.startswith(SYNTHETIC) else read_trace(Path(source))
    bench = Workbench(trace, _table(trace, cost))
    made = [(name, make(name, bench.table, bench.k_max)) for name in dict.fromkeys(names)]
    if plot is not None:
        _check_plot(plot)
    results = [bench.play(policy, name) for name, policy in made]
    statics, bound, informed = bench.statics(), bench.clairvoyant(), bench.informed()
    summary = summarise(bench, results, statics, [bound, informed] if informed else [bound])
    _show(summary)
    if plot is not None:
        draw(plot, [*results, max(statics, key=lambda r: r.rate)], bound, trace)
    return summary


def _table(trace: Trace, cost: Path | None) -> CostTable:
    if cost is not None:
        return read_table(cost)
    timings = trace.timings()
    if not timings:
        raise UsageError("the trace holds no round times; give --cost with a table of rows of batch, k, context and ms")
    return CostTable(timings, step_ms=trace.step_ms)


def summarise(bench: Workbench, results: list[Result], statics: list[Result], bounds: list[Result]) -> dict[str, Any]:
    """Rates in tokens per ms, and regret in ms, against the best constant k and the clairvoyant bound."""
    best, clairvoyant = max(statics, key=lambda r: r.rate), bounds[0]

    def figures(result: Result) -> dict[str, float]:
        return {
            "tokens_per_ms": result.rate, "mean_k": result.mean_k, "rounds": len(result.ks),
            "tokens": sum(result.tokens), "ms": sum(result.ms),
            "over_best_static": result.rate / best.rate - 1, "over_plain": result.rate / statics[0].rate - 1,
            "regret_clairvoyant_ms": float(regret(result, clairvoyant)[1][-1]),
            "regret_best_static_ms": float(regret(result, best)[1][-1]),
        }  # fmt: skip

    return {
        "synthetic": bench.trace.synthetic,
        "source": bench.trace.source,
        "replay": "every position" if bench.jumps else "round by round",
        "k_max": bench.k_max,
        "best_static_k": statics.index(best),
        "policies": {result.name: figures(result) for result in results},
        "statics": {result.name: figures(result) for result in statics},
        "bounds": {result.name: figures(result) for result in bounds},
    }


def _show(summary: dict[str, Any]) -> None:
    label = "synthetic trace" if summary["synthetic"] else "trace"
    table = Table("policy", "tokens/ms", "mean k", "vs best k", "vs k = 0", "ms lost to clairvoyant",
                  title=f"{label}, replayed {summary['replay']}")  # fmt: skip
    best = f"k={summary['best_static_k']}"
    shown = [*summary["policies"].items(), (f"best: {best}", summary["statics"][best]),
             ("plain, k=0", summary["statics"]["k=0"]), *summary["bounds"].items()]  # fmt: skip
    for name, row in shown:
        table.add_row(
            name, f"{row['tokens_per_ms']:.4f}", f"{row['mean_k']:.1f}", f"{row['over_best_static']:+.1%}",
            f"{row['over_plain']:+.1%}", f"{row['regret_clairvoyant_ms']:.0f}",
        )  # fmt: skip
    Console(stderr=True).print(table)


PICTURES = (".png", ".svg", ".pdf")


def _check_plot(path: Path) -> None:
    """Refuses before the replay what could not be drawn after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install paceline[bench]") from None
    if path.suffix not in PICTURES:
        raise UsageError(f"--plot draws {', '.join(PICTURES)}, not {path.name!r}; change the ending")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: name a file in a folder that exists")


def draw(path: Path, results: Sequence[Result], bound: Result, trace: Trace) -> None:
    """Cumulative regret against the clairvoyant bound, in ms, over tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for result in results:
        axes.plot(*regret(result, bound), label=result.name, linewidth=1.6)
    axes.set_xlabel("tokens")
    axes.set_ylabel("ms lost to the clairvoyant bound")
    axes.set_title("synthetic trace" if trace.synthetic else "recorded trace", loc="left", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
