"""The kernels between matmuls on a real GPU: right results, bits of rows, and microseconds, also behind a matmul.

`PYTHONPATH=src:tests python benchmarks/gpu/fused.py`; about 40 seconds, most of it compilation.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from gpu import error, randn
from timing import graph_time
from torch import Tensor

from paceline.kernels import Heads, Rope
from paceline.kernels.gpu import fused, matmul, ple
from paceline.kernels.gpu.launch import CacheView
from paceline.kernels.reference import TorchOps, rope_tables

BF16, EPS = torch.bfloat16, 1e-6
ROWS, BATCHES = (1, 5, 16), (1, 2, 5, 16, 48, 512)
SECONDS = 55


class Size(NamedTuple):
    """A model's width and its heads: (dim, queries, kv, k_eq_v) of a sliding and of a full layer."""

    width: int
    sliding: tuple[int, int, int, bool]
    full: tuple[int, int, int, bool]
    layers: int = 0


SIZES = {
    "e2b": Size(1536, (256, 8, 1, False), (512, 8, 1, False), 35),
    "e4b": Size(2560, (256, 8, 2, False), (512, 8, 2, False), 42),
    "26b": Size(2816, (256, 16, 8, False), (512, 16, 2, True)),
    "12b": Size(3840, (256, 16, 8, False), (512, 16, 1, True)),
    "31b": Size(5376, (256, 32, 16, False), (512, 32, 4, True)),
}
begin = time.time()
REFERENCE = TorchOps("cuda")


@lru_cache(maxsize=2)
def attention_inputs(heads: tuple[int, int, int, bool], n: int, count: int) -> tuple[Any, ...]:
    """Arguments of `rope_write` for n rows of one sequence at positions from 700 on, in a paged cache."""
    dim, queries, kv, k_eq_v = heads
    rope = Rope(*(t.cuda() for t in rope_tables(1e4, 128 if dim == 256 else 64, dim, 2048)))
    keys, values = (torch.zeros(4096, kv, dim, dtype=BF16, device="cuda") for _ in range(2))
    table = torch.randperm(16, device="cuda").int()[None].contiguous()
    view = CacheView(keys, values, table, 256, False, 4096)
    qkv = randn(count, n, (queries + kv * (1 if k_eq_v else 2)) * dim)
    positions = torch.arange(700, 700 + n, device="cuda")
    return qkv, Heads(queries, k_eq_v, randn(dim, seed=1), randn(dim, seed=2), EPS), rope, positions, view, BF16


