"""Every kernel of a decoding round and of a prompt compiles for the devices that are served, at published shapes.

No GPU is needed. What is checked is what would fail at a launch: shared memory beyond the device's, and registers that
spill, which would not fail but be slow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 300
SHARED_KB = {80: 163, 90: 227}
"""By compute capability. On sm_80 nothing takes more than 99 KB, which consumer cards have; on sm_90 the gated matmul
of 128 rows takes 128, decoding attention of head size 512 takes 113, and prompts' attention takes 160 and 224."""
SPILLED_BYTES = {80: 144, 90: 40}
"""Of each thread, with Triton 3.6 (3.8: 16 on sm_90). Attention is set for sm_90, and older devices pay for it."""


def test_kernels_compile_and_fit() -> None:
    """In processes of their own: kernels decide when they are defined whether they are interpreted."""
    pytest.importorskip("triton")
    running = {capability: start(capability) for capability in SHARED_KB}
    for capability, process in running.items():
        out, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors[-4000:]
        check(json.loads(out.splitlines()[-1]), capability)


def start(capability: int) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(Path(__file__).parent), *sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, __file__, str(capability)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check(report: dict[str, tuple[int, int | None]], capability: int) -> None:
    """report: bytes of shared memory and bytes a thread spills of each kernel."""
    assert len({name.split(" ")[0] for name in report}) >= 25  # each perhaps in several variants
    too_large = {name: shared for name, (shared, _) in report.items() if shared > SHARED_KB[capability] * 1024}
    assert not too_large
    spilling = {name: spilled for name, (_, spilled) in report.items() if (spilled or 0) > SPILLED_BYTES[capability]}
    assert not spilling


# ---- the process that compiles --------------------------------------------------------------------------------------


def compile_everything(capability: int) -> dict[str, tuple[int, int | None]]:
    """{kernel and its variant: (bytes of shared memory, bytes a thread spills, or None where no tool tells)}."""
    from compile_only import compile_only

    with compile_only(capability) as done:
        for call in calls():
            call()
    found: dict[str, tuple[int, int | None]] = {}
    seen = {kernel.hash: kernel for kernel in done}
    for kernel in seen.values():
        name = f"{kernel.metadata.name} {kernel.hash[:8]}"
        found[name] = (kernel.metadata.shared, spilled_bytes(kernel.asm["cubin"]))
    return found


def spilled_bytes(cubin: bytes) -> int | None:
    """Bytes of stack of each thread, as Triton's own cuobjdump reads them."""
    from triton import knobs

    try:
        tool = knobs.nvidia.cuobjdump.path
    except RuntimeError:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
    return int(text.split("STACK:")[1].split()[0]) if "STACK:" in text else None


