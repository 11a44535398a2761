"""Advice for people, as a table and sentences, and for programs, as one JSON object. Labelled as predicted in both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from paceline.advisor import published
from paceline.advisor.advise import CAUTION, FITS, NO_STEP, TOO_LARGE, Advice, Decision
from paceline.advisor.commands import HUB
from paceline.advisor.elsewhere import ESTIMATE, estimates
from paceline.advisor.forecast import Range
from paceline.advisor.machines import Machine
from paceline.advisor.memory import Use
from paceline.advisor.priors import SAMPLING_BASIS, SMALL_BASIS
from paceline.advisor.speed import OVERLAP, calibration

LABEL = "predicted, not measured"
UNKNOWN = "-"
COLOUR = {FITS: "green", CAUTION: "yellow"}
SHORT = {FITS: "fits", CAUTION: "caution", TOO_LARGE: "no"}
# Two lines each, so that the table fits 80 columns.
COLUMNS = ("size and\nweights", "\nverdict", "takes\nGB", "context\nup to", "\nk", "tok/s\nplain", "tok/s\ndrafted",
           "\nspeed-up", "first\ntoken s")  # fmt: skip


def show(advice: Advice, console: Console, explain: bool = False) -> None:
    """The table, the recommendation and how to run it; with `explain` every reason, memory by class, and sources."""
    console.print(table(advice))
    for line in sentences(advice):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if explain:
        _explain(advice, console)


def table(advice: Advice) -> Table:
    """All decisions, one row each."""
    wish, machine = advice.wish, advice.machine
    title = (
        f"{machine.name}: {describe(machine)}\nbatch {wish.batch}, {wish.context} tokens each, {wish.category},"
        f" temperature {wish.temperature:g}; {LABEL}"
    )
    made = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for name in COLUMNS:
        made.add_column(name, justify="left" if name in COLUMNS[:2] else "right", no_wrap=True)
    for decision in advice.decisions:
        style = "bold" if decision is advice.best else COLOUR.get(decision.verdict, "dim")
        made.add_row(*cells(decision), style=style)
    return made


def describe(machine: Machine) -> str:
    """Memory and bandwidth in words."""
    speed = f"{machine.bandwidth / 1e9:.0f} GB/s" if machine.bandwidth else "bandwidth unknown"
    share = f", {machine.room / 1e9:.1f} GB of it for models" if machine.usable < 1 else ""
    return f"{machine.memory / 1e9:.1f} GB{share}, {speed}"


def cells(decision: Decision) -> list[str]:
    """One row of the table; speeds only where it fits and the bandwidth is known."""
    start = [f"{HUB[decision.size]} {decision.precision}", SHORT[decision.verdict],
             f"{decision.plan.total / 1e9:.1f}", str(decision.longest) if decision.longest else UNKNOWN]  # fmt: skip
    seen = decision.forecast
    if seen is None or not decision.fits:
        return start + [UNKNOWN] * 5
    first = UNKNOWN if decision.first_token_s is None else f"{decision.first_token_s:.2f}"
    return [*start, str(seen.k), f"{seen.plain_rate:.{int(seen.plain_rate < 100)}f}", span(seen.rate, 0, "-"),
            f"{span(seen.speedup, 1, '-')}x", first]  # fmt: skip


def span(values: Range, digits: int, between: str = " to ") -> str:
    """Both ends, or one figure where they are the same."""
    low, high = (f"{value:.{digits}f}" for value in (values.low, values.high))
    return low if low == high else f"{low}{between}{high}"


def sentences(advice: Advice) -> Iterator[str]:
    """The workload, the recommendation, what to expect, what to change elsewhere, and how to run it."""
    best = advice.best
    if advice.wish.workload:
        yield f"Workload: {advice.wish.workload}."
    if advice.found.left_out:
        yield advice.found.left_out
    if best is None:
        yield f"Nothing fits as asked. Changes: {changes(advice.decisions)}."
        return
    yield f"Recommended: {best.name}: {best.reason}."
    yield from _expectation(advice, best)
    if best.change:
        yield f"To change: {best.change}."
    if best.faster:
        yield f"To go faster: {best.faster}."
    if others := changes(d for d in advice.decisions if d is not best):
        yield f"Changes for the others: {others}."
    for engine, command in best.commands.items():
        yield f"  {engine}: {command}"


def changes(decisions: Iterable[Decision]) -> str:
    """What to change for each of them; those that nothing helps come together at the end."""
    found = [d for d in decisions if d.change]
    hopeless = ", ".join(d.name for d in found if d.change == NO_STEP)
    texts = [f"{d.name}: {d.change}" for d in found if d.change != NO_STEP]
    return "; ".join([*texts, f"{hopeless}: {NO_STEP}"] if hopeless else texts)


def _expectation(advice: Advice, best: Decision) -> Iterator[str]:
    seen = best.forecast
    if seen is None:
        yield "Speeds are left out, because the bandwidth is unknown; give it with --bandwidth, as in 1008GB/s."
        return
    head = ", its head in int8" if best.int8_head else ""
    if seen.k == 0:
        yield f"Drafter: none; {seen.plain_rate:.1f} tokens/s for each text, {LABEL}."
        return
    yield (
        f"Drafter: the MTP drafter in bf16{head}, k = {seen.k}: {span(seen.rate, 0)} tokens/s for each text against"
        f" {seen.plain_rate:.1f} without it, {span(seen.speedup, 2)}x, {LABEL}."
    )
    if seen.ceiling:
        yield (
            f"That is {seen.of_ceiling:.0%} of the {seen.ceiling:.0f} tokens/s that the bytes of such rounds allow at"
            " the datasheet's bandwidth."
        )
    measured = best.precision == "bf16" and best.size in advice.found.rounds
    times = measured_rounds(advice, best.size) if measured else model_error()
    yield f"The range is that of acceptance ({advice.prior.category}); {times}."
    yield f"{beside_published(best.size)}."


def measured_rounds(advice: Advice, size: str) -> str:
    """Where the times of a size's bf16 rounds come from, which were measured, in one clause."""
    return f"round times of {HUB[size]} at bf16 were measured ({advice.found.rounds[size].origin})"


