"""Attention over paged caches and rings: against plain PyTorch, and the same bits for a row in any company."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from gpu import DEVICE, DTYPES, error, randn, tolerance

from paceline.kernels import LayerView
from paceline.kernels.gpu import attention as decoding
from paceline.kernels.gpu.attention import Tiling, attention, tiled
from paceline.kernels.gpu.launch import CacheView
from paceline.kernels.gpu.prefill import prefill_attention
from paceline.kernels.reference import TorchOps

DIM = 16
Reach = list[list[tuple[int, int]]]  # for each sequence, for each row: first and last position


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer programs, and partial results in flight: idle ones cost the interpreter as much as busy ones."""
    monkeypatch.setitem(decoding.TILINGS, DIM, Tiling(ahead=4))
    monkeypatch.setattr(decoding, "PROGRAMS", 64)


class Case(NamedTuple):
    """One call of `attention`; `take` makes the same call with other company."""

    q: torch.Tensor
    view: CacheView
    first: torch.Tensor
    last: torch.Tensor

    def run(self) -> torch.Tensor:
        return attention(*self)

    def take(self, sequences: list[int], rows: list[int], **view: object) -> Case:
        """These rows of these sequences, in this order."""
        each = len(self.q) // len(self.view.table)
        at = torch.tensor([s * each + r for s in sequences for r in rows], device=DEVICE)
        table = self.view.table[torch.tensor(sequences, device=DEVICE)]
        return Case(self.q[at], self.view._replace(table=table, **view), self.first[at], self.last[at])


def paged(reach: Reach, kv_heads: int, group: int, dtype: torch.dtype, pages: int = 6) -> Case:
    """Sequences whose pages of 64 slots lie in any order, among slots that hold no number: none may be looked at."""
    table = torch.randperm(pages * len(reach) + 1, generator=torch.Generator().manual_seed(1))[1:]
    view = cache(64 * (len(table) + 1), kv_heads, table.view(len(reach), pages), 64, False, dtype)
    return case(reach, view._replace(span=pages * 64), group)


def ring(reach: Reach, kv_heads: int, group: int, dtype: torch.dtype, slots: int = 128) -> Case:
    """Sequences in rings of 128 slots, which positions have gone around more than once."""
    rings = torch.arange(len(reach)).flip(0)[:, None] + 1
    view = cache(slots * (len(reach) + 1), kv_heads, rings, slots, True, dtype)
    return case(reach, view._replace(span=slots - 16), group)


def cache(slots: int, kv_heads: int, table: torch.Tensor, page: int, ring: bool, dtype: torch.dtype) -> CacheView:
    keys, values = (randn(slots, kv_heads, DIM, seed=s, dtype=dtype) for s in (2, 3))
    return CacheView(keys, values, table.to(DEVICE, torch.int32), page, ring, 0)


def case(reach: Reach, view: CacheView, group: int) -> Case:
    """Forgets what lies before or after all that the rows of a sequence see."""
    flat = [row for rows in reach for row in rows]
    q = randn(len(flat), view.keys.shape[1] * group, DIM, seed=4, dtype=view.keys.dtype)
    first, last = (torch.tensor([row[i] for row in flat], device=DEVICE) for i in (0, 1))
    seen = torch.zeros(len(view.keys), dtype=torch.bool, device=DEVICE)
    for book, rows in zip(view.table, reach, strict=True):
        some = [row for row in rows if row[0] <= row[1]]
        if some:
            seen[slots_of(view, book, min(low for low, _ in some), max(high for _, high in some))] = True
    view.keys[~seen], view.values[~seen] = torch.nan, torch.nan
    return Case(q, view, first, last)


