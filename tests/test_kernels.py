"""The fast kernels against their PyTorch twins, over odd shapes; and the noise against published vectors."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paceline.cache import PAGE, ring_slots
from paceline.kernels import Block, Branch, Heads, LayerView, Ops, Reach, Rope, get_ops, jit, noise, reference
from paceline.kernels.reference import rope_tables

pytestmark = pytest.mark.usefixtures("quiet_torch")

CPU, REFERENCE = get_ops("cpu"), get_ops("reference")
EPS = 1e-6
OPERATIONS = [name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")]


def rand(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * scale


def both(name: str, *arguments: Any, rtol: float = 1e-5, atol: float = 1e-5) -> list[Tensor]:
    """Runs an operation on both backends, tensors converted, and compares all it returns; gives the reference's."""
    results = []
    for ops in (CPU, REFERENCE):
        converted = [ops.array(a.clone()) if isinstance(a, Tensor) else a for a in arguments]
        out = getattr(ops, name)(*converted)
        results.append([ops.tensor(o) for o in (out if isinstance(out, tuple) else (out,)) if o is not None])
    ours, theirs = results
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    return theirs


def both_weights(values: Tensor, table: bool = False, pieces: int = 10**9) -> list[Any]:
    """The same weight on both backends, written in pieces of so many rows."""
    weights = [ops.matrix(*values.shape, values.dtype, table) for ops in (CPU, REFERENCE)]
    for weight in weights:
        for row in range(0, len(values), pieces):
            weight.write(row, values[row : row + pieces])
    return weights


def with_weight(name: str, before: tuple[Tensor, ...], values: Tensor, *after: Any, table: bool = False) -> None:
    """Compares an operation whose argument after `before` is a weight."""
    ours, theirs = both_weights(values, table)
    out = []
    for ops, weight in ((CPU, ours), (REFERENCE, theirs)):
        tail = [ops.array(a) if isinstance(a, Tensor) else a for a in after]
        out.append(ops.tensor(getattr(ops, name)(*(ops.array(b) for b in before), weight, *tail)))
    torch.testing.assert_close(*out, rtol=1e-5, atol=1e-5)


# ---- the seam -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_both_backends_have_the_operation_with_the_same_parameters(name: str) -> None:
    wanted = list(inspect.signature(getattr(Ops, name)).parameters)
    for ops in (CPU, REFERENCE):
        assert list(inspect.signature(getattr(type(ops), name)).parameters) == wanted, f"{ops.name}.{name}"


def test_arrays_and_tensors_go_back_and_forth() -> None:
    for ops in (CPU, REFERENCE):
        for tensor in (rand(3, 5), torch.arange(7), rand(3, 5).T):
            assert torch.equal(ops.tensor(ops.array(tensor)), tensor)
            assert ops.host(ops.array(tensor)).tolist() == tensor.tolist()
        assert ops.tensor(ops.array(torch.ones(2, dtype=torch.bfloat16))).dtype == torch.float32
        assert ops.tensor(ops.indices([3, 1])).tolist() == [3, 1]


@pytest.mark.parametrize("window", [1, 4, 33, 1000])
def test_reach(window: int) -> None:
    for positions in (range(0, 1), range(0, 16), range(30, 46)):
        at, first = both("reach", positions, window, rtol=0, atol=0)
        assert at.tolist() == list(positions)
        assert first.tolist() == [max(0, p - window + 1) for p in positions]


# ---- one pass through every operation --------------------------------------------------------------------------------

ODD = [(1, 1), (1, 7), (3, 33), (5, 64), (17, 100)]


