"""The same text with any drafter, any draft length, any window and any sampling; and the same bits in any pass."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from families import FAMILIES, PROMPT, WINDOW
from torch import Tensor
from zoo import ZOO, Model, Random, RightThenWrong

from paceline import cache as cache_module
from paceline.cache import MAX_TENTATIVE, PAGE, KVCache, ring_slots
from paceline.kernels import get_ops, simd
from paceline.sampling import count_agreeing
from paceline.types import SamplingParams

pytestmark = pytest.mark.usefixtures("quiet_torch")

Models = Callable[[str, int], Model]
NEW = 64
WIDE = 1024  # longer than any text here
WINDOWS = (WINDOW, WIDE)
LENGTHS = range(1, 9)
SAMPLING = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=1.0, seed=5),
    "top-k": SamplingParams(temperature=1.0, top_k=12, seed=6),
    "top-p": SamplingParams(temperature=1.0, top_p=0.8, seed=7),
    "all": SamplingParams(temperature=0.7, top_k=40, top_p=0.9, seed=2**63 + 1),
}


def check_same_text(model: Model, drafter: str, k: int, params: SamplingParams) -> list[int]:
    """Compares a text with the plain one; returns how many drafts each round accepted."""
    plain = model.plain(PROMPT, params, NEW)
    ids, accepted = model.write(ZOO[drafter](model, plain), PROMPT, params, k, NEW)
    assert ids == plain[: len(PROMPT) + NEW], f"differs from plain decoding at token {count_agreeing(ids, plain)}"
    return accepted


def covering(family: str, drafter: str) -> list[tuple[int, int, str]]:
    """(k, window, sampling), every second k: over all families and drafters, every pair of two settings comes up."""
    f, d, samplings = FAMILIES.index(family), list(ZOO).index(drafter), list(SAMPLING)
    lengths = enumerate(LENGTHS[(f + d) % 2 :: 2])
    return [(k, WINDOWS[(n + f // 2 + d // 2) % 2], samplings[(n + f + 3 * d) % len(samplings)]) for n, k in lengths]


@pytest.mark.parametrize("drafter", ZOO)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_drafter_changes_the_text(models: Models, family: str, drafter: str) -> None:
    for k, window, sampling in covering(family, drafter):
        check_same_text(models(family, window), drafter, k, SAMPLING[sampling])


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ZOO)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_drafter_changes_the_text_full_product(models: Models, family: str, drafter: str) -> None:
    for k, window, sampling in itertools.product(LENGTHS, WINDOWS, SAMPLING):
        check_same_text(models(family, window), drafter, k, SAMPLING[sampling])


def test_the_cases_leave_no_pair_out() -> None:
    rows = [(f, d, *case) for f in FAMILIES for d in ZOO for case in covering(f, d)]
    axes: list[list[object]] = [list(FAMILIES), list(ZOO), list(LENGTHS), list(WINDOWS), list(SAMPLING)]
    for a, b in itertools.combinations(range(len(axes)), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(axes[a], axes[b]))


@pytest.mark.parametrize("family", FAMILIES)
def test_rounds_of_every_kind_occur(models: Models, family: str) -> None:
    """The zoo does what its names say: otherwise equal texts would prove nothing."""
    model, k, params = models(family, WINDOW), 5, SAMPLING["sampled"]
    accepted = {name: check_same_text(model, name, k, params) for name in ZOO}
    assert set(accepted["oracle"]) == {k}
    assert set(accepted["wrong"]) == {0}
    assert set(accepted["right-then-wrong"]) == set(range(k + 1))
    assert set(accepted["too-short"]) == set(range(k))
    assert any(accepted["mtp"])  # it shares the sampler's noise, so it is right now and then


def test_plain_texts_depend_on_what_they_may(models: Models) -> None:
    """Windows and sampling reach the text, or the product above would test one case many times."""
    texts = [models("e4b", window).plain(PROMPT, params, NEW) for window in WINDOWS for params in SAMPLING.values()]
    assert len(set(map(tuple, texts))) == len(texts)


# ---- negative controls ----------------------------------------------------------------------------------------------

LONG = 120  # with PROMPT, the ring of a 64-token window (128 slots) goes round


def control(model: Model, params: SamplingParams) -> list[bool]:
    """Whether a text longer than the ring is the plain one, for two drafters that get rolled back."""
    plain = model.plain(PROMPT, params, LONG)
    drafters = (RightThenWrong(plain), Random(plain))
    return [model.write(d, PROMPT, params, 8, LONG)[0] == plain[: len(PROMPT) + LONG] for d in drafters]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ring_without_room_for_the_round_is_caught(
    models: Models, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare ring: drafts overwrite keys that the window still holds, and a rollback cannot bring them back."""
    model = models(family, PAGE)
    assert ring_slots(PAGE) > PAGE
    assert control(model, SAMPLING["sampled"]) == [True, True]
    monkeypatch.setattr(cache_module, "ring_slots", lambda window: window)
    assert False in control(model, SAMPLING["sampled"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollback_of_one_too_few_is_caught(models: Models, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, honest = models(family, PAGE), KVCache.rollback
    assert control(model, SAMPLING["greedy"]) == [True, True]
    monkeypatch.setattr(KVCache, "rollback", lambda self, count: honest(self, max(0, count - 1)))
    assert False in control(model, SAMPLING["greedy"])


# ---- the bits of a row ----------------------------------------------------------------------------------------------

ROWS = 2 * PAGE + 12  # pages and the ring of the small window go over their ends twice


def hidden_in_passes(model: Model, text: list[int], sizes: list[int]) -> Tensor:
    """Logits of every token, computed in passes of the given sizes."""
    cache, out, at = model.cache(len(text) + MAX_TENTATIVE), [], 0
    for size in sizes:
        out.append(model.target.ops.tensor(model.target.logits(model.target.forward(text[at : at + size], cache))))
        at += size
    return torch.cat(out)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_any_pass(models: Models, family: str, window: int) -> None:
    model, text = models(family, window), random.Random(3).choices(range(256), k=ROWS)
    alone = hidden_in_passes(model, text, [1] * ROWS)
    for n in range(2, MAX_TENTATIVE + 1):
        sizes = [n] * (ROWS // n) + [ROWS % n] * bool(ROWS % n)
        assert torch.equal(hidden_in_passes(model, text, sizes), alone), f"passes of {n} rows give other bits"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_taken_back_leave_no_bit_behind(models: Models, family: str) -> None:
    model, text = models(family, WINDOW), random.Random(4).choices(range(256), k=ROWS)
    alone, rng = hidden_in_passes(model, text, [1] * ROWS), random.Random(5)
    cache, at = model.cache(ROWS + MAX_TENTATIVE), 0
    while at < ROWS:
        good = min(rng.randint(1, 8), ROWS - at)
        wrong = rng.choices(range(256), k=rng.randint(0, 8))
        hidden = model.target.forward(text[at : at + good] + wrong, cache)
        cache.rollback(len(wrong))
        rows = model.target.ops.tensor(model.target.logits(hidden))[:good]
        assert torch.equal(rows, alone[at : at + good]), f"rows from {at} on differ"
        at += good


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_is_one_token_at_a_time_bit_for_bit(models: Models, family: str) -> None:
    """Also where the last layers skip the prompt's earlier tokens."""
    model, text = models(family, WINDOW), random.Random(6).choices(range(256), k=ROWS)
    alone = hidden_in_passes(model, text, [1] * ROWS)
    for length in (1, 15, 16, 17, PAGE - 1, PAGE, PAGE + 1, ROWS - 1):
        cache = model.cache(ROWS)
        hidden = model.target.prefill(text[:length], cache)
        after = model.target.forward(text[length : length + 1], cache)
        rows = [model.target.ops.tensor(model.target.logits(h)) for h in (hidden, after)]
        assert torch.equal(torch.cat(rows), alone[length - 1 : length + 1]), f"a prompt of {length} gives other bits"


ODD = [(1, 1), (3, 63), (7, 64), (33, 65), (100, 127), (129, 200), (257, 129)]


def odd_weight(cols: int, rows: int, dtype: torch.dtype) -> tuple[object, object]:
    """The same random values as a weight in `dtype` and as one in fp32."""
    values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(cols)).to(dtype)
    ops = get_ops("cpu")
    weights = ops.matrix(rows, cols, dtype), ops.matrix(rows, cols, torch.float32)
    for weight, tensor in zip(weights, (values, values.float()), strict=True):
        weight.write(0, tensor)
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("cols", "rows"), ODD)
def test_a_row_of_a_product_has_the_same_bits_in_any_company(cols: int, rows: int, dtype: torch.dtype) -> None:
    ops, (weight, wide) = get_ops("cpu"), odd_weight(cols, rows, dtype)
    x = np.random.default_rng(rows).standard_normal((17, cols), np.float32)
    alone = np.concatenate([ops.linear(x[r : r + 1], weight) for r in range(17)])
    for n in range(1, 18):
        assert np.array_equal(ops.linear(x[17 - n :], weight), alone[17 - n :]), f"{n} rows give other bits"
        serial, parallel = np.zeros((2, n, rows), np.float32)
        simd.matmul_serial(x[:n], weight.data, serial)
        simd._matmul_parallel(x[:n], weight.data, parallel)
        assert np.array_equal(serial, alone[:n])
        assert np.array_equal(parallel, alone[:n])
    assert np.array_equal(ops.linear(x, wide), alone)  # bf16 is widened, not rounded again
