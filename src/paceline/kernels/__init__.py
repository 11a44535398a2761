"""The operations a Gemma 4 pass is made of, behind one seam.

`Ops` is the signature; `reference.TorchOps` is its specification in plain PyTorch, `cpu.CpuOps` its fast twin.
A backend owns its array type ("Array": a torch tensor or a NumPy array); models never look inside one.

The promise every fast backend makes: what an operation returns for a row depends on that row alone, never on how
many rows share the call. Plain decoding (1 row) and verification (k + 1 rows) then give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from paceline.errors import UsageError

Array = Any
Weight = Any  # a backend's own `Matrix`
View = Any  # a `LayerView`, or what training puts in its place


class LayerView(NamedTuple):
    """One layer's keys and values as one sequence sees them, from `Ops.store`.

    In the reference, keys and values are [slots, kv_heads, head_dim]. The key of position p lies in slot
    `table[(p // page) % len(table)] * page + p % page`: pages for a full layer, one page that repeats for a ring.
    """

    keys: Array
    values: Array
    table: Array
    page: int
    ring: bool


class Rope(NamedTuple):
    """Rotary tables, [positions, rotated pairs] each; the other pairs of a head stand still."""

    cos: Array
    sin: Array


class Heads(NamedTuple):
    """How a fused projection splits: `queries` query heads, then keys, then values (or none: K = V layers).

    q_norm, k_norm: [dim]; k_norm is q_norm where the projection holds queries only.
    """

    queries: int
    k_eq_v: bool
    q_norm: Array
    k_norm: Array
    eps: float


class Block(NamedTuple):
    """The weights of a layer whose queries read another layer's keys and values, with a dense MLP and nothing else."""

    heads: Heads
    qkv: Weight
    output: Weight
    gate_up: Weight
    down: Weight
    post_attention_norm: Array
    pre_mlp_norm: Array
    post_mlp_norm: Array
    scalar: Array
    one: Array


class Mixture(NamedTuple):
    """The feed-forward weights of a mixture-of-experts layer: a dense MLP, and experts of which a router picks."""

    dense_gate_up: Weight
    dense_down: Weight
    router: Weight
    router_norm: Array
    expert_scale: Array
    gate_up: Any
    down: Any
    dense_norm: Array
    input_norm: Array
    output_norm: Array
    active: int
    eps: float


class Branch(NamedTuple):
    """One of the two results a mixture-of-experts layer adds up, and its norm's weight."""

    y: Array
    norm: Array


class Cuts(NamedTuple):
    """What a row of logits is divided by, and what is left of it; the defaults leave everything.

    Top-k comes first, then top-p and min-p of what it left. Temperature 0 is greedy.
    """

    temperature: float
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0


class Rules(NamedTuple):
    """What reshapes a row before its temperature; see `paceline.processors` for how.

    bias: (ids, values). ends: ids that stay out while fewer than `missing` tokens follow the text. seen: the text's
    tokens, each once, and times how often it was written. penalties: repetition, presence, frequency.
    """

    vocab: int
    bias: tuple[np.ndarray, np.ndarray]
    ends: np.ndarray
    seen: np.ndarray
    times: np.ndarray
    missing: int
    penalties: tuple[float, float, float]


class Reach(NamedTuple):
    """What the rows of a pass attend: row r sits at positions[r] and sees positions first[r] .. last[r], int64 [n]."""

    positions: Array
    first: Array
    last: Array
    rope: Rope


class Matrix(Protocol):
    """A weight of shape [rows, cols], laid out as its backend likes it."""

    rows: int
    cols: int

    def write(self, row: int, tensor: torch.Tensor) -> None:
        """Copies `tensor` [n, cols] into rows row .. row + n - 1."""

    @property
    def nbytes(self) -> int:
        """Bytes this weight holds."""


class Stack(Protocol):
    """Weights of one shape, written one by one."""

    def write(self, index: int, tensor: torch.Tensor) -> None:
        """Copies `tensor` [n, rows, cols] into weights index .. index + n - 1."""

    def read(self) -> torch.Tensor:
        """All of them, [count, rows, cols]."""

    @property
    def nbytes(self) -> int:
        """Bytes these weights hold."""


