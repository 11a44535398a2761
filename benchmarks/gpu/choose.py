"""Tokens from logits, and the centroid head: checked against the CPU on real shapes, and timed. Needs a GPU."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import graph_time
from torch import Tensor

from paceline.kernels.gpu import centroids, choose
from paceline.kernels.gpu.rows import Columns, mode_of, rows_of
from paceline.kernels.reference import TorchMatrix, TorchOps
from paceline.sampling import Sampler
from paceline.types import SamplingParams

VOCAB = 262144
GREEDY, FREE = SamplingParams(), SamplingParams(temperature=1.0, seed=3)
GEMMA = SamplingParams(temperature=1.0, top_k=64, top_p=0.95, seed=2**64 - 1)
K256 = SamplingParams(temperature=1.5, top_k=256, top_p=0.9, seed=7)
NUCLEUS = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
FLAT = SamplingParams(temperature=4.0, top_p=0.95, seed=6)  # its nucleus has many thousand tokens
K5000 = SamplingParams(temperature=2.0, top_k=5000, top_p=0.9, seed=8)
ALL = [GREEDY, FREE, GEMMA, K256, NUCLEUS, FLAT, K5000]
SUPPRESS = (258882, 258883)


def logits(n: int, seed: int = 0) -> Tensor:
    """Softcapped, with a few tokens far above the rest, as a model's are."""
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(n, VOCAB, generator=generator, device="cuda") * 2.0
    spots = torch.randint(0, VOCAB, (n, 40), generator=generator, device="cuda")
    x.scatter_add_(1, spots, torch.rand(n, 40, generator=generator, device="cuda") * 18)
    return 30 * torch.tanh(x / 30)


def banned() -> Columns:
    return Columns(suppress=torch.tensor(SUPPRESS, dtype=torch.int32, device="cuda"))


def chosen(x: Tensor, params: Sequence[SamplingParams], mode: str = "") -> Tensor:
    at = torch.arange(len(x), device="cuda") * 3 + 2**33
    return choose.sample(x, rows_of(params, "cuda"), at, mode or mode_of(params), banned())


# ---- checks ---------------------------------------------------------------------------------------------------------


