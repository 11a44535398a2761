"""Tiles and cuts measured on the devices in benchmarks/results/cuda_tiles.json, by weight (rows, cols, gated).

tile: fields of `matmul.Tile`. wide: for calls of more than 16 rows, (most rows, bn, bk, stages, warps, inside).
int8: of the weight in int8; where there is none, it has the tile of its bf16 numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _read(int8: bool) -> dict[tuple[int, int, bool], dict[str, Any]]:
    path = Path(__file__).with_name("tuned.json")
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {(r["rows"], r["cols"], r["gated"]): r for r in rows if r.get("int8", False) == int8}


TUNED = _read(int8=False)
TUNED_INT8 = _read(int8=True)
