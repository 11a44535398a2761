"""Routing, planning and the experts on the GPU (or in Triton's interpreter) against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gpu import DEVICE, DTYPES, error, randn, tolerance
from torch import Tensor

from paceline.kernels.gpu import moe, moe_plan
from paceline.kernels.reference import TorchOps

EXPERTS, ACTIVE, SIZE, HIDDEN, SLICES = 8, 2, 24, 64, 3
REFERENCE = TorchOps(DEVICE)


class Layer:
    """Weights of a small layer, sparse and dense."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.gate_up = randn(EXPERTS, 2 * SIZE, HIDDEN, seed=1, dtype=dtype, scale=0.2)
        self.down = randn(EXPERTS, HIDDEN, SIZE, seed=2, dtype=dtype, scale=0.3)
        self.dense_gate_up = randn(2 * SLICES * SIZE, HIDDEN, seed=3, dtype=dtype, scale=0.2)
        self.dense_down = randn(HIDDEN, SLICES * SIZE, seed=4, dtype=dtype, scale=0.3)

    def sparse(self, x: Tensor, ids: Tensor, tile: int | None = None) -> Tensor:
        return moe.experts(x, moe.plan(ids, EXPERTS, tile), ids, self.gate_up, self.down)

    def both(self, x: Tensor, x_dense: Tensor, ids: Tensor, tile: int | None = None) -> tuple[Tensor, Tensor]:
        weights = self.gate_up, self.down, self.dense_gate_up, self.dense_down
        return moe.experts_and_dense(x, x_dense, moe.plan(ids, EXPERTS, tile), ids, *weights)

    def expected_sparse(self, x: Tensor, ids: Tensor) -> Tensor:
        stacks = []
        for weight in (self.gate_up, self.down):
            stacks.append(REFERENCE.stack(*weight.shape, torch.float32))
            stacks[-1].write(0, weight.float())
        return REFERENCE.experts(x.float(), ids, *stacks)

    def expected_dense(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x.float(), self.dense_gate_up.float()).chunk(2, dim=-1)
        return F.linear(F.gelu(gate, approximate="tanh") * up, self.dense_down.float())


def ids_of(kind: str, n: int) -> Tensor:
    """Experts of n rows: all the same, as many different ones as there are, or at random."""
    if kind == "same":
        rows = [[5, 3]] * n
    elif kind == "different":
        rows = [[2 * r % EXPERTS, (2 * r + 1) % EXPERTS] for r in range(n)]
    else:
        rows = randn(n, EXPERTS, seed=n).topk(ACTIVE).indices.tolist()
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE)


def tiles_of(plan: moe.Plan) -> list[tuple[int, list[int]]]:
    """A plan as (expert, pairs) of each tile."""
    count = int(plan.tiles)
    assert count <= len(plan.experts)
    pairs = [row[:size] for row, size in zip(plan.pairs.tolist(), plan.counts.tolist(), strict=True)]
    return list(zip(plan.experts.tolist(), pairs, strict=True))[:count]


def expected_tiles(ids: Tensor, experts: int, tile: int) -> list[tuple[int, list[int]]]:
    flat = ids.flatten().tolist()
    pairs = {expert: [pair for pair, its in enumerate(flat) if its == expert] for expert in range(experts)}
    return [(e, its[at : at + tile]) for e, its in pairs.items() for at in range(0, len(its), tile)]


@pytest.mark.parametrize(
    ("n", "experts", "active", "parts"), [(1, 128, 8, 3), (5, 128, 8, 1), (3, 6, 3, 2), (18, 8, 2, 1)]
)
def test_route_and_plan(n: int, experts: int, active: int, parts: int) -> None:
    scores, scale = randn(parts, n, experts, seed=n, scale=2), randn(experts, seed=1).abs()
    ids, weights, plan = moe.route_and_plan(scores, active, scale)
    expected_ids, expected_weights = REFERENCE.route(scores.sum(0), active, scale)
    assert torch.equal(ids.long(), expected_ids)
    assert error(weights, expected_weights) < tolerance(torch.float32)
    assert sorted(tiles_of(plan)) == expected_tiles(ids, experts, plan.pairs.shape[1])


def test_equal_scores_go_to_the_lowest_index() -> None:
    scores = torch.tensor([[0.0, 1.0, -0.0, 1.0, 0.0, -3.0, -0.0, 0.5]], device=DEVICE)
    ids, weights = moe.route(scores[None], 5, torch.ones(8, device=DEVICE))
    assert ids.tolist() == [[1, 3, 7, 0, 2]]
    assert weights[0, 0] == weights[0, 1]
    assert weights[0, 3] == weights[0, 4]


def test_greatest_scores_do_not_overflow() -> None:
    scores = torch.tensor([[3e38, -3e38, 100.0, -float("inf"), 3e38, 0.0, 1.0, 2.0]], device=DEVICE)
    ids, weights = moe.route(scores[None], 3, torch.full((8,), 2.0, device=DEVICE))
    assert ids.tolist() == [[0, 4, 2]]
    assert weights.tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("n", [2, 7, 16])
