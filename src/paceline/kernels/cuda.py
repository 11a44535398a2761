"""The CUDA backend: Triton kernels over tensors on a GPU, bit-equal rows for any row count.

A pass holds rows of many sequences. A matmul returns parts [S, n, N], which the operation after it adds in order; what
feeds a matmul is kept in the weights' dtype, the residual stream in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from paceline.kernels import Branch, Heads, Mixture, Rope
from paceline.kernels.gpu import attention, fused, matmul, moe, moe_plan, parts, ple, prefill
from paceline.kernels.gpu.int8 import Quantised, Weight, quantize
from paceline.kernels.reference import TorchMatrix, TorchOps


class CudaMatrix(TorchMatrix):
    """A weight that can be kept in int8: `tensor` [rows, cols], and then `scales` fp32 [rows]."""

    scales: Tensor | None = None

    def quantize(self) -> None:
        """Keeps it in int8 from now on; what it held is given up."""
        if self.scales is None:
            self.tensor, self.scales = quantize(self.tensor)

    def write(self, row: int, tensor: Tensor) -> None:
        assert self.scales is None, "a quantised weight is not written to"
        super().write(row, tensor)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes + (0 if self.scales is None else self.scales.nbytes)


def weight_of(matrix: TorchMatrix) -> Weight:
    """The matrix as matmuls take it."""
    scales = matrix.scales if isinstance(matrix, CudaMatrix) else None
    return matrix.tensor if scales is None else Quantised(matrix.tensor, scales)


class CudaStack:
    """A layer's experts in one tensor [count, rows, cols]."""

    def __init__(self, count: int, rows: int, cols: int, dtype: torch.dtype, device: str) -> None:
        self.tensor = torch.empty(count, rows, cols, dtype=dtype, device=device)

    def write(self, index: int, tensor: Tensor) -> None:
        """Copies `tensor` [n, rows, cols] into weights index .. index + n - 1."""
        self.tensor[index : index + len(tensor)] = tensor

    def read(self) -> Tensor:
        """All of them, [count, rows, cols]."""
        return self.tensor

    @property
    def nbytes(self) -> int:
        """Bytes these weights hold."""
        return self.tensor.nbytes


class CudaOps(TorchOps):
    """See `paceline.kernels.Ops` for shapes; results of `linear` are parts, [S, n, rows].

    device "cpu" serves tests under Triton's interpreter. Weights, matmul inputs and the cache are kept in `dtype`.
    Operations that only an engine driven by the host uses are PyTorch's.
    """

    name = "cuda"

    def __init__(self, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(device)
        self.dtype, self.prompt = dtype, False

    @contextmanager
    def reading_prompt(self) -> Iterator[None]:
        """What is launched inside reads a part of a prompt."""
        self.prompt = True
        try:
            yield
        finally:
            self.prompt = False

    def matrix(self, rows: int, cols: int, dtype: torch.dtype, table: bool = False) -> CudaMatrix:
        return CudaMatrix(rows, cols, self.dtype, self.device)

    def stack(self, count: int, rows: int, cols: int, dtype: torch.dtype) -> Any:
        return CudaStack(count, rows, cols, self.dtype, self.device)

    def embed(self, weight: TorchMatrix, ids: Tensor, scale: float) -> Tensor:
        return ple.embed(weight.tensor, ids, scale)

    def linear(self, x: Tensor, weight: TorchMatrix) -> Tensor:
        return matmul.linear(x.to(self.dtype), weight_of(weight), whole=self._whole(x))

    def gated(self, x: Tensor, gate_up: TorchMatrix) -> Tensor:
        return matmul.gated(x, weight_of(gate_up), whole=self._whole(x))

    def _whole(self, x: Tensor) -> bool:
        return self.prompt and len(x) > matmul.WIDTHS[-1]

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        return ple.concat(a, parts.total(b, self.dtype) if b.dim() == 3 else b, self.dtype)

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return fused.rms_norm(x, weight, eps, self.dtype)

    def norms(self, h: Tensor, first: Tensor, second: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return fused.norms2(h, first, second, eps, self.dtype)

    def add_norm(
        self, h: Tensor, y: Tensor, post: Tensor, pre: Tensor | None, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return fused.add_norm(h, y, post, pre, scale, eps, self.dtype)

    def enter(self, y: Tensor, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return fused.enter(y, norm, eps, self.dtype)

    def rope_write(self, qkv: Tensor, heads: Heads, rope: Rope, positions: Tensor, view: Any) -> Tensor:
        return fused.rope_write(qkv, heads, rope, positions, view, self.dtype)

    def attention(self, q: Tensor, view: Any, first: Tensor, last: Tensor) -> Tensor:
        if view.fresh is None or len(view.fresh[0]) != len(q):
            return attention.attention(q, view._replace(fresh=None), first, last)
        out = prefill.prefill_attention(q, view, last, first, last)
        fused.store_fresh(view, last)  # only now: a ring's old keys were still read
        return out

    def mix_ple(self, context: Tensor, token: Tensor, weight: Tensor, scale: float, eps: float) -> Tensor:
        return ple.mix_ple(context, token, weight, scale, eps)

    def gate_ple(self, gate: Tensor, ple_: Tensor, layer: int) -> Tensor:
        return ple.gate_ple(gate, ple_, layer, self.dtype)

    def route(self, scores: Tensor, active: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
        return moe_plan.route(scores, active, expert_scale)

    def experts(self, x: Tensor, ids: Tensor, gate_up: Any, down: Any) -> Tensor:
        return moe.experts(x, moe_plan.plan(ids, len(gate_up.tensor)), ids, gate_up.tensor, down.tensor)

    def mixture(self, h: Tensor, x: Tensor, m: Mixture) -> Tensor:
        if m.dense_down.cols % m.down.tensor.shape[2]:
            composed: Tensor = super().mixture(h, x, m)
            return composed
        # The dense MLP runs as so many more experts that every row visits: two launches for both branches.
        seen, sparse_x = self.norms(h, m.router_norm, m.input_norm, m.eps)
        ids, weights, plan = moe_plan.route_and_plan(self.linear(seen, m.router), m.active, m.expert_scale)
        sparse, dense = moe.experts_and_dense(
            sparse_x, x, plan, ids, m.gate_up.tensor, m.down.tensor, m.dense_gate_up.tensor, m.dense_down.tensor
        )
        return self.mix_experts(Branch(dense, m.dense_norm), Branch(sparse, m.output_norm), weights, m.eps)

    def mix_experts(self, dense: Branch, sparse: Branch, weights: Tensor, eps: float) -> Tensor:
        return fused.combine_experts(dense.y, dense.norm, sparse.y, weights, sparse.norm, eps)

    def logits(self, x: Tensor, head: TorchMatrix, cap: float | None) -> Tensor:
        return matmul.head_logits(x, matmul.head_weight(weight_of(head), cap or 0.0))

    def store(self, slots: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        keys, values = (torch.zeros(slots, kv_heads, head_dim, device=self.device, dtype=self.dtype) for _ in range(2))
        return keys, values
