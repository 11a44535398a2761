"""What a text is like, from earlier texts and from its own rounds."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.control.belief import BEFORE, LEVELS, TEXTS, Belief, blank
from paceline.control.belief import usual as compiled
from paceline.control.logistic import tempered
from paceline.control.predict import Acceptance

HIT = 1.0 / (1.0 + np.exp(-(1.1 + LEVELS)))  # the first draft is kept


def text(hits: int, misses: int, before: np.ndarray = BEFORE) -> Belief:
    found = Belief(before)
    for likelihood in [HIT] * hits + [1.0 - HIT] * misses:
        found.hear(tempered(likelihood))
        assert found.odds.min() > 0  # asked after each round
    return found


def usual(earlier: list[Belief]) -> np.ndarray:
    """Of texts, the latest first."""
    texts = earlier[:TEXTS]
    book = np.array([text.marks for text in texts]).reshape(-1, 5), np.array([text.table for text in texts])
    return compiled(book, np.arange(len(texts)), BEFORE) if texts else compiled(blank(0), np.arange(0), BEFORE)


def test_odds_are_odds_and_follow_what_was_heard() -> None:
    assert BEFORE.sum() == pytest.approx(1.0)
    good, bad = text(20, 2), text(0, 20)
    assert good.odds.sum() == pytest.approx(1.0)
    assert good.odds @ HIT > 0.7 > BEFORE @ HIT > 0.1 > bad.odds @ HIT


def test_a_streak_of_misses_tells_quickly_and_one_miss_does_not() -> None:
    assert text(0, 1).odds @ HIT > 0.45
    assert text(0, 5).odds @ HIT < 0.2


def test_a_known_text_is_not_given_up_for_two_misses_but_for_many() -> None:
    assert text(40, 2).odds @ HIT > 0.6
    assert text(40, 12).odds @ HIT < 0.3


def test_a_rest_leaves_a_text_open_again() -> None:
    tired, rested = text(0, 20), text(0, 20)
    tired.hear(tempered(HIT))
    rested.hear(tempered(HIT), rested=True)
    assert rested.odds @ HIT > 1.5 * (tired.odds @ HIT)


def test_a_new_text_is_like_one_of_the_earlier_and_not_like_their_mean() -> None:
    """Half of them hopeless, half good: two hits in a row are likelier than by the mean, and so are two misses."""
    odds = usual([text(20, 0), text(0, 20)] * 8)
    mean = odds @ HIT
    assert 0.3 < mean < 0.7
    assert odds @ HIT**2 > 1.3 * mean**2
    assert odds @ (1 - HIT) ** 2 > 1.3 * (1 - mean) ** 2


def test_texts_that_nothing_was_heard_of_say_nothing() -> None:
    assert usual([Belief(text(0, 20).odds)] * 20) @ HIT == pytest.approx(BEFORE @ HIT, rel=1e-6)
    assert usual([]) == pytest.approx(BEFORE)


def test_the_latest_texts_count_most() -> None:
    good, bad = text(20, 0), text(0, 20)
    assert usual([good] * 8 + [bad] * 8) @ HIT > 0.5 > usual([bad] * 8 + [good] * 8) @ HIT


def test_many_rounds_told_at_once_do_not_vanish() -> None:
    """Nobody asks in between; what cannot be at any level neither ends in nothing nor settles everything."""
    found = Belief(BEFORE)
    for _ in range(4000):
        found.hear(tempered(np.zeros(len(LEVELS))))
    assert found.odds.sum() == pytest.approx(1.0)
    assert np.isfinite(found.marks).all()


def test_deep_drafts_are_expected_of_a_mixture_where_the_first_one_holds() -> None:
    """Of texts that are perfect or hopeless, a draft kept once is kept on: the second is likelier than the first."""
    model = Acceptance(8)
    for name in range(12):
        for _ in range(12):
            model.observe(f"{name}", 8 if name % 2 else 0, [0.0] * 8)
    law = model.law("new")
    assert law[1] > law[0] + 0.1
    alike = Acceptance(8)
    for name in range(12):
        for at in range(12):
            alike.observe(f"{name}", 8 if at % 2 else 0, [0.0] * 8)
    law = alike.law("new")
    assert law[1] < law[0] + 0.5
