"""Statistics against planted truths: intervals must cover what they say, and wrong ways must be seen to fail."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.bench import stats

RUNS = 600


def simulate(speedup: float, prompts: int, repeats: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Seconds off and on, [prompts, repeats, RUNS]: lengths and each prompt's own ratio vary, runs are 3% noisy."""
    rng = np.random.default_rng(seed)
    spread, shape = 0.25, (prompts, 1, RUNS)
    off = np.exp(rng.normal(0, 0.5, shape))
    # The mean of exp(normal(-s^2/2, s)) is 1, so sum(off) / sum(on) tends to `speedup` exactly.
    ratio = np.exp(rng.normal(-(spread**2) / 2, spread, shape)) / speedup
    noisy = rng.normal(1.0, 0.03, (2, prompts, repeats, RUNS))
    return off * noisy[0], off * ratio * noisy[1]


def coverage(interval: np.ndarray | None, truth: float) -> float:
    assert interval is not None
    return float(np.mean((interval[0] <= truth) & (truth <= interval[1])))


@pytest.mark.parametrize("prompts", [12, 60])
@pytest.mark.parametrize("speedup", [1.0, 1.05, 1.5, 0.8])
def test_interval_covers_the_planted_speedup(speedup: float, prompts: int) -> None:
    off, on = simulate(speedup, prompts, seed=prompts)
    interval = stats.ratio_interval(off.sum(1), on.sum(1), draws=2000)
    assert 0.92 <= coverage(interval, speedup) <= 0.98


def test_ignoring_repeats_of_a_prompt_is_caught() -> None:
    off, on = simulate(1.5, 20, repeats=5)
    as_if_independent = stats.ratio_interval(off.reshape(-1, RUNS), on.reshape(-1, RUNS), draws=1000)
    assert coverage(as_if_independent, 1.5) < 0.75


def test_mean_of_ratios_is_caught() -> None:
    off, on = simulate(1.5, 60)
    # Short texts gain, long ones lose: what a user waits for is the sum.
    off, on = off.sum(1), on.sum(1) * np.where(off.mean(1) > 1, 1.3, 0.4)
    truth = simulate(1.5, 2000, seed=5)
    true_off, true_on = truth[0].sum(1), truth[1].sum(1) * np.where(truth[0].mean(1) > 1, 1.3, 0.4)
    ratio = float(true_off.sum() / true_on.sum())
    wrong = stats.ratio_interval(off / on, np.ones_like(on), draws=1000)
    assert coverage(stats.ratio_interval(off, on, draws=1000), ratio) > 0.92
    assert coverage(wrong, ratio) < 0.5


def test_few_prompts_give_no_interval_and_the_tail_matches_students_t() -> None:
    assert stats.ratio_interval(np.ones(4), np.ones(4)) is None
    # t(0.975) is 2.7764 at 4 degrees and 2.2010 at 11; the tail is Phi(-t sqrt(n / (n - 1))).
    assert stats._tail(np.array([5, 12, 10**6])) == pytest.approx([0.00096, 0.01075, 0.025], rel=0.05)


def test_a_few_long_texts_count_as_fewer_prompts() -> None:
    assert stats.effective(np.ones(10)) == pytest.approx(10)
    assert stats.effective(np.array([3.0, 0, 0])) == pytest.approx(1)
    assert stats.effective(np.zeros(7)) == pytest.approx(7)
    rng = np.random.default_rng(0)
    off = np.exp(rng.normal(0, 1.0, (12, 4 * RUNS)))
    on = off * np.exp(rng.normal(-(0.25**2) / 2, 0.25, off.shape)) / 1.5
    kept = coverage(stats.ratio_interval(off, on, draws=2000), 1.5)
    blind = np.full(off.shape[1], 12.0)
    ratios = np.tensordot(stats._resample_counts(12, 2000, 0), off, 1) / np.tensordot(
        stats._resample_counts(12, 2000, 0), on, 1
    )
    as_if_equal = np.stack([stats._quantile(ratios, tail) for tail in (stats._tail(blind), 1 - stats._tail(blind))])
    assert 0.94 <= kept <= 0.98
    assert coverage(as_if_equal, 1.5) < kept - 0.02


def test_quantiles_are_numpys() -> None:
    draws = np.random.default_rng(0).normal(size=(501, 3))
    found = stats._quantile(draws, np.array([0.0, 0.31, 1.0]))
    assert found == pytest.approx([np.quantile(draws[:, i], q) for i, q in enumerate((0.0, 0.31, 1.0))])


def test_resampling_draws_every_cluster_equally_often() -> None:
    counts = stats._resample_counts(7, 5000, seed=1)
    assert (counts.sum(1) == 7).all()
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.05)


def test_latency_spread() -> None:
    assert stats.spread([1.0, 2.0, 3.0, 4.0, 11.0]) == {"median": 3.0, "p90": pytest.approx(8.2)}


def test_a_share_of_nothing_is_nothing_for_sure() -> None:
    """No prompt token from a cache, or no draft accepted, in any prompt."""
    interval = stats.ratio_interval(np.zeros(8), np.arange(1.0, 9.0))
    assert interval is not None
    assert interval.tolist() == [0.0, 0.0]