def model_error() -> str:
    """How far the speed model was off where it was measured, in one clause."""
    kept = calibration()
    held = kept["errors"].get("held_out_cells")
    rounds, which = (held, " that were left out of the fit") if held else (kept["errors"]["rounds"], "")
    return (
        f"round times come from constants fitted to Paceline's bf16 rounds on one {kept['provenance']['gpu']} (median"
        f" error {rounds['median']:.1%}, worst {rounds['worst']:.1%}, of {rounds['rows']}{which}), and on other"
        " machines, engines and precisions they are an assumption"
    )


def elsewhere() -> str:
    """How others' published speeds stand to what is predicted for their machine, in one clause."""
    found = calibration()["published"]
    shares = [row["published"] / row["predicted"] for row in found["rows"]]
    return f"{found['source']} reached {min(shares):.0%} to {max(shares):.0%} of what is predicted for it"


def published_speedups() -> str:
    """Others' speed-ups beside the ranges predicted for their machine, in one clause."""
    found = calibration()["published_speedups"]
    rows = (
        f"{HUB[r['size']]} at k = {r['k']} {r['published']:.2f}x (predicted {r['low']:.1f} to {r['high']:.1f}x)"
        for r in found["rows"]
    )
    return f"{found['source']}, reports {', '.join(rows)}"


def beside_published(size: str) -> str:
    """How the size's published speed-ups, all of other engines, stand to the ranges predicted for them."""
    pairs = [(run, published.predicted(run)) for run in published.runs() if run.size == size]
    inside = sum(published.inside(run, found) for run, found in pairs)
    below = sum(run.middle < found.low for run, found in pairs)
    return (
        f"Of {len(pairs)} published speed-ups of {HUB[size]} in other engines, {inside} lie in the range predicted for"
        f" them, {below} below it and {len(pairs) - inside - below} above"
    )