def calls() -> list[Callable[[], Any]]:
    """What rounds of E2B and 26B-A4B launch, and a chunk of a prompt: the real widths, few rows, little memory."""
    import torch

    from paceline.kernels import Branch, Heads, Rope
    from paceline.kernels.gpu import (
        accept,
        centroids,
        choose,
        fused,
        matmul,
        moe,
        moe_plan,
        ple,
        prefill,
        report,
        rules,
    )
    from paceline.kernels.gpu.attention import attention
    from paceline.kernels.gpu.int8 import Quantised
    from paceline.kernels.gpu.launch import CacheView
    from paceline.kernels.gpu.rows import Columns, rows_of
    from paceline.types import SamplingParams

    bf16, i32, i64 = torch.bfloat16, torch.int32, torch.int64
    eps = 1e-6

    def t(*shape: int, dtype: torch.dtype = bf16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def f(*shape: int) -> torch.Tensor:
        return t(*shape, dtype=torch.float32)

    def linears() -> None:
        for n in (4, 40, 80, 100, 160, 512):
            for rows, cols in ((2048, 1536), (16384, 5376), (5376, 21504)):
                matmul.linear(t(n, cols), t(rows, cols))
            matmul.gated(t(n, 5376), t(2 * 21504, 5376))
        matmul.linear(t(2048, 5376), t(16384, 5376), whole=True)
        matmul.gated(t(2048, 5376), t(2 * 21504, 5376), whole=True)
        matmul.gated(t(4, 1536), t(2 * 6144, 1536))
        head = matmul.HeadWeight(t(262144, 1536), 30.0)
        for n in (4, 40, 80, 160):
            matmul.head_best(t(n, 1536), head, t(2, dtype=i32))
        matmul.head_logits(t(4, 1536), head)
        matmul.head_best(t(4, 1536), matmul.HeadWeight(t(262144, 1536, dtype=torch.int8), 0.0, f(262144)))
        small = Quantised(t(2 * 8192, 1024, dtype=torch.int8), f(2 * 8192))
        for n in (1, 16, 40):
            matmul.linear(t(n, 1024), small)
            matmul.gated(t(n, 1024), small)
        matmul.linear(t(1, 1024), small, matmul.Tile(16, 256, 2, 3))
        matmul.gated(t(1, 1024), small, matmul.Tile(16, 256, 1, 3))

    def norms() -> None:
        for width, parts in ((1536, 8), (2816, 1)):
            h, w = f(4, width), f(width)
            fused.rms_norm(h, w, eps, bf16)
            fused.add_norm(h, f(parts, 4, width), w, w, f(1), eps, bf16)
            fused.add_norm(h, f(parts, 4, width), w, None, f(1), eps, bf16)
            fused.enter(f(parts, 4, width), w, eps, bf16)
        fused.norms2(f(4, 2816), f(2816), f(2816), eps, bf16)

    def layers() -> None:
        for heads, kv, dim, window, k_eq_v in (
            (8, 1, 256, 512, False),
            (16, 8, 256, 1024, False),
            (16, 2, 512, None, True),
        ):
            layer(heads, kv, (dim, dim // 2 if window else dim // 8), window, k_eq_v)

    def layer(heads: int, kv: int, dims: tuple[int, int], window: int | None, k_eq_v: bool) -> None:
        """One kind of attention, decoding two sequences of two rows and reading a chunk of 64."""
        (dim, rotated), slots = dims, 1088 if window else 64
        split, rope = Heads(heads, k_eq_v, f(dim), f(dim), eps), Rope(f(256, rotated), f(256, rotated))
        width = (heads + kv * (1 if k_eq_v else 2)) * dim
        for n, sequences in ((4, 2), (64, 1)):
            fresh = (t(n, kv, dim), t(n, kv, dim)) if sequences == 1 else None
            table = t(sequences, 1 if window else 5, dtype=i32)
            view = CacheView(t(2 * slots, kv, dim), t(2 * slots, kv, dim), table, slots, bool(window), 256, fresh)
            at = t(n, dtype=i64)
            q = fused.rope_write(f(1, n, width), split, rope, at, view, bf16)
            if fresh is None:
                attention(q, view, at, at)
            else:
                prefill.prefill_attention(q, view, at, at, at)
                fused.store_fresh(view, at)
        fused.rope_write(f(1, 2, heads * dim), split, rope, t(2, dtype=i64), None, bf16)

    def prompts_in_fp32() -> None:
        for dim in (256, 512):
            kept, own, at = f(64, 1, dim), f(64, 1, dim), t(64, dtype=i64)
            view = CacheView(kept, kept, t(1, 5, dtype=i32), 64, False, 256, (own, own))
            prefill.prefill_attention(f(64, 8, dim), view, at, at, at)

    def per_layer() -> None:
        ple.embed(t(1000, 1536), t(4, dtype=i64), 2.0)
        mixed = ple.mix_ple(f(1, 4, 35 * 256), f(4, 35 * 256), f(256), 0.1, eps)
        ple.gate_ple(f(1, 4, 256), mixed, 3, bf16)
        ple.concat(f(4, 1536), f(4, 1536), bf16)

    def mixture() -> None:
        for n in (8, 64, 2048):
            x = t(n, 2816)
            ids, weights, plan = moe_plan.route_and_plan(f(1, n, 128), 8, f(128))
            gate_up, down = t(128, 1408, 2816), t(128, 2816, 704)
            sparse, dense = moe.experts_and_dense(x, x, plan, ids, gate_up, down, t(4224, 2816), t(2816, 2112))
            a, b = Branch(dense, f(2816)), Branch(sparse, f(2816))
            fused.combine_experts(a.y, a.norm, b.y, weights, b.norm, eps)

    def choices() -> None:
        params, at = rows_of([SamplingParams(temperature=1.0)] * 2, "cpu"), t(4, dtype=i64)
        for mode in ("top", "general"):
            choose.sample(f(4, 262144), params, at, mode, Columns(suppress=t(1, dtype=i32)))
        report.report(f(4, 262144), t(4, dtype=i64), t(2, 16, dtype=torch.float64))
        choose.pick_best(f(4096, 4), t(4096, 4, dtype=i32))
        found = centroids.centroid_choice(f(1, 2, 2048), 32, t(2048, 128, dtype=i64), t(2, 256), t(262144, 256))
        choose.pick_best(found.tile_values, found.tile_ids)
        choose.sample(found.logits, params, t(2, dtype=i64), "top", Columns(found.ids))

    def ruled() -> None:
        history, outcome = t(2, 262144, dtype=i32), t(2, accept.COLUMNS, dtype=i64)
        ruling = rules.Ruling(rules.neutral_rules(2, "cpu"), history, t(2, dtype=i32), t(2, dtype=i32), t(3, dtype=i64))
        rules.reshape(f(8, 262144), None, ruling, t(3, 2, dtype=i64))
        rules.reshape(f(2, 4096), t(2, 4096, dtype=i64), ruling, None)
        rules.remember(history, outcome)

    def rounds() -> None:
        fields = (t(2, dtype=i32), t(2, dtype=i64), t(2, 1536), t(2, dtype=i32), t(2, dtype=i32), t(2, dtype=i32))
        sequences = accept.Sequences(*fields)
        out, ends = t(2, accept.COLUMNS, dtype=i64), t(3, dtype=i64)
        for drafts in (None, t(3, 2, dtype=i64)):
            n = 2 if drafts is None else 8
            accept.verify_rows(sequences, drafts, 512)
            accept.accept(sequences, drafts, t(n, dtype=i64), t(n, 1536), accept.Ending(ends), out)
        accept.accept(sequences, t(3, 2, dtype=i64), t(8, dtype=i64), t(8, 1536), accept.Ending(ends, f(15)), out)
        accept.draft_rows(sequences, 0, 512, 3)
        fused.chunk_ranges(t(1, dtype=i32), 64, t(1, dtype=i32), 512)

    return [linears, norms, layers, prompts_in_fp32, per_layer, mixture, choices, ruled, rounds]


if __name__ == "__main__":
    print(json.dumps(compile_everything(int(sys.argv[1]))))
