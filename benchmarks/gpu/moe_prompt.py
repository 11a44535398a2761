"""The experts of a prompt's chunk on a GPU: how wide a tile and which cut of the weights is fastest.

    PYTHONPATH=src:tests:benchmarks/gpu python benchmarks/gpu/moe_prompt.py --out moe_prompt.json

Shapes are those of 26B-A4B, rows route uniformly, and the dense MLP rides along. --compile PART/PARTS only compiles.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from moe import Layer, inputs_of, run_both
from timing import graph_time

from paceline.bench import record as files
from paceline.kernels.gpu import moe
from paceline.kernels.gpu.moe import Tile, Tiles

ROWS = 2048
WIDTHS = (64, 96, 128, 160, 192)
TILES = (Tile(64, 64, 4), Tile(128, 64, 3), Tile(128, 64, 3, 8), Tile(128, 64, 4, 8), Tile(128, 128, 2, 8),
         Tile(256, 64, 3, 8), Tile(256, 64, 2, 8))  # fmt: skip


def cases() -> list[tuple[int, Tiles]]:
    """Each width with each tile in one of the two kernels, the other as it is now."""
    kept = moe.MANY
    return [(width, tiles) for width, tile in itertools.product(WIDTHS, TILES)
            for tiles in (Tiles(tile, kept.down), Tiles(kept.gated, tile))
            if tile.bn * width <= tile.warps << 13]  # fmt: skip


def time_case(layer: Layer, width: int, tiles: Tiles) -> dict[str, Any]:
    """Microseconds of both kernels; None where it does not run."""
    sets = [(inputs_of(ROWS, seed, width),) for seed in range(3)]
    try:
        us = round(graph_time(lambda i: run_both(layer, i, tiles), sets, 5), 1)
    except Exception as problem:  # too much shared memory, for instance
        print("   failed:", str(problem)[:80])
        us = None
    row = {"width": width, "gated": tiles.gated, "down": tiles.down, "us": us}
    print(f"{us} us: R = {width}, gated {tuple(tiles.gated)}, down {tuple(tiles.down)}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile")
    options = parser.parse_args()
    layer = Layer.make()
    if options.compile:
        part, parts = map(int, options.compile.split("/"))
        for width, tiles in cases()[part::parts]:
            try:
                run_both(layer, inputs_of(ROWS, 0, width), tiles)
            except Exception as problem:
                print(width, tiles, str(problem)[:80])
        torch.cuda.synchronize()
        return
    rows = [time_case(layer, *case) for case in cases()]
    files.write_record(options.out, {"provenance": files.provenance(), "rows": rows})


if __name__ == "__main__":
    with torch.no_grad():
        main()
