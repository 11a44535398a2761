"""Counters of a Prometheus text page."""

from __future__ import annotations

import re
from collections import defaultdict

from paceline.bench.arms import Drafting

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>[-+.\w]+)")
POSITION = re.compile(r'(?:token_)?position="(\d+)"')


def drafting_counters(page: str, prefix: str) -> Drafting | None:
    """Totals of the counters `<prefix>num_drafts_total`, `..num_draft_tokens_total` and so on, over all their labels.

    None where the page has no such counters: nothing is drafted. vLLM and llama.cpp share these names.
    """
    totals, positions = defaultdict[str, float](float), defaultdict[int, float](float)
    for name, labels, value in samples(page):
        short = name.removeprefix(prefix)
        if short == name:
            continue
        totals[short] += value
        place = POSITION.search(labels)
        if short == "num_accepted_tokens_per_pos_total" and place:
            positions[int(place[1])] += value
    if "num_draft_tokens_total" not in totals:
        return None
    rounds = totals.get("num_drafts_total")
    return Drafting(
        int(totals["num_draft_tokens_total"]), int(totals["num_accepted_tokens_total"]),
        None if rounds is None else int(rounds),
        accepted_by_position=tuple(int(positions[i]) for i in range(max(positions, default=-1) + 1)),
    )  # fmt: skip


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
