"""Rejection and block verification, drawn: rounds with the engine's noise give the target's law (G-tests)."""

from __future__ import annotations

import law_cases
import numpy as np
import pytest
import worlds
from worlds import Play, World

from paceline import verification as v

CAUGHT = 1e-6  # a control's p-value lies below this
FINE = 1e-3  # an honest p-value, corrected for how many there are, lies above this; seeds are fixed


@pytest.mark.parametrize("draws", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_joint_law_of_three_tokens(draws: int) -> None:
    found = law_cases.joint(draws)
    assert law_cases.holm(list(found.values())) > FINE, found


@pytest.mark.parametrize("draws", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", v.ACCEPT_MODES)
def test_p_values_are_uniform_over_random_cases(mode: v.AcceptMode, draws: int) -> None:
    """One p-value can be good by luck; 200 cannot. Tests that could not fail would give p-values near 1."""
    assert law_cases.uniformity(mode, 200, draws)[0] > FINE


@pytest.mark.parametrize("draws", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_broken_round_is_caught(draws: int) -> None:
    found = law_cases.caught(draws)
    assert max(found.values()) < CAUGHT, found


def test_uniformity_catches_a_broken_round() -> None:
    """Also where each case alone has too few draws to show it."""
    wrong = Play("rejection", odds=worlds.no_residual)
    assert law_cases.uniformity("rejection", 200, 1_000, wrong)[0] < CAUGHT


def test_holm_counts_the_cases() -> None:
    assert law_cases.holm([0.5, 0.01, 0.4]) == pytest.approx(0.03)


@pytest.mark.parametrize("mode", ["rejection", "block"])
def test_a_verdict_has_the_law_that_is_stated(mode: v.AcceptMode) -> None:
    """kept and token together, for one fixed draft; the same counts fail against the other mode's law."""
    world, draws, draft = World.make(8, 3, 4, floor=0.1), 40_000, np.array([[2, 0, 1]])
    q, p = worlds.honest_laws(world, draft, 0)
    seeds = np.arange(draws, dtype=np.uint64)[:, None, None]
    noise = v.round_noise(mode, seeds, 0, 3, np.arange(3, dtype=np.uint64))
    many = (np.repeat(rows, draws, 0) for rows in (draft, q, p))
    kept, token = v.verify(mode, *many, noise)
    counts = np.bincount(kept * 3 + token, minlength=12)
    law = {name: v.law(name, draft, q, p).ravel() for name in ("rejection", "block")}
    assert worlds.g_test(counts, law.pop(mode)) > FINE
    assert worlds.g_test(counts, *law.values()) < CAUGHT


def test_coupled_texts_do_not_depend_on_the_drafts() -> None:
    world, seeds = World.make(4, 3, 5), np.arange(500, dtype=np.uint64)
    plays = [
        Play("coupled", k, more, g) for k in (0, 3) for more in (worlds.always, worlds.arbitrary(2)) for g in (0, 1)
    ]
    texts = [worlds.simulate(world, play, 3, seeds) for play in plays]
    assert all(np.array_equal(texts[0], other) for other in texts)
    assert not np.array_equal(texts[0], worlds.simulate(world, Play("block", 3), 3, seeds))


def test_noise_by_position_suits_token_tests_but_not_blocks() -> None:
    """What the counter's layout is for: the "block" half is among the controls above."""
    control = worlds.drawn()["block: drafts' noise keyed by position"]
    play = Play("rejection", by_position=True)
    assert worlds.g_test(law_cases.counts(control.world, play, 3, 100_000), control.target.plain(3)) > FINE
