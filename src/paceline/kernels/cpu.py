"""The CPU backend: Numba kernels over NumPy arrays, bit-equal rows for any row count.

Weights stay in the dtype of the checkpoint (bf16 or fp32); sums and activations are fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.kernels import Block, Branch, Cuts, Heads, LayerView, Reach, Rope, Rules, choose, jit, pick
from paceline.kernels import rules as reshaping
from paceline.kernels.composed import ComposedOps
from paceline.kernels.reference import TorchStack, wanted
from paceline.kernels.simd import PANEL, matmul

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_EMPTY, _THEIR_OWN = np.empty(0, np.float32), np.empty((1, 0), np.int64)
# Below this many key elements to read, waking a second thread costs more than it brings.
PARALLEL_KEYS = 16_000_000
# `top` keeps a short sorted list; beyond this many entries a full sort is faster.
SORT_ABOVE = 256


def _bits(tensor: Tensor) -> np.ndarray:
    """A view NumPy understands: bf16 as its 16 bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def matrix_shape(rows: int, cols: int, table: bool) -> tuple[int, ...]:
    """How a weight lies in memory: panels [panels, cols, 64], or plain rows where it is only ever gathered from."""
    return (rows, cols) if table else (-(-rows // PANEL), cols, PANEL)


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """What numbers a weight is kept in: those of the checkpoint, if they are bf16 or fp32."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def store_shapes(slots: int, kv_heads: int, head_dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How the fp32 keys and values of so many slots lie in memory."""
    panels, blocks = -(-slots // PANEL), -(-head_dim // PANEL)
    return (panels, kv_heads, head_dim, PANEL), (panels, kv_heads, blocks, PANEL, PANEL)


class CpuMatrix:
    """A weight as `matrix_shape` has it."""

    def __init__(self, rows: int, cols: int, dtype: torch.dtype, table: bool) -> None:
        self.rows, self.cols, self.table = rows, cols, table
        shape, kept = matrix_shape(rows, cols, table), kept_dtype(dtype)
        self._tensor = torch.empty(shape, dtype=kept) if rows % PANEL == 0 or table else torch.zeros(shape, dtype=kept)
        self.data = _bits(self._tensor)

    def write(self, row: int, tensor: Tensor) -> None:
        """Copies `tensor` [n, cols] into rows row .. row + n - 1."""
        if self.table:
            self._tensor[row : row + len(tensor)] = tensor
            return
        done = 0
        while done < len(tensor):
            panel, at = divmod(row + done, PANEL)
            count = min(PANEL - at, len(tensor) - done)
            # One panel at a time: PyTorch transposes matrices in blocks, but a batch of them column by column.
            self._tensor[panel, :, at : at + count] = tensor[done : done + count].t()
            done += count

    @property
    def nbytes(self) -> int:
        """Bytes this weight holds."""
        return self._tensor.nbytes


class CpuOps(ComposedOps):
    """See `paceline.kernels.Ops` for shapes."""

    name = "cpu"

    def matrix(self, rows: int, cols: int, dtype: torch.dtype, table: bool = False) -> CpuMatrix:
        return CpuMatrix(rows, cols, dtype, table)

    def stack(self, count: int, rows: int, cols: int, dtype: torch.dtype) -> TorchStack:
        return TorchStack([self.matrix(rows, cols, dtype) for _ in range(count)])

    def array(self, tensor: Tensor) -> np.ndarray:
        return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)

    def host(self, array: np.ndarray) -> np.ndarray:
        return array

    def indices(self, values: Sequence[int]) -> Ints:
        return np.array(values, np.int64)

    def reach(self, positions: range, window: int) -> tuple[Ints, Ints]:
        at = np.arange(positions.start, positions.stop)
        return at, np.maximum(at - (window - 1), 0)

    def embed(self, weight: CpuMatrix, ids: Ints, scale: float) -> Floats:
        out = np.empty((len(ids), weight.cols), np.float32)
        narrow = weight.data.dtype == np.uint16
        if weight.table:
            (pick.embed_rows_bf16 if narrow else pick.embed_rows)(weight.data, ids, scale, out)
        else:
            (pick.embed_panels_bf16 if narrow else pick.embed_panels)(weight.data, ids, scale, out)
        return out

    def linear(self, x: Floats, weight: CpuMatrix) -> Floats:
        y = np.zeros((len(x), weight.rows), np.float32)
        matmul(x, weight.data, y)
        return y

    def gated(self, x: Floats, gate_up: CpuMatrix) -> Floats:
        y = self.linear(x, gate_up)
        out = np.empty((len(x), gate_up.rows // 2), np.float32)
        jit.geglu(y, out)
        return out

    def concat(self, a: Floats, b: Floats) -> Floats:
        return np.concatenate((a, b), axis=1)

    def rms_norm(self, x: Floats, weight: Floats | None, eps: float) -> Floats:
        out = np.empty_like(x)
        jit.rms_norm(x, np.ones(x.shape[1], np.float32) if weight is None else weight, eps, out)
        return out

    def add_norm(
        self, h: Floats, y: Floats, post: Floats, pre: Floats | None, scale: Floats, eps: float
    ) -> tuple[Floats, Floats]:
        out = np.empty_like(h)
        normed = out if pre is None else np.empty_like(h)
        jit.add_norm(h, y, post, _EMPTY if pre is None else pre, scale, eps, out, normed)
        return out, normed

    def enter(self, y: Floats, norm: Floats, eps: float) -> tuple[Floats, Floats]:
        return y, self.rms_norm(y, norm, eps)

    def norms(self, h: Floats, first: Floats, second: Floats, eps: float) -> tuple[Floats, Floats]:
        return self.rms_norm(h, first, eps), self.rms_norm(h, second, eps)

    def rope_write(self, qkv: Floats, heads: Heads, rope: Rope, positions: Ints, view: LayerView | None) -> Floats:
        q = np.empty((len(qkv), heads.queries, len(heads.q_norm)), np.float32)
        jit.rope_queries(qkv, heads.q_norm, rope.cos, rope.sin, positions, heads.eps, q)
        if view is not None:
            start = heads.queries * len(heads.q_norm)
            jit.write_kv(qkv, start, heads.k_norm, rope.cos, rope.sin, positions, heads.eps, *view)
        return q

    def attention(self, q: Floats, view: LayerView, first: Ints, last: Ints) -> Floats:
        out = np.empty((len(q), q.shape[1] * q.shape[2]), np.float32)
        work = len(q) * int(last[-1] - first[-1]) * out.shape[1]
        (jit.attention if work < PARALLEL_KEYS else jit.attention_parallel)(q, *view, first, last, out)
        return out

    def query_block(
        self, h: Floats, x: Floats, block: Block, reach: Reach, view: LayerView, norm: Floats
    ) -> tuple[Floats, Floats]:
        b, out_h, out_x = block, np.empty_like(h), np.empty_like(h)
        jit.query_block(
            h, x, (b.qkv.data, b.output.data, b.gate_up.data, b.down.data),
            (b.heads.q_norm, b.post_attention_norm, b.pre_mlp_norm, b.post_mlp_norm, norm), b.scalar,
            (reach.positions, reach.first, reach.last), tuple(reach.rope), tuple(view),
            (b.heads.queries, b.down.cols), b.heads.eps, out_h, out_x,
        )  # fmt: skip
        return out_h, out_x

    def mix_ple(self, context: Floats, token: Floats, weight: Floats, scale: float, eps: float) -> Floats:
        out = np.empty((len(context), context.shape[1] // len(weight), len(weight)), np.float32)
        jit.mix_ple(context, token, weight, scale, eps, out)
        return out

    def gate_ple(self, gate: Floats, ple: Floats, layer: int) -> Floats:
        out = np.empty(gate.shape, np.float32)
        jit.gate_ple(gate, ple, layer, out)
        return out

    def route(self, scores: Floats, active: int, expert_scale: Floats) -> tuple[Ints, Floats]:
        ids = np.empty((len(scores), active), np.int64)
        weights = np.empty((len(scores), active), np.float32)
        pick.route(scores, expert_scale, ids, weights)
        return ids, weights

    def experts(self, x: Floats, ids: Ints, gate_up: TorchStack, down: TorchStack) -> Floats:
        parts = np.empty((*ids.shape, x.shape[1]), np.float32)
        for expert in np.unique(ids):
            rows, ranks = np.nonzero(ids == expert)
            parts[rows, ranks] = self.linear(self.gated(x[rows], gate_up[expert]), down[expert])
        return parts

    def mix_experts(self, dense: Branch, sparse: Branch, weights: Floats, eps: float) -> Floats:
        total = np.empty_like(dense.y)
        pick.combine(sparse.y, weights, total)
        mixed: Floats = self.rms_norm(dense.y, dense.norm, eps) + self.rms_norm(total, sparse.norm, eps)
        return mixed

    def logits(self, x: Floats, head: CpuMatrix, cap: float | None) -> Floats:
        y = self.linear(x, head)
        if cap is None:
            return y
        out = np.empty_like(y)
        jit.softcap(y, cap, out)
        return out

    def gather_linear(self, x: Floats, weight: CpuMatrix, ids: Ints) -> Floats:
        out = np.empty(ids.shape, np.float32)
        narrow = weight.data.dtype == np.uint16
        (pick.gather_linear_bf16 if narrow else pick.gather_linear)(x, weight.data, ids, out)
        return out

    def gather_rows(self, table: Ints, ids: Ints) -> Ints:
        return table[ids].reshape(len(ids), -1)

    def mask_columns(self, x: Floats, columns: tuple[int, ...]) -> Floats:
        x = x.copy()
        x[:, list(columns)] = -np.inf
        return x

    def top(self, x: Floats, count: int) -> tuple[Ints, Floats]:
        count = min(count, x.shape[1])
        if count > SORT_ABOVE:
            order = np.argsort(-x, axis=1, kind="stable")[:, :count]
            return order, np.take_along_axis(x, order, axis=1)
        ids, values = np.empty((len(x), count), np.int64), np.empty((len(x), count), np.float32)
        pick.top(x, ids, values)
        return ids, values

    def confidence(self, logits: Floats) -> float:
        return float(pick.confidence(logits[0]))

    def rows(self, x: Floats, start: int, stop: int) -> Floats:
        return x[start:stop]

    def gumbel(self, seed: int, position: int, ids: Ints) -> npt.NDArray[np.float64]:
        out = np.empty(len(ids), np.float64)
        choose.philox_gumbel(np.uint64(seed), np.uint64(position), ids, out)
        return out

    def draw(
        self, x: Floats, ids: Ints | None, cuts: Cuts, key: tuple[int, int], draft: Sequence[int] = ()
    ) -> list[int]:
        out, words = np.empty(len(x), np.int64), (np.uint64(key[0]), np.uint64(key[1]))
        count = choose.draw(*self._short(x, ids, cuts), cuts[:3], words, np.array(draft, np.int64), out)
        chosen: list[int] = out[:count].tolist()
        return chosen

    def laws(self, x: Floats, ids: Ints | None, cuts: Cuts) -> tuple[Ints, npt.NDArray[np.float64]]:
        x, own, count = self._short(x, ids, cuts)
        names = np.empty((len(x), count or x.shape[1]), np.int64)
        chances = np.empty(names.shape)
        choose.laws(x, own, count, cuts[:3], names, chances)
        return names, chances

    def _short(self, x: Floats, ids: Ints | None, cuts: Cuts) -> tuple[Floats, Ints, int]:
        """Logits, the tokens they stand for (none for their own), and how many are left to rank; 0 where none are."""
        count = wanted(cuts, x.shape[1])
        if count > SORT_ABOVE:
            order, x = self.top(x, count)
            return x, order if ids is None else ids[0][order], 0
        return x, _THEIR_OWN if ids is None else ids, count

    def reshape(self, x: Floats, ids: Ints | None, rules: Rules, draft: Sequence[int]) -> Floats:
        rows, history = x.copy(), (rules.seen, rules.times, rules.missing)
        told = (rules.bias, rules.ends, history, rules.penalties, np.array(draft, np.int64))
        if ids is None:
            reshaping.reshape(rows, *told)
        else:
            reshaping.reshape_part(rows[0], ids[0], rules.vocab, *told)
        return rows

    def permit(self, x: Floats, ids: Ints | None, bits: np.ndarray) -> Floats | None:
        out = np.empty_like(x)
        if ids is None:
            reshaping.permit(x, bits, out)
        elif not reshaping.permit_part(x, ids, bits, out):
            return None
        return out

    def prepare(self) -> None:
        keys, values = self.store(PANEL, 1, PANEL)
        q, zero, out = np.zeros((1, 1, PANEL), np.float32), np.zeros(1, np.int64), np.empty((1, PANEL), np.float32)
        jit.attention_parallel(q, keys, values, zero, PANEL, False, zero, zero, out)
        self._prepare_choices()

    def _prepare_choices(self) -> None:
        """Rules, masks, and drafts that are tested: not every text asks for them."""
        x, some, ids = np.zeros((1, 32), np.float32), np.zeros(1, np.int64), np.zeros((1, 1), np.int64)
        rules = Rules(32, (some, x[0, :1]), some, some, some, 0, (1.5, 0.5, 0.5))
        for own in (None, ids):
            part = x if own is None else x[:, :1]
            self.permit(self.reshape(part, own, rules, [1]), own, np.ones((1, 1), np.uint32))
        law, word = self.laws(x, None, Cuts(1.0, 0.5, 0.5, 8)), np.uint64(0)
        both = tuple(np.concatenate((part, part)) for part in law)
        choose.draw_law(law[1][0], law[0][0], (word, word), word)
        choose.settle(True, law[0][0, :1], (word, word), (word, word), law, both)

    def store(self, slots: int, kv_heads: int, head_dim: int) -> tuple[Floats, Floats]:
        keys, values = store_shapes(slots, kv_heads, head_dim)
        return np.zeros(keys, np.float32), np.zeros(values, np.float32)
