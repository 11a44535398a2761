"""The round's bookkeeping on the device against the same rules in plain Python."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from gpu import DEVICE, DTYPES, randn

from paceline.kernels.gpu.accept import (
    COLUMNS,
    COUNT,
    FINISHED,
    KEPT,
    Ending,
    Sequences,
    accept,
    draft_rows,
    verify_rows,
)  # fmt: skip

WIDTH = 24
ENDS = (7, 3, 9)
NOWHERE = -5  # what an untouched part of an outcome holds


@dataclass
class Place:
    """One sequence, as the host would keep it."""

    length: int
    last: int
    hidden: int  # the row of `Case.hidden` or, before the round, minus one minus the place
    remaining: int
    limit: int
    stops: bool
    new: list[int] = field(default_factory=list)
    kept: int = 0
    finished: bool = False


@dataclass
class Case:
    """A round of a batch: drafts [B][k] and the target's choices [B][k + 1]."""

    places: list[Place]
    drafts: list[list[int]]
    chosen: list[list[int]]

    @property
    def k(self) -> int:
        return len(self.drafts[0])


def decide(case: Case, place: Place, b: int) -> None:
    """Keep what agrees, add the target's own token, cut at an end token and at what may still be written."""
    drafts, chosen = case.drafts[b], case.chosen[b]
    if not place.remaining:
        return
    while place.kept < min(place.limit, case.k) and drafts[place.kept] == chosen[place.kept]:
        place.kept += 1
    place.new = chosen[: place.kept + 1][: place.remaining]
    ends = [i for i, token in enumerate(place.new) if place.stops and token in ENDS]
    place.new = place.new[: ends[0] + 1] if ends else place.new
    place.remaining = 0 if ends else place.remaining - len(place.new)
    place.finished = place.remaining == 0
    place.length += place.kept + 1
    place.last = chosen[place.kept]
    place.hidden = b * (case.k + 1) + place.kept


