"""The centroid head on the device against the reference operations `MtpDrafter.logits` is made of."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from gpu import DEVICE, DTYPES, error, randn, tolerance
from torch import Tensor

from paceline.kernels.gpu.centroids import Clustered, centroid_choice
from paceline.kernels.gpu.choose import greedy, pick_best, sample
from paceline.kernels.gpu.rows import MARGIN_UNIT, Columns, rows_of
from paceline.kernels.reference import TorchMatrix, TorchOps
from paceline.sampling import Sampler
from paceline.types import SamplingParams

SHAPES = [(40, 8, 6, 24), (64, 40, 4, 64), (6, 5, 6, 7), (300, 33, 8, 16)]  # clusters, their width, active, hidden


class Head(NamedTuple):
    """A small centroid head and n rows for it, by their scores and states."""

    scores: Tensor
    active: int
    clusters: Tensor
    y: Tensor
    table: Tensor

    def rows(self, first: int, last: int) -> Head:
        return self._replace(scores=self.scores[:, first:last].contiguous(), y=self.y[first:last].contiguous())


def head(shape: tuple[int, ...], n: int = 3, parts: int = 1, dtype: torch.dtype = torch.float32) -> Head:
    """Scores are rounded, so that clusters tie."""
    count, width, active, hidden = shape
    order = torch.randperm(count * width, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    y, table = randn(n, hidden, seed=1, dtype=dtype), randn(count * width, hidden, seed=2, dtype=dtype)
    return Head(randn(parts, n, count, seed=3).round(decimals=1), active, order.reshape(count, width), y, table)


def reference(h: Head) -> tuple[Tensor, Tensor]:
    """(logits, ids) as `MtpDrafter.logits` has them."""
    ops, matrix = TorchOps(DEVICE), TorchMatrix(len(h.table), h.y.shape[1], torch.float32, DEVICE)
    matrix.tensor = h.table.float()
    total = h.scores[0]
    for part in h.scores[1:]:
        total = total + part
    best, _ = ops.top(total, h.active)
    ids = ops.gather_rows(h.clusters, best)
    return ops.gather_linear(h.y.float(), matrix, ids), ids


def first_best(out: Clustered) -> Tensor:
    """The id of each row's greatest logit, ties by candidate order."""
    return out.ids[torch.arange(len(out.ids), device=DEVICE), out.logits.argmax(1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_candidates_are_the_references(shape: tuple[int, ...], parts: int, dtype: torch.dtype) -> None:
    h = head(shape, parts=parts, dtype=dtype)
    out, (logits, ids) = centroid_choice(*h), reference(h)
    assert torch.equal(out.ids, ids)
    assert error(out.logits, logits) < tolerance(torch.float32)  # products of bf16 are exact, and fp32 adds them
    assert torch.equal(pick_best(out.tile_values, out.tile_ids), first_best(out))
    assert torch.equal(greedy(out.logits, Columns(out.ids)), first_best(out))
    margins = torch.zeros(len(out.ids), dtype=torch.int64, device=DEVICE)
    pick_best(out.tile_values, out.tile_ids, out.tile_seconds, margins)
    two = out.logits.topk(2).values
    assert (margins / MARGIN_UNIT - (two[:, 0] - two[:, 1]).clamp(max=64.0)).abs().max() < 2 / MARGIN_UNIT


def test_equal_logits_go_to_the_first_candidate() -> None:
    h = head(SHAPES[1])
    h.table.fill_(1.0)
    out = centroid_choice(*h)
    assert torch.equal(pick_best(out.tile_values, out.tile_ids), out.ids[:, 0])
    assert torch.equal(greedy(out.logits, Columns(out.ids)), out.ids[:, 0])


def test_scores_that_are_no_numbers_stay_in_range() -> None:
    h = head(SHAPES[0])
    h.scores[0, 0], h.scores[0, 1, 5:], h.y[2, 0] = math.nan, -math.inf, math.nan
    out = centroid_choice(*h)
    assert torch.equal(out.ids[0], h.clusters[: h.active].flatten())
    assert torch.equal(out.ids[1].sort().values, h.clusters[[0, 1, 2, 3, 4, 5]].flatten().sort().values)
    assert pick_best(out.tile_values, out.tile_ids)[2] == out.ids[2, 0]


def test_rows_alone_and_together() -> None:
    h = head(SHAPES[3], n=5, parts=2, dtype=DTYPES[-1])
    together = centroid_choice(*h)
    for first, last in ((0, 1), (3, 4), (1, 4)):
        some = centroid_choice(*h.rows(first, last))
        assert torch.equal(some.logits, together.logits[first:last])
        assert torch.equal(some.ids, together.ids[first:last])
        assert torch.equal(some.tile_values, together.tile_values[:, first:last])


def test_sampling_among_candidates() -> None:
    cut = SamplingParams(temperature=1.5, top_k=20, top_p=0.9, seed=4)
    params = [cut, SamplingParams(temperature=1.0), SamplingParams()]
    out = centroid_choice(*head(SHAPES[1]))
    positions = torch.tensor([5, 6, 2**33], device=DEVICE)
    chosen = sample(out.logits, rows_of(params, DEVICE), positions, "top", Columns(out.ids))
    expected = [
        Sampler(TorchOps(), p).guess(out.logits[r : r + 1].cpu(), out.ids[r : r + 1].cpu(), int(positions[r]))
        for r, p in enumerate(params)
    ]
    assert chosen.tolist() == expected
