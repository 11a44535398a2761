"""The cache against a plain list: any appends and rollbacks, several sequences, every slot where it must be."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from paceline.cache import MAX_TENTATIVE, PAGE, KVCache, Storage, ring_slots
from paceline.config import TextConfig, parse_text
from paceline.errors import RollbackError, UsageError
from paceline.kernels import LayerView, get_ops
from paceline.kernels.reference import slots_of

WINDOWS = (1, 4, 16, 33)
SLIDING, FULL = "sliding_attention", "full_attention"


def config(window: int) -> TextConfig:
    """A sliding layer, a full one, and a sliding one that shares the first's keys and values."""
    data: dict[str, Any] = {
        "model_type": "gemma4_unified_text", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 3, "num_kv_shared_layers": 1, "layer_types": [SLIDING, FULL, SLIDING],
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4, "global_head_dim": 4,
        "sliding_window": window,
    }  # fmt: skip
    return parse_text(data, "test")


def storage(window: int, capacity: int, sequences: int = 1) -> Storage:
    return Storage(config(window), get_ops("reference"), capacity, sequences)


@dataclass
class Twin:
    """A sequence in the cache, and the list of marks it should hold; a mark is a number never used twice."""

    cache: KVCache
    marks: list[int] = field(default_factory=list)

    def append(self, marks: list[int]) -> None:
        positions = self.cache.append(len(marks))
        assert positions == range(len(self.marks), len(self.marks) + len(marks))
        self.marks += marks
        for layer in self.cache.storage.layers:
            view = self.cache.view(layer)
            at = slots_of(view, torch.tensor(positions))
            assert len(set(at.tolist())) == len(marks)
            view.keys[at, 0, 0] = torch.tensor(marks, dtype=torch.float32)

    def rollback(self, count: int) -> None:
        self.cache.rollback(count)
        del self.marks[len(self.marks) - count :]

    def check(self, window: int) -> None:
        """What the next token's row, and every row of the last pass, will attend is what the list says."""
        assert self.cache.length == len(self.marks)
        oldest_row = self.cache.length - self.cache.tentative
        self.seen(self.cache.view(1), 0)
        self.seen(self.cache.view(0), max(0, oldest_row - (window - 1)))

    def seen(self, view: LayerView, first: int) -> None:
        at = slots_of(view, torch.arange(first, len(self.marks)))
        assert view.keys[at, 0, 0].tolist() == self.marks[first:]

    def slots(self, layer: int) -> set[int]:
        """Every slot this sequence may write now."""
        view = self.cache.view(layer)
        if view.ring:
            return set(range(int(view.table[0]) * view.page, (int(view.table[0]) + 1) * view.page))
        return set(slots_of(view, torch.arange(-(-self.cache.length // PAGE) * PAGE)).tolist())


def step(twin: Twin, rng: random.Random, fresh: Any, most: int) -> None:
    """One round: a pass of 1 to `most` tokens, of which any number is taken back, in one go or in two."""
    twin.append([next(fresh) for _ in range(rng.randint(1, most))])
    twin.check(twin.cache.storage.config.layers[0].window or 0)
    back = rng.randint(0, twin.cache.tentative)
    twin.rollback(first := rng.randint(0, back))
    twin.rollback(back - first)


def marks() -> Any:
    return iter(range(1, 2**24))  # fp32 holds them exactly


@pytest.mark.parametrize("most", [*range(1, 10), MAX_TENTATIVE])
@pytest.mark.parametrize("window", [*WINDOWS, PAGE - MAX_TENTATIVE])  # the last one fills its ring to the slot
def test_any_rounds_leave_what_a_list_would_hold(window: int, most: int) -> None:
    rng, fresh = random.Random(100 * window + most), marks()
    twin = Twin(KVCache(storage(window, 300)))
    while len(twin.marks) < 250:
        step(twin, rng, fresh, most)
        twin.check(window)


@pytest.mark.parametrize("window", [4, 64])
def test_a_ring_of_one_slot_less_than_it_needs_is_caught(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above can fail: a ring of window + pass - 2 slots loses a key that the pass still sees."""
    monkeypatch.setattr("paceline.cache.ring_slots", lambda window: window + 9 - 2)
    twin = Twin(KVCache(storage(window, 300)))
    with pytest.raises(AssertionError):
        passes_of_nine(twin, window)


def passes_of_nine(twin: Twin, window: int) -> None:
    rng, fresh = random.Random(0), marks()
    while len(twin.marks) < 250:
        twin.append([next(fresh) for _ in range(9)])
        twin.check(window)
        twin.rollback(rng.randint(0, 8))


@pytest.mark.parametrize("window", WINDOWS)
def test_sequences_never_share_a_slot(window: int) -> None:
    rng, fresh, store = random.Random(window), marks(), storage(window, 6 * PAGE, sequences=3)
    live: list[Twin] = []
    born = 0
    while born < 12:
        if len(live) < 3 and rng.random() < 0.3 and len(store.free_pages) >= 1:
            live.append(Twin(KVCache(store)))
            born += 1
        if live and rng.random() < 0.08:
            live.pop(rng.randrange(len(live))).cache.release()
        for twin in live:
            if len(twin.marks) < 2 * PAGE - MAX_TENTATIVE:
                step(twin, rng, fresh, 9)
        for layer in store.layers:
            taken = [twin.slots(layer) for twin in live]
            assert sum(map(len, taken)) == len(set().union(*taken))
        for twin in live:
            twin.check(window)
    for twin in live:
        twin.cache.release()
    assert sorted(store.free_pages) == list(range(6))
    assert sorted(store.free_rings) == [0, 1, 2]


def test_a_new_sequence_starts_from_nothing_where_an_old_one_lay() -> None:
    store = storage(4, 2 * PAGE)
    for first in (1, 1000):
        twin = Twin(KVCache(store))
        assert twin.cache.length == 0
        for at in range(first, first + 110, 10):
            twin.append(list(range(at, at + 10)))
            twin.check(4)
        twin.cache.release()


@pytest.mark.parametrize("window", WINDOWS)
def test_a_ring_has_room_for_the_window_and_one_pass(window: int) -> None:
    assert ring_slots(window) >= window + MAX_TENTATIVE - 1
    assert ring_slots(window) % PAGE == 0


def test_rollback_beyond_the_last_pass_is_refused() -> None:
    cache = KVCache(storage(4, 200))
    for count in (1, -1):
        with pytest.raises(RollbackError, match=f"cannot take back {count} tokens"):
            cache.rollback(count)
    cache.append(5)
    cache.append(3)
    with pytest.raises(RollbackError, match="the last pass added 3"):
        cache.rollback(4)
    cache.rollback(2)
    with pytest.raises(RollbackError, match="the last pass added 1"):
        cache.rollback(2)
    assert (cache.length, cache.tentative) == (6, 1)


def test_a_pass_larger_than_the_room_kept_for_it_is_refused() -> None:
    cache = KVCache(storage(4, 200))
    cache.append(MAX_TENTATIVE)
    with pytest.raises(RollbackError, match=f"a pass of {MAX_TENTATIVE + 1} tokens"):
        cache.append(MAX_TENTATIVE + 1)
    assert (cache.length, cache.tentative) == (MAX_TENTATIVE, MAX_TENTATIVE)


def test_a_full_cache_refuses_and_stays_as_it_was() -> None:
    store = storage(4, 3 * PAGE, sequences=2)
    other, twin = KVCache(store), Twin(KVCache(store))
    other.append(1)
    for at in range(1, 2 * PAGE - 3, 5):  # 125 of the 128 slots that are left
        twin.append(list(range(at, at + 5)))
    state = (twin.cache.length, twin.cache.tentative, list(store.free_pages), twin.slots(1))
    with pytest.raises(UsageError, match=f"the cache is full at {len(twin.marks)} tokens"):
        twin.cache.append(10)
    assert (twin.cache.length, twin.cache.tentative, list(store.free_pages), twin.slots(1)) == state
    twin.rollback(2)  # the refused pass changed nothing: the one before it may still be taken back
    twin.append([8001, 8002])
    twin.check(4)
    twin.append([9001, 9002, 9003])  # what still fits
    twin.check(4)
    other.release()
    twin.append(list(range(9010, 9020)))  # and what fits once another sequence has gone
    twin.check(4)


def test_more_sequences_than_rings_are_refused() -> None:
    store = storage(4, 4 * PAGE, sequences=1)
    first = KVCache(store)
    with pytest.raises(UsageError, match="as many sequences as it was made for"):
        KVCache(store)
    first.release()
    assert KVCache(store).length == 0


def test_a_backend_that_copies_the_table_sees_new_pages():
    ops = get_ops("reference")
    ops.array = lambda tensor: tensor.clone()  # as a backend with memory of its own does
    cache = KVCache(Storage(config(WINDOWS[0]), ops, 3 * PAGE))
    for _ in range(PAGE // MAX_TENTATIVE + 1):
        positions = cache.append(MAX_TENTATIVE)
    view, before = cache.view(1), torch.arange(PAGE)
    assert not set(slots_of(view, torch.tensor(positions)).tolist()) & set(slots_of(view, before).tolist())
