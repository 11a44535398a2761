"""A comparison of runs as a document: verdict, tables, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from paceline.bench import plots
from paceline.bench.compare import Cell, Comparison, Side
from paceline.bench.document import Document, Figure, Note, Row, Section, Table
from paceline.bench.origin import machine_facts
from paceline.bench.ratios import ACCEPTANCE, SPEED, Ratio
from paceline.bench.stored import labels_of
from paceline.bench.wording import (
    UNKNOWN,
    count,
    interval,
    listing,
    milliseconds,
    name,
    number,
    percent,
    plain,
    times,
    times_in,
)

COLOURS = (plots.OFF, plots.ON, plots.THIRD, plots.FOURTH)
MARKS = "soD^"
VALUES = (("tokens_per_s", "tokens/s"), ("ttft_s", "TTFT, ms"), ("tpot_s", "TPOT, ms"))


def document_of(comparison: Comparison) -> Document:
    """What there is to say about runs side by side."""
    sides = comparison.sides
    return Document(
        title="Runs side by side", verdict=list(_verdict(comparison)), labels=_labels(sides),
        notes=[Note(warning) for warning in comparison.warnings], figures=partial(_figures, comparison),
        tables=[_runs(sides), *_tables(comparison)], sections=[_method(sides[0]), *map(_machine, sides)],
    )  # fmt: skip


def _labels(sides: list[Side]) -> list[str]:
    """What all runs have in common as it is, the rest with the run's name before it."""
    own = [labels_of(side.record) for side in sides]
    common = [label for label in own[0] if all(label in other for other in own)]
    rest = [f"{name(side.label)}: {label}" for side, labels in zip(sides, own, strict=True) for label in labels
            if label not in common]  # fmt: skip
    return common + rest


def headline(comparison: Comparison, other: str, arm: str) -> Cell | None:
    """Of one arm, over all categories, at the lowest temperature and load that both have: at the first run's best k."""
    cells = [cell for cell in comparison.cells if cell.other == other and cell.arm == arm and cell.category is None]
    here = [c for c in cells if (c.temperature, c.concurrency) == (cells[0].temperature, cells[0].concurrency)]
    best = comparison.sides[0].record["summary"]["k"]
    return min(here, key=lambda cell: cell.k[0] != best, default=None)


def shown_cells(comparison: Comparison, other: str) -> list[Cell]:
    """Those for the tables: all places over all categories, and the categories at the headline's place."""
    heads = [head for arm in ("off", "on") if (head := headline(comparison, other, arm))]
    own = [cell for cell in comparison.cells if cell.other == other]
    places = [(head.temperature, head.concurrency, head.arm, head.k) for head in heads]
    whole = [cell for cell in own if cell.category is None]
    named = [c for c in own if c.category is not None and (c.temperature, c.concurrency, c.arm, c.k) in places]
    return whole + named


def _verdict(comparison: Comparison) -> Iterator[str]:
    first = comparison.sides[0].label
    for side in comparison.sides[1:]:
        off, on = (headline(comparison, side.label, arm) for arm in ("off", "on"))
        cell = off or on
        if cell is None:
            yield f"{name(side.label)} and {name(first)} share no arm, so nothing can be said of them."
            continue
        parts = _both_arms([(off, "without drafting"), (on, "with it")])
        at = f"at temperature {cell.temperature:g}"
        at += f" with {count(cell.concurrency, 'request')} at once" if cell.concurrency > 1 else ""
        gains = f"; {_gains(on, first, side.label)}" if on and on.speedup else ""
        yield f"Beside {name(first)}, {at}, {name(side.label)} {listing(parts)}{gains}."


def _both_arms(arms: list[tuple[Cell | None, str]]) -> list[str]:
    """What each arm did; words that the one before began with are left out."""
    parts, before = list[str](), ""
    for cell, how in arms:
        if cell is not None:
            verb, numbers = _faster(cell)
            parts.append(f"{'' if verb == before else verb} {numbers} {how}".strip())
            before = verb
    return parts


def _faster(cell: Cell) -> tuple[str, str]:
    """A verb, and what it is about."""
    found = cell.values["tokens_per_s"]
    if found.ratio is None:
        return "has", "no speed that could be compared"
    if found.ci95 is None:
        return "has", f"too few prompts to tell ({times(found.ratio)} the speed so far)"
    numbers = times_in(found.ratio, found.ci95)
    if found.ci95[0] <= 1 <= found.ci95[1]:
        return "shows", f"no difference beyond noise ({numbers})"
    return "is", f"{numbers} as fast"