def slots_of(view: CacheView, book: torch.Tensor, low: int, high: int) -> torch.Tensor:
    at = torch.arange(low, high + 1, device=DEVICE)
    return book[(at // view.page) % len(book)].long() * view.page + at % view.page


def expected(case: Case) -> torch.Tensor:
    """[n, heads * dim] in fp32, row by row; zeros where a row sees nothing."""
    (q, view, first, last), rows = case, len(case.q) // len(case.view.table)
    out = torch.zeros(len(q), q.shape[1] * DIM, device=DEVICE)
    for r in range(len(q)):
        slots = slots_of(view, view.table[r // rows], int(first[r]), int(last[r]))
        if len(slots):
            out[r] = attend_row(q[r], view.keys[slots], view.values[slots])
    return out


def attend_row(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The reference's answer for one row: q [heads, dim], keys and values [m, kv_heads, dim]."""
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    view = LayerView(keys.float(), values.float(), zero, len(keys), ring=True)
    return TorchOps(DEVICE).attention(q[None].float(), view, zero, zero + len(keys) - 1)[0]


MIXED: Reach = [
    [(0, 200), (0, 201), (150, 202)],  # a whole context, and one that starts inside a leaf
    [(0, 0), (0, 1), (1, 2)],  # the first positions
    [(7, 6), (0, -1), (95, 96)],  # two rows that see nothing, one that crosses leaves
    [(64, 127), (65, 128), (383, 383)],  # leaves and pages from end to end
]
AROUND: Reach = [
    [(0, 30), (0, 31), (0, 32)],
    [(200, 299), (201, 300), (202, 301)],
    [(6399, 6400), (6399, 6399), (6310, 6401)],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_paged_attention_is_the_reference(group: int, dtype: torch.dtype) -> None:
    case = paged(MIXED[: 4 if group < 4 else 1], 2 if group == 2 else 1, group, dtype)
    assert error(case.run(), expected(case)) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
def test_rings_go_around(group: int, dtype: torch.dtype) -> None:
    case = ring(AROUND, 2 // group or 1, group, dtype)
    assert error(case.run(), expected(case)) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 9, 16])
def test_one_to_sixteen_rows(rows: int, dtype: torch.dtype) -> None:
    case = paged([[(max(0, 170 + i - 64), 170 + i) for i in range(rows)]], 1, 2, dtype)
    assert error(case.run(), expected(case)) < tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_see_nothing_are_zero(dtype: torch.dtype) -> None:
    nothing: Reach = [[(0, -1), (5, 4)], [(1000, -1), (0, -1)]]
    out = paged(nothing, 2, 2, dtype).run()
    assert out.shape == (4, 64)
    assert not out.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("make", "reach", "group"), [(paged, MIXED[::2], 2), (ring, AROUND[1:], 2), (paged, MIXED[:1], 8)]
)
def test_a_row_has_the_same_bits_in_any_company(
    make: Callable[..., Case], reach: Reach, group: int, dtype: torch.dtype
) -> None:
    case = make(reach, 1, group, dtype)
    together = case.run().view(len(reach), 3, -1)
    order = list(range(len(reach)))[::-1]
    assert torch.equal(case.take(order, [2, 0]).run().view(len(reach), 2, -1), together[order][:, [2, 0]])
    for s in range(len(reach)):
        alone = [case.take([s], [r]).run() for r in range(3)]
        assert torch.equal(torch.cat(alone), together[s])


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_no_capacity(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = paged(MIXED[:2], 2, 1, dtype)
    usual = case.run()
    assert torch.equal(case.take([0, 1], [0, 1, 2], span=1000).run(), usual)
    for programs in (1, 4 * 3, 4 * 6, 4 * 7):  # one program for all blocks; too few for the leaves; just enough
        monkeypatch.setattr(decoding, "PROGRAMS", programs)
        assert torch.equal(case.run(), usual), programs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [Tiling(split=64), Tiling(leaves=2, ahead=4), Tiling(cols=32, chunk=8, ahead=8)])
def test_other_tilings_are_right_too(cut: Tiling, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = paged(MIXED[:1], 1, 4, dtype)
    shape = case.q, case.view, (case.first, case.last), cut
    usual = tiled(*shape)
    assert error(usual, expected(case)) < tolerance(dtype)
    monkeypatch.setattr(decoding, "PROGRAMS", 1)
    assert torch.equal(tiled(*shape), usual)


def test_a_page_holds_whole_leaves() -> None:
    case = ring([[(0, 3)]], 1, 1, torch.float32, slots=48)
    with pytest.raises(ValueError, match="whole leaves"):
        case.run()


class Chunk(NamedTuple):
    """A chunk of a prompt: `padding` rows, then positions start .. start + real - 1, after `start` cached ones."""

    padding: int
    start: int
    real: int
    window: int


CHUNKS = [
    Chunk(0, 0, 16, 1000),
    Chunk(11, 0, 5, 1000),
    Chunk(40, 0, 56, 20),  # a tile of nothing but padding
    Chunk(0, 70, 48, 1000),
    Chunk(0, 100, 80, 30),  # rows that see no cached position, and tiles that skip the chunk's first rows
    Chunk(0, 500, 32, 100),
]


def ask(chunk: Chunk, heads: tuple[int, int], ring: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(the kernel's answer, the reference's), [n, heads * dim]."""
    (kv_heads, group), n, end = heads, chunk.padding + chunk.real, chunk.start + chunk.real
    keys, values = (randn(end, kv_heads, DIM, seed=s, dtype=dtype) for s in (5, 6))
    positions = torch.arange(-chunk.padding, chunk.real, device=DEVICE)
    positions = torch.where(positions < 0, -1, positions + chunk.start)
    first = (positions - chunk.window + 1).clamp(min=0)
    view = cached(keys, values, chunk.start, ring)._replace(fresh=tuple(fresh(x, chunk) for x in (keys, values)))
    q = randn(n, kv_heads * group, DIM, seed=7, dtype=dtype)
    out = torch.zeros(n, kv_heads * group * DIM, device=DEVICE)
    for r in range(chunk.padding, n):
        seen = slice(int(first[r]), int(positions[r]) + 1)
        out[r] = attend_row(q[r], keys[seen], values[seen])
    return prefill_attention(q, view, positions, first, positions), out


def cached(keys: torch.Tensor, values: torch.Tensor, start: int, ring: bool) -> CacheView:
    """The first `start` positions in shuffled pages, or the last 128 of them in a ring; nothing else is a number."""
    pages = 1 if ring else -(-(start + 1) // 64)
    table = torch.randperm(pages, generator=torch.Generator().manual_seed(8))[None].to(DEVICE, torch.int32) + 1
    page = 128 if ring else 64
    store = [torch.full(((pages + 1) * page, *x.shape[1:]), torch.nan).to(x) for x in (keys, values)]
    view = CacheView(store[0], store[1], table, page, ring, start + 1)
    low = max(0, start - 128) if ring else 0
    slots = slots_of(view, table[0], low, start - 1)
    view.keys[slots], view.values[slots] = keys[low:start], values[low:start]
    return view


def fresh(x: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """The chunk's own rows of x; padding is no number."""
    return torch.cat([torch.full((chunk.padding, *x.shape[1:]), torch.nan).to(x), x[chunk.start :]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("chunk", "heads"), [(CHUNKS[3], (2, 2)), *((chunk, (1, 1)) for chunk in CHUNKS)])
def test_a_chunk_sees_the_cache_and_itself(chunk: Chunk, heads: tuple[int, int], dtype: torch.dtype) -> None:
    out, reference = ask(chunk, heads, False, dtype)
    assert error(out, reference) < tolerance(dtype)
    assert not out[: chunk.padding].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [c for c in CHUNKS if c.window <= 128])
def test_a_chunk_reads_a_ring(chunk: Chunk, dtype: torch.dtype) -> None:
    out, reference = ask(chunk, (1, 1), True, dtype)
    assert error(out, reference) < tolerance(dtype)