def rope_rows(heads: tuple[int, int, int, bool], n: int) -> list[Tensor]:
    """Queries, keys and values of n rows, in that order."""
    inputs = attention_inputs(heads, 512, 4)
    qkv, positions, view = inputs[0][:, :n].contiguous(), inputs[3][:n].contiguous(), inputs[4]
    q = fused.rope_write(qkv, inputs[1], inputs[2], positions, view, BF16)
    slots = view.table[0, positions // 256].long() * 256 + positions % 256
    return [q, view.keys[slots], view.values[slots]]


def rope_reference(heads: tuple[int, int, int, bool]) -> list[Tensor]:
    qkv, names, rope, positions, view, _ = attention_inputs(heads, 512, 4)
    view = view._replace(keys=view.keys.float(), values=view.values.float(), table=view.table[0].long())
    q = REFERENCE.rope_write(qkv.sum(0), names, rope, positions, view)
    slots = view.table[positions // 256] * 256 + positions % 256
    return [q, view.keys[slots], view.values[slots]]


@lru_cache(maxsize=1)
def row_inputs(width: int) -> tuple[Tensor, ...]:
    h, parts, experts = randn(512, width), randn(4, 512, width, seed=1), randn(512, 8, width, seed=2)
    return h, parts, experts, randn(width, seed=3), randn(width, seed=4), randn(1, seed=5)


def row_results(width: int, n: int) -> dict[str, Tensor]:
    """Every row kernel's results for the first n of 512 rows."""
    h, parts, experts, post, pre, scale = row_inputs(width)
    h, parts, experts = h[:n].contiguous(), parts[:, :n].contiguous(), experts[:n].contiguous()
    new, x = fused.add_norm(h, parts, post, pre, scale, EPS, BF16)
    x1, x2 = fused.norms2(h, pre, post, EPS, BF16)
    weights = h[:, :8].abs().contiguous()
    mixed = ple.mix_ple(parts, h, post[:128].contiguous(), 0.3, EPS)
    return {
        "h": new, "x": x, "norm1": x1, "norm2": x2, "plain": fused.add_norm(h, parts, post, None, scale, EPS, BF16)[1],
        "norm": fused.rms_norm(h, None, EPS, BF16), "enter": fused.enter(parts, pre, EPS, BF16)[1],
        "experts": fused.combine_experts(parts, post, experts, weights, pre, EPS)[0],
        "total": fused.total(parts, BF16), "geglu": ple.geglu(parts, BF16), "softcap": ple.softcap(parts, 30.0),
        "mix_ple": mixed, "gate_ple": ple.gate_ple(parts[:, :, :128].contiguous(), mixed, 3, BF16),
        "concat": ple.concat(h, parts, BF16),
    }  # fmt: skip


def row_references(width: int) -> dict[str, Tensor]:
    h, parts, experts, post, pre, scale = row_inputs(width)
    y, norm, weights = parts.sum(0), REFERENCE.rms_norm, h[:, :8].abs()
    new, x = REFERENCE.add_norm(h, y, post, pre, scale, EPS)
    gate, up = y.chunk(2, -1)
    gelu = torch.nn.functional.gelu
    mixed = REFERENCE.mix_ple(y, h, post[:128], 0.3, EPS)
    return {
        "h": new, "x": x, "norm1": norm(h, pre, EPS), "norm2": norm(h, post, EPS), "plain": new,
        "norm": norm(h, None, EPS), "enter": norm(y, pre, EPS),
        "experts": norm(y, post, EPS) + norm((weights[:, :, None] * experts).sum(1), pre, EPS),
        "total": y, "geglu": gelu(gate, approximate="tanh") * up, "softcap": 30 * torch.tanh(y / 30),
        "mix_ple": mixed, "gate_ple": gelu(y[:, :128], approximate="tanh") * mixed[:, 3],
        "concat": torch.cat([h, y], -1),
    }  # fmt: skip


def check(name: str) -> Iterator[dict[str, Any]]:
    """Errors against PyTorch over 512 rows, and how many of BATCHES give other bits than 512 rows together."""
    size = SIZES[name]
    together, expected = row_results(size.width, 512), row_references(size.width)
    worst = {key: error(together[key], expected[key]) for key in expected}
    few = {n: row_results(size.width, n) for n in BATCHES}
    bad = [(key, n) for n, out in few.items() for key in out if not torch.equal(out[key], together[key][:n])]
    at = max(worst, key=worst.__getitem__)
    yield {"check": f"{name} rows", "error": worst[at], "worst": at, "bad": bad}
    for heads in (size.sliding, size.full):
        all_rows = rope_rows(heads, 512)
        errors = [error(a, b) for a, b in zip(all_rows, rope_reference(heads), strict=True)]
        bad = [n for n in BATCHES for a, b in zip(rope_rows(heads, n), all_rows, strict=True) if (a != b[:n]).any()]
        yield {"check": f"{name} heads of {heads[0]}", "error": max(errors), "bad": bad}


def variants() -> dict[str, tuple[dict[str, Any], list[tuple[str, str]]]]:
    """Ways to build the kernels: replaced functions of `parts`, and edits of the source."""

    def warps(per: int, most: int, cap: bool = True) -> dict[str, Any]:
        def row_warps(block: int) -> dict[str, int]:
            count = min(most, max(1, block // per))
            return {"num_warps": count, **({"maxnreg": min(128, 65536 // (32 * count))} if cap else {})}

        return {"row_warps": row_warps}

    late = [(r"    let_next_start\(PDL\)\n", ""), (r"    wait\(PDL\)\n", "    wait(PDL)\n    let_next_start(PDL)\n")]
    return {
        "as is": ({}, []),
        "next starts late": ({}, late),
        "no prefetch": ({}, [(r"    if PDL and head == 0:\n +prefetch_angles.*\n", ""), (r"    prefetch\(h .*\n", "")]),
        "few registers": (warps(256, 32, cap=False), []),
        "16 numbers a thread": (warps(512, 16), []),
        "4 numbers a thread": (warps(128, 32), []),
        "16 warps at most": (warps(256, 16), []),
        "two warps a head": ({}, [(r'HEAD = \{"num_warps": 1', 'HEAD = {"num_warps": 2')]),
    }


def build(index: int, replaced: dict[str, Any], edits: list[tuple[str, str]]) -> ModuleType:
    """`fused` and what it imports under another name, edited."""
    source, name = Path(fused.__file__).parent, f"variant{index}"
    folder = Path(tempfile.mkdtemp()) / name
    folder.mkdir()
    for file in ("fused.py", "parts.py", "launch.py", "__init__.py"):
        text = (source / file).read_text()
        for old, new in edits if file != "launch.py" else []:
            text = re.sub(old, new, text)
        (folder / file).write_text(text.replace("paceline.kernels.gpu.", f"{name}."))
    sys.path.insert(0, str(folder.parent))
    vars(importlib.import_module(f"{name}.parts")).update(replaced)
    return importlib.import_module(f"{name}.fused")


def behind_matmul(module: ModuleType, name: str, n: int, kind: str) -> float:
    """Microseconds that add_norm or rope_write adds to a matmul; of what it reads, only parts are still in L2."""
    size = SIZES[name]
    qkv, heads, rope, positions, view, dtype = attention_inputs(size.sliding, n, 1)
    rows, cols = (size.width, 4 * size.width) if kind == "norm" else (qkv.shape[2], size.width)
    x, norm, one = randn(n, cols, dtype=BF16), randn(size.width), torch.ones(1, device="cuda")

    def fresh(_: int) -> tuple[Any, ...]:
        weight = torch.randn(rows, cols, device="cuda", dtype=BF16) * 0.02
        if kind == "norm":
            return weight, randn(n, size.width), norm.clone(), norm.clone(), one.clone()
        own = heads._replace(q_norm=heads.q_norm.clone(), k_norm=heads.k_norm.clone())
        return weight, own, Rope(rope.cos.clone(), rope.sin.clone()), positions.clone()

    def followed(weight: Tensor, *rest: Any) -> None:
        parts = matmul.linear(x, weight)
        if kind == "norm":
            h, post, pre, scale = rest
            module.add_norm(h, parts, post, pre, scale, EPS, BF16)
        else:
            module.rope_write(parts, *rest, view, dtype)

    sets = [fresh(i) for i in range(max(4, (300 << 20) // (rows * cols * 2)))]
    alone = graph_time(lambda weight, *_: matmul.linear(x, weight), sets)
    return graph_time(followed, sets) - alone


def compare() -> Iterator[dict[str, Any]]:
    """The variants, as (n = 1, n = 5)."""
    for index, (what, (replaced, edits)) in enumerate(variants().items()):
        module = build(index, replaced, edits)
        row: dict[str, Any] = {"behind a matmul, us": what}
        for name, kind in (("e2b", "norm"), ("e2b", "heads"), ("e4b", "norm"), ("31b", "norm"), ("31b", "heads")):
            cases = [(module, name, n, kind) for n in (1, 5)]
            row[f"{name} {kind}"] = attempt(lambda c=cases: [round(behind_matmul(*case), 2) for case in c])
        yield row


def chained(name: str, n: int, count: int) -> float:
    """Microseconds of add_norm in a chain of its own: launch, latency and memory, all inputs in L2 or near it."""
    width = SIZES[name].width
    norm, scale, h = randn(width), torch.ones(1, device="cuda"), randn(n, width)
    sets = [(randn(count, n, width, seed=i),) for i in range(40 if n < 100 else 4)]
    return graph_time(lambda parts: fused.add_norm(h, parts, norm, norm, scale, EPS, BF16), sets)


def simple(name: str, n: int) -> dict[str, float]:
    """Microseconds of every other wrapper for n rows, one part."""
    size = SIZES[name]
    width, norm = size.width, randn(size.width)
    h, parts = randn(n, width), randn(1, n, width)
    table = torch.randn(262144, width, device="cuda", dtype=BF16)
    ids = [torch.randint(0, 262144, (n,), device="cuda") for _ in range(20)]
    heads = attention_inputs(size.full, n, 1)
    fresh = tuple(torch.zeros(n, size.full[2], size.full[0], device="cuda", dtype=BF16) for _ in range(2))
    lengths = torch.full((1,), 700, device="cuda", dtype=torch.int32)
    calls: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]] = {
        "embed": (lambda i: ple.embed(table, i, 39.25), [(i,) for i in ids]),
        "rms_norm": (lambda: fused.rms_norm(h, norm, EPS, BF16), [()] * 20),
        "enter": (lambda: fused.enter(parts, norm, EPS, BF16), [()] * 20),
        "concat": (lambda: ple.concat(h, parts, BF16), [()] * 20),
        "full heads": (lambda: fused.rope_write(*heads), [()] * 20),
        "store_fresh": (lambda: fused.store_fresh(heads[4]._replace(fresh=fresh), heads[3]), [()] * 20),
        "row_ranges": (lambda: fused.row_ranges(lengths, n, 512), [()] * 20),
        "geglu": (lambda: ple.geglu(parts, BF16), [()] * 20),
    }
    if name == "26b":
        sparse, weights = randn(n, 8, width), randn(n, 8).abs()
        calls["experts"] = (lambda: fused.combine_experts(parts, norm, sparse, weights, norm, EPS), [()] * 20)
        calls["norms2"] = (lambda: fused.norms2(h, norm, norm, EPS, BF16), [()] * 20)
    if size.layers:
        many, narrow = randn(1, n, size.layers * 256), norm[:256].contiguous()
        mixed = ple.mix_ple(many, many[0], narrow, 0.3, EPS)
        calls["mix_ple"] = (lambda: ple.mix_ple(many, many[0], narrow, 0.3, EPS), [()] * 20)
        gate = parts[:, :, :256].contiguous()
        calls["gate_ple"] = (lambda: ple.gate_ple(gate, mixed, 3, BF16), [()] * 20)
    return {what: attempt(lambda c=call: round(graph_time(*c), 2)) for what, call in calls.items()}


def attempt(call: Callable[[], Any]) -> Any:
    """The result, or what went wrong in few words."""
    if time.time() - begin > SECONDS:
        return "out of time"
    try:
        return call()
    except Exception as failure:
        return f"{type(failure).__name__}: {str(failure)[:120]}"


def run() -> list[dict[str, Any]]:
    """Checks, then times; prints each result as it comes."""
    rows: list[dict[str, Any]] = []

    def add(made: Any) -> None:
        for row in made if isinstance(made, list) else [{"failed": made}]:
            print({k: f"{v:.1e}" if k == "error" else v for k, v in row.items()}, flush=True)
            rows.append(row)

    for name in SIZES:
        add(attempt(lambda s=name: list(check(s))))
    print(f"checked after {time.time() - begin:.0f} s", flush=True)
    for name in SIZES:
        cases = [(name, n, count) for n in (*ROWS, 512) for count in (1, 4, 8)]
        chain = {f"n={c[1]} S={c[2]}": attempt(lambda a=c: round(chained(*a), 2)) for c in cases}
        add([{"add_norm, us": name, **chain}])
    for row in compare():
        add([row])
    for name, n in (("e2b", 1), ("e2b", 5), ("26b", 5), ("31b", 5), ("31b", 512)):
        made = attempt(lambda a=(name, n): simple(*a))
        add([{"us": f"{name} n={n}", **(made if isinstance(made, dict) else {"failed": made})}])
    print(f"finished after {time.time() - begin:.0f} s", flush=True)
    return rows


if __name__ == "__main__":
    with torch.no_grad():
        run()