def sequences_of(places: list[Place], dtype: torch.dtype) -> Sequences:
    def column(values: list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    i32, i64 = torch.int32, torch.int64
    return Sequences(
        column([p.length for p in places], i32), column([p.last for p in places], i64),
        randn(len(places), WIDTH, seed=9, dtype=dtype), column([p.remaining for p in places], i32),
        column([p.limit for p in places], i32), column([int(p.stops) for p in places], i32),
    )  # fmt: skip


def drafts_of(case: Case) -> torch.Tensor | None:
    return torch.tensor(case.drafts, device=DEVICE).T.contiguous() if case.k else None


def check(case: Case, dtype: torch.dtype = torch.float32, ends: tuple[int, ...] = ENDS) -> None:
    batch, sequences = len(case.places), sequences_of(case.places, dtype)
    old, hidden = sequences.hidden.clone(), randn(batch * (case.k + 1), WIDTH, seed=3, dtype=dtype)
    out = torch.full((batch, COLUMNS), NOWHERE, device=DEVICE)
    end = Ending(torch.tensor(ends, dtype=torch.int64, device=DEVICE))
    accept(sequences, drafts_of(case), torch.tensor(case.chosen, device=DEVICE).flatten(), hidden, end, out)
    for b, place in enumerate(case.places):
        decide(case, place, b)
    rows = out.tolist()
    for b, p in enumerate(case.places):
        assert rows[b][: len(p.new)] == p.new
        assert rows[b][len(p.new) : COUNT] == [NOWHERE] * (COUNT - len(p.new))
        assert (rows[b][COUNT], rows[b][KEPT], rows[b][FINISHED]) == (len(p.new), p.kept, int(p.finished))
        assert torch.equal(sequences.hidden[b], old[b] if p.hidden < 0 else hidden[p.hidden])
    for name in ("length", "last", "remaining", "limit", "stops"):
        assert getattr(sequences, name).tolist() == [int(getattr(p, name)) for p in case.places], name


def random_case(rng: random.Random) -> Case:
    """Few token ids, so that drafts agree and end tokens turn up often."""
    batch, k, tokens = rng.randint(1, 5), rng.randint(0, 5), rng.choice([2, 4, 10])
    chosen = [[rng.randrange(tokens) for _ in range(k + 1)] for _ in range(batch)]
    drafts = [[t if rng.random() < 0.7 else rng.randrange(tokens) for t in row[:k]] for row in chosen]
    places = [
        Place(
            length=rng.choice([1, 17, 2**20]), last=rng.randrange(tokens), hidden=-1 - b,
            remaining=rng.choice([0, 1, 2, 3, 100]), limit=rng.randint(0, 6), stops=rng.random() < 0.5,
        )
        for b in range(batch)
    ]  # fmt: skip
    return Case(places, drafts, chosen)


@pytest.mark.parametrize("seed", range(150))
def test_a_random_round(seed: int) -> None:
    rng = random.Random(seed)
    check(random_case(rng), DTYPES[-1])


def place(**changes: int | bool) -> Place:
    return Place(**{"length": 10, "last": 1, "hidden": -1, "remaining": 50, "limit": 9, "stops": True, **changes})


@pytest.mark.parametrize(
    ("drafts", "chosen", "changes", "new", "kept", "finished"),
    [
        ([4, 5, 6], [4, 5, 6, 8], {}, [4, 5, 6, 8], 3, False),
        ([4, 5, 6], [4, 0, 6, 8], {}, [4, 0], 1, False),
        ([4, 5, 6], [0, 5, 6, 8], {}, [0], 0, False),
        ([], [8], {}, [8], 0, False),
        ([], [7], {}, [7], 0, True),
        ([4, 7, 6], [4, 7, 6, 8], {}, [4, 7], 3, True),  # inside kept drafts
        ([4, 9, 3], [4, 9, 3, 7], {}, [4, 9], 3, True),  # the first of several, whatever the order of the ids
        ([4, 5, 6], [4, 5, 6, 7], {}, [4, 5, 6, 7], 3, True),  # the bonus token
        ([4, 7, 6], [4, 5, 7, 8], {}, [4, 5], 1, False),  # behind the round's end
        ([4, 7, 6], [4, 7, 6, 8], {"stops": False}, [4, 7, 6, 8], 3, False),
        ([4, 5, 6], [4, 5, 6, 8], {"limit": 0}, [4], 0, False),
        ([4, 5, 6], [4, 5, 6, 8], {"limit": 2}, [4, 5, 6], 2, False),
        ([4, 5, 6], [4, 5, 6, 8], {"remaining": 2}, [4, 5], 3, True),
        ([4, 5, 6], [4, 5, 6, 8], {"remaining": 4}, [4, 5, 6, 8], 3, True),
        ([4, 7, 6], [4, 7, 6, 8], {"remaining": 1}, [4], 3, True),
        ([4, 7, 6], [4, 7, 6, 8], {"remaining": 2}, [4, 7], 3, True),
        ([4, 5, 6], [4, 5, 6, 8], {"remaining": 0}, [], 0, False),  # an idle place
    ],
)
def test_a_round_spelled_out(
    drafts: list[int], chosen: list[int], changes: dict[str, int], new: list[int], kept: int, finished: bool
) -> None:
    p = place(**changes)
    check(Case([p], [drafts], [chosen]))
    assert (p.new, p.kept, p.finished) == (new, kept, finished)


def test_no_end_token_at_all() -> None:
    check(Case([place(stops=False), place(stops=False)], [[4], [5]], [[4, 0], [4, 0]]), ends=())


def test_fifteen_drafts() -> None:
    check(Case([place(limit=15), place(limit=15)], [[1] * 15, [2] * 15], [[1] * 16, [2] * 14 + [5, 5]]))


# ---- chance instead of comparing, for timing ------------------------------------------------------------------------


def kept_by_chance(survival: list[float], lengths: list[int], last: int = 1) -> list[int]:
    """How many drafts a batch keeps whose texts end with token `last`; drafts and choices never agree."""
    batch, k = len(lengths), len(survival)
    sequences = sequences_of([place(length=n, last=last, remaining=10**6) for n in lengths], torch.float32)
    drafts, chosen = torch.zeros(k, batch, dtype=torch.int64), torch.ones(batch * (k + 1), dtype=torch.int64)
    out = torch.zeros(batch, COLUMNS, dtype=torch.int64, device=DEVICE)
    chance = torch.tensor(survival + [0.0] * (15 - k), device=DEVICE)
    end = Ending(torch.zeros(0, dtype=torch.int64, device=DEVICE), chance)
    accept(sequences, drafts.to(DEVICE), chosen.to(DEVICE), randn(batch * (k + 1), WIDTH), end, out)
    kept = out[:, KEPT].tolist()
    assert out[:, COUNT].tolist() == [n + 1 for n in kept]
    assert sequences.length.tolist() == [a + n + 1 for a, n in zip(lengths, kept, strict=True)]
    return kept


def test_survival_of_none_and_of_all() -> None:
    assert kept_by_chance([0.0] * 4, list(range(1, 40))) == [0] * 39
    assert kept_by_chance([1.0] * 4, list(range(1, 40))) == [4] * 39


def test_survival_is_a_rate() -> None:
    survival, lengths = [0.9, 0.6, 0.5, 0.1], list(range(100, 300))
    kept = kept_by_chance(survival, lengths)
    assert kept == kept_by_chance(survival, lengths)
    for j, share in enumerate(survival):  # four standard deviations
        assert abs(sum(n > j for n in kept) / len(kept) - share) < 4 * (share * (1 - share) / len(kept)) ** 0.5


def test_luck_is_a_texts_own() -> None:
    """Of 200 places, two texts agree in 113 by chance; in all, if luck were the place's."""
    one, other = (kept_by_chance([0.8, 0.1], list(range(100, 300)), last) for last in (1, 2))
    assert 85 < sum(a == b for a, b in zip(one, other, strict=True)) < 141


# ---- rows of a pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_a_verification(seed: int) -> None:
    rng = random.Random(seed)
    case, window = random_case(rng), rng.choice([1, 8, 512])
    rows = verify_rows(sequences_of(case.places, torch.float32), drafts_of(case), window)
    fed = [t for p, row in zip(case.places, case.drafts, strict=True) for t in (p.last, *row)]
    positions = [p.length + i for p in case.places for i in range(case.k + 1)]
    assert rows.ids.tolist() == fed
    assert rows.positions.tolist() == positions
    assert rows.first.tolist() == [max(0, p - window + 1) for p in positions]
    assert rows.zero.tolist() == [0] * len(positions)
    assert rows.chosen_at.tolist() == [p + 1 for p in positions]


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("k", [1, 3, 15])
def test_rows_of_a_draft(k: int, back: int) -> None:
    lengths, window = [0, 1, 8, 9, 5000], 8
    rows, last = draft_rows(sequences_of([place(length=n) for n in lengths], torch.float32), back, window, k)
    assert rows.positions.tolist() == [max(0, n - back) for n in lengths]
    assert rows.first.tolist() == [max(0, n - window) for n in lengths]
    assert rows.zero.tolist() == [0] * len(lengths)
    assert last.tolist() == [n - 1 for n in lengths]
    assert rows.chosen_at.tolist() == [[n + 1 + j for n in lengths] for j in range(k)]