def test_routes_do_not_depend_on_company(n: int) -> None:
    scores, scale = randn(3, n, 128, seed=n), randn(128, seed=1).abs()
    together = moe.route_and_plan(scores, 8, scale)[:2]
    apart = moe.route(scores, 8, scale)
    alone = [moe.route_and_plan(scores[:, r : r + 1].contiguous(), 8, scale) for r in range(n)]
    for i in range(2):
        assert torch.equal(together[i], apart[i])
        assert torch.equal(together[i], torch.cat([result[i] for result in alone]))


@pytest.mark.parametrize("kind", ["same", "different", "random"])
@pytest.mark.parametrize(("n", "tile"), [(1, None), (16, None), (33, 16), (70, 32), (70, 48), (200, 160)])
def test_plan(kind: str, n: int, tile: int | None) -> None:
    ids = ids_of(kind, n)
    plan = moe.plan(ids, EXPERTS, tile)
    assert tiles_of(plan) == expected_tiles(ids, EXPERTS, plan.pairs.shape[1])


def test_a_plan_has_room_for_the_worst_case() -> None:
    """Every expert's last tile has one pair in it."""
    counts = [49, 33, 17, 17, 1, 1, 1, 1]
    flat = [expert for expert, count in enumerate(counts) for _ in range(count)]
    ids = torch.tensor(flat, dtype=torch.int32, device=DEVICE).reshape(-1, ACTIVE)
    plan = moe.plan(ids, EXPERTS, 16)
    assert len(plan.experts) == int(plan.tiles) == 15
    assert tiles_of(plan) == expected_tiles(ids, EXPERTS, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "kind"), [(1, "same"), (3, "different"), (33, "random")])
def test_experts(n: int, kind: str, dtype: torch.dtype) -> None:
    layer, ids = Layer(dtype), ids_of(kind, n)
    x, x_dense = (randn(n, HIDDEN, seed=seed, dtype=dtype) for seed in (5, 6))
    sparse = layer.sparse(x, ids)
    weights = randn(n, ACTIVE, 1, seed=7)
    assert sparse.dtype == torch.float32
    assert error(sparse, layer.expected_sparse(x, ids)) < tolerance(dtype)
    assert error((sparse * weights).sum(1), (layer.expected_sparse(x, ids) * weights).sum(1)) < tolerance(dtype)
    same, parts = layer.both(x, x_dense, ids)
    assert torch.equal(same, sparse)
    assert parts.shape == (SLICES, n, HIDDEN)
    assert error(parts.sum(0), layer.expected_dense(x_dense)) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "kind"), [(4, "different"), (5, "random"), (33, "same")])
def test_answers_do_not_depend_on_company(n: int, kind: str, dtype: torch.dtype) -> None:
    layer, ids = Layer(dtype), ids_of(kind, n)
    x, x_dense = (randn(n, HIDDEN, seed=seed, dtype=dtype) for seed in (5, 6))
    sparse, parts = layer.both(x, x_dense, ids)
    for rows in ([0], [n - 1], [2, 0, n - 1]):
        some_sparse, some_parts = layer.both(x[rows], x_dense[rows], ids[rows])
        assert torch.equal(some_sparse, sparse[rows])
        assert torch.equal(some_parts, parts[:, rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_do_not_depend_on_the_width_of_tiles(dtype: torch.dtype) -> None:
    layer, ids = Layer(dtype), ids_of("random", 20)
    x = randn(20, HIDDEN, seed=5, dtype=dtype)
    sparse, parts = layer.both(x, x, ids, 16)
    for tile in (32, 48, 128, 160):
        wider_sparse, wider_parts = layer.both(x, x, ids, tile)
        assert torch.equal(wider_sparse, sparse)
        assert torch.equal(wider_parts, parts)


def test_one_row_is_the_same_whatever_order_its_plan_has() -> None:
    """A single row's plan follows its ranks, any other the experts."""
    layer, x = Layer(torch.float32), randn(1, HIDDEN, seed=5)
    ids, _, plan = moe.route_and_plan(randn(1, 1, EXPERTS, seed=3), ACTIVE, torch.ones(EXPERTS, device=DEVICE))
    assert torch.equal(moe.experts(x, plan, ids, layer.gate_up, layer.down), layer.sparse(x, ids))


def test_nothing_undefined_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unused tiles and places hold garbage: it must not be followed, nor reach what is real."""

    def garbage(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        value = float("nan") if dtype.is_floating_point else 1 << 29
        return torch.full(shape, value, dtype=dtype, device=like.device)

    monkeypatch.setattr(moe, "scratch", garbage)
    monkeypatch.setattr(moe_plan, "scratch", garbage)
    layer, x = Layer(torch.float32), randn(5, HIDDEN, seed=5)
    scores = randn(1, 5, EXPERTS, seed=3)
    ids, weights, plan = moe.route_and_plan(scores, ACTIVE, torch.ones(EXPERTS, device=DEVICE))
    sparse, parts = moe.experts_and_dense(
        x, x, plan, ids, layer.gate_up, layer.down, layer.dense_gate_up, layer.dense_down
    )
    assert torch.equal(weights.sum(1).round(decimals=5), torch.ones(5, device=DEVICE))
    assert error(sparse, layer.expected_sparse(x, ids)) < tolerance(torch.float32)
    assert error(parts.sum(0), layer.expected_dense(x)) < tolerance(torch.float32)
