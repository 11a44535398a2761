"""Sampling against straightforward references, and against the law it promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paceline.errors import UsageError
from paceline.kernels import Cuts, get_ops, reference
from paceline.kernels.reference import nucleus
from paceline.sampling import Sampler
from paceline.types import SamplingParams

pytestmark = pytest.mark.usefixtures("quiet_torch")

BACKENDS = [get_ops("cpu"), get_ops("reference")]
each_backend = pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: ops.name)


def logits(size: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * scale


def law(ops: Any, x: Tensor, params: SamplingParams) -> Tensor:
    """The distribution over the whole vocabulary that `Sampler` draws from."""
    found = Sampler(ops, params)._laws(ops.array(x), None).row(0)
    out = torch.zeros(x.shape[1], dtype=torch.float64)
    out[torch.as_tensor(np.array(found.ids))] = torch.as_tensor(np.array(found.chances))
    return out


def reference_law(x: Tensor, params: SamplingParams) -> Tensor:
    """By the book: sort, cut to k, cut to the fewest that hold p, renormalise."""
    p = [v / params.temperature for v in x[0].double().tolist()]
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))[: params.top_k or None]
    mass = [math.exp(p[i] - p[order[0]]) for i in order]
    total, held, kept = sum(mass), 0.0, 0
    while kept < len(order) and held < params.top_p * total:
        held += mass[kept]
        kept += 1
    out = torch.zeros(len(p), dtype=torch.float64)
    for i, m in zip(order[:kept], mass, strict=False):
        out[i] = m / held
    return out


CUTS = [(0, 1.0), (1, 1.0), (5, 1.0), (1000, 1.0), (0, 0.9), (0, 0.5), (0, 1e-6), (20, 0.8), (3, 0.99)]


# ---- greedy ---------------------------------------------------------------------------------------------------------


@each_backend
def test_greedy_ties_take_the_lowest_id(ops: Any) -> None:
    x = torch.tensor([[1.0, 3.0, 2.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, -5.0, -1.0, -9.0, -1.0]])
    sampler = Sampler(ops, SamplingParams())
    assert sampler.choose(ops.array(x), 0) == [1, 0, 0]
    assert sampler.guess(ops.array(x[:1]), None, 0) == 1
    assert sampler.guess(ops.array(x[:1]), ops.array(torch.tensor([[9, 8, 7, 6, 5]])), 0) == 8


@each_backend
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(top_k=3)])
def test_suppressed_ids_never_come_out(ops: Any, params: SamplingParams) -> None:
    x = logits(12)
    x[0, 4] = 50.0  # without the ban this would always win
    assert set(Sampler(ops, params).choose(ops.array(x.repeat(200, 1)), 0)) == {4}
    chosen = Sampler(ops, params, suppress=(4, 7)).choose(ops.array(x.repeat(200, 1)), 0)
    assert not {4, 7} & set(chosen)
    assert ops.tensor(ops.array(x))[0, 4] == 50.0  # the logits themselves are not touched


# ---- the cuts -------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_cuts_are_those_of_the_book(ops: Any, temperature: float, top_k: int, top_p: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    for seed in range(3):
        x = logits(100, seed)
        torch.testing.assert_close(law(ops, x, params), reference_law(x, params), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
def test_cuts_are_those_of_transformers(top_k: int, top_p: float) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    params, x = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p), logits(100, 9)
    theirs = x / 0.8
    if top_k:
        theirs = process.TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1.0:
        theirs = process.TopPLogitsWarper(top_p)(None, theirs)
    torch.testing.assert_close(law(BACKENDS[0], x, params), theirs[0].softmax(-1).double(), rtol=0, atol=1e-6)


def test_nucleus_at_its_edges() -> None:
    scores = np.log([0.5, 0.25, 0.125, 0.125])
    assert [nucleus(scores, p) for p in (1e-9, 0.5, 0.51, 0.75, 0.76, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert nucleus(np.array([0.0, -np.inf]), 0.999999) == 1
    for size in (3, 1000, 262144):  # rounding in the sum must not point past the end
        assert nucleus(np.zeros(size), 1.0 - 2**-53) <= size


@each_backend
def test_a_drafter_that_sees_part_of_the_vocabulary_cuts_as_over_the_whole(ops: Any) -> None:
    """Scores of all tokens, in another order with their ids beside them, draw the same token."""
    x, order = logits(60), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for top_k, top_p in CUTS:
        sampler = Sampler(ops, SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, seed=3))
        for position in range(20):
            whole = sampler.guess(ops.array(x), None, position)
            assert sampler.guess(ops.array(x[:, order]), ops.array(order[None]), position) == whole
            assert sampler.choose(ops.array(x), position) == [whole]


# ---- the noise and the law ------------------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]])
DRAWS = 4000


def draw(sampler: Sampler, x: Tensor) -> np.ndarray:
    """How often each token comes out over DRAWS positions."""
    chosen = sampler.choose(sampler.ops.array(x.repeat(DRAWS, 1)), 0)
    return np.bincount(chosen, minlength=x.shape[1])


def p_value(counts: np.ndarray, expected: Tensor) -> float:
    """Pearson's chi-square test; the tail by Wilson and Hilferty's cube root, exact enough at 0.001."""
    wanted = expected.numpy() * counts.sum()
    if counts[wanted == 0].any():
        return 0.0
    counts, wanted = counts[wanted > 0], wanted[wanted > 0]
    free, chi2 = len(wanted) - 1, float(((counts - wanted) ** 2 / wanted).sum())
    z = ((chi2 / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
    return 0.5 * math.erfc(z / math.sqrt(2))


LAWS = [
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.5, seed=2),
    SamplingParams(temperature=1.0, top_k=3, seed=3),
    SamplingParams(temperature=1.0, top_p=0.84, seed=4),
    SamplingParams(temperature=1.7, top_k=4, top_p=0.8, seed=2**40),
]


@each_backend
@pytest.mark.parametrize("params", LAWS, ids=str)
def test_positions_draw_by_the_law(ops: Any, params: SamplingParams) -> None:
    x = PROBABILITIES.log()
    assert p_value(draw(Sampler(ops, params), x), reference_law(x, params)) > 0.001


def test_seeds_draw_by_the_law() -> None:
    ops, x, counts = BACKENDS[0], PROBABILITIES.log(), np.zeros(5, np.int64)
    for seed in range(DRAWS):
        counts[Sampler(ops, SamplingParams(temperature=1.0, seed=seed)).guess(ops.array(x), None, 11)] += 1
    assert p_value(counts, PROBABILITIES[0]) > 0.001


def test_neighbouring_positions_and_tokens_are_independent() -> None:
    """Pairs of draws at p and p + 1, at p and p + 2^32, and under seeds s and s + 1, fill the product law."""
    ops, x = BACKENDS[0], PROBABILITIES.log()
    rows = ops.array(x.repeat(DRAWS, 1))
    product = (PROBABILITIES[0][:, None] * PROBABILITIES[0]).flatten()
    first = np.array(Sampler(ops, SamplingParams(temperature=1.0, seed=8)).choose(rows, 0))
    others = {
        "next position": np.array(Sampler(ops, SamplingParams(temperature=1.0, seed=8)).choose(rows, 1)),
        "far position": np.array(Sampler(ops, SamplingParams(temperature=1.0, seed=8)).choose(rows, 2**32)),
        "next seed": np.array(Sampler(ops, SamplingParams(temperature=1.0, seed=9)).choose(rows, 0)),
    }
    for name, other in others.items():
        counts = np.bincount(5 * first[::2] + other[::2], minlength=25)
        assert p_value(counts, product) > 0.001, name


def test_noise_reused_across_tokens_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with one noise for all ids the likeliest token would always win."""
    honest = reference.philox_gumbel
    monkeypatch.setattr(reference, "philox_gumbel", lambda seed, at, ids: honest(seed, at, np.zeros_like(ids)))
    assert p_value(draw(Sampler(BACKENDS[1], LAWS[0]), PROBABILITIES.log()), PROBABILITIES[0]) < 1e-6


