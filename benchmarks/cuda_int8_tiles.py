"""Times the matrices of a drafter's body in int8 beside bf16 on a GPU, in several tiles.

    python benchmarks/cuda_int8_tiles.py --out benchmarks/results/int8_tiles.json    (about three minutes; needs a GPU)
    python benchmarks/cuda_int8_tiles.py --adopt benchmarks/results/int8_tiles.json  (writes kernels/gpu/tuned.json)

Calls are timed as in cuda_tiles.py. A tile is adopted where it beats the one that bf16 has by more than noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import cuda_tiles
import torch
from cuda_tiles import LINES, Weight, microseconds, tuned_rows, weight_of, weights_of, write_tuned

from paceline.bench import record as files
from paceline.kernels.gpu import matmul as mm
from paceline.kernels.gpu.int8 import quantize
from paceline.shapes import drafter_config

BLOCKS = list(itertools.product((16, 32, 64), (128, 256), (3, 4, 6)))  # bn, bk, stages
SPLITS = (1, 2, 3, 4, 6, 8, 16)
ROWS = (1, 8)  # sequences side by side
BETTER = 0.98  # of the time of the tile that bf16 has


def body_weights(sizes: list[str]) -> list[Weight]:
    """Every matrix of these sizes' drafters but for the head, each once."""
    found: set[Weight] = set()
    for small in map(drafter_config, sizes):
        found |= weights_of(small.text, drafter=True)
        found |= {(small.text.hidden, 2 * small.backbone_hidden, False)}
        found |= {(small.backbone_hidden, small.text.hidden, False)}
    return sorted(found)


def candidates(cols: int, gated: bool) -> list[mm.Tile]:
    """Tiles that leave no column over; a part is at least a step."""
    found = (mm.Tile(bn, bk, split, stages) for (bn, bk, stages), split in itertools.product(BLOCKS, SPLITS))
    return [t for t in found if cols % t.bk == 0 and cols >= t.bk * t.split and (t.split == 1 or not gated)]


def compare(weight: Weight) -> dict[str, Any]:
    """Microseconds of bf16, of int8 in the same tile, and of int8 in every other, the fastest first."""
    rows, cols, gated = weight
    count = max(2, min(48, (256 << 20) // (rows * cols)))  # more than L2 holds, in int8 too
    stored = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(count)]
    held, call, same = [quantize(w) for w in stored], mm.gated if gated else mm.linear, mm.tile_of(*weight)

    def us(copies: list[Any], tile: mm.Tile) -> float:
        return max(microseconds(call, copies, n, tile) for n in ROWS)

    bf16, alike = us(stored, same), us(held, same)
    tried = sorted((us(held, tile), tile) for tile in candidates(cols, gated))
    lines = [tile._replace(lines=n) for (_, tile), n in itertools.product(tried[:2], LINES)]
    tried = sorted(tried + [(us(held, tile), tile) for tile in lines])
    best, tile = tried[0]
    print(f"{rows} x {cols}{' gated' * gated}: bf16 {bf16} us in {tuple(same)}, int8 {alike} us in the same,"
          f" {best} us in {tuple(tile)}", flush=True)  # fmt: skip
    return {"rows": rows, "cols": cols, "gated": gated, "bf16_us": bf16, "bf16_tile": list(same), "same_us": alike,
            "tried": [[us_, *tile] for us_, tile in tried]}  # fmt: skip


def adopted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of tuned.json that these measurements ask for."""
    found = []
    for row in rows:
        best, *tile = row["tried"][0]
        if best < BETTER * row["same_us"]:
            found.append({"rows": row["rows"], "cols": row["cols"], "gated": row["gated"], "int8": True, "tile": tile})
    return found


def adopt(path: Path) -> None:
    """Puts the tiles of an earlier --out in place of those of int8 weights that tuned.json has for the same weights."""
    measured = json.loads(path.read_text(encoding="utf-8"))["weights"]
    known = {weight_of(row) for row in measured}
    kept = [row for row in tuned_rows() if not (row.get("int8") and weight_of(row) in known)]
    write_tuned(kept + adopted(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all timings")
    parser.add_argument("--adopt", type=Path, help="take over the tiles of an earlier --out")
    parser.add_argument("--sizes", default="31b,26b-a4b,12b")
    flags = parser.parse_args()
    if flags.out:
        result = {
            "schema": "paceline-cuda-int8-tiles/1", "labels": ["random weights"], "provenance": files.provenance(),
            "copy_bandwidth": cuda_tiles.copy_bandwidth(),
            "weights": [compare(weight) for weight in body_weights(flags.sizes.split(","))],
        }  # fmt: skip
        files.write_record(flags.out, result)
    if flags.adopt:
        adopt(flags.adopt)


if __name__ == "__main__":
    with torch.no_grad():
        main()