def _explain(advice: Advice, console: Console) -> None:
    console.print(memory_table(advice))
    if advice.best:
        console.print(elsewhere_table(advice.best, advice))
    lines = [f"{d.name}: {d.verdict}: {d.reason}." for d in advice.decisions]
    for line in (*lines, *sources(advice)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def memory_table(advice: Advice) -> Table:
    """GB by class."""
    names = list(asdict(advice.decisions[0].plan))
    made = Table("GB", *(name.replace("_", " ") for name in names), "left over", title="memory by class")
    for decision in advice.decisions:
        values = asdict(decision.plan).values()
        made.add_row(decision.name, *(f"{v / 1e9:.2f}" for v in values), f"{decision.spare / 1e9:.1f}")
    return made


def elsewhere_table(decision: Decision, advice: Advice) -> Table:
    """What the choice is estimated to take in the engines that have a command for it."""
    wish = advice.wish
    made = Table("engine", "estimate, GB", "may take, GB", "made of", title=f"{decision.name} elsewhere: {ESTIMATE}s")
    for found in estimates(
        decision.size, decision.precision, Use(batch=wish.batch, context=wish.context), advice.machine
    ):
        if found.engine in decision.commands:
            style = None if found.fits else "yellow"
            made.add_row(found.engine, f"{found.bytes / 1e9:.1f}", f"{found.room / 1e9:.1f}", found.basis, style=style)
    return made


def sources(advice: Advice) -> list[str]:
    """Where the figures come from, and what is assumed."""
    origin, rounds = calibration()["provenance"], advice.found.rounds
    return [
        f"Machine: {advice.machine.source}.",
        *([f"Rounds: {'; '.join(measured_rounds(advice, size) for size in rounds)}; the others are predicted."]
          if rounds else []),
        f"Acceptance, {advice.prior.basis}; {SMALL_BASIS}. Sampling: {SAMPLING_BASIS}.",
        f"Speeds: {model_error()}; measured {origin['measured_utc']}, fitted by {origin['fit']}.",
        f"Elsewhere: {elsewhere()}; {published_speedups()}.",
        f"Experts: the low end has every row choose on its own, the high end a text's rows overlap by {OVERLAP:g} (0:"
        " not at all, 1: the same experts), as published for another mixture; texts side by side choose on their own.",
        "Text model only: encoders of images and sound come on top (0.1 to 1.2 GB in bf16). K/V and drafter are bf16.",
        "First token: one prompt alone, nothing of it cached; without a known arithmetic rate it is left out.",
        "Larger sizes are taken to be better, then more bits of one size; 10 tokens/s for each text are asked of the"
        " recommended one.",
    ]  # fmt: skip


def record(advice: Advice) -> dict[str, Any]:
    """Everything, in bytes, seconds and tokens a second; `recommended` is the index of a decision, or null."""
    use = Use(batch=advice.wish.batch, context=advice.wish.context)
    rows = [
        asdict(d) | {"total_bytes": d.plan.total, "fits": d.fits, "elsewhere_estimated": [
            asdict(e) | {"fits": e.fits} for e in estimates(d.size, d.precision, use, advice.machine)]}
        for d in advice.decisions
    ]  # fmt: skip
    best = None if advice.best is None else advice.decisions.index(advice.best)
    return {
        "schema": "paceline-advice/1", "label": LABEL, "machine": asdict(advice.machine), "wish": asdict(advice.wish),
        "measured": {size: rounds.origin for size, rounds in advice.found.rounds.items()},
        "measured_left_out": advice.found.left_out,
        "acceptance": asdict(advice.prior), "decisions": rows, "recommended": best,
        "calibration": calibration(), "sources": sources(advice),
    }  # fmt: skip
