"""Every operation in plain PyTorch: the specification the fast backends are tested against.

Differentiable throughout, so training runs on it too. It makes no promise about row counts: the library beneath
picks other arithmetic for other shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.kernels import Branch, Cuts, Heads, LayerView, Rope, Rules
from paceline.kernels.composed import ComposedOps


class TorchMatrix:
    """A weight as PyTorch has it: `tensor` [rows, cols]."""

    def __init__(self, rows: int, cols: int, dtype: torch.dtype, device: str = "cpu") -> None:
        self.rows, self.cols = rows, cols
        self.tensor = torch.empty(rows, cols, dtype=dtype, device=device)

    def write(self, row: int, tensor: Tensor) -> None:
        """Copies `tensor` [n, cols] into rows row .. row + n - 1."""
        self.tensor.data[row : row + len(tensor)] = tensor

    @property
    def nbytes(self) -> int:
        """Bytes this weight holds."""
        return self.tensor.nbytes


class TorchStack:
    """A layer's experts, one matrix each."""

    def __init__(self, weights: list[Any]) -> None:
        self.weights = weights

    def __getitem__(self, index: int) -> Any:
        return self.weights[index]

    def write(self, index: int, tensor: Tensor) -> None:
        """Copies `tensor` [n, rows, cols] into weights index .. index + n - 1."""
        for weight, part in zip(self.weights[index:], tensor, strict=False):
            weight.write(0, part)

    def read(self) -> Tensor:
        """All of them, [count, rows, cols]."""
        return torch.stack([weight.tensor.detach() for weight in self.weights])

    @property
    def nbytes(self) -> int:
        """Bytes these weights hold."""
        return sum(int(weight.nbytes) for weight in self.weights)