@pytest.mark.parametrize(("n", "size"), ODD)
def test_row_operations(n: int, size: int) -> None:
    x, y, w, u = rand(n, size, scale=3), rand(n, size, seed=1), rand(size, seed=2), rand(size, seed=3)
    both("rms_norm", x, w, EPS)
    both("rms_norm", x, None, EPS)
    both("rms_norm", torch.zeros(n, size), w, EPS)  # no division by zero
    both("add_norm", x, y, w, u, torch.tensor([0.7]), EPS)
    both("add_norm", x, y, w, None, torch.tensor([0.7]), EPS)
    both("enter", x, w, EPS)
    both("norms", x, w, u, EPS)
    both("concat", x, rand(n, 5), rtol=0, atol=0)
    both("rows", x, n // 2, n, rtol=0, atol=0)
    both("mask_columns", x, (0, size - 1), rtol=0, atol=0)


@pytest.mark.parametrize(("n", "layers", "dim"), [(1, 1, 1), (3, 5, 8), (17, 2, 33)])
def test_per_layer_inputs(n: int, layers: int, dim: int) -> None:
    context, token = rand(n, layers * dim), rand(n, layers * dim, seed=1)
    (mixed,) = both("mix_ple", context, token, rand(dim, seed=2), 0.125, EPS)
    assert mixed.shape == (n, layers, dim)
    both("gate_ple", 4 * rand(n, dim), mixed, layers - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "cols", "rows"), [(1, 1, 1), (2, 7, 63), (17, 33, 65), (5, 129, 200)])
def test_linear(n: int, cols: int, rows: int, dtype: torch.dtype) -> None:
    with_weight("linear", (rand(n, cols),), rand(rows, cols, seed=1, scale=cols**-0.5).to(dtype))


def test_gated_and_logits() -> None:
    for n, size, cap in ((1, 8, None), (5, 33, 30.0)):
        x = rand(n, size, scale=4)
        with_weight("gated", (x,), rand(2 * 9, size, seed=1))
        with_weight("logits", (x,), rand(65, size, seed=1), cap)


@pytest.mark.parametrize("pieces", [1, 3, 63, 64, 65, 130])
def test_a_weight_written_in_pieces_is_whole(pieces: int) -> None:
    """Fused projections arrive part by part, at rows that are no multiple of a panel."""
    values = rand(200, 5)
    ours, theirs = both_weights(values, pieces=pieces)
    x = torch.eye(5)
    assert torch.equal(CPU.tensor(CPU.linear(CPU.array(x), ours)), values.T)
    assert torch.equal(REFERENCE.linear(x, theirs), values.T)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_are_exact(dtype: torch.dtype, table: bool) -> None:
    values, ids = rand(130, 9).to(dtype), torch.tensor([0, 129, 63, 64, 63])
    for ops, weight in zip((CPU, REFERENCE), both_weights(values, table), strict=True):
        assert torch.equal(ops.tensor(ops.embed(weight, ops.array(ids), 1.0)), values[ids].float())
        assert torch.equal(ops.tensor(ops.embed(weight, ops.array(ids), 39.25)), values[ids].float() * 39.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathers(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 40, 40, 7], [3, 2, 1, 0], [9, 9, 9, 9]])
    with_weight("gather_linear", (rand(3, 33),), rand(41, 33, seed=1).to(dtype), ids, table=True)
    both("gather_rows", torch.arange(60).reshape(12, 5), torch.tensor([[11, 0], [3, 3]]), rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 2, 7, 50, 100, 999, 2000])
def test_top_is_exact_and_breaks_ties_by_lowest_index(count: int) -> None:
    few = torch.randint(0, 4, (6, 50), generator=torch.Generator().manual_seed(1)).float()  # mostly ties
    few[1] = 2.0
    few[2, ::3] = -math.inf
    both("top", few, count, rtol=0, atol=0)
    both("top", rand(4, 1000), count, rtol=0, atol=0)
    for width in (255, 256, 257, 4096, 5001):
        x = rand(5, width)
        x[1] = (2 * x[1]).round()  # ties
        x[2, torch.rand(width, generator=torch.Generator().manual_seed(2)) < 0.99] = -math.inf
        x[3] = torch.zeros(width).copysign(x[3])  # both zeros are one value
        x[4] = -math.inf
        both("top", x, count, rtol=0, atol=0)


