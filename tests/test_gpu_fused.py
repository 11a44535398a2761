"""Norms, rotary embedding, cache writes and gates in Triton against their specification in PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gpu import DEVICE, DTYPES, error, randn, tolerance
from torch import Tensor
from torch.nn.functional import gelu

from paceline.kernels import Heads, LayerView, Rope
from paceline.kernels.gpu import fused, ple
from paceline.kernels.gpu.launch import CacheView
from paceline.kernels.reference import TorchMatrix, TorchOps, rope_tables

REFERENCE = TorchOps(DEVICE)
EPS = 1e-6
F32 = torch.float32
WIDTHS = (16, 24, 100, 257)

pytestmark = pytest.mark.usefixtures("quiet_torch")


def assert_close(out: Tensor, expected: Tensor) -> None:
    assert out.shape == expected.shape
    assert error(out, expected) < tolerance(out.dtype)


def in_order(parts: Tensor) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def ints(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


# Sums, embeddings and norms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_parts_add_up_in_order(count: int, dtype: torch.dtype) -> None:
    parts = randn(count, 3, 1030) * 10.0 ** torch.arange(count, device=DEVICE).view(-1, 1, 1)
    assert torch.equal(fused.total(parts, dtype), in_order(parts).to(dtype))


def test_parts_may_be_rows_of_a_larger_result() -> None:
    parts = randn(3, 8, 64)
    assert torch.equal(fused.total(parts[:, 2:5], F32), in_order(parts)[2:5])
    norm = randn(64)
    h, x = fused.enter(parts[:, 2:5], norm, EPS, F32)
    assert torch.equal(h, in_order(parts)[2:5])
    assert_close(x, REFERENCE.rms_norm(h, norm, EPS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("integer", [torch.int64, torch.int32])
def test_embed(dtype: torch.dtype, integer: torch.dtype) -> None:
    table = TorchMatrix(9, 1100, dtype, DEVICE)
    table.write(0, randn(9, 1100, dtype=dtype))
    ids = ints([8, 0, 3, 3], integer)
    assert torch.equal(ple.embed(table.tensor, ids, 39.25), REFERENCE.embed(table, ids, 39.25))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(1, 1), (16, 24), (1024, 1040), (1500, 7)])
def test_concat(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    a, b = randn(3, widths[0]), randn(3, widths[1], seed=1, dtype=dtype)
    assert torch.equal(ple.concat(a, b, dtype), torch.cat([a.to(dtype), b], dim=-1))
    parts = randn(4, 3, widths[1], seed=2)
    assert torch.equal(ple.concat(a, parts, dtype), torch.cat([a, in_order(parts)], dim=-1).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(width: int, dtype: torch.dtype) -> None:
    h, w1, w2 = randn(3, width), randn(width, seed=1), randn(width, seed=2)
    assert_close(fused.rms_norm(h, w1, EPS, dtype), REFERENCE.rms_norm(h, w1, EPS))
    assert_close(fused.rms_norm(h, None, EPS, dtype), REFERENCE.rms_norm(h, None, EPS))
    for out, weight in zip(fused.norms2(h, w1, w2, EPS, dtype), (w1, w2), strict=True):
        assert_close(out, REFERENCE.rms_norm(h, weight, EPS))


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 1e15])
def test_norms_of_extreme_rows(scale: float) -> None:
    h = randn(2, 48) * scale
    out = fused.rms_norm(h, None, EPS, F32)
    assert torch.isfinite(out).all()
    assert_close(out, REFERENCE.rms_norm(h, None, EPS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3])
def test_enter(count: int, dtype: torch.dtype) -> None:
    parts, norm = randn(count, 3, 40), randn(40, seed=1)
    h, x = fused.enter(parts, norm, EPS, dtype)
    assert torch.equal(h, in_order(parts))
    assert_close(x, REFERENCE.rms_norm(h, norm, EPS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 4])
def test_add_norm(width: int, count: int, dtype: torch.dtype) -> None:
    h, parts, post, pre = (randn(*s, seed=i) for i, s in enumerate([(3, width), (count, 3, width), (width,), (width,)]))
    scale = randn(1, seed=5)
    old = h.clone()
    new, x = fused.add_norm(h, parts, post, pre, scale, EPS, dtype)
    new_expected, x_expected = REFERENCE.add_norm(h, in_order(parts), post, pre, scale, EPS)
    assert_close(new, new_expected)
    assert_close(x, x_expected)
    assert torch.equal(h, old)
    plain, x = fused.add_norm(h, parts, post, None, scale, EPS, dtype)
    assert torch.equal(plain, new)
    assert torch.equal(x, new.to(dtype))


@pytest.mark.parametrize("active", [1, 4])
def test_combine_experts(active: int) -> None:
    dense, sparse, weights = randn(2, 3, 40), randn(3, active, 40, seed=1), randn(3, active, seed=2).abs()
    dense_norm, sparse_norm = randn(40, seed=3), randn(40, seed=4)
    out = fused.combine_experts(dense, dense_norm, sparse, weights, sparse_norm, EPS)
    mixed = (weights[:, :, None] * sparse).sum(1)
    expected = REFERENCE.rms_norm(in_order(dense), dense_norm, EPS) + REFERENCE.rms_norm(mixed, sparse_norm, EPS)
    assert_close(out, expected[None])


# Rotary embedding and the cache


def make_heads(dim: int, queries: int, k_eq_v: bool = False) -> Heads:
    return Heads(queries, k_eq_v, randn(dim, seed=1), randn(dim, seed=2), EPS)


def make_rope(dim: int, rotated: int, length: int = 64) -> Rope:
    return Rope(*(table.to(DEVICE) for table in rope_tables(1e4, rotated, dim, length)))


def make_view(pages: list[list[int]], page: int, shape: tuple[int, int], dtype: torch.dtype = F32) -> CacheView:
    """Every slot holds 7, so that a wrong write shows. A ring where each sequence has one page."""
    slots = (max(max(row) for row in pages) + 1) * page
    keys, values = (torch.full((slots, *shape), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    return CacheView(keys, values, ints(pages, torch.int32), page, len(pages[0]) == 1, 64)


def split_views(view: CacheView) -> list[LayerView]:
    """Each sequence's cache as the reference sees it, sharing the view's keys and values."""
    return [LayerView(view.keys, view.values, row, view.page, view.ring) for row in view.table.long()]


def copy_of(view: CacheView, dtype: torch.dtype | None = None) -> CacheView:
    return view._replace(keys=view.keys.to(dtype, copy=True), values=view.values.to(dtype, copy=True))


def reference_rope(qkv: Tensor, heads: Heads, rope: Rope, positions: Tensor, view: CacheView) -> Tensor:
    """`TorchOps.rope_write` for each sequence of a batch; padding is left out, and its queries are zero."""
    dim, q = len(heads.q_norm), []
    views = split_views(view)
    for layer, rows, at in zip(views, qkv.chunk(len(views)), positions.chunk(len(views)), strict=True):
        out = torch.zeros(len(rows), heads.queries, dim, device=DEVICE)
        out[at >= 0] = REFERENCE.rope_write(rows[at >= 0], heads, rope, at[at >= 0], layer)
        q.append(out)
    return torch.cat(q)


PAGED = ([[3, 0, 5], [1, 4, 2]], 4)  # two sequences, three pages of four slots each
RING = ([[1], [0]], 6)
HEADS = [(16, 0), (16, 2), (32, 4), (16, 8), (32, 16), *([(256, 128), (512, 64)] if DEVICE == "cuda" else [])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "rotated"), HEADS)
@pytest.mark.parametrize("k_eq_v", [False, True])
@pytest.mark.parametrize("layout", [PAGED, RING], ids=["paged", "ring"])
def test_rope_write(dim: int, rotated: int, k_eq_v: bool, layout: tuple[Any, int], dtype: torch.dtype) -> None:
    heads, rope = make_heads(dim, 4, k_eq_v), make_rope(dim, rotated)
    view = make_view(*layout, (2, dim), dtype)
    expected_view = copy_of(view, F32)
    positions = ints([3, 4, 5, 9, -1, 10])
    parts = randn(3, 6, (6 if k_eq_v else 8) * dim)
    q = fused.rope_write(parts, heads, rope, positions, view, dtype)
    expected = reference_rope(in_order(parts), heads, rope, positions, expected_view)
    real = positions >= 0
    assert torch.isfinite(q).all()
    assert_close(q[real], expected[real])
    assert_close(view.keys, expected_view.keys)
    assert_close(view.values, expected_view.values)
    assert torch.equal(view.keys == 7, expected_view.keys == 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k_eq_v", [False, True])
@pytest.mark.parametrize("n", [5, 2 * fused.ROPE_ROWS])  # a program takes one row, or several
def test_a_chunk_keeps_its_keys_beside_the_cache(n: int, k_eq_v: bool, dtype: torch.dtype) -> None:
    dim = 16
    heads, rope = make_heads(dim, 3, k_eq_v), make_rope(dim, 4)
    view = make_view([[0, 1, 2]], 4, (1, dim), dtype)
    fresh = tuple(torch.full((n, 1, dim), math.nan, dtype=dtype, device=DEVICE) for _ in range(2))
    parts, positions = randn(2, n, (4 if k_eq_v else 5) * dim), ints([-1, -1, *range(6, 4 + n)])
    q = fused.rope_write(parts, heads, rope, positions, view._replace(fresh=fresh), dtype)
    assert (view.keys == 7).all()
    assert all(torch.isfinite(t).all() for t in (q, *fresh))
    direct = copy_of(view)
    assert torch.equal(fused.rope_write(parts, heads, rope, positions, direct, dtype)[2:], q[2:])
    fused.store_fresh(view._replace(fresh=fresh), positions)
    assert torch.equal(view.keys, direct.keys)
    assert torch.equal(view.values, direct.values)


@pytest.mark.parametrize(("n", "start", "pad"), [(3, 0, 0), (6, 5, 2), (6, 11, 0), (9, 4, 0), (20, 3, 5)])
def test_a_ring_takes_the_last_rows_of_a_chunk(n: int, start: int, pad: int) -> None:
    page, width = 6, (2, 24)
    view = make_view([[1]], page, width)
    fresh = randn(n, *width), randn(n, *width, seed=1)
    positions = torch.cat([torch.full((pad,), -1), torch.arange(start, start + n - pad)]).to(DEVICE)
    expected = copy_of(view)
    for row, position in enumerate(positions.tolist()):
        if position >= 0:
            slot = page + position % page
            expected.keys[slot], expected.values[slot] = fresh[0][row], fresh[1][row]
    fused.store_fresh(view._replace(fresh=fresh), positions)
    assert torch.equal(view.keys, expected.keys)
    assert torch.equal(view.values, expected.values)


def test_a_ring_ignores_rows_that_a_later_row_of_the_chunk_could_replace() -> None:
    page = 4
    view = make_view([[0]], page, (1, 16))
    fresh = randn(6, 1, 16), randn(6, 1, 16, seed=1)
    fused.store_fresh(view._replace(fresh=fresh), ints([0, 1, -1, -1, 6, 7]))  # on a GPU, rows run in any order
    assert torch.equal(view.keys[2:], fresh[0][4:])
    assert (view.keys[:2] == 7).all()
    assert (view.values[:2] == 7).all()


def test_a_projection_of_queries_alone_is_turned_without_a_cache() -> None:
    heads, rope = make_heads(16, 3), make_rope(16, 8)
    parts, positions = randn(2, 4, 48), ints([0, 63, 5, 5])
    q = fused.rope_write(parts, heads, rope, positions, None, F32)
    assert_close(q, REFERENCE.rope_write(in_order(parts), heads, rope, positions, None))


# Per-layer embeddings, gates, caps


@pytest.mark.parametrize("count", [1, 3])
def test_mix_ple(count: int) -> None:
    context, token, weight = randn(count, 3, 5 * 12), randn(3, 60, seed=1), randn(12, seed=2)
    out = ple.mix_ple(context, token, weight, 0.3, EPS)
    assert_close(out, REFERENCE.mix_ple(in_order(context), token, weight, 0.3, EPS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_gate_ple(layer: int, dtype: torch.dtype) -> None:
    gate, mixed = randn(2, 3, 12, scale=3.0), randn(3, 5, 12, seed=1)
    assert_close(ple.gate_ple(gate, mixed, layer, dtype), REFERENCE.gate_ple(in_order(gate), mixed, layer))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [16, 100, 1030])
def test_geglu(half: int, dtype: torch.dtype) -> None:
    parts = randn(2, 3, 2 * half, scale=3.0)
    gate, up = in_order(parts).chunk(2, dim=-1)
    assert_close(ple.geglu(parts, dtype), gelu(gate, approximate="tanh") * up)


def test_gelu_of_extremes() -> None:
    gate = ints([-1e12, -100.0, -20.0, -10.0, -5.0, -1e-20, 0.0, 1e-20, 1e-3, 9.0, 100.0, 1e12], F32)
    out = ple.geglu(torch.cat([gate, torch.ones_like(gate)])[None, None], F32)[0]
    wide = gate.double()
    u = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    expected = wide * torch.special.expit(2 * u)
    assert ((out - expected).abs() <= 1e-5 * expected.abs() + 1e-30 * (1 + wide.abs())).all()


def test_softcap() -> None:
    spread = torch.cat([torch.logspace(-8, 4, 2000), torch.linspace(0, 60, 2000)]).to(DEVICE)
    parts = torch.stack([spread, -spread])[None]
    out = ple.softcap(parts, 30.0)
    expected = 30 * (parts[0].double() / 30).tanh()
    assert ((out - expected).abs() <= 1e-6 * expected.abs()).all()
    assert torch.equal(ple.softcap(parts, None), parts[0])


def test_softcap_of_a_sum() -> None:
    parts = randn(3, 2, 1030, scale=20.0)
    assert_close(ple.softcap(parts, 30.0), 30 * (in_order(parts) / 30).tanh())
    assert torch.equal(ple.softcap(parts, None), in_order(parts))


# What each row attends


@pytest.mark.parametrize("q", [1, 3])
def test_ranges_of_a_round(q: int) -> None:
    lengths, window = [0, 1, 5, 300], 4
    rows = [length + i for length in lengths for i in range(q)]
    expected = [rows, [max(0, p - window + 1) for p in rows], [0] * len(rows), rows]
    out = fused.row_ranges(ints(lengths, torch.int32), q, window)
    assert [t.tolist() for t in out] == expected
    assert {t.dtype for t in out} == {torch.int64}


@pytest.mark.parametrize("back", [0, 1])
def test_ranges_of_a_drafter(back: int) -> None:
    lengths, window = [1, 3, 4, 5, 300], 4
    out = fused.draft_ranges(ints(lengths, torch.int32), back, window)
    first = [max(0, length - window) for length in lengths]
    assert [t.tolist() for t in out] == [[n - back for n in lengths], first, [0] * 5, [n - 1 for n in lengths]]


@pytest.mark.parametrize(("start", "n", "pad"), [(0, 4, 0), (0, 130, 3), (7, 5, 4), (130, 4, 2)])
def test_ranges_of_a_chunk(start: int, n: int, pad: int) -> None:
    window = 4
    out = fused.chunk_ranges(ints([start], torch.int32), n, ints([pad], torch.int32), window)
    rows = [-1] * pad + [start + i for i in range(n - pad)]
    assert [t.tolist() for t in out] == [rows, [max(0, p - window + 1) for p in rows], [0] * n, rows]


# A row's bits do not depend on its company


def norms_of(rows: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Everything the row kernels make of rows [n, 5, D]: a stream, three parts and an expert's result."""
    h, parts = rows[:, 0].contiguous(), rows[:, 1:4].transpose(0, 1).contiguous()
    width = rows.shape[-1]
    post, pre, scale = randn(width, seed=1), randn(width, seed=2), randn(1, seed=3)
    new, x = fused.add_norm(h, parts, post, pre, scale, EPS, dtype)
    experts, weights = rows[:, 3:].contiguous(), rows[:, 0, :2].contiguous()
    return [
        *(new, x, fused.rms_norm(h, pre, EPS, dtype), fused.total(parts, dtype)),
        *fused.norms2(h, pre, post, EPS, dtype),
        *fused.enter(parts, pre, EPS, dtype),
        fused.combine_experts(parts, post, experts, weights, pre, EPS)[0],
        *(ple.geglu(parts, dtype), ple.softcap(parts, 30.0)),
        ple.mix_ple(parts, h, post[: width // 4].contiguous(), 0.3, EPS),
        ple.gate_ple(parts, experts, 1, dtype),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 2816] if DEVICE == "cuda" else [64])
def test_rows_do_not_depend_on_their_company(width: int, dtype: torch.dtype) -> None:
    rows = randn(9, 5, width) * torch.logspace(-3, 3, 9, device=DEVICE)[:, None, None]
    together = norms_of(rows, dtype)
    for chosen in ([0], [8], [4, 1], [7, 7, 3], [5, 0, 8, 2, 6]):
        for one, all_rows in zip(norms_of(rows[chosen], dtype), together, strict=True):
            assert torch.equal(one, all_rows[chosen])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k_eq_v", [False, True])
def test_heads_do_not_depend_on_their_company(k_eq_v: bool, dtype: torch.dtype) -> None:
    dim = 32
    heads, rope = make_heads(dim, 2, k_eq_v), make_rope(dim, 8)
    parts = randn(2, 6, (3 if k_eq_v else 4) * dim)
    positions = ints([3, 4, 5, 9, 10, 11])
    view = make_view(*PAGED, (1, dim), dtype)
    q = fused.rope_write(parts, heads, rope, positions, view, dtype)
    for row, position in enumerate(positions.tolist()):
        alone = make_view([[0, 1, 2]], 4, (1, dim), dtype)
        rows = parts[:, row : row + 1].contiguous()
        one = fused.rope_write(rows, heads, rope, positions[row : row + 1].clone(), alone, dtype)
        assert torch.equal(one[0], q[row])
        slot = int(view.table[row // 3, position // 4]) * 4 + position % 4
        assert torch.equal(alone.keys[position], view.keys[slot])
        assert torch.equal(alone.values[position], view.values[slot])
