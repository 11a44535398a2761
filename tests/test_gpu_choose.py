"""Tokens chosen on the device against `paceline.sampling`, which chooses on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from gpu import DEVICE, randn
from torch import Tensor

from paceline.errors import UsageError
from paceline.kernels.gpu import choose, nucleus
from paceline.kernels.gpu.choose import greedy, pick_best, sample
from paceline.kernels.gpu.philox import gumbel, halves
from paceline.kernels.gpu.rows import MARGIN_UNIT, Columns, mode_of, rows_of
from paceline.kernels.reference import TorchOps, philox_gumbel
from paceline.sampling import Sampler
from paceline.types import SamplingParams

GREEDY, FREE = SamplingParams(), SamplingParams(temperature=0.9, seed=11)
NARROW = [
    SamplingParams(temperature=1.0, top_k=64, top_p=0.95, seed=2**64 - 3),
    SamplingParams(temperature=0.3, top_k=5, seed=2**63),
    SamplingParams(temperature=4.0, top_k=200, top_p=0.7, seed=1),
    SamplingParams(temperature=2.5, top_k=256, seed=7),
    SamplingParams(temperature=1.0, top_k=20, top_p=1e-6),
    SamplingParams(temperature=1.0, top_k=1, seed=3),
    SamplingParams(temperature=2.0, top_k=100, top_p=0.95, min_p=0.2, seed=4),
]
WIDE = [
    SamplingParams(temperature=1.0, top_p=0.9, seed=5),  # 256 tokens hold that much
    SamplingParams(temperature=6.0, top_p=0.9, seed=6),  # here they do not
    SamplingParams(temperature=6.0, top_k=700, seed=8),
    SamplingParams(temperature=6.0, top_k=600, top_p=0.8, seed=9),
    SamplingParams(temperature=1.0, top_k=10**12, top_p=1e-9, seed=10),
    SamplingParams(temperature=6.0, min_p=0.4, seed=12),
    SamplingParams(temperature=6.0, top_p=0.95, min_p=0.5, seed=13),
    SamplingParams(temperature=6.0, top_k=900, min_p=0.3, seed=14),
]
LONG = 1500  # columns: two tiles, of which the last is not full


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles a row, without a vocabulary that an interpreter takes minutes for."""
    monkeypatch.setattr(choose, "TILE", 1024)
    monkeypatch.setattr(choose, "DIRECT", 512)
    monkeypatch.setattr(nucleus, "TILE", 1024)


def on_cpu(logits: Tensor, params: Sequence[SamplingParams], positions: Tensor, columns: Columns) -> list[int]:
    """What `Sampler` chooses, row by row."""
    ops, chosen = TorchOps(), []
    banned = () if columns.suppress is None else tuple(columns.suppress.tolist())
    for r, row in enumerate(logits.cpu().split(1)):
        sampler = Sampler(ops, params[r * len(params) // len(logits)], banned)
        if columns.ids is None:
            chosen += sampler.choose(row, int(positions[r]))
        else:
            chosen.append(sampler.guess(row, columns.ids[r : r + 1].cpu(), int(positions[r])))
    return chosen


def choices(logits: Tensor, params: Sequence[SamplingParams], mode: str = "", columns: Columns | None = None) -> Tensor:
    """`sample` over positions far beyond 2^32, in the batch's own mode unless told otherwise."""
    mode = mode or mode_of(params)
    return sample(logits, rows_of(params, DEVICE), positions(len(logits)), mode, columns or Columns())


def positions(n: int) -> Tensor:
    return torch.arange(n, device=DEVICE) * (2**31 + 12345) + 17


def check(logits: Tensor, params: Sequence[SamplingParams], mode: str = "", columns: Columns | None = None) -> None:
    expected = on_cpu(logits, params, positions(len(logits)), columns or Columns())
    assert choices(logits, params, mode, columns).tolist() == expected


def banned(*ids: int) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32, device=DEVICE)


# ---- noise ----------------------------------------------------------------------------------------------------------


@triton.jit
def _noise(seed, position, ids, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    low, high = halves(tl.load(seed))
    tl.store(out + at, gumbel(low, high, tl.load(position), tl.load(ids + at)))


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (2**64 - 1, 2**40 + 7), (2**63, 2**32 - 1), (12345, 2**31)])
def test_noise_is_the_references(seed: int, position: int) -> None:
    ids = torch.cat([torch.arange(100), torch.randint(0, 2**18, (156,))])
    out = torch.empty(256, dtype=torch.float64, device=DEVICE)
    seeds = rows_of([SamplingParams(seed=seed)], DEVICE).seed
    _noise[1,](seeds, torch.tensor([position], device=DEVICE), ids.to(DEVICE), out, SIZE=256)
    expected = philox_gumbel(seed, position, ids.numpy().astype(np.uint64))
    assert np.abs(out.cpu().numpy() / expected - 1).max() < 1e-12


