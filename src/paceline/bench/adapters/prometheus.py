"""Counters of a Prometheus text page."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from paceline.bench.arms import Drafting

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>[-+.\w]+)")
POSITION = re.compile(r'(?:token_)?position="(\d+)"')


def drafting_counters(page: str, prefix: str) -> Drafting | None:
    """Totals of the counters `<prefix>num_drafts_total`, `..num_draft_tokens_total` and so on, over all their labels.

    None where the page has no such counters: nothing is drafted. vLLM and llama.cpp share these names.
    """
    own = [
        (name.removeprefix(prefix), labels, value) for name, labels, value in samples(page) if name.startswith(prefix)
    ]
    totals = defaultdict[str, float](float)
    for name, _, value in own:
        totals[name] += value
    if "num_draft_tokens_total" not in totals:
        return None
    drafted, rounds = int(totals["num_draft_tokens_total"]), totals.get("num_drafts_total")
    accepted = by_position(
        [(labels, value) for name, labels, value in own if name == "num_accepted_tokens_per_pos_total"]
    )
    return Drafting(
        drafted, int(totals["num_accepted_tokens_total"]), None if rounds is None else int(rounds),
        drafted_alike(drafted, int(rounds or 0), len(accepted)), accepted,
    )  # fmt: skip


def drafted_alike(drafted: int, rounds: int, k: int) -> tuple[int, ...]:
    """Drafts made at each of k positions where no round was cut short; empty where one was, and nothing tells which."""
    return (rounds,) * k if drafted == rounds * k else ()


def by_position(rows: Iterable[tuple[str, float]]) -> tuple[int, ...]:
    """Labels with values as totals for each draft position, from 0 on; empty where the labels have none."""
    totals = defaultdict[int, float](float)
    for labels, value in rows:
        if place := POSITION.search(labels):
            totals[int(place[1])] += value
    return tuple(int(totals[i]) for i in range(max(totals, default=-1) + 1))


def samples(page: str) -> list[tuple[str, str, float]]:
    """Name, labels as written, and value of every sample; lines that are none are passed over."""
    found = [SAMPLE.match(line) for line in page.splitlines() if not line.startswith("#")]
    return [(m["name"], m["labels"] or "", float(m["value"])) for m in found if m and _is_number(m["value"])]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
