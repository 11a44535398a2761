"""Which pictures a run has: only those there is data for."""

from __future__ import annotations

from typing import Any

from paceline.bench.document import Figure
from paceline.bench.measurement import OFF, OFF_AGAIN, Measurement
from paceline.bench.plots_speed import acceptance_figure, category_figure, concurrency_figure, k_figure, noise_figure
from paceline.bench.plots_time import drift_figure, latency_figure, timeline_figure, typical_pair
from paceline.bench.record import rows_from_data


def figures_of(record: dict[str, Any]) -> list[Figure]:
    """The pictures of a record, what most look for first."""
    summary, rows = record["summary"], headline_rows(record)
    if summary["speedup"] is None:
        return []
    pair = typical_pair(rows)
    found = [
        category_figure(summary), k_figure(summary), concurrency_figure(summary),
        acceptance_figure(summary) if summary["acceptance_by_position"] else None, noise_figure(rows),
        latency_figure(rows), timeline_figure(pair) if pair else None, drift_figure(rows, summary["drift"]),
    ]  # fmt: skip
    return [figure for figure in found if figure is not None]


def headline_rows(record: dict[str, Any]) -> list[Measurement]:
    """The rows that the headline is about: one temperature, one concurrency, one draft length."""
    summary = record["summary"]
    return [
        row
        for row in rows_from_data(record["measurements"])
        if (row.temperature, row.concurrency) == (summary["temperature"], summary["concurrency"])
        and (row.arm in (OFF, OFF_AGAIN) or row.k == summary["k"])
    ]
