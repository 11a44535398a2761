"""Tiles measured on the devices in benchmarks/results/cuda_tiles.json: (rows, cols, gated) -> Tile fields."""

from __future__ import annotations

import json
from pathlib import Path


def _read() -> dict[tuple[int, int, bool], tuple[int, ...]]:
    path = Path(__file__).with_name("tuned.json")
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {(r["rows"], r["cols"], r["gated"]): tuple(r["tile"]) for r in rows}


TUNED = _read()