@pytest.mark.parametrize(("n", "experts", "active"), [(1, 1, 1), (5, 8, 2), (17, 33, 5)])
def test_experts(n: int, experts: int, active: int) -> None:
    ids, weights = both("route", rand(n, experts, scale=3), active, rand(experts, seed=1).abs())
    gate_up, down = rand(experts, 2 * 9, 7, seed=3), rand(experts, 7, 9, seed=4)
    out = []
    for ops in (CPU, REFERENCE):
        stacks = []
        for values in (gate_up, down):
            stacks.append(ops.stack(*values.shape, torch.float32))
            stacks[-1].write(0, values[:1])
            stacks[-1].write(1, values[1:])
        x = ops.array(rand(n, 7, seed=2))
        sparse = Branch(ops.experts(x, ops.array(ids), *stacks), ops.array(rand(7, seed=5)))
        dense = Branch(x, ops.array(rand(7, seed=6)))
        out.append(ops.tensor(ops.mix_experts(dense, sparse, ops.array(weights), EPS)))
    torch.testing.assert_close(*out, rtol=1e-4, atol=1e-4)


def test_exp32_is_within_two_units_in_the_last_place() -> None:
    grid = np.linspace(-87, 88, 30_000, dtype=np.float32)
    near = np.linspace(-1, 1, 5_000, dtype=np.float32)
    x = np.concatenate([grid, near, np.float32([0.0, -0.0])])
    ours = np.array([jit.exp32(value) for value in x], np.float64)
    exact = np.exp(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(ours - exact) / ulp) <= 2.0
    assert jit.exp32(np.float32(-1e30)) < 2e-38  # below the range: next to nothing, neither nan nor garbage


# ---- attention ------------------------------------------------------------------------------------------------------

LENGTHS = (1, 2, 63, 64, 65, 130)
WINDOWS = (None, 1, 4, 16, 33, 60)