class Ops(Protocol):
    """What a backend must offer. n is the number of rows of a pass; activations are fp32 and row-major."""

    name: str

    def matrix(self, rows: int, cols: int, dtype: torch.dtype, table: bool = False) -> Matrix:
        """An empty weight; `table` asks for a layout that is only ever gathered from, never multiplied."""

    def stack(self, count: int, rows: int, cols: int, dtype: torch.dtype) -> Stack:
        """`count` empty weights of one shape: a layer's experts."""

    def array(self, tensor: torch.Tensor) -> Array:
        """`tensor` as this backend's array (indices stay integers, everything else becomes fp32)."""

    def tensor(self, array: Array) -> torch.Tensor:
        """The way back, for tests and export."""

    def host(self, array: Array) -> np.ndarray:
        """An array's values in NumPy, for decisions made in Python."""

    def indices(self, values: Sequence[int]) -> Array:
        """int64 [n]."""

    def reach(self, positions: range, window: int) -> tuple[Array, Array]:
        """(positions, first position each may see with a window that counts itself), int64 [n] each."""

    def embed(self, weight: Weight, ids: Array, scale: float) -> Array:
        """Rows `ids` [n] of a weight, times `scale`: [n, cols]."""

    def linear(self, x: Array, weight: Weight) -> Array:
        """x [n, cols] @ weight^T: [n, rows]."""

    def gated(self, x: Array, gate_up: Weight) -> Array:
        """gelu_tanh(gate) * up, where x [n, cols] @ gate_up^T = [gate, up]: [n, rows / 2]."""

    def concat(self, a: Array, b: Array) -> Array:
        """[n, A] and [n, B] side by side: [n, A + B]."""

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        """x / rms(x) * weight over the last axis; plain weight, not 1 + weight."""

    def add_norm(self, h: Array, y: Array, post: Array, pre: Array | None, scale: Array, eps: float) -> Any:
        """The residual stream after a block, and the next block's input.

        h' = (h + rms_norm(y, post)) * scale[0]; returns (h', rms_norm(h', pre)), or (h', h') without `pre`.
        """

    def enter(self, y: Array, norm: Array, eps: float) -> tuple[Array, Array]:
        """A matmul's result as a residual stream, and the first block's input: (y, rms_norm(y, norm))."""

    def norms(self, h: Array, first: Array, second: Array, eps: float) -> tuple[Array, Array]:
        """rms_norm of h with two weights."""

    def rope_write(self, qkv: Array, heads: Heads, rope: Rope, positions: Array, view: View | None) -> Array:
        """Normalises and turns the heads of a fused projection, and writes keys and values where `view` says.

        qkv [n, (heads + kv + kv) * dim], or without the last group when values are the raw keys (K = V layers).
        view None means the projection holds queries only. Returns q [n, heads, dim].
        """

    def attention(self, q: Array, view: View, first: Array, last: Array) -> Array:
        """softmax(q k^T) v over positions first[r] .. last[r] of each row r, scale 1: [n, heads * dim]."""

    def query_block(
        self, h: Array, x: Array, block: Block, reach: Reach, view: View, norm: Array
    ) -> tuple[Array, Array]:
        """A whole query-only layer: stream h and its norm x in, the new stream and its norm by `norm` out.

        Equal to attention, `add_norm`, `geglu` and `add_norm` one by one. Drafters take many small steps, in which
        calling costs as much as computing.
        """

    def mix_ple(self, context: Array, token: Array, weight: Array, scale: float, eps: float) -> Array:
        """(rms_norm(context * scale, weight) + token) / sqrt(2), per layer: [n, L, P] from two [n, L * P]."""

    def gate_ple(self, gate: Array, ple: Array, layer: int) -> Array:
        """gelu_tanh(gate) * that layer's part of `mix_ple`'s result: [n, P]."""

    def route(self, scores: Array, active: int, expert_scale: Array) -> tuple[Array, Array]:
        """Softmax over experts, the best `active`, renormalised: (ids, weights), [n, active] in rank order."""

    def experts(self, x: Array, ids: Array, gate_up: Any, down: Any) -> Array:
        """down_e(gated(x, gate_up_e)) for the experts e = ids [n, active] of each row, each distinct expert read once.

        [n, active, D], in rank order.
        """

    def mix_experts(self, dense: Branch, sparse: Branch, weights: Array, eps: float) -> Array:
        """rms_norm(dense) + rms_norm(sum over rank, in order, of weights [n, active] * sparse [n, active, D])."""

    def mixture(self, h: Array, x: Array, m: Mixture) -> Array:
        """A mixture-of-experts layer's feed-forward result, [n, D]: of stream h, and of its norm x for the dense MLP.

        Equal to `gated`, `norms`, `route`, `experts` and `mix_experts` one by one.
        """

    def logits(self, x: Array, head: Weight, cap: float | None) -> Array:
        """x [n, D] @ head^T, then cap * tanh(logits / cap) where there is a cap: [n, V]."""

    def gather_linear(self, x: Array, weight: Weight, ids: Array) -> Array:
        """x [n, cols] against rows ids [n, m] of a weight: [n, m]."""

    def gather_rows(self, table: Array, ids: Array) -> Array:
        """Rows of an integer table, joined: table [T, W], ids [n, m] -> [n, m * W]."""

    def mask_columns(self, x: Array, columns: tuple[int, ...]) -> Array:
        """A copy of x [n, V] with these columns at minus infinity."""

    def top(self, x: Array, count: int) -> tuple[Array, Array]:
        """The `count` greatest of each row, greatest first, ties by lowest index: (indices, values), [n, count]."""

    def confidence(self, logits: Array) -> float:
        """The greatest probability of softmax(logits [1, m])."""

    def rows(self, x: Array, start: int, stop: int) -> Array:
        """Rows start .. stop - 1."""

    def gumbel(self, seed: int, position: int, ids: Array) -> Array:
        """Standard Gumbel noise for each id, float64 [m]: a function of (seed, position, id) and nothing else.

        Philox4x32-10 (Salmon et al. 2011), counter (id, position low, position high, 0), key (seed low, seed high);
        u = (first 53 bits of the output + 1/2) / 2^53, noise = -log(-log u).
        """

    def draw(
        self, x: Array, ids: Array | None, cuts: Cuts, key: tuple[int, int], draft: Sequence[int] = ()
    ) -> list[int]:
        """A token for each row of logits [n, V], by the Gumbel noise of its place: key = (seed, position of the first).

        Greedy: the greatest logit's, ties by lowest index. With ids [1, m] the rows [n, m] stand for these tokens.
        Ends with the first row whose token is not its draft, where it has one.
        """

    def laws(self, x: Array, ids: Array | None, cuts: Cuts) -> tuple[np.ndarray, np.ndarray]:
        """What `draw` draws from: tokens [n, m] and their chances, float64, 0 for what top-p and min-p leave out."""

    def reshape(self, x: Array, ids: Array | None, rules: Rules, draft: Sequence[int]) -> Array:
        """New rows [n, V] under these rules; the last stands after all drafts, the one before it after all but one.

        With ids [1, m] the only row holds the logits [1, m] of these tokens, each once.
        """

    def permit(self, x: Array, ids: Array | None, bits: np.ndarray) -> Array | None:
        """New rows [n, V] with minus infinity where a row's bits, uint32 [n, V / 32] from the lowest on, are 0.

        With ids [1, m] the only row holds the logits [1, m] of these tokens; None where all of them become impossible.
        """

    def prepare(self) -> None:
        """Compiles what only some requests use, so that none waits for it."""

    def store(self, slots: int, kv_heads: int, head_dim: int) -> tuple[Array, Array]:
        """Room for the keys and for the values of so many slots, zeroed, laid out as `attention` likes it."""


def get_ops(name: str) -> Ops:
    """The backend of that name: "cpu" (Numba, row-invariant) or "reference" (PyTorch)."""
    if name == "cpu":
        from paceline.kernels.cpu import CpuOps

        return CpuOps()
    if name == "reference":
        from paceline.kernels.reference import TorchOps

        return TorchOps()
    raise UsageError(f"unknown kernel backend {name!r}; choose 'cpu' or 'reference'")