# ---- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 37, 1024, LONG])
def test_greedy_takes_the_greatest(size: int) -> None:
    x = randn(5, size)
    assert torch.equal(greedy(x), x.argmax(1))


def test_greedy_ties_go_to_the_lowest_column() -> None:
    x = torch.zeros(3, LONG, device=DEVICE)
    x[0, [1400, 1100, 1030]] = 1.0
    x[1, 5:] = -0.0  # equal to zero, though its bits are not
    x[2] = -math.inf
    assert greedy(x).tolist() == [1030, 0, 0]
    assert choices(x, [GREEDY, GREEDY, FREE]).tolist()[:2] == [1030, 0]


@pytest.mark.parametrize("params", [GREEDY, FREE, NARROW[0], WIDE[1]])
def test_suppressed_columns_never_come_out(params: SamplingParams) -> None:
    x = randn(2, LONG)
    x[:, 4], x[:, 1200] = 50.0, 49.0  # without the ban these would always win
    check(x, [params], columns=Columns(suppress=banned(4, 1200)))


@pytest.mark.parametrize("mode", ["greedy", "top", "general"])
@pytest.mark.parametrize("size", [3, LONG])
def test_what_is_no_number_is_never_chosen(size: int, mode: str) -> None:
    x = torch.full((4, size), math.nan, device=DEVICE)
    x[1, 2], x[2] = -1.0, -math.inf
    for params in [[GREEDY]] if mode == "greedy" else [[GREEDY], [FREE], [NARROW[2]]]:
        chosen = choices(x[:3], params, mode)
        assert chosen[1] == 2
        assert ((chosen >= 0) & (chosen < size)).all()


def test_names_of_columns() -> None:
    x, ids = randn(4, 300).round(), torch.randint(0, 2**18, (4, 300), device=DEVICE)
    for params in ([GREEDY] * 4, [FREE, GREEDY, *NARROW[:2]], [NARROW[2], FREE]):
        check(x, params, columns=Columns(ids))
    check(x[:2], WIDE[:2], columns=Columns(ids[:2]))


@pytest.mark.parametrize("tiles", [1, 3, 100, 5000])
def test_pick_best_of_tiles(tiles: int) -> None:
    values = randn(tiles, 3).round()
    values[0, 2] = math.nan
    ids = (torch.arange(3 * tiles, device=DEVICE, dtype=torch.int32) * 7 % 100003).reshape(tiles, 3)
    first = values.nan_to_num(nan=-math.inf).argmax(0)
    assert pick_best(values, ids).tolist() == [int(ids[t, r]) for r, t in enumerate(first)]


# ---- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 300, LONG])
def test_mixed_rows_as_on_the_cpu(size: int) -> None:
    check(randn(18, size, seed=size, scale=2.0), [GREEDY, FREE, *NARROW])


@pytest.mark.parametrize("size", [300, LONG])
def test_wide_rows_as_on_the_cpu(size: int) -> None:
    check(randn(9, size, seed=size, scale=2.0), [*WIDE, NARROW[0]])


def test_many_equal_logits() -> None:
    x = randn(4, LONG).round()
    x[3:] = 0.25
    check(x, NARROW[:4])
    check(x[1:], [WIDE[1], WIDE[3], SamplingParams(temperature=1.0, top_p=0.5)])


def test_the_nucleus_ends_exactly_at_its_share() -> None:
    """Ten equal tokens: half the mass is five of them, not six."""
    x = torch.zeros(16, 10, device=DEVICE)
    params = [SamplingParams(temperature=1.0, top_p=0.5, seed=s) for s in range(16)]
    chosen = choices(x, params)
    assert set(chosen.tolist()) <= {0, 1, 2, 3, 4}
    assert chosen.tolist() == on_cpu(x, params, positions(16), Columns())


