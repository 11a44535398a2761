"""Finds the tile of every weight of the five sizes on a GPU, and checks that rows keep their bits in all of them.

    python benchmarks/cuda_tiles.py --out benchmarks/results/cuda_tiles.json      (about a minute; needs a GPU)
    python benchmarks/cuda_tiles.py --adopt benchmarks/results/cuda_tiles.json    (writes kernels/gpu/tuned.json)

A call is timed behind a small kernel, as in a layer, with weights that are not in L2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from paceline.bench import record as files
from paceline.config import TextConfig
from paceline.kernels.gpu import matmul as mm
from paceline.kernels.gpu.launch import cdiv, let_next_start, options, wait
from paceline.shapes import SHAPES, drafter_config, target_config

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
from timing import copy_bandwidth, graph_time

TUNED = Path(mm.__file__).with_name("tuned.json")
BLOCKS = ((64, 64, 6), (64, 64, 4), (64, 128, 4), (64, 128, 3), (64, 256, 3), (128, 64, 4), (128, 128, 3))
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
LINES = (0, 2, 4, 8)
BANDWIDTH = 3.0e12  # of the bound that is printed, bytes a second
WIDE = ((64, 64, 4, 4), (64, 64, 6, 4), (64, 128, 3, 4), (64, 128, 4, 4), (128, 64, 4, 4), (128, 64, 4, 8),
        (128, 64, 6, 8), (128, 128, 3, 8), (256, 64, 4, 8))  # fmt: skip
MANY = (24, 40, 64, 80, 160)
PROMPT = ((64, 64, 4, 4), (128, 64, 3, 4), (128, 64, 4, 4), (128, 64, 3, 8), (128, 64, 4, 8), (128, 128, 2, 8),
          (256, 64, 3, 8))  # fmt: skip
ROWS = (1, 5)
BATCHES = (2, 5, 8, 16, 17, 32, 33, 40, 64, 65, 80, 96, 128, 129, 160, 192, 300)
Weight = tuple[int, int, bool]
Call = Callable[..., Tensor]


def weights_of(config: TextConfig, drafter: bool = False) -> set[Weight]:
    """(rows, cols, gated) of a decoder's matrices, its LM head left out; a drafter's layers hold queries only."""
    found: set[Weight] = set()
    for i, c in enumerate(config.layers):
        own = 0 if drafter or not config.owns_kv(i) else (1 if c.k_eq_v else 2) * c.kv_heads
        found |= {
            ((c.heads + own) * c.head_dim, config.hidden, False),
            (config.hidden, c.heads * c.head_dim, False),
            (2 * c.intermediate, config.hidden, True),
            (config.hidden, c.intermediate, False),
        }
    if config.ple_dim:
        found |= {(config.ple_dim, config.hidden, False), (config.hidden, config.ple_dim, False),
                  (len(config.layers) * config.ple_dim, config.hidden, False)}  # fmt: skip
    if config.experts:
        found.add((config.experts.count, config.hidden, False))
    return found


def all_weights(sizes: list[str]) -> list[Weight]:
    """Every weight of these sizes and their drafters, each once."""
    found: set[Weight] = set()
    for name in sizes:
        target, small = target_config(name), drafter_config(name)
        found |= weights_of(target) | weights_of(small.text, drafter=True) | {(target.vocab, target.hidden, False)}
        found |= {(small.text.hidden, 2 * small.backbone_hidden, False)}
        found |= {(small.backbone_hidden, small.text.hidden, False)}
        # With centroids the head's rows are gathered, not multiplied.
        head = small.centroids.count if small.centroids else small.text.vocab
        found.add((head, small.text.hidden, False))
    return sorted(found)


def large_weights(sizes: list[str]) -> list[Weight]:
    """Those of the targets whose calls of many rows take time."""
    found = set[Weight]().union(*(weights_of(target_config(name)) for name in sizes))
    return sorted(weight for weight in found if weight[0] * weight[1] >= 1 << 21)


def candidates(rows: int, cols: int, gated: bool) -> list[mm.Tile]:
    """Tiles that leave no column over, fill the device and keep parts long."""
    found = []
    for (bn, bk, stages), split in itertools.product(BLOCKS, (1,) if gated else SPLITS):
        blocks = cdiv(rows, bn) * split
        whole = cols % bk == 0 and (split == 1 or (cols // split >= 2 * bk and blocks <= 1100))
        starved = not gated and blocks < 33 and cols // split >= 2 * bk and split < 8
        if whole and not starved:
            found.append(mm.Tile(bn, bk, split, stages))
    return found or [mm.Tile(64, 64, 1, 4)]


@triton.jit
def _small(x, y, n, PDL: tl.constexpr):
    let_next_start(PDL)
    wait(PDL)
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(y + i, tl.load(x + i, mask=i < n) + 1.0, mask=i < n)


def microseconds(call: Call, weights: Sequence[mm.Weight], n: int, tile: mm.Tile) -> float:
    """Of a small kernel and the matmul behind it, n rows."""
    x = torch.randn(n, mm.numbers_of(weights[0])[0].shape[1], device="cuda", dtype=torch.bfloat16)

    def both(weight: mm.Weight) -> None:
        _small[(n,)](x, x, x.numel(), **options(num_warps=8))
        call(x, weight, tile)

    return round(graph_time(both, [(weight,) for weight in weights], 7), 2)


def tune(weight: Weight) -> dict[str, Any]:
    """The fastest tile of a weight over 1 and 5 rows, and all that were tried."""
    rows, cols, gated = weight
    count = max(2, min(40, (200 << 20) // (rows * cols * 2)))
    copies = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(count)]
    call = mm.gated if gated else mm.linear
    tried = sorted(
        (max(microseconds(call, copies, n, tile) for n in ROWS), tile) for tile in candidates(rows, cols, gated)
    )
    lines = [tile._replace(lines=n) for (_, tile), n in itertools.product(tried[:2], LINES)]
    tried = sorted(tried + [(max(microseconds(call, copies, n, tile) for n in ROWS), tile) for tile in lines])
    best, tile = tried[0]
    print(f"{rows} x {cols}{' gated' * gated}: {tuple(tile)} {best} us", flush=True)
    return {"rows": rows, "cols": cols, "gated": gated, "tile": list(tile), "us": best,
            "tried": [[us, *tile] for us, tile in tried]}  # fmt: skip


def bits(weight: Weight) -> dict[str, Any]:
    """How many of 24 rows differ from the row alone, by how many rows share the call; the same for the library."""
    rows, cols, gated = weight
    w = torch.randn(min(rows, 16384), cols, device="cuda", dtype=torch.bfloat16) * 0.02
    x = torch.randn(max(BATCHES), cols, device="cuda", dtype=torch.bfloat16)

    def ours(x: Tensor) -> Tensor:
        if gated:
            return mm.gated(x, w)
        parts = mm.linear(x, w)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total

    def differ(call: Callable[[Tensor], Tensor]) -> dict[int, int]:
        alone = torch.cat([call(x[i : i + 1]) for i in range(24)])
        return {n: int((call(x[:n])[:24] != alone[: min(n, 24)]).any(1).sum()) for n in BATCHES}

    return {"rows": len(w), "cols": cols, "gated": gated, "ours": differ(ours),
            "library": differ(lambda x: F.linear(x, w))}  # fmt: skip


def cuts(weight: Weight, n: int) -> list[mm.Launch]:
    """The ways to cut a call of n rows that `matmul.launch_of` may choose among."""
    rows, cols, gated = weight
    tile = mm.tile_of(rows, cols, gated)
    parted, found = tile.split > 1 and not gated, []
    if n > mm.WIDTHS[-1]:
        shapes = [(r, 0, parted, *cut) for r, cut in itertools.product((128, 256), PROMPT)]
    else:
        shapes = [(*mm.width_of(n), inside, *cut) for inside, cut in itertools.product({False, parted}, WIDE)]
    for r, more, inside, bn, bk, stages, warps in shapes:
        held = stages * (bn + r + more) * bk * 2  # bytes of shared memory
        if tile.bk % bk == 0 and held <= 220 << 10 and bn * (r + more) <= warps << 13:
            found.append(mm.Launch(r, bn, bk, stages, warps, 0, inside, more))
    return found


def wide(weight: Weight, many: list[int]) -> list[dict[str, Any]]:
    """Microseconds of every cut of a weight for each number of rows, fastest first."""
    rows, cols, gated = weight
    count = max(2, min(40, (200 << 20) // (rows * cols * 2)))
    copies = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(count)]
    tile, call, found = mm.tile_of(rows, cols, gated), mm.gated if gated else mm.linear, []
    for n in many:
        x, chosen = torch.randn(n, cols, device="cuda", dtype=torch.bfloat16), mm.launch_of(n, tile, rows, gated)
        tried = []
        for cut in cuts(weight, n):
            run = partial(call, x, tile=tile, cut=cut)
            tried.append((round(graph_time(run, [(copy,) for copy in copies], 5), 1), cut))
        tried.sort()
        now = next((us for us, cut in tried if cut == chosen), None)
        bound = round(rows * cols * 2 / BANDWIDTH * 1e6, 1)
        print(
            f"{n} rows of {rows} x {cols}: {tried[0][0]} us {tuple(tried[0][1])}, chosen {now}, bound {bound}",
            flush=True,
        )
        found.append({"n": n, "rows": rows, "cols": cols, "gated": gated, "chosen": list(chosen), "chosen_us": now,
                      "tried": [[us, *cut] for us, cut in tried]})  # fmt: skip
    return found


def compile_cuts(part: int, parts: int, many: list[int]) -> None:
    """Compiles every part-th cut, on small weights: compiled kernels are kept on disk and know no shapes."""
    todo = sorted({(cut, weight[2]) for weight in large_weights(list(SHAPES)) for n in many for cut in cuts(weight, n)})
    for cut, gated in todo[part::parts]:
        x = torch.randn(mm.Launch(*cut).width, 512, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
        (mm.gated if gated else mm.linear)(x, w, mm.Tile(64, cut.bk, 2 if cut.inside else 1, 4), cut)
    torch.cuda.synchronize()


def adopt(path: Path) -> None:
    """Writes the fastest tiles, and the fastest cuts of wide calls, where the kernels look for them."""
    record = json.loads(path.read_text(encoding="utf-8"))
    found = {weight_of(row): {key: row[key] for key in ("rows", "cols", "gated", "tile")} for row in record["tiles"]}
    for row in record["wide"]:
        r, more = mm.width_of(row["n"])
        if r + more >= row["n"]:  # not of a prompt, whose cut is a rule
            _us, _r, bn, bk, stages, warps, _lines, inside, _more = row["tried"][0]
            wide = found[weight_of(row)].setdefault("wide", [])
            wide.append([r + more, bn, bk, stages, warps, int(inside)])
    write_tuned([*found.values(), *(row for row in tuned_rows() if row.get("int8"))])


def tuned_rows() -> list[dict[str, Any]]:
    """What the kernels know now."""
    rows: list[dict[str, Any]] = json.loads(TUNED.read_text(encoding="utf-8"))
    return rows


def write_tuned(rows: list[dict[str, Any]]) -> None:
    """Rows of tuned.json, each in a line."""
    files.write_text(TUNED, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def weight_of(row: dict[str, Any]) -> Weight:
    """Which weight a row of a record is about."""
    return row["rows"], row["cols"], row["gated"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all timings")
    parser.add_argument("--adopt", type=Path, help="take over the tiles of an earlier --out")
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--wide", action="store_true", help="cuts for more rows than 16 instead of tiles")
    parser.add_argument("--rows", default=",".join(map(str, MANY)), help="rows of x that --wide tries")
    parser.add_argument("--compile", help="PART/PARTS: only compile these of the cuts, beside other processes")
    flags = parser.parse_args()
    many = [int(n) for n in flags.rows.split(",")]
    if flags.adopt:
        adopt(flags.adopt)
    if flags.compile:
        compile_cuts(*map(int, flags.compile.split("/")), many)
    if flags.out:
        sizes = flags.sizes.split(",")
        weights = large_weights(sizes) if flags.wide else all_weights(sizes)
        result = {
            "schema": "paceline-cuda-tiles/1", "labels": ["random weights"], "provenance": files.provenance(),
            "copy_bandwidth": copy_bandwidth(), "bits": [bits(weight) for weight in weights[:: len(weights) // 8 or 1]],
            "tiles": [tune(weight) for weight in weights] if not flags.wide else [],
            "wide": [row for weight in weights for row in wide(weight, many)] if flags.wide else [],
        }  # fmt: skip
        files.write_record(flags.out, result)


if __name__ == "__main__":
    with torch.no_grad():
        main()
