"""Two or more runs side by side: the same category, temperature, requests at once and draft length, with intervals.

The first run is what the others are held against. Where both measured the same prompts, a difference is taken prompt by
prompt, which leaves out what prompts differ in; tokens/s only over texts of equal length. Everything else is unpaired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from paceline.bench.measurement import OFF, OFF_AGAIN, ON, ON_AGAIN, Measurement
from paceline.bench.ratios import ACCEPTANCE, QUANTITIES, Interval, Ratio, as_list, ratio_of, ratio_of_ratios, sums_of
from paceline.bench.record import rows_from_data
from paceline.bench.stats import compare, pair_up, seconds_by_prompt
from paceline.bench.stored import read_record
from paceline.bench.verdict import notes
from paceline.bench.wording import listing, plain
from paceline.errors import UsageError

ARMS = {"off": (OFF, OFF_AGAIN), "on": (ON, ON_AGAIN)}
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Side:
    """One run: what it is called beside the others, its record, and its rows."""

    label: str
    record: Record
    rows: list[Measurement]

    @property
    def digest(self) -> str | None:
        """Of all its prompts, where the record has one."""
        digest = self.record["plan"]["prompts"].get("sha256")
        return None if digest is None else str(digest)


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """What drafting brought within each run, and how the two compare (unpaired)."""

    first: float | None
    first_ci95: Interval
    other: float | None
    other_ci95: Interval
    ratio: float | None = None
    ci95: Interval = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One place where two runs can be compared. category: None for all; k: the first's and the other's, 0 when off.

    same_text: which fraction of the texts is the same in both, of the same prompts; None for different ones.
    """

    other: str
    category: str | None
    temperature: float
    concurrency: int
    arm: str
    k: tuple[int | None, int | None]
    prompts: tuple[int, int]
    values: dict[str, Ratio]
    same_text: float | None = None
    speedup: SpeedUp | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything: the runs, what to know before believing it, and the cells, the headline first of each run."""

    sides: list[Side]
    warnings: list[str]
    cells: list[Cell] = field(default_factory=list)

    def data(self) -> Record:
        """As JSON data."""
        runs = [(side.label, side.digest, len(side.rows)) for side in self.sides]
        named = [dict(zip(("label", "prompts_sha256", "measurements"), run, strict=True)) for run in runs]
        return {"runs": named, "warnings": self.warnings, "cells": [asdict(cell) for cell in self.cells]}


def load_sides(paths: Sequence[Path]) -> list[Side]:
    """The runs in these files. Raises UsageError, naming the file, for what cannot be compared."""
    if len(paths) < 2:
        raise UsageError("there is nothing to compare one record with; name two or more")
    resolved = [path.resolve() for path in paths]
    if twice := next((path for path in paths if resolved.count(path.resolve()) > 1), None):
        raise UsageError(f"{twice} is named twice; name each record once")
    records = [read_record(path) for path in paths]
    sides = []
    for path, label, record in zip(paths, _labels(paths), records, strict=True):
        rows = rows_from_data(record["measurements"])
        if not rows:
            raise UsageError(f"{path} holds no measurements, so there is nothing to compare; leave it out")
        sides.append(Side(label, record, rows))
    return sides


def _labels(paths: Sequence[Path]) -> list[str]:
    """File names without their ending, with as many folders before them as it takes to tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = [plain("/".join(path.with_suffix("").parts[-depth:])) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [plain(path) for path in paths]


def compare_runs(sides: Sequence[Side]) -> Comparison:
    """Holds every run against the first. Raises UsageError where two share nothing that could be compared."""
    first, others = sides[0], sides[1:]
    cells = [cell for other in others for cell in _cells(first, other)]
    warnings = [warning for other in others for warning in warnings_of(first, other)]
    own = [f"{side.label}: {note.text}" for side in sides for note in notes(side.record) if note.grave]
    return Comparison(list(sides), [*own, *warnings], cells)


def _cells(first: Side, other: Side) -> Iterator[Cell]:
    places = [sorted({_place(row) for row in side.rows}) for side in (first, other)]
    shared = [place for place in places[0] if place in places[1]]
    if not shared:
        raise UsageError(
            f"{first.label} and {other.label} share no temperature and number of requests at once, so nothing can be"
            " compared; measure both with the same --temperature and --concurrency"
        )
    names = sorted({row.category for row in first.rows} & {row.category for row in other.rows})
    for place, category in product(shared, [None, *names]):
        own = [_at(side, place, category) for side in (first, other)]
        for arm, ks in [("off", (0, 0)), *(("on", pair) for pair in draft_lengths(first, other, place))]:
            if (cell := _cell((first, other), own, (place, category), (arm, ks))) is not None:
                yield cell


def _place(row: Measurement) -> tuple[float, int]:
    return row.temperature, row.concurrency


def _at(side: Side, place: tuple[float, int], category: str | None) -> list[Measurement]:
    return [row for row in side.rows if _place(row) == place and category in (None, row.category)]


def draft_lengths(first: Side, other: Side, place: tuple[float, int]) -> list[tuple[int | None, int | None]]:
    """Which draft length stands beside which: the same where both measured it, else each run's own best."""
    both = [{row.k for row in _at(side, place, None) if row.arm in ARMS["on"]} for side in (first, other)]
    if not all(both):
        return []
    if shared := both[0] & both[1]:
        return [(k, k) for k in sorted(shared, key=lambda k: -1 if k is None else k)]
    best = [side.record["summary"]["k"] for side in (first, other)]
    mine, theirs = (k if k in own else next(iter(own)) for k, own in zip(best, both, strict=True))
    return [(mine, theirs)]


def _cell(sides: tuple[Side, Side], rows: list[list[Measurement]], at: Any, which: Any) -> Cell | None:
    ((temperature, concurrency), category), (arm, ks) = at, which
    own = [[r for r in part if r.arm in ARMS[arm] and r.k in (k, None)] for part, k in zip(rows, ks, strict=True)]
    if not all(own):
        return None
    first, other = sums_of(own[0]), sums_of(own[1])
    same = sides[0].digest is not None and sides[0].digest == sides[1].digest
    values = {name: ratio_of(name, first, other, same) for name in QUANTITIES if arm == "on" or name != ACCEPTANCE}
    speedup = None
    if arm == "on":
        speedup = _speedup([[r for r in part if not r.k or r.k == k] for part, k in zip(rows, ks, strict=True)])
    return Cell(sides[1].label, category, temperature, concurrency, arm, ks, (len(first.ids), len(other.ids)), values,
                _same_text(own[0], own[1], arm) if same else None, speedup)  # fmt: skip


def _same_text(first: list[Measurement], other: list[Measurement], arm: str) -> float | None:
    """By the texts themselves where both kept them, since one engine may tell token ids and another not."""
    theirs = {row.pair_key: row for row in other if row.arm == arm}
    pairs = [(row, theirs[row.pair_key]) for row in first if row.arm == arm and row.pair_key in theirs]
    same = [a.text == b.text if a.text and b.text else a.token_sha256 == b.token_sha256 for a, b in pairs]
    return sum(same) / len(same) if same else None


def _speedup(rows: list[list[Measurement]]) -> SpeedUp:
    pairs = [pair_up(own) for own in rows]
    (one, one_ci95), (two, two_ci95) = (compare(own) for own in pairs)
    if one is None or two is None:
        return SpeedUp(one, one_ci95, two, two_ci95)
    first, other = (seconds_by_prompt(own) for own in pairs)
    return SpeedUp(one, one_ci95, two, two_ci95, two / one, as_list(ratio_of_ratios(other, first)))


def warnings_of(first: Side, other: Side) -> list[str]:
    """What differs between two runs besides what is to be compared, in sentences."""
    who = f"{other.label} and {first.label}"
    mine, theirs = (side.record["provenance"]["machine"] for side in (first, other))
    found = []
    if differing := [key for key in ("cpu", "gpu", "cores") if mine.get(key) != theirs.get(key)]:
        found.append(f"{who} ran on different machines (or were asked from such): {listing(differing)} differ.")
    if first.digest is None or first.digest != other.digest:
        why = "may have" if first.digest is None or other.digest is None else "have"
        found.append(f"{who} {why} measured different prompts: what the prompts differ in is part of every difference.")
    options = [side.record["plan"]["options"] for side in (first, other)]
    for key, word in (("max_tokens", "limits of tokens"), ("top_k", "top_k"), ("top_p", "top_p"), ("seed", "seeds"),
                      ("alternate", "orders of the arms")):  # fmt: skip
        values = [own.get(key, False if key == "alternate" else None) for own in reversed(options)]
        if values[0] != values[1]:
            found.append(f"{who} have different {word}: {values[0]} and {values[1]}.")
    return [*found, *_left_out(first, other), *_lengths(first, other)]


def _left_out(first: Side, other: Side) -> Iterator[str]:
    """Temperatures, loads and categories that only one of them measured."""
    for key, word in (("temperature", "temperature"), ("concurrency", "requests at once"), ("category", "category")):
        mine, theirs = ({getattr(row, key) for row in side.rows} for side in (first, other))
        if only := sorted(mine ^ theirs):
            shown = listing([plain(value) for value in only[:6]]) + (" and others" if len(only) > 6 else "")
            yield f"Only one of {other.label} and {first.label} measured {word} {shown}."


def _lengths(first: Side, other: Side) -> Iterator[str]:
    shared = {_place(row) for row in first.rows} & {_place(row) for row in other.rows}
    for mine, theirs in sorted({pair for place in shared for pair in draft_lengths(first, other, place)}, key=str):
        if mine != theirs:
            yield (f"No draft length is common to both: k = {theirs} of {other.label} stands beside k = {mine} of"
                   f" {first.label}.")  # fmt: skip