class TorchOps(ComposedOps):
    """See `paceline.kernels.Ops` for shapes."""

    name = "reference"

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def matrix(self, rows: int, cols: int, dtype: torch.dtype, table: bool = False) -> TorchMatrix:
        return TorchMatrix(rows, cols, dtype, self.device)

    def stack(self, count: int, rows: int, cols: int, dtype: torch.dtype) -> Any:
        return TorchStack([self.matrix(rows, cols, dtype) for _ in range(count)])

    def array(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        return tensor.float() if tensor.is_floating_point() else tensor

    def tensor(self, array: Tensor) -> Tensor:
        return array.detach().cpu()

    def host(self, array: Tensor) -> np.ndarray:
        return array.detach().cpu().numpy()

    def indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def reach(self, positions: range, window: int) -> tuple[Tensor, Tensor]:
        at = torch.arange(positions.start, positions.stop, device=self.device)
        return at, (at - window + 1).clamp(min=0)

    def embed(self, weight: TorchMatrix, ids: Tensor, scale: float) -> Tensor:
        return F.embedding(ids, weight.tensor).float() * scale

    def linear(self, x: Tensor, weight: TorchMatrix) -> Tensor:
        return F.linear(x, weight.tensor.to(x.dtype))

    def gated(self, x: Tensor, gate_up: TorchMatrix) -> Tensor:
        gate, up = self.linear(x, gate_up).chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * up

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=-1)

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return y if weight is None else y * weight

    def add_norm(self, h: Tensor, y: Tensor, post: Tensor, pre: Tensor | None, scale: Tensor, eps: float) -> Any:
        h = (h + self.rms_norm(y, post, eps)) * scale
        return h, h if pre is None else self.rms_norm(h, pre, eps)

    def enter(self, y: Tensor, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return y, self.rms_norm(y, norm, eps)

    def norms(self, h: Tensor, first: Tensor, second: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self.rms_norm(h, first, eps), self.rms_norm(h, second, eps)

    def rope_write(self, qkv: Tensor, heads: Heads, rope: Rope, positions: Tensor, view: LayerView | None) -> Tensor:
        q, k, v = split_heads(qkv, heads)
        if view is not None:
            self.write_kv(k, v, heads, rope, positions, view)
        return turn(self.rms_norm(q, heads.q_norm, heads.eps), rope, positions)

    def write_kv(self, k: Tensor, v: Tensor, heads: Heads, rope: Rope, positions: Tensor, view: LayerView) -> None:
        """Normalised, turned keys and unit-normed values, into their slots."""
        slots = slots_of(view, positions)
        view.keys[slots] = turn(self.rms_norm(k, heads.k_norm, heads.eps), rope, positions)
        view.values[slots] = self.rms_norm(v, None, heads.eps)

    def attention(self, q: Tensor, view: LayerView, first: Tensor, last: Tensor) -> Tensor:
        group = q.shape[1] // view.keys.shape[1]
        out = torch.empty_like(q)
        for r in range(len(q)):
            slots = slots_of(view, torch.arange(int(first[r]), int(last[r]) + 1, device=q.device))
            keys = view.keys[slots].repeat_interleave(group, dim=1)  # [m, heads, dim]
            values = view.values[slots].repeat_interleave(group, dim=1)
            weights = torch.einsum("hd,mhd->hm", q[r], keys).softmax(-1)
            out[r] = torch.einsum("hm,mhd->hd", weights, values)
        return out.flatten(1)

    def mix_ple(self, context: Tensor, token: Tensor, weight: Tensor, scale: float, eps: float) -> Tensor:
        shape = (len(context), -1, len(weight))
        return (self.rms_norm(context.reshape(shape) * scale, weight, eps) + token.reshape(shape)) * 2**-0.5

    def gate_ple(self, gate: Tensor, ple: Tensor, layer: int) -> Tensor:
        return F.gelu(gate, approximate="tanh") * ple[:, layer]

    def route(self, scores: Tensor, active: int, expert_scale: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = scores.float().softmax(-1).topk(active, dim=-1)
        return ids, weights / weights.sum(-1, keepdim=True) * expert_scale[ids]

    def experts(self, x: Tensor, ids: Tensor, gate_up: Any, down: Any) -> Tensor:
        rows = [
            [self.linear(self.gated(x[r : r + 1], gate_up[e]), down[e])[0] for e in ids[r].tolist()]
            for r in range(len(x))
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def mix_experts(self, dense: Branch, sparse: Branch, weights: Tensor, eps: float) -> Tensor:
        total = (sparse.y * weights[:, :, None]).sum(1)
        return self.rms_norm(dense.y, dense.norm, eps) + self.rms_norm(total, sparse.norm, eps)

    def logits(self, x: Tensor, head: TorchMatrix, cap: float | None) -> Tensor:
        logits = self.linear(x, head)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def gather_linear(self, x: Tensor, weight: TorchMatrix, ids: Tensor) -> Tensor:
        return torch.einsum("nd,nmd->nm", x, weight.tensor[ids].to(x.dtype))

    def gather_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        return table[ids].reshape(len(ids), -1)

    def mask_columns(self, x: Tensor, columns: tuple[int, ...]) -> Tensor:
        x = x.clone()
        x[:, list(columns)] = -math.inf
        return x

    def top(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, indices = x.sort(dim=-1, descending=True, stable=True)
        return indices[:, :count], values[:, :count]

    def confidence(self, logits: Tensor) -> float:
        return float(logits[0].float().softmax(-1).max())

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        return x[start:stop]

    def gumbel(self, seed: int, position: int, ids: Tensor) -> Tensor:
        noise = philox_gumbel(seed, position, np.asarray(ids.cpu(), dtype=np.uint64))
        return torch.from_numpy(noise).to(self.device)

    def draw(
        self, x: Tensor, ids: Tensor | None, cuts: Cuts, key: tuple[int, int], draft: Sequence[int] = ()
    ) -> list[int]:
        values, names = self._short(x, ids, cuts)
        chosen = [
            draw(row, own, cuts, key[0], key[1] + r) if cuts.temperature else int(own[0])
            for r, (row, own) in enumerate(zip(values, names, strict=True))
        ]
        wrong = [r for r, token in enumerate(draft) if token != chosen[r]]
        return chosen[: wrong[0] + 1] if wrong else chosen

    def laws(self, x: Tensor, ids: Tensor | None, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
        values, names = self._short(x, ids, cuts)
        chances = np.zeros(values.shape)
        for row, law in zip(values, chances, strict=True):
            kept, scores = cut(row, np.arange(len(row)), cuts)
            weights = np.exp(scores - scores.max())
            law[kept] = weights / weights.sum()
        return names, chances

    def _short(self, x: Tensor, ids: Tensor | None, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
        """The logits [n, m] that top-k leaves, likeliest first where anything is cut but by min-p, and their tokens."""
        count, columns = wanted(cuts, x.shape[1]), torch.arange(x.shape[1], device=x.device).expand(x.shape)
        if count:
            columns, x = self.top(x, count)
        return self.host(x), self.host(columns if ids is None else ids[0][columns])

    def reshape(self, x: Tensor, ids: Tensor | None, rules: Rules, draft: Sequence[int]) -> Tensor:
        rows = self.host(x)
        if ids is None:
            return self.array(torch.from_numpy(reshape(rows, rules, draft)))
        columns, whole = self.host(ids)[0], np.full((1, rules.vocab), -np.inf, np.float32)
        whole[:, columns] = rows
        return self.array(torch.from_numpy(reshape(whole, rules, draft)[:, columns]))

    def permit(self, x: Tensor, ids: Tensor | None, bits: np.ndarray) -> Tensor | None:
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").astype(np.bool_)
        columns = np.arange(x.shape[1]) if ids is None else self.host(ids)[0]
        left = x.masked_fill(self.array(torch.from_numpy(~allowed[:, columns])), -math.inf)
        return left if ids is None or left.max() > -math.inf else None

    def prepare(self) -> None:
        """Nothing is compiled here."""

    def store(self, slots: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        keys, values = (torch.zeros(slots, kv_heads, head_dim, device=self.device) for _ in range(2))
        return keys, values


def slots_of(view: LayerView, positions: Tensor) -> Tensor:
    """The slots of absolute positions [m], by the rule in `LayerView`."""
    pages = view.table[(positions // view.page) % len(view.table)].long()
    slots: Tensor = pages * view.page + positions % view.page
    return slots


def split_heads(qkv: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """[n, all * dim] as (q, k, v), [n, heads, dim] each; v is the raw k where the projection has no v of its own."""
    split = qkv.reshape(len(qkv), -1, len(heads.q_norm))
    q, kv = split[:, : heads.queries], split[:, heads.queries :]
    if heads.k_eq_v:
        return q, kv, kv
    k, v = kv.chunk(2, dim=1)
    return q, k, v


def turn(x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
    """Rotates pairs (j, j + dim/2) of x [n, heads, dim] by each row's position, for the first `rotated` j."""
    half, rotated = x.shape[-1] // 2, rope.cos.shape[1]
    cos, sin = rope.cos[positions][:, None], rope.sin[positions][:, None]
    a, b = x[..., :rotated], x[..., half : half + rotated]
    return torch.cat([a * cos - b * sin, x[..., rotated:half], b * cos + a * sin, x[..., half + rotated :]], dim=-1)


def wanted(cuts: Cuts, width: int) -> int:
    """How many of a row's greatest logits are looked at, likeliest first; 0 where all are, in any order."""
    if not cuts.temperature:
        return 1
    return min(cuts.top_k or width, width) if cuts.top_k or cuts.top_p < 1.0 else 0


def cut(values: np.ndarray, ids: np.ndarray, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
    """The ids that top-p and min-p leave, in order, and their logits over temperature, float64; where top_p is below
    1 the logits must be descending.

    Min-p: Nguyen et al. 2024, arXiv 2407.01082.
    """
    scores = np.asarray(values, np.float64) / cuts.temperature
    if cuts.top_p < 1.0:
        count = nucleus(scores, cuts.top_p)
        ids, scores = ids[:count], scores[:count]
    if cuts.min_p:
        likely = scores >= scores.max() + math.log(cuts.min_p)
        ids, scores = ids[likely], scores[likely]
    return ids, scores


def nucleus(scores: np.ndarray, top_p: float) -> int:
    """How many of the descending log-scores top-p keeps: the fewest that hold at least `top_p` of the mass."""
    mass = np.exp(scores - scores[0])
    held = np.cumsum(mass)
    return int(np.searchsorted(held, top_p * held[-1], side="left")) + 1


def draw(values: np.ndarray, ids: np.ndarray, cuts: Cuts, seed: int, position: int) -> int:
    """`Ops.draw` of one row [m], after top-k."""
    names, scores = cut(values, ids, cuts)
    return int(names[int(np.argmax(scores + philox_gumbel(seed, position, names.astype(np.uint64))))])


def reshape(rows: np.ndarray, rules: Rules, draft: Sequence[int]) -> np.ndarray:
    """`Ops.reshape` of rows [n, vocab]."""
    rows, counted = rows.copy(), dict(zip(rules.seen.tolist(), rules.times.tolist(), strict=True))
    ids, values = rules.bias
    rows[:, ids] += values
    for r, row in enumerate(rows):
        before = list(draft[: max(len(draft) - len(rows) + 1 + r, 0)])
        times = counted | {token: counted.get(token, 0) + before.count(token) for token in before}
        touched = np.array(list(times), np.int64)
        row[touched] = penalised(row[touched], np.array(list(times.values())), rules.penalties)
        if len(before) < rules.missing:
            row[rules.ends] = -np.inf
    return rows


def penalised(logits: np.ndarray, times: np.ndarray, penalties: tuple[float, float, float]) -> np.ndarray:
    """Logits float32 [m] of tokens seen before, written so many times int64 [m], under all penalties.

    Repetition divides positive logits by the penalty and multiplies the others: Keskar et al. 2019 (arXiv 1909.05858),
    with the sign handled as in Transformers. Presence is taken off every written token, frequency for each time.
    """
    repetition, presence, frequency = penalties
    if repetition != 1.0:
        factor = np.float32(repetition)
        logits = np.where(logits < 0, logits * factor, logits / factor)
    taken = presence * (times > 0) + frequency * times
    return np.asarray(logits - taken.astype(np.float32))


def philox_gumbel(seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """`Ops.gumbel` in NumPy; ids uint64 [m], result float64 [m]."""
    noise: np.ndarray = -np.log(-np.log(philox_uniform(seed, position, ids)))
    return noise


Words = int | np.ndarray


def philox_uniform(seed: Words, position: Words, ids: np.ndarray, word: Words = 0) -> np.ndarray:
    """Uniforms in (0, 1), float64, of the shape to which the arguments broadcast; arrays must be uint64.

    Philox4x32-10 (Salmon et al. 2011), counter (id, position low, position high, word), key (seed low, seed high).
    """
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    where, key = np.asarray(position, dtype=np.uint64), np.asarray(seed, dtype=np.uint64)
    c = list(np.broadcast_arrays(ids & mask, where & mask, where >> half, np.asarray(word, dtype=np.uint64), key))[:4]
    k0, k1 = key & mask, key >> half
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> half) ^ c[1] ^ k0, p1 & mask, (p0 >> half) ^ c[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    bits = (c[0] << np.uint64(21)) | (c[1] >> np.uint64(11))
    uniform: np.ndarray = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return uniform


def rope_tables(theta: float, rotated: int, head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [length, rotated] in fp32; exponents divide by the whole head size, also when few pairs turn."""
    inverse = 1.0 / theta ** (torch.arange(0, 2 * rotated, 2, dtype=torch.int64).float() / head_dim)
    angles = torch.arange(length).float()[:, None] * inverse
    return angles.cos(), angles.sin()


def embed_scale(hidden: int, dtype: torch.dtype) -> float:
    """sqrt(hidden), rounded to the weight's dtype as the models were trained (E2B: 39.25, not 39.19)."""
    return float(torch.tensor(math.sqrt(hidden)).to(dtype))