def _gains(cell: Cell, first: str, other: str) -> str:
    own = cell.speedup
    assert own is not None
    each = f"drafting brings {times_in(own.first, own.first_ci95)} in {name(first)} and"
    each += f" {times_in(own.other, own.other_ci95)} in {name(other)}"
    if own.ci95 is not None and own.ci95[0] <= 1 <= own.ci95[1]:
        return f"{each}, a difference that could be noise"
    return each


def _runs(sides: list[Side]) -> Table:
    rows = [_run(side, i == 0) for i, side in enumerate(sides)]
    header = ["run", "engine", "model", "k", "prompts", "texts", "commit", "date", "machine"]
    return Table("The runs", header, rows, "The first is what the others are held against.", words=True)


def _run(side: Side, first: bool) -> Row:
    record, origin = side.record, side.record["provenance"]
    arms = record["arms"] or [{}]
    engine = dict.fromkeys(f"{arm.get('engine') or ''} {arm.get('version') or ''}".strip() for arm in arms)
    model = dict.fromkeys(str(arm.get("model") or "") for arm in arms)
    lengths = sorted({row.k for row in side.rows if row.k})
    git = (origin["git"] or {}).get("commit") or ""
    machine = origin["machine"].get("gpu") or origin["machine"].get("cpu") or UNKNOWN
    prompts = len({row.prompt_id for row in side.rows})
    cells = ["/".join(engine), "/".join(model), ", ".join(map(str, lengths)), f"{prompts:,}", f"{len(side.rows):,}",
             git[:9], str(origin["date_utc"])[:10], machine]  # fmt: skip
    return [name(side.label) + (" (first)" if first else ""), *(plain(cell) or UNKNOWN for cell in cells)]


def _tables(comparison: Comparison) -> Iterator[Table]:
    first = comparison.sides[0].label
    for side in comparison.sides[1:]:
        cells = shown_cells(comparison, side.label)
        pair = f"{name(side.label)} over {name(first)}"
        for key, title in VALUES:
            yield _values(f"{title}: {pair}", cells, key, (first, side.label))
        drafted = [cell for cell in cells if cell.arm == "on"]
        if drafted:
            yield _gain_table(f"Speed-up by drafting: {pair}", drafted, (first, side.label))
        if any(cell.values["acceptance_length"].ratio is not None for cell in drafted):
            yield _values(f"Tokens per round: {pair}", drafted, "acceptance_length", (first, side.label))


def _values(title: str, cells: list[Cell], key: str, labels: tuple[str, str]) -> Table:
    header = ["where", *map(name, labels), "ratio", "95% interval", "prompts paired", "same text"]
    rows = [[_where(cell), *_value_cells(cell.values[key], key), percent(cell.same_text)] for cell in cells]
    return Table(title, header, rows, _WHAT[key])


_WHAT = {
    "tokens_per_s": "Of one request, prompt processing included; above 1 the other run is faster.",
    "ttft_s": "Time to first token, mean; below 1 the other run is faster.",
    "tpot_s": "Time per output token after the first, mean; below 1 the other run is faster.",
    "acceptance_length": "The bonus token counted; engines may count rounds differently.",
}


def _value_cells(found: Ratio, key: str) -> Row:
    if key in (SPEED, ACCEPTANCE):
        values = [number(value, 1 if key == SPEED else 2) for value in (found.first, found.other)]
    else:
        values = [milliseconds(value) for value in (found.first, found.other)]
    paired = f"{found.paired:,}" if found.paired else "unpaired" if found.ratio is not None else UNKNOWN
    return [*values, times(found.ratio), interval(found.ci95), paired]


def _gain_table(title: str, cells: list[Cell], labels: tuple[str, str]) -> Table:
    header = ["where", name(labels[0]), "95% interval", name(labels[1]), "95% interval", "ratio", "95% interval"]
    rows = []
    for cell in cells:
        if (own := cell.speedup) is not None:
            pairs = ((own.first, own.first_ci95), (own.other, own.other_ci95), (own.ratio, own.ci95))
            rows.append([_where(cell), *(text for value, ci95 in pairs for text in (times(value), interval(ci95)))])
    return Table(title, header, rows, "Within each run; their ratio is unpaired.")


def _where(cell: Cell) -> str:
    mine, theirs = ("auto or not told" if k is None else str(k) for k in cell.k)
    arm = "off" if cell.arm == "off" else f"k = {mine}" if mine == theirs else f"k = {mine} and {theirs}"
    load = f", {cell.concurrency} at once" if cell.concurrency > 1 else ""
    return f"{'all' if cell.category is None else name(cell.category)}, t = {cell.temperature:g}, {arm}{load}"


