"""The mixture-of-experts kernels on a GPU, on Gemma 4 26B-A4B's shapes: right, row-invariant, and how fast.

PYTHONPATH=src:tests:benchmarks/gpu python benchmarks/gpu/moe.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import graph_time
from torch import Tensor

from paceline.kernels.gpu import matmul, moe
from paceline.kernels.gpu.moe import Plan, Tile, Tiles

EXPERTS, ACTIVE, SIZE, HIDDEN, SLICES = 128, 8, 704, 2816, 3
ROUTER_PARTS = 4
SECONDS = 50  # after which no new case begins
EXPERT_BYTES = 3 * SIZE * HIDDEN * 2
Row = dict[str, Any]

FEW = {
    "gated": [Tile(64, 128, s, lines=4) for s in (3, 4, 5)]
    + [Tile(64, 64, 6, lines=4), Tile(64, 256, 3, lines=4), Tile(128, 128, 3, lines=4), Tile(64, 128, 4, lines=0)],
    "down": [Tile(64, 64, s, lines=4) for s in (3, 4, 6)]
    + [Tile(64, 64, 4, lines=lines) for lines in (0, 2, 8)]
    + [Tile(128, 64, 4, lines=4), Tile(64, 128, 3, lines=4)],
}
MANY = [Tile(128, 64, 4, 8), Tile(128, 64, 3, 4), Tile(256, 64, 3, 8)]


class Layer(NamedTuple):
    gate_up: Tensor
    down: Tensor
    dense_gate_up: Tensor
    dense_down: Tensor
    scale: Tensor

    @classmethod
    def make(cls) -> Layer:
        shapes = (
            (EXPERTS, 2 * SIZE, HIDDEN), (EXPERTS, HIDDEN, SIZE), (2 * SLICES * SIZE, HIDDEN), (HIDDEN, SLICES * SIZE),
        )  # fmt: skip
        weights = [torch.empty(s, device="cuda", dtype=torch.bfloat16).normal_(0, s[-1] ** -0.5) for s in shapes]
        return cls(*weights, torch.rand(EXPERTS, device="cuda") + 0.5)


class Inputs(NamedTuple):
    x: Tensor
    x_dense: Tensor
    scores: Tensor
    ids: Tensor
    plan: Plan


def inputs_of(n: int, seed: int, tile: int | None = None) -> Inputs:
    generator = torch.Generator("cuda").manual_seed(seed)
    x, x_dense = (torch.randn(n, HIDDEN, device="cuda", generator=generator).bfloat16() for _ in range(2))
    scores = torch.randn(ROUTER_PARTS, n, EXPERTS, device="cuda", generator=generator)
    ids, _ = moe.route(scores, ACTIVE, torch.ones(EXPERTS, device="cuda"))
    return Inputs(x, x_dense, scores, ids, moe.plan(ids, EXPERTS, tile))


def run_sparse(layer: Layer, i: Inputs, tiles: Tiles | None = None) -> Tensor:
    return moe.experts(i.x, i.plan, i.ids, layer.gate_up, layer.down, tiles)


def run_both(layer: Layer, i: Inputs, tiles: Tiles | None = None) -> tuple[Tensor, Tensor]:
    return moe.experts_and_dense(i.x, i.x_dense, i.plan, i.ids, *layer[:4], tiles)


def run_layer(layer: Layer, i: Inputs) -> tuple[Tensor, ...]:
    ids, weights, plan = moe.route_and_plan(i.scores, ACTIVE, layer.scale)
    return weights, *moe.experts_and_dense(i.x, i.x_dense, plan, ids, *layer[:4])


def run_apart(layer: Layer, i: Inputs) -> tuple[Tensor, ...]:
    """As `run_layer`, with the dense MLP in launches of its own."""
    ids, weights, plan = moe.route_and_plan(i.scores, ACTIVE, layer.scale)
    dense = matmul.linear(matmul.gated(i.x_dense, layer.dense_gate_up), layer.dense_down)
    return weights, moe.experts(i.x, plan, ids, layer.gate_up, layer.down), dense


def mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x.float(), gate_up.float()).chunk(2, dim=-1)
    return F.linear(F.gelu(gate, approximate="tanh") * up, down.float())


def relative(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


def check_values(layer: Layer, n: int) -> Row:
    """Some rows against PyTorch in fp32."""
    i = inputs_of(n, n)
    sparse, parts = run_both(layer, i)
    worst = relative(parts.sum(0), mlp(i.x_dense, *layer[2:4]))
    for r in {0, n // 2, n - 1}:
        for rank, e in enumerate(i.ids[r].tolist()):
            expected = mlp(i.x[r : r + 1], layer.gate_up[e], layer.down[e])[0]
            worst = max(worst, relative(sparse[r, rank], expected))
    return {"case": f"values n={n}", "ok": worst < 1e-2, "note": f"error {worst:.1e}"}


def check_routes(layer: Layer, n: int) -> Row:
    """The plan against Python's, and routing in one launch against routing in two."""
    i = inputs_of(n, n)
    ids, weights, plan = moe.route_and_plan(i.scores, ACTIVE, layer.scale)
    alone = moe.route(i.scores, ACTIVE, layer.scale)
    total = i.scores[0] + i.scores[1] + i.scores[2] + i.scores[3]
    flat = ids.flatten().tolist()
    used = int(plan.tiles)
    experts, counts, pairs = (t[:used].tolist() for t in plan[1:])
    found = {(e, p) for e, c, row in zip(experts, counts, pairs, strict=True) for p in row[:c]}
    good = {
        "order": torch.equal(ids.long(), total.topk(ACTIVE).indices),
        "same": torch.equal(ids, alone[0]) and torch.equal(weights, alone[1]),
        "pairs": found == {(e, p) for p, e in enumerate(flat)} and sum(counts) == len(flat),
        "sorted": n == 1 or experts == sorted(experts),
    }
    return {"case": f"routes n={n}", "ok": all(good.values()), "note": " ".join(k for k, v in good.items() if not v)}