def test_noise_reused_across_positions_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = get_ops("cpu")
    honest = ops.draw

    def stuck(x: Any, ids: Any, cuts: Cuts, key: tuple[int, int]) -> list[int]:
        return [honest(x[r : r + 1], ids, cuts, (key[0], (key[1] + r) // 64))[0] for r in range(len(x))]

    monkeypatch.setattr(ops, "draw", stuck)
    assert p_value(draw(Sampler(ops, LAWS[0]), PROBABILITIES.log()), PROBABILITIES[0]) < 1e-6


def test_a_skipped_top_p_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    params, x = SamplingParams(temperature=1.0, top_p=0.84, seed=4), PROBABILITIES.log()
    monkeypatch.setattr(reference, "nucleus", lambda scores, top_p: len(scores))
    assert p_value(draw(Sampler(BACKENDS[1], params), x), reference_law(x, params)) < 1e-6


@each_backend
def test_equal_seeds_give_equal_tokens_and_others_differ(ops: Any) -> None:
    x = ops.array(torch.zeros(64, 50))
    texts = [Sampler(ops, SamplingParams(temperature=1.0, seed=s)).choose(x, 5) for s in (3, 3, 4, 3 + 2**32)]
    assert texts[0] == texts[1]
    assert len({tuple(t) for t in texts}) == 3
    later = Sampler(ops, SamplingParams(temperature=1.0, seed=3)).choose(ops.rows(x, 0, 30), 10)
    assert later == texts[0][5:35]  # the noise belongs to the position, not to the row of the pass


def test_backends_draw_the_same_token() -> None:
    cpu, reference = BACKENDS
    x = logits(300).repeat(100, 1)
    for params in LAWS:
        ours, theirs = Sampler(cpu, params), Sampler(reference, params)
        assert ours.choose(cpu.array(x), 7) == theirs.choose(reference.array(x), 7)


def odd_rows(rng: np.random.Generator, size: int) -> Tensor:
    """Three rows with ties and with tokens ruled out: some, all but one, and almost none."""
    values = np.round(rng.normal(0, 3, (3, size)), int(rng.integers(0, 4))).astype(np.float32)
    for row in values:
        row[rng.permutation(size)[int(rng.integers(1, size + 1)) :]] = -np.inf
    return torch.from_numpy(values)


def test_the_compiled_draw_is_the_reference_for_every_cut() -> None:
    """And the laws: of rows of one token and of thousands, whose columns stand for themselves or for others."""
    rng, (cpu, plain) = np.random.default_rng(5), BACKENDS
    for case in range(400):
        x = odd_rows(rng, int(rng.choice([rng.integers(1, 80), rng.integers(80, 4000)])))
        temperature, top_p = rng.choice([0.0, rng.uniform(0.1, 3)]), rng.choice([1.0, rng.uniform(0.01, 1)])
        top_k = int(rng.choice([0, 1, rng.integers(1, 100), rng.integers(100, 600)]))
        cuts = Cuts(float(temperature), float(top_p), float(rng.choice([0.0, rng.uniform(0, 1)])), top_k)
        ids = rng.choice([None, 1]) and torch.from_numpy(rng.permutation(5000)[None, : x.shape[1]])
        told = [(ops.array(x), ids if ids is None else ops.array(ids), cuts) for ops in (cpu, plain)]
        seed = int(rng.integers(2**63))
        drawn = [ops.draw(*told[i], (seed, case + 2**40)) for i, ops in enumerate((cpu, plain))]
        assert drawn[0] == drawn[1], (case, cuts)
        draft = [drawn[0][0], -1] if case % 2 else drawn[0][:2]  # rows behind a draft that does not stay are left out
        for i, ops in enumerate((cpu, plain)):
            assert ops.draw(*told[i], (seed, case + 2**40), draft) == drawn[0][: 2 if case % 2 else 3]
        if temperature:
            found, wanted = ([dict(zip(*map(list, row))) for row in zip(*ops.laws(*told[i]))]  # noqa: B905
                             for i, ops in enumerate((cpu, plain)))  # fmt: skip
            for ours, theirs in zip(found, wanted, strict=True):
                assert {i: p for i, p in ours.items() if p} == pytest.approx(
                    {i: p for i, p in theirs.items() if p}, 1e-9
                )


def test_a_drafter_with_the_targets_law_is_always_right_and_a_near_one_mostly() -> None:
    """The coupling: acceptance is at least what the overlap (1 - d) / (1 + d) of the two laws allows."""
    ops, params = BACKENDS[0], SamplingParams(temperature=1.0, seed=1)
    target, near = logits(50), logits(50) + 0.3 * logits(50, 1)
    chosen = Sampler(ops, params).choose(ops.array(target.repeat(DRAWS, 1)), 0)
    same = Sampler(ops, params).choose(ops.array(target.repeat(DRAWS, 1)), 0)
    close = np.array(Sampler(ops, params).choose(ops.array(near.repeat(DRAWS, 1)), 0))
    distance = 0.5 * float((target.softmax(-1) - near.softmax(-1)).abs().sum())
    assert same == chosen
    assert 0.05 < distance < 0.9
    assert float((close == chosen).mean()) > (1 - distance) / (1 + distance) - 0.03


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p must lie"),
        ({"seed": -1}, "seed must lie"),
        ({"seed": 2**64}, "seed must lie"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"stop": ("",)}, "stop strings must not be empty"),
    ],
)
def test_parameters_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**values)
