"""Rejection and block verification are lossless: the law of a text, added up over all cases, is plain sampling's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import worlds
from worlds import Play, World, exact

from paceline import verification as v
from paceline.errors import UsageError
from paceline.kernels.reference import philox_gumbel, philox_uniform

EXACT = 1e-12
CAUGHT = 1e-6
CONTROLLERS = {
    "always": worlds.always,
    "confident": worlds.confident(0.4),
    "arbitrary": worlds.arbitrary(1),
}


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("greedy", [False, True], ids=["drawn", "argmax"])
@pytest.mark.parametrize("mode", v.ACCEPT_MODES)
def test_the_law_is_plain_sampling(mode: v.AcceptMode, greedy: bool, controller: str) -> None:
    """Three tokens, over rounds of up to three drafts, of the largest toy vocabulary and of a truncated one."""
    play = Play(mode, 3, CONTROLLERS[controller], greedy)
    whole, small = World.make(1, 6, 5), World.make(2, 4, 5)
    for world in (whole, small, World(worlds.cut(small.p, 0.8), worlds.cut(small.q, 0.8))):
        assert worlds.distance(world, play, 3) < EXACT


def random_case(case: int) -> tuple[World, Play]:
    rng = np.random.default_rng([7, case])
    columns, k = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    more = [worlds.always, worlds.confident(rng.uniform(0.1, 0.9)), worlds.arbitrary(case)][case % 3]
    world = World.make(case, columns, k + 1)
    # In part with tokens that the target, the drafter or both rule out.
    p, q = (worlds.cut(laws, 0.8) if rng.random() < 0.3 else laws for laws in (world.p, world.q))
    return World(p, q), Play("rejection", k, more)


def test_every_mode_is_exact_and_block_keeps_most() -> None:
    gains = []
    for case in range(200):
        world, play = random_case(case)
        kept = {}
        for mode in v.ACCEPT_MODES:
            law, kept[mode] = exact(world, replace(play, mode=mode), 2)
            assert np.abs(law - world.plain(2)).max() < EXACT, f"case {case}, {mode}"
        assert kept["block"] >= kept["rejection"] - EXACT, f"case {case}: block keeps fewer drafts"
        assert kept["rejection"] >= kept["coupled"] - EXACT, f"case {case}: token tests are optimal for each token"
        gains.append(kept["block"] - kept["rejection"])
    assert max(gains) > 0.01  # or the comparison above is of equals


def test_one_draft_is_kept_as_often_as_the_laws_overlap() -> None:
    for case in range(200):
        world = World.make(case, 2 + case % 5, 1)
        distance = np.abs(world.p[0] - world.q[0]).sum() / 2
        for mode in ("rejection", "block"):
            assert exact(world, Play(mode, 1), 1)[1] == pytest.approx(1 - distance, abs=EXACT)
        coupled = exact(world, Play("coupled", 1), 1)[1]  # Daliri et al. 2024, theorem 1
        assert (1 - distance) / (1 + distance) - EXACT <= coupled <= 1 - distance + EXACT
        for mode in v.ACCEPT_MODES:
            greedy = exact(world, Play(mode, 1, greedy=True), 1)[1]
            assert greedy == pytest.approx(world.p[0][0, world.q[0][0].argmax()], abs=EXACT)


def constant(p: list[float], q: list[float], reach: int) -> World:
    tables = [[np.tile(law, (len(p) ** m, 1)) for m in range(reach + 1)] for law in (np.array(p), np.array(q))]
    return World(*tables)


def test_the_block_papers_example() -> None:
    """Sun et al. 2024, section 3: laws (1/3, 2/3) and (2/3, 1/3), two drafts; 10/9 against 11/9 kept."""
    world = constant([1 / 3, 2 / 3], [2 / 3, 1 / 3], 3)
    assert exact(world, Play("rejection", 2), 2)[1] == pytest.approx(10 / 9, abs=EXACT)
    assert exact(world, Play("block", 2), 2)[1] == pytest.approx(11 / 9, abs=EXACT)


@pytest.mark.parametrize("mode", v.ACCEPT_MODES)
def test_equal_laws_keep_everything(mode: v.AcceptMode) -> None:
    world = World.make(5, 4, 4)
    same = World(world.p, world.p)
    assert exact(same, Play(mode, 3), 2)[1] == pytest.approx(3, abs=EXACT)
    assert worlds.distance(same, Play(mode, 3), 2) < EXACT


def test_no_drafts_is_plain_sampling() -> None:
    nothing, p = np.zeros((5, 0), np.int64), np.random.default_rng(1).dirichlet(np.ones(4), (5, 1))
    for mode in v.ACCEPT_MODES:
        assert np.array_equal(v.law(mode, nothing, np.zeros((5, 0, 4)), p), p)
        noise = v.round_noise(mode, 3, 9, 0, np.arange(4, dtype=np.uint64))
        assert v.verify(mode, nothing[0], np.zeros((0, 4)), p[0], noise).kept == 0


@pytest.mark.parametrize("mode", ["rejection", "block"])
def test_a_law_is_a_law(mode: v.AcceptMode) -> None:
    world = World.make(3, 5, 4)
    for paths, _ in worlds.drafts_of(world, 1, Play(mode, 3)):
        found = v.law(mode, paths[:, 1:], *worlds.honest_laws(world, paths, 1))
        np.testing.assert_allclose(found.sum((1, 2)), 1.0, rtol=0, atol=EXACT)
        assert (found >= 0).all()


# ---- negative controls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", worlds.controls())
def test_a_broken_round_has_another_law(name: str) -> None:
    control = worlds.controls()[name]
    assert worlds.distance(control.world, control.play, 2, control.target) > CAUGHT


def test_argmax_drafts_taken_for_drawn_ones_give_the_known_wrong_law() -> None:
    """Laws (.5, .3, .2) and (.7, .2, .1) come out as (.714, .143, .143)."""
    world = constant([0.5, 0.3, 0.2], [0.7, 0.2, 0.1], 1)
    law, _ = exact(world, Play("rejection", 1, greedy=True, told=worlds.honest_laws), 1)
    np.testing.assert_allclose(law, [5 / 7, 1 / 7, 1 / 7], rtol=0, atol=EXACT)


# ---- input and noise ------------------------------------------------------------------------------------------------

HALF = np.full((1, 2), 0.5)
NOISE = v.round_noise("rejection", 0, 0, 1, np.arange(2, dtype=np.uint64))


@pytest.mark.parametrize(
    ("mode", "q", "p", "message"),
    [
        ("typical", HALF, np.tile(HALF, (2, 1)), "one of coupled, rejection, block, not 'typical'"),
        ("rejection", HALF, HALF, r"1 drafts need laws q \[1, V\] and p \[2, V\], not \[1, 2\] and \[1, 2\]"),
        ("block", np.array([[0.0, 1.0]]), np.tile(HALF, (2, 1)), "a draft has probability 0 in q"),
        ("coupled", np.array([[0.0, 1.0]]), np.tile(HALF, (2, 1)), "a draft has probability 0 in q"),
    ],
)
def test_laws_that_do_not_fit_are_refused(mode: v.AcceptMode, q: np.ndarray, p: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        v.verify(mode, np.array([0]), q, p, NOISE)


def test_uniforms_are_philox_with_the_documented_counter() -> None:
    """The first two words of Random123's known answers, and vectors that must hold in every release."""
    for position, seed, token, word, high, low in [
        (2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1, 0x408F276D, 0x41C83B0E),
        (0x13198A2E85A308D3, 0x299F31D0A4093822, 0x243F6A88, 0x03707344, 0xD16CFE09, 0x94FDCCEB),
    ]:
        found = philox_uniform(seed, position, np.array([token], dtype=np.uint64), word)
        assert found.tolist() == [((high << 21 | low >> 11) + 0.5) * 2.0**-53]
    ids = np.array([3, 262143], dtype=np.uint64)
    drafted = v.draft_uniforms("block", 2026, 77, 1, ids)
    noise = v.round_noise("block", 2026, 77, 2, ids)
    word = {name: int(purpose) for name, purpose in v.Purpose.__members__.items()}
    assert word == {"CHOICE": 0, "DRAFT": 1, "ACCEPT": 2, "RESIDUAL": 3}
    assert drafted.tolist() == philox_uniform(2026, 77, ids, 1 + 256).tolist() == VECTORS["draft"]
    zero = np.zeros(1, np.uint64)
    each = [philox_uniform(2026, 77, zero, 2 + 256 * step).item() for step in (0, 1)]
    assert noise.accept.tolist() == each == VECTORS["accept"]
    assert noise.token.tolist() == [philox_uniform(2026, 77, ids, 3).tolist()] * 3 == [VECTORS["residual"]] * 3