def same_as_cpu(params: Sequence[SamplingParams], q: int = 2) -> dict[str, Any]:
    x = logits(len(params) * q)
    got, ops = chosen(x, params).tolist(), TorchOps()
    rows = enumerate(x.cpu().split(1))
    expected = [Sampler(ops, params[r // q], SUPPRESS).choose(row, r * 3 + 2**33)[0] for r, row in rows]
    return {"wrong": [r for r, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b]}


def ties_as_cpu() -> dict[str, Any]:
    """Logits in steps of 1/8, as a bf16 head has them: hundreds of equal ones at every cut."""
    x = (logits(len(ALL)) * 8).round() / 8
    got, ops = chosen(x, ALL).tolist(), TorchOps()
    rows = enumerate(x.cpu().split(1))
    expected = [Sampler(ops, ALL[r], SUPPRESS).choose(row, r * 3 + 2**33)[0] for r, row in rows]
    return {"wrong": [r for r, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b]}


def invariant() -> dict[str, Any]:
    """Rows alone, in every mode that can serve them, against all rows together; and the same call many times."""
    params = ALL * 4
    x, wrong = logits(len(params)), []
    together = chosen(x, params)
    at = torch.arange(len(x), device="cuda") * 3 + 2**33
    for r, p in enumerate(params):
        modes = ["greedy", "top", "general"]
        for mode in modes[modes.index(mode_of([p])) :]:
            token = choose.sample(x[r : r + 1], rows_of([p], "cuda"), at[r : r + 1], mode, banned())
            wrong += [(r, mode)] * int(token != together[r])
    again = sum(int((chosen(x, params) != together).sum()) for _ in range(50))
    return {"wrong": wrong, "unsteady": again}


def in_a_graph() -> dict[str, Any]:
    """Replays with new logits and parameters in the same memory."""
    x, rows, at = logits(14), rows_of(ALL, "cuda"), torch.arange(14, device="cuda")
    choose.sample(x, rows, at, "general", banned())
    torch.cuda.synchronize()
    graph, columns = torch.cuda.CUDAGraph(), banned()
    with torch.cuda.graph(graph):
        out = choose.sample(x, rows, at, "general", columns)
    wrong = 0
    for seed in range(5):
        x.copy_(logits(14, seed))
        for old, new in zip(rows, rows_of(ALL[seed:] + ALL[:seed], "cuda"), strict=True):
            old.copy_(new)
        graph.replay()
        wrong += int((out != choose.sample(x, rows, at, "general", columns)).sum())
    return {"wrong": wrong}


def picks() -> dict[str, Any]:
    wrong = 0
    for tiles, n in ((2048, 1), (4096, 5), (8192, 80), (128, 64)):
        values = (torch.randn(tiles, n, device="cuda") * 8).round()
        ids = torch.randint(0, VOCAB, (tiles, n), device="cuda", dtype=torch.int32)
        first = values.cpu().argmax(0).to("cuda")  # the CPU's takes the first
        wrong += int((choose.pick_best(values, ids) != ids.gather(0, first[None])[0]).sum())
    x = logits(5)
    wrong += int((choose.greedy(x).cpu() != x.cpu().argmax(1)).sum())
    return {"wrong": wrong}


def head(n: int, seed: int = 0) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
    """The centroid head of E2B and E4B: 32 of 2048 clusters of 128 tokens, hidden 256."""
    torch.manual_seed(seed)
    scores, y = torch.randn(2, n, 2048, device="cuda"), torch.randn(n, 256, device="cuda", dtype=torch.bfloat16)
    table = torch.randn(VOCAB, 256, device="cuda", dtype=torch.bfloat16)
    return scores, 32, torch.randperm(VOCAB, device="cuda").reshape(2048, 128), y, table


def centroid_bits() -> dict[str, Any]:
    scores, active, clusters, y, table = head(64)
    out = centroids.centroid_choice(scores, active, clusters, y, table)
    best, _ = TorchOps("cuda").top(scores[0] + scores[1], active)
    matrix = TorchMatrix(1, 1, torch.float32)
    matrix.tensor = table.float()
    expected = TorchOps("cuda").gather_linear(y.float(), matrix, out.ids)
    alone = [
        centroids.centroid_choice(scores[:, r : r + 1].contiguous(), active, clusters, y[r : r + 1], table)
        for r in (0, 7, 63)
    ]
    bits = [torch.equal(a.logits[0], out.logits[r]) for a, r in zip(alone, (0, 7, 63), strict=True)]
    picked = choose.pick_best(out.tile_values, out.tile_ids)
    return {
        "ids": torch.equal(out.ids, clusters[best].flatten(1)),
        "error": float((out.logits - expected).norm() / expected.norm()),
        "bits": all(bits),
        "picked": torch.equal(picked, out.ids.gather(1, out.logits.cpu().argmax(1, True).cuda())[:, 0]),
    }


# ---- times ----------------------------------------------------------------------------------------------------------


def sample_time(n: int, params: SamplingParams, q: int = 5) -> dict[str, Any]:
    q = q if n % q == 0 else 1
    sets = [logits(n, seed) for seed in range(max(2, min(8, 40 // n)))]
    rows, at = rows_of([params] * (n // q), "cuda"), torch.arange(n, device="cuda")
    mode, columns = mode_of([params]), banned()
    return {"us": graph_time(lambda x: choose.sample(x, rows, at, mode, columns), [(x,) for x in sets])}


def pick_time(tiles: int, n: int) -> dict[str, Any]:
    values = torch.randn(tiles, n, device="cuda")
    ids = torch.zeros(tiles, n, device="cuda", dtype=torch.int32)
    return {"us": graph_time(choose.pick_best, [(values, ids)] * 8)}


def centroid_time(n: int, params: SamplingParams) -> dict[str, Any]:
    """Selection, gather, and the choice; scores change, so that other table rows are read each time."""
    scores, active, clusters, y, table = head(n)
    rows, at = rows_of([params] * n, "cuda"), torch.arange(n, device="cuda")

    def step(s: Tensor) -> Tensor:
        out = centroids.centroid_choice(s, active, clusters, y, table)
        if params.temperature == 0.0:
            return choose.pick_best(out.tile_values, out.tile_ids)
        return choose.sample(out.logits, rows, at, "top", Columns(out.ids))

    return {"us": graph_time(step, [(torch.randn_like(scores),) for _ in range(24)])}


def with_setting(module: Any, values: dict[str, int], call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`call` with other tile sizes and warps."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        return call()
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def cases() -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    checks: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("cpu: top", lambda: same_as_cpu([GREEDY, FREE, GEMMA, K256])),
        ("cpu: general", lambda: same_as_cpu(ALL)),
        ("cpu: ties", ties_as_cpu),
        ("rows and modes", invariant),
        ("graph", in_a_graph),
        ("pick_best, greedy", picks),
        ("centroids", centroid_bits),
    ]
    named = {"greedy": GREEDY, "free": FREE, "k64 p.95": GEMMA, "k256 p.9": K256, "p.95": NUCLEUS, "flat p.95": FLAT}
    times: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for (name, p), n in itertools.product(named.items(), (1, 5, 80)):
        times.append((f"{name} n={n}", lambda p=p, n=n: sample_time(n, p)))
    for t, n in ((128, 1), (2048, 1), (4096, 5), (4096, 80)):
        times.append((f"pick {t}x{n}", lambda t=t, n=n: pick_time(t, n)))
    times += [(f"centroids n={n}", lambda n=n: centroid_time(n, GREEDY)) for n in (1, 8, 64)]
    times += [("centroids, k64 p.95 n=1", lambda: centroid_time(1, GEMMA))]
    return checks + times + tuning()


def tuning() -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Other tiles and warps than the defaults."""
    found: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for n in (5, 80):
        for tile, warps in ((2048, 4), (4096, 8)):
            setting = {"TILE": tile, "TILE_WARPS": warps}
            for name, p in (("greedy", GREEDY), ("k64 p.95", GEMMA)):
                call = lambda s=setting, n=n, p=p: with_setting(choose, s, lambda: sample_time(n, p))  # noqa: E731
                found.append((f"  {name} n={n} TILE={tile} warps={warps}", call))
    for warps in (4, 16):
        call = lambda w=warps: with_setting(choose, {"ROW_WARPS": w}, lambda: sample_time(5, GEMMA))  # noqa: E731
        found.append((f"  k64 p.95 n=5 ROW_WARPS={warps}", call))
        call = lambda w=warps: with_setting(choose, {"ROW_WARPS": w}, lambda: sample_time(5, K256))  # noqa: E731
        found.append((f"  k256 p.9 n=5 ROW_WARPS={warps}", call))
    for rows, gather, search in ((16, 4, 8), (16, 2, 4), (64, 8, 8), (32, 4, 4), (32, 8, 16), (128, 8, 4)):
        setting = {"ROWS": rows, "GATHER_WARPS": gather, "SEARCH_WARPS": search}
        call = lambda s=setting: with_setting(centroids, s, lambda: centroid_time(1, GREEDY))  # noqa: E731
        found.append((f"  centroids n=1 {setting}", call))
    return found


def run(limit_s: float = 100.0) -> list[dict[str, Any]]:
    """Every case that fits into the time, each as a dict; failures keep their message."""
    begin, results = time.time(), list[dict[str, Any]]()
    for name, call in cases():
        if time.time() - begin > limit_s:
            print("out of time before", name, flush=True)
            break
        start = time.time()
        try:
            result = {"name": name, **call()}
        except Exception as error:  # one failure must not lose the rest
            result = {"name": name, "failed": f"{type(error).__name__}: {error}"[:400]}
        shown = json.dumps({k: v for k, v in result.items() if k != "name"})
        print(f"{name:44} {shown}  ({time.time() - start:.1f} s)", flush=True)
        results.append(result)
    return results


if __name__ == "__main__":
    run()