@dataclass
class Twin:
    """One layer's keys and values on one backend."""

    ops: Any
    heads: Heads
    rope: Rope
    view: LayerView

    @classmethod
    def make(cls, ops: Any, dim: int, heads: int, kv: int, window: int | None) -> Twin:
        page = PAGE if window is None else ring_slots(window)
        table = torch.tensor([2, 0, 3, 1] if window is None else [1])
        store = ops.store(4 * page, kv, dim)
        rope = Rope(*(ops.array(t) for t in rope_tables(1e4, max(1, dim // 4), dim, 256)))
        norms = [ops.array(1 + 0.1 * rand(dim, seed=s)) for s in (1, 2)]
        view = LayerView(*store, ops.array(table), page, window is not None)
        return cls(ops, Heads(heads, False, *norms, EPS), rope, view)

    def write(self, qkv: Tensor, start: int) -> Any:
        positions = self.ops.array(torch.arange(start, start + len(qkv)))
        return self.ops.rope_write(self.ops.array(qkv), self.heads, self.rope, positions, self.view)

    def attend(self, q: Tensor, first: list[int], last: list[int]) -> Tensor:
        bounds = self.ops.indices(first), self.ops.indices(last)
        result: Tensor = self.ops.tensor(self.ops.attention(self.ops.array(q), self.view, *bounds))
        return result


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("dim", "heads", "kv"), [(16, 4, 1), (32, 4, 4), (64, 2, 2), (96, 6, 2), (256, 4, 2)])
def test_attention_over_pages_and_rings(dim: int, heads: int, kv: int, window: int | None) -> None:
    """Decoding and drafting rows, at every kind of length: before, at and after page ends and the ring's turn."""
    twins = [Twin.make(ops, dim, heads, kv, window) for ops in (CPU, REFERENCE)]
    qkv, done = rand(max(LENGTHS), (heads + 2 * kv) * dim), 0
    # Scores of 256 terms round by as much as 2.4e-5 of the result on a CPU with AVX-512, beside sums in float64.
    grain = 4e-5 if dim == 256 else 2e-5
    for length in LENGTHS:
        while done < length:
            part = qkv[done : min(done + 16, length)]
            queries = [twin.ops.tensor(twin.write(part, done)) for twin in twins]
            torch.testing.assert_close(*queries, rtol=1e-5, atol=1e-5)
            done += len(part)
        n = len(queries[0])
        last = list(range(length - n, length))
        first = [max(0, p + 1 - (window or length)) for p in last]
        for rows in (slice(0, n), slice(n - 1, n)):
            out = [twin.attend(q[rows], first[rows], last[rows]) for twin, q in zip(twins, queries, strict=True)]
            torch.testing.assert_close(*out, rtol=1e-5, atol=grain)
            assert (out[0] - out[1]).square().mean() < 8e-6**2  # and such are few


@pytest.mark.parametrize("window", [None, 60])
def test_attention_has_the_same_bits_on_one_thread_and_on_many(window: int | None) -> None:
    twin, length = Twin.make(CPU, 32, 4, 2, window), 140
    qkv = rand(length, 8 * 32)
    for start in range(0, length, 10):
        q = twin.write(qkv[start : start + 10], start)
    last = np.arange(length - 10, length)
    first = np.maximum(last + 1 - (window or length), 0)
    serial, parallel = np.zeros((2, 10, 4 * 32), np.float32)
    jit.attention(q, *twin.view, first, last, serial)
    jit.attention_parallel(q, *twin.view, first, last, parallel)
    assert serial.any()
    assert np.array_equal(serial, parallel)


def test_values_are_the_raw_keys_where_a_projection_has_none() -> None:
    """K = V layers: the value is the key before its norm weight and before it is turned."""
    results = []
    for ops in (CPU, REFERENCE):
        twin = Twin.make(ops, 16, 2, 1, None)
        twin.heads = twin.heads._replace(k_eq_v=True)
        q = twin.write(rand(5, 3 * 16), 0)
        results.append(twin.attend(ops.tensor(q), [0] * 5, list(range(5))))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    alone = rand(5, 3 * 16)[:1, 32:]  # the first row sees one value only: its own, with unit norm
    expected = torch.nn.functional.rms_norm(alone, (16,), eps=EPS).repeat(1, 2)
    torch.testing.assert_close(results[0][:1], expected, rtol=1e-5, atol=1e-5)


def one_by_one(ops: Any, h: Any, x: Any, b: Block, reach: Reach, view: LayerView, norm: Any) -> Any:
    """`query_block` as the operations it stands for."""
    q = ops.rope_write(ops.linear(x, b.qkv), b.heads, reach.rope, reach.positions, None)
    y = ops.linear(ops.attention(q, view, reach.first, reach.last), b.output)
    h, x = ops.add_norm(h, y, b.post_attention_norm, b.pre_mlp_norm, ops.array(torch.ones(1)), b.heads.eps)
    y = ops.linear(ops.gated(x, b.gate_up), b.down)
    return ops.add_norm(h, y, b.post_mlp_norm, norm, b.scalar, b.heads.eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize(("n", "hidden", "inner"), [(1, 24, 40), (1, 96, 64), (3, 33, 65)])
def test_a_query_only_layer_is_its_operations(
    n: int, hidden: int, inner: int, window: int | None, dtype: torch.dtype
) -> None:
    dim, heads, kv, length = 32, 4, 2, 70
    shapes = [(heads * dim, hidden), (hidden, heads * dim), (2 * inner, hidden), (hidden, inner)]
    weights = [both_weights(rand(*shape, seed=i, scale=shape[1] ** -0.5).to(dtype)) for i, shape in enumerate(shapes)]
    results = []
    for i, ops in enumerate((CPU, REFERENCE)):
        twin = Twin.make(ops, dim, heads, kv, window)
        for start in range(0, length, 14):
            twin.write(rand(length, (heads + 2 * kv) * dim)[start : start + 14], start)
        norms = [ops.array(1 + 0.1 * rand(hidden, seed=s)) for s in range(4)]
        scalars = [ops.array(torch.tensor([value])) for value in (0.8, 1.0)]
        block = Block(twin.heads, *(w[i] for w in weights), *norms[:3], *scalars)
        bounds = (ops.indices([max(0, length - (window or length))] * n), ops.indices([length - 1] * n))
        reach = Reach(ops.indices([length] * n), *bounds, twin.rope)
        h, x = (ops.array(rand(n, hidden, seed=s)) for s in (5, 6))
        out = [ops.tensor(t) for t in ops.query_block(h, x, block, reach, twin.view, norms[3])]
        wanted = [ops.tensor(t) for t in one_by_one(ops, h, x, block, reach, twin.view, norms[3])]
        assert all(torch.equal(a, b) for a, b in zip(out, wanted, strict=True))
        results.append(out)
    torch.testing.assert_close(*results, rtol=1e-5, atol=2e-5)


# ---- the noise ------------------------------------------------------------------------------------------------------

# Known answers of the Random123 distribution (Salmon et al. 2011), kat_vectors: counter, key, output.
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in whole numbers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def expected_noise(seed: int, position: int, token: int) -> float:
    c = philox([token, position % 2**32, position >> 32, 0], [seed % 2**32, seed >> 32])
    return -math.log(-math.log(((c[0] << 21 | c[1] >> 11) + 0.5) * 2.0**-53))


@pytest.mark.parametrize(("counter", "key", "output"), PHILOX)
def test_philox_gives_the_published_answers(counter: str, key: str, output: str) -> None:
    """The check of `philox` above, which checks the kernels below."""
    assert philox(words(counter), words(key)) == words(output)


@pytest.mark.parametrize("ops", [CPU, REFERENCE], ids=lambda ops: ops.name)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 5, 2**31, 2**32 + 3])
def test_noise_is_the_documented_function(ops: Any, seed: int, position: int) -> None:
    ids = [0, 1, 2, 255, 262143, 7]
    noise = ops.host(ops.gumbel(seed, position, ops.indices(ids)))
    assert noise.dtype == np.float64
    np.testing.assert_allclose(noise, [expected_noise(seed, position, i) for i in ids], rtol=0, atol=1e-12)


@pytest.mark.parametrize("ops", [CPU, REFERENCE], ids=lambda ops: ops.name)
def test_noise_is_stable_across_releases(ops: Any) -> None:
    """Equal seeds must give equal texts next year too; the first word pair is Random123's first known answer."""
    noise = ops.host(ops.gumbel(0, 0, ops.indices([0]))).tolist()
    assert noise == pytest.approx([0.08482025135306243], abs=1e-12)
    noise = ops.host(ops.gumbel(2026, 77, ops.indices([3, 1000, 262143]))).tolist()
    assert noise == pytest.approx([1.0669370627231538, 2.8888696435008447, -0.514883710485583], abs=1e-12)


def test_compiled_noise_has_the_bits_of_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where arguments broadcast, and at the ends of their ranges."""
    rng = np.random.default_rng(3)
    seeds, positions = rng.integers(0, 2**64, (2, 40, 1, 1), dtype=np.uint64)
    ids, words = rng.integers(0, 2**32, 30, dtype=np.uint64), np.arange(5, dtype=np.uint64)[:, None] * np.uint64(256)
    cases = [(seeds, positions, ids, words), (2**64 - 1, 2**64 - 1, ids, 2**32 - 1), (0, 0, ids[:0], 0)]
    for case in cases:
        fast, slow = noise.philox_uniform(*case), reference.philox_uniform(*case)
        assert fast.shape == slow.shape
        assert fast.dtype == slow.dtype == np.float64
        assert np.array_equal(fast, slow)
    monkeypatch.setattr(noise, "COMPILED", False)
    assert np.array_equal(noise.philox_uniform(*cases[0]), reference.philox_uniform(*cases[0]))