def test_rows_alone_and_together() -> None:
    params = [NARROW[0], WIDE[1], FREE, NARROW[2]]
    x, at = randn(8, LONG, scale=2.0), positions(8)
    together = sample(x, rows_of(params, DEVICE), at, "general")
    for r in (0, 2, 5, 7):
        own = [params[r // 2]]
        assert sample(x[r : r + 1], rows_of(own, DEVICE), at[r : r + 1], mode_of(own)) == together[r]
    assert torch.equal(sample(x[4:], rows_of(params[2:], DEVICE), at[4:], "top"), together[4:])


def test_every_mode_chooses_alike() -> None:
    params, x = [GREEDY, FREE, *NARROW[:3]], randn(5, LONG, scale=2.0)
    assert torch.equal(choices(x, params, "top"), choices(x, params, "general"))
    greedy_rows = [choices(x[:2], [GREEDY], mode) for mode in ("greedy", "top", "general")]
    assert all(torch.equal(rows, greedy_rows[0]) for rows in greedy_rows)


def test_the_cheapest_mode() -> None:
    assert mode_of([GREEDY, GREEDY]) == mode_of([SamplingParams(top_p=0.5)]) == "greedy"
    assert mode_of([GREEDY, FREE, *NARROW]) == "top"
    assert [mode_of([FREE, p]) for p in WIDE] == ["general"] * len(WIDE)


@pytest.mark.parametrize("x", [torch.zeros(2, 4, dtype=torch.float64), torch.zeros(4, 2).T, torch.zeros(1, 2**20 + 1)])
def test_logits_it_cannot_read_are_refused(x: Tensor) -> None:
    with pytest.raises(UsageError, match="fp32"):
        greedy(x)


# ---- by how much a choice leads -------------------------------------------------------------------------------------


def leads(n: int) -> Tensor:
    """Where margins go: a column of a wider table, as those of an outcome are."""
    return torch.full((n, 3), -1, dtype=torch.int64, device=DEVICE)[:, 1]


def lead_of_two(values: np.ndarray) -> float:
    """By how much the greatest of them leads, no more than 64."""
    second, first = np.sort(values)[-2:]
    return min(float(first - second), 64.0)


@pytest.mark.parametrize("size", [300, LONG])
@pytest.mark.parametrize("p", [*NARROW[:4], *WIDE[:2]])
def test_the_lead_of_a_sampled_row_is_that_of_its_likeliest_token(size: int, p: SamplingParams) -> None:
    """Without noise, and in logits: noise says nothing of the positions to come."""
    x, margins = randn(5, size, seed=size, scale=2.0), leads(5)
    plain = choices(x, [p])
    assert torch.equal(choices(x, [p], columns=Columns(margins=margins)), plain)
    expected = [lead_of_two(row) for row in x.cpu().numpy()]
    assert np.abs(margins.cpu().numpy() / MARGIN_UNIT - expected).max() < 2 / MARGIN_UNIT


def test_some_rows_do_not_tell() -> None:
    """A greedy sequence among sampled ones, of which only the best is looked for, and one whose tokens are all kept."""
    for size in (300, LONG):
        x, margins = randn(3, size), leads(3)
        choices(x, [GREEDY, NARROW[0], FREE], columns=Columns(margins=margins))
        assert margins[0] == margins[2] == 0 < margins[1]


@pytest.mark.parametrize("near", [False, True])
def test_the_lead_of_the_best_tile(near: bool) -> None:
    values, margins = randn(100, 4, scale=3.0), leads(4)
    values[7, 1] = math.nan
    seconds = values - 0.25 if near else None
    ids = torch.arange(400, dtype=torch.int32, device=DEVICE).reshape(100, 4)
    plain = pick_best(values, ids)
    assert torch.equal(pick_best(values, ids, seconds, margins), plain)
    expected = [lead_of_two(column) for column in values.nan_to_num(nan=-99.0).T.cpu().numpy()]
    if near:
        assert min(expected) < 0.25 < max(expected)
        expected = [min(lead, 0.25) for lead in expected]
    assert np.abs(margins.cpu().numpy() / MARGIN_UNIT - expected).max() < 2 / MARGIN_UNIT


def test_a_tile_alone_does_not_tell() -> None:
    values, margins = randn(1, 2), leads(2)
    pick_best(values, torch.zeros(1, 2, dtype=torch.int32, device=DEVICE), None, margins)
    assert margins.tolist() == [0, 0]
    greedy(randn(2, 300), Columns(margins=margins))
    assert margins.tolist() == [0, 0]
    x = torch.zeros(2, LONG, device=DEVICE)
    x[:, 5], x[:, 1200] = 3.0, 2.5
    greedy(x, Columns(margins=margins))
    assert margins.tolist() == [MARGIN_UNIT // 2] * 2
