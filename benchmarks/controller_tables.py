"""What the documents show of the draft-length controller's records; see benchmarks/readme_table.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Record = dict[str, Any]
View = Callable[[Record], str]
SIZES = {"26b-a4b": "26B-A4B", "31b": "31B"}


def views(table: Callable[..., str], speed: Callable[..., str]) -> dict[str, tuple[View, View]]:
    """Long and short text by schema."""

    def show(ratio: Record) -> str:
        return speed(ratio=ratio["ratio"], interval=ratio["ci95"])

    def embedded(record: Record) -> str:
        """The controller and other rules over the best fixed draft length, by workload."""
        found = record["summary"]["workloads"]
        watched = all(w.get("calm") for w in found.values())
        rows = [
            (name, w["best"], show(w["over_best"]["auto"]),
             *([show(w["calm"]["over_best"]["auto"])] if watched else []),
             *(show(w["over_best"][arm]) for arm in ("heuristic", "threshold")),
             f"{w['best_of_kinds']:.2f}x", f"{w['best_of_each']:.2f}x", show(w["over_plain"]["auto"]),
             f"{w['thinking_share']:.1%}")
            for name, w in found.items()
        ]  # fmt: skip
        columns = ("", "best fixed k", "auto (95%)", *(["auto with calm rounds"] if watched else []), "heuristic",
                   "threshold", "best k of each kind", "of each text", "auto over k = 0", "thinking")  # fmt: skip
        same = sum(w["same_text"] for w in found.values())
        note = f"Same text in all arms: {same} of {len(found)} workloads.{stalls(found.values())}"
        return f"{table(columns, rows)}\n\nSpeeds over that of the best fixed k in hindsight. {note}"

    def on_gpu(record: Record) -> str:
        """The controller over no drafts and over the best fixed length, by size and workload."""
        rows = [
            (SIZES.get(size, size), name, w["best"], show(w["over_best"]), show(w["over_plain"]),
             show(w["heuristic"]) if w["heuristic"] else "", f"{w['best_of_each']:.2f}x", f"{w['drafts_a_round']:.1f}",
             f"{w['thinking_share']:.1%}")
            for size, found in record["sizes"].items() for name, w in found["summary"].items()
        ]  # fmt: skip
        columns = ("", "", "best fixed k", "auto over it (95%)", "auto over k = 0", "heuristic",
                   "best k of each text", "drafts", "thinking")  # fmt: skip
        note = stalls(w for found in record["sizes"].values() for w in found["summary"].values())
        return (
            f"{table(columns, rows)}\n\nRandom weights, synthetic acceptance; tokens a second as expected of it.{note}"
        )

    def in_batches(record: Record) -> str:
        """The controller over the best fixed length and over no drafts, whole passes of many texts."""
        quick = record["summary"]["undisturbed"]
        rows = [
            (name, w["best"], show(w["over_best"]["auto"]), show(w["over_plain"]["auto"]), quick[name]["best"],
             f"{quick[name]['over_best']:.2f}x", f"{quick[name]['over_plain']:.2f}x", f"{w['thinking_share']:.1%}")
            for name, w in record["summary"]["workloads"].items()
        ]  # fmt: skip
        columns = ("", "best fixed k", "auto over it (95%)", "auto over k = 0", "best of quick passes",
                   "auto over it", "over k = 0", "thinking")  # fmt: skip
        note = "Quick passes: the lower quartile of each length's, without what a host brings that is slow for seconds."
        return f"{table(columns, rows)}\n\n{note}"

    return {
        "paceline-controller-cpu/1": (embedded, cpu_line),
        "paceline-controller-sim/1": (lambda record: recorded_table(table, record), sim_line),
        "paceline-controller-gpu/1": (on_gpu, gpu_line),
        "paceline-controller-gpu-embedded/1": (embedded, cpu_line),
        "paceline-controller-gpu-batches/1": (in_batches, cpu_line),
    }


def stalls(found: Iterable[Record]) -> str:
    """How much was left out because the machine was busy with something else."""
    shares = [(w["stalled_share"], w["stalled_share_auto"]) for w in found if w.get("stalled_share")]
    if not shares:
        return ""
    each, auto = (max(share) for share in zip(*shares, strict=True))
    return f" Rounds that stalled are left out: at most {each:.1%} of a workload's time, {auto:.1%} of auto's."


def recorded_table(table: Callable[..., str], record: Record) -> str:
    """The controller on the recorded trace, and what choosing could bring at most."""
    rows = [
        (name, str(w["texts"]), w["best"], f"{w['auto']:.2f}x", f"{w['auto_over_plain']:.2f}x",
         f"{w['best_k_of_each_text']:.2f}x", f"{w['clairvoyant']:.2f}x")
        for name, w in record["summary"]["recorded"].items()
    ]  # fmt: skip
    columns = ("", "texts", "best fixed k", "auto", "auto over k = 0", "best k of each text", "every round known")
    note = "A recorded trace replayed on measured round times: choices alone, without the time they take."
    return f"{table(columns, rows)}\n\n{note}"


def cpu_line(record: Record) -> str:
    """Which aims of the controller are reached."""
    return _reached(record["summary"]["aims"])


def gpu_line(record: Record) -> str:
    """Which aims are reached, over all sizes."""
    return _reached(
        {f"{size} {name}": aim for size, one in record["sizes"].items() for name, aim in one["aims"].items()}
    )


def sim_line(record: Record) -> str:
    """How the made-up traces went."""
    aims = record["summary"]["all"]
    worst = [f"{aim['figure']:+.1%}" for aim in aims.values() if "changes" not in aim]
    stationary, mixed, plain = worst
    followed = ", ".join(
        f'"{name.split(":")[0]}" {aim["within"]} of {aim["changes"]}' for name, aim in aims.items() if "changes" in aim
    )
    return (
        f"at worst {stationary} against the best fixed k where texts are all alike, {mixed} where they are mixed, and"
        f" {plain} against no drafts; changes of a text that are followed within 50 rounds: {followed}"
    )


def _reached(aims: Record) -> str:
    return f"{sum(aim['reached'] for aim in aims.values())} of {len(aims)} aims reached"