def _method(first: Side) -> Section:
    return Section("How they were compared", [
        "Runs stand side by side where they share temperature, requests at once, category and draft length. Paired: the"
        " same prompts in both, by the digest of all prompts, and ratios of sums with bootstrap intervals over prompts;"
        " tokens/s only over prompts whose texts are equally long in both, because a longer text is more work."
        " Unpaired: each run's own interval, combined on the logarithm (Zou and Donner 2008); it holds for any two sets"
        " of prompts, and is wider. Intervals (95%) cover chance within these runs, not what differs between machines"
        " or days.",
        f"Off and off again count as one arm here. The first run, {name(first.label)}, is what the others are held"
        " against. A row is named by category, temperature t, draft length k and requests at once; categories stand at"
        " the first place only, and the JSON has them at every one.",
    ])  # fmt: skip


def _machine(side: Side) -> Section:
    return Section(f"Machine, versions and command of {name(side.label)}", facts=machine_facts(side.record))


def _figures(comparison: Comparison) -> list[Figure]:
    return [figure for figure in (_speed_figure(comparison), _gain_figure(comparison)) if figure is not None]


def _speed_figure(comparison: Comparison) -> Figure | None:
    """How fast every other run is beside the first, drafting off and on."""
    others = [side.label for side in comparison.sides[1:]]
    cells = [(other, arm, headline(comparison, other, arm)) for other in others for arm in ("off", "on")]
    lanes = [(f"{name(other, 16)}, {arm}", cell.values["tokens_per_s"]) for other, arm, cell in cells if cell]
    lanes = [(label, found) for label, found in lanes if found.ratio is not None]
    if not lanes:
        return None
    lanes.reverse()

    def paint(axes: Any) -> None:
        plots.one_line(axes, across=True)
        plots.whiskers(axes, [(found.ratio, found.ci95) for _, found in lanes if found.ratio is not None], across=True)
        plots.label_places(axes, [label for label, _ in lanes], across=True)
        axes.set_xlabel(f"tokens/s over those of {name(comparison.sides[0].label, 24)}", parse_math=False)

    says = "; ".join(f"{label} {times_in(found.ratio, found.ci95)}" for label, found in reversed(lanes))
    note = "Lines are 95% intervals; right of 1 is faster than the first run. Hollow: could be noise."
    svg = plots.draw("beside", f"Tokens per second over the first run's: {says}.", [0.8 + 0.34 * len(lanes)], paint)
    return Figure("How fast beside the first", svg, note, says)


def _gain_figure(comparison: Comparison) -> Figure | None:
    """What drafting brings within each run, by category, the runs beside each other."""
    series = _gains_by_run(comparison)
    names = list(dict.fromkeys(key for own in series.values() for key in own))[:20]
    if not names:
        return None

    def paint(axes: Any) -> None:
        plots.one_line(axes, across=True)
        for i, (label, own) in enumerate(series.items()):
            color, shift = COLOURS[i % len(COLOURS)], 0.3 * (0.5 - (i + 0.5) / len(series)) * 2
            for j, key in enumerate(n for n in names if n in own):
                value, ci95 = own[key]
                place = len(names) - 1 - names.index(key) + shift
                axes.plot(ci95 or [value] * 2, [place] * 2, color=color, linewidth=2)
                axes.plot([value], [place], MARKS[i % len(MARKS)], color=color, markersize=5.5,
                          label=None if j else name(label, 20).lstrip("_"))  # fmt: skip
        plots.label_places(axes, [name(key, 20) for key in reversed(names)], across=True)
        axes.set_xlabel("speed-up by drafting")
        plots.legend_above(axes)

    told = [f"{name(label)}: {_told(own)}" for label, own in series.items()]
    says = f"Speed-up by drafting within each run. {'; '.join(told)}."
    height = 1.0 + (0.22 + 0.16 * len(series)) * len(names)
    svg = plots.draw("gains", says, [height], paint)
    return Figure("What drafting brings in each", svg, "Lines are 95% intervals; right of 1 drafting is faster.", says)


def _told(own: dict[str, plots.Whisker]) -> str:
    return ", ".join(f"{name(key)} {times_in(*whisker)}" for key, whisker in own.items())


def _gains_by_run(comparison: Comparison) -> dict[str, dict[str, plots.Whisker]]:
    """By run and category, at the headline's place; runs that did not draft there are left out."""
    series: dict[str, dict[str, plots.Whisker]] = {}
    for side in comparison.sides[1:]:
        head = headline(comparison, side.label, "on")
        for cell in comparison.cells if head else ():
            own = cell.speedup
            if head and own and (cell.other, cell.temperature, cell.concurrency, cell.k) == (
                side.label, head.temperature, head.concurrency, head.k):  # fmt: skip
                key = cell.category or "all"
                for label, value, ci95 in ((comparison.sides[0].label, own.first, own.first_ci95),
                                           (side.label, own.other, own.other_ci95)):  # fmt: skip
                    if value is not None:
                        series.setdefault(label, {}).setdefault(key, (value, ci95))
    return series