VECTORS: dict[str, list[float]] = {
    "draft": [0.8221247368603561, 0.0009555284706561085],
    "accept": [0.3129775674328285, 0.36387084097965056],
    "residual": [0.7372320272548676, 0.5010364357801411],
}


def test_coupled_noise_is_the_samplers_own() -> None:
    ids = np.arange(6, dtype=np.uint64)
    rows = -np.log(-np.log(v.round_noise("coupled", 2026, 77, 2, ids).token))
    assert np.array_equal(rows, [philox_gumbel(2026, 77 + j, ids) for j in range(3)])
    assert np.array_equal(rows[1], -np.log(-np.log(v.draft_uniforms("coupled", 2026, 77, 1, ids))))


def test_no_number_serves_twice() -> None:
    """Purposes, steps and rounds of one text never share a number."""
    ids, seen = np.arange(8, dtype=np.uint64), []
    for first in range(40):
        noise = v.round_noise("block", 5, first, 4, ids)
        parts = [noise.accept, noise.token[0], philox_uniform(5, first, ids)]
        parts += [v.draft_uniforms("block", 5, first, step, ids) for step in range(4)]
        seen += np.concatenate([part.ravel() for part in parts]).tolist()
    assert len(set(seen)) == len(seen)


def test_the_noise_is_the_one_in_the_manual() -> None:
    """docs/sampling.md promises these numbers to whoever writes them down: they are read from there."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "sampling.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    told = {int(row[1]): row[4:] for row in rows if len(row) == 6 and row[1].isdigit()}
    assert sorted(told) == sorted(v.Purpose)
    for purpose, cells in told.items():
        ids = np.array([0] if purpose == v.Purpose.ACCEPT else [3, 262143], dtype=np.uint64)
        assert philox_uniform(2026, 77, ids, purpose).tolist() == [float(cell) for cell in cells if cell]
    choice = -np.log(-np.log([float(cell) for cell in told[v.Purpose.CHOICE]]))
    assert np.array_equal(choice, philox_gumbel(2026, 77, np.array([3, 262143], dtype=np.uint64)))