def check_company(layer: Layer, n: int) -> Row:
    """Rows alone and in small company against the same rows among n."""
    i = inputs_of(n, n)
    sparse, parts = run_both(layer, i)
    wrong = []
    for rows in ([0], [n - 1], [n // 2], [1, 0, n - 1], list(range(min(n, 17)))):
        ids = i.ids[rows].contiguous()
        some = Inputs(i.x[rows], i.x_dense[rows], i.scores, ids, moe.plan(ids, EXPERTS))
        again = run_both(layer, some)
        if not (torch.equal(again[0], sparse[rows]) and torch.equal(again[1], parts[:, rows])):
            wrong.append(f"{len(rows)} of {n}")
    return {"case": f"company n={n}", "ok": not wrong, "note": " ".join(wrong)}


def check_widths(layer: Layer, n: int, tile: int, tiles: Tiles | None) -> Row:
    """A tile width and a cut of the weights against the default of few rows."""
    narrow, wide = inputs_of(n, 1, 16), inputs_of(n, 1, tile)
    pairs = list(zip(run_both(layer, narrow), run_both(layer, wide, tiles), strict=True))
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    same = all(torch.equal(a, b) for a, b in pairs)
    return {"case": f"width R={tile} {show(tiles)}", "ok": same, "note": f"greatest difference {worst:.1e}"}


def check_overlap(layer: Layer, n: int) -> Row:
    """Many layers in one graph, whose plans reuse each other's memory, against one launch at a time."""
    sets = [inputs_of(n, seed) for seed in range(24)]
    expected = []
    for i in sets:
        ids, weights, plan = moe.route_and_plan(i.scores, ACTIVE, layer.scale)
        torch.cuda.synchronize()
        expected.append((weights, *moe.experts_and_dense(i.x, i.x_dense, plan, ids, *layer[:4])))
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [run_layer(layer, i) for i in sets]
    wrong = 0
    for _ in range(20):
        for outputs in found:
            for out in outputs:
                out.fill_(float("nan"))
        graph.replay()
        pairs = zip(expected, found, strict=True)
        wrong += sum(not all(torch.equal(a, b) for a, b in zip(e, f, strict=True)) for e, f in pairs)
    return {"case": f"overlap n={n}", "ok": wrong == 0, "note": f"{wrong} of {20 * len(sets)} wrong"}


def show(tiles: Tiles | None) -> str:
    if tiles is None:
        return "default"
    return " ".join(f"{name}{tuple(tile)}" for name, tile in zip(tiles._fields, tiles, strict=True))


def measure(name: str, call: Callable[[Inputs], Any], sets: list[Inputs], dense: bool = False) -> Row:
    """Microseconds of one call, and the rate at which it reads each distinct expert's weights once."""
    us = graph_time(call, [(i,) for i in sets])
    read = sum(len(i.ids.unique()) + SLICES * dense for i in sets) / len(sets) * EXPERT_BYTES
    work = 2 * sets[0].ids.numel() * 3 * SIZE * HIDDEN
    return {"case": name, "us": round(us, 2), "TB/s": round(read / us * 1e-6, 2), "TFLOPS": round(work / us * 1e-6, 1)}


def sets_of(n: int, tile: int | None = None) -> list[Inputs]:
    return [inputs_of(n, seed, tile) for seed in range(12 if n <= 16 else 3)]


def time_routes(layer: Layer, n: int) -> Row:
    def both(i: Inputs) -> Any:
        return moe.route_and_plan(i.scores, ACTIVE, layer.scale)

    def alone(i: Inputs) -> Any:
        return moe.route(i.scores, ACTIVE, layer.scale)

    def plan(i: Inputs) -> Any:
        return moe.plan(i.ids, EXPERTS)

    sets = [(i,) for i in sets_of(n) * 4]
    note = " ".join(f"{call.__name__} {graph_time(call, sets):.2f}" for call in (both, alone, plan))
    return {"case": f"routing n={n}, us in a row", "note": note}


def time_layer(layer: Layer, n: int, call: Callable[[Layer, Inputs], Any]) -> Row:
    return measure(f"{call.__name__} n={n}", lambda i: call(layer, i), sets_of(n), dense=call is not run_sparse)


def time_tiles(layer: Layer, n: int, tiles: Tiles, tile: int | None = None) -> Row:
    sets = sets_of(n, tile)
    name = f"n={n} R={sets[0].plan.pairs.shape[1]} {show(tiles)}"
    return measure(name, lambda i: run_sparse(layer, i, tiles), sets)


def cases(layer: Layer) -> Iterator[Callable[[], Row]]:
    """Checks first, then what decides defaults, most important first."""
    wide = Tile(256, 64, 3, 8)
    checks: list[tuple[Any, ...]] = [(check_routes, n) for n in (1, 3, 5, 9, 16, 17, 80, 2048)]
    checks += [(check_values, n) for n in (1, 5, 300)] + [(check_company, n) for n in (5, 16, 80, 300, 2048)]
    checks += [(check_widths, 100, r, None) for r in (32, 64, 128)] + [(check_widths, 100, 64, Tiles(wide, wide))]
    checks += [(check_overlap, n) for n in (1, 5)]
    times: list[tuple[Any, ...]] = [(time_routes, n) for n in (1, 5, 16, 80, 320, 2048)]
    times += [(time_layer, n, call) for n in (1, 5, 16) for call in (run_sparse, run_both, run_layer, run_apart)]
    for n in (1, 5):
        times += [(time_tiles, n, moe.FEW._replace(gated=tile)) for tile in FEW["gated"]]
        times += [(time_tiles, n, moe.FEW._replace(down=tile)) for tile in FEW["down"]]
    times += [(time_tiles, n, Tiles(tile, tile), r) for n, r in ((2048, 128), (256, 32)) for tile in MANY]
    times += [(time_tiles, n, moe.MANY, r) for n, r in ((80, 16), (80, 32), (256, 16), (256, 64), (1024, 64))]
    for case in checks + times:
        yield lambda case=case: case[0](layer, *case[1:])


def attempt(case: Callable[[], Row]) -> Row:
    try:
        return case()
    except Exception as problem:
        return {"case": "failed", "ok": False, "note": repr(problem)[:300]}


def run() -> list[Row]:
    """All cases that fit the time, printed as they come."""
    start, layer, rows = time.monotonic(), Layer.make(), []
    for case in cases(layer):
        if time.monotonic() - start > SECONDS:
            print("out of time")
            break
        rows.append(attempt(case))
        print(" | ".join(f"{key} {value}" for key, value in rows[-1].items() if value != ""), flush=True)
    print(f"{time.monotonic() - start:.0f} s, {sum(row.get('ok') is False for row in rows)} failed")
    return rows


if __name__ == "__main__":
    run()
