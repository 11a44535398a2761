"""Acceptance learnt from verified positions."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.control import predict, requests
from paceline.control.logistic import newton, solved
from paceline.control.policy import Served
from paceline.control.predict import Acceptance, expected_tokens


def served(model: Acceptance, law: list[float], rounds: int, censor: bool = True, spread: float = 0.0) -> None:
    """Feeds rounds whose conditional acceptance is `law` on average, the logit of each round moved by `spread`."""
    noise = np.random.default_rng(0)
    logits = np.log(np.array(law) / (1 - np.array(law)))
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-(logits + spread * noise.standard_normal())))
        hits = noise.random(len(law)) < p
        accepted = int(np.cumprod(hits).sum()) if censor else int(hits.sum())
        model.observe("a", accepted, [1.0] * len(law))


def test_newton_finds_the_weights_of_a_logistic_law() -> None:
    noise = np.random.default_rng(1)
    x = np.column_stack([np.ones(20_000), noise.standard_normal((20_000, 2))])
    y = (noise.random(20_000) < 1 / (1 + np.exp(-(x @ [0.5, 1.0, -0.7] + 0.3)))).astype(float)
    rows = np.column_stack([x, np.full(20_000, 0.3), y])
    found = newton(rows, np.zeros(3), np.full(3, 1e-3))
    assert found == pytest.approx([0.5, 1.0, -0.7], abs=0.06)


def test_equations_are_solved() -> None:
    noise = np.random.default_rng(3)
    for n in (1, 3, 5):
        half, right = noise.standard_normal((n, n)), noise.standard_normal(n)
        matrix = half @ half.T + 0.1 * np.eye(n)
        assert solved(matrix, right) == pytest.approx(np.linalg.solve(matrix, right))


def test_what_is_only_counted_moves_the_prediction_as_far_as_it_surprises() -> None:
    model = Acceptance(2)
    usual = model.law("a")[0]
    model.hear("a", 10, round(10 * usual))
    assert model.law("a")[0] == pytest.approx(usual, abs=0.05)  # surer of what it was, and the mean of less odd ones
    model.hear("a", 10, 0)
    assert model.law("a")[0] < usual - 0.1
    model.hear("b", 10, 10)
    assert model.law("b")[0] > usual


def test_what_is_never_kept_is_given_up_ever_faster_than_it_was_hoped_for() -> None:
    """From three in four down to one in twenty within a few dozen misses, though each is less of a surprise."""
    model = Acceptance(1)
    for _ in range(60):
        model.observe("a", 0, [0.0])
    assert model.law("a")[0] < 0.06
    assert model.law("another")[0] < 0.5  # what is usual by now


def test_positions_are_learnt_in_spite_of_censoring() -> None:
    law = [0.8, 0.6, 0.9, 0.7]
    model = Acceptance(4)
    served(model, law, 1500)
    assert model.law("new") == pytest.approx(law, abs=0.12)
    # The control: counting what was never verified as verified gives another law.
    wrong = Acceptance(4)
    served(wrong, law, 1500, censor=False)
    assert wrong.law("new") != pytest.approx(law, abs=0.12)


def test_positions_behind_a_rejection_teach_nothing() -> None:
    model = Acceptance(4)
    for _ in range(50):
        model.observe("a", 1, [1.0] * 4)
    assert model.samples.seen.tolist() == [50, 50, 0, 0]


def test_a_prior_holds_until_rounds_speak() -> None:
    model = Acceptance(3, prior=[0.9, 0.5, 0.2])
    # The mean over texts that are better and worse than that: nearer to a half, and more so further behind.
    assert model.law("a") == pytest.approx([0.9, 0.5, 0.2], abs=0.15)
    served(model, [0.3, 0.3, 0.3], 600)
    assert model.law("b")[0] == pytest.approx(0.3, abs=0.12)


def test_a_request_has_its_own_bias() -> None:
    model = Acceptance(2)
    for _ in range(40):
        model.observe("good", 2, [1.0, 1.0])
        model.observe("bad", 0, [1.0, 1.0])
    assert model.law("good")[0] > model.law("new")[0] + 0.1
    assert model.law("bad")[0] < model.law("new")[0] - 0.1


def test_a_surer_drafter_is_expected_to_be_right() -> None:
    noise, model = np.random.default_rng(2), Acceptance(1)
    for i in range(400):
        sure = i // 10 % 2  # ten rounds of each
        model.observe("a", int(noise.random() < (0.9 if sure else 0.3)), [4.0 if sure else 0.5])
    for name, mark in (("sure", 4.0), ("unsure", 0.5)):
        for hit in (1, 0):
            model.observe(name, hit, [mark])
    assert model.law("sure")[0] > model.law("unsure")[0] + 0.1


def pooled(laws: list[list[float]]) -> list[float]:
    """Of those that reach a position, how many pass: by the law of each of them."""
    alive, law = np.ones(len(laws)), []
    for passes in np.array(laws).T:
        law.append(float((alive * passes).sum() / alive.sum()))
        alive = alive * passes
    return law


BATCH = [("a", 3), ("b", 0), ("c", 2), ("d", 4)]


@pytest.mark.parametrize("margins", [(), (4.0, 3.0, 0.5, 20.0)])
def test_a_batch_is_heard_and_foretold_as_its_texts_are_one_by_one(
    monkeypatch: pytest.MonkeyPatch, margins: tuple[float, ...]
) -> None:
    monkeypatch.setattr(predict, "EARLY", ())  # a fit between two texts of a batch would come after both
    monkeypatch.setattr(predict, "REFIT", 1000)
    together, apart = Acceptance(5), Acceptance(5)
    for model in together, apart:
        model.law(*(name for name, _ in BATCH))  # all are new at once: none is like those before it
    for at in range(20):
        names = BATCH[at % 3 :]
        served = [Served(name, 4, kept, 1.0, margins=margins) for name, kept in names]
        together.observe_batch(served, rested=at == 12)
        for one in served:
            apart.observe(one.request, one.accepted, one.certainty, rested=at == 12)
        each = [apart.law(name) for name, _ in names]
        assert together.law(*(name for name, _ in names)) == pytest.approx(pooled(each))
        assert together.law("d") == pytest.approx(apart.law("d"))
    assert together.scale == pytest.approx(apart.scale)
    assert together.samples.rows == pytest.approx(apart.samples.rows)
    assert together.rounds == apart.rounds
    assert pooled(each) != pytest.approx(each[0], abs=0.02)  # else any text's law would do


def test_in_large_batches_all_positions_are_fitted() -> None:
    """Two fits' worth of rounds at once: no position is passed over."""
    model = Acceptance(8)
    for _ in range(12):
        model.observe_batch([Served(f"{at}", 8, 8, 1.0) for at in range(32)])
    assert (model.weights[:, 0] > model.prior[:, 0] + 0.5).all()


def test_who_was_not_heard_of_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "REQUESTS", 3)
    model = Acceptance(2)
    for name in "abc":
        model.observe(name, 2 * (name == "a"), [0.0, 0.0])
    good = model.law("a", "b")
    assert set(model.requests.known) == set("abc")
    model.observe("d", 0, [0.0, 0.0])
    assert set(model.requests.known) == set("bcd")
    assert model.law("a", "b") != pytest.approx(good, abs=1e-3)  # not read from where it was before
    assert set(model.requests.known) == set("dab")


def test_expected_tokens_are_those_of_a_chain() -> None:
    assert expected_tokens([0.5, 0.5]) == [1.0, 1.5, 1.75]


STEEP, FLAT = [3.4, 4.8, 5.9, 7.1, 8.3], [21.2, 21.7, 22.1, 22.5, 23.0]


def mixture(*kinds: int) -> Acceptance:
    """A model that has seen texts in turn, each of which always kept so many of 4 drafts."""
    model = Acceptance(4)
    for name, kept in enumerate(kinds * 6):
        for _ in range(12):
            model.observe(f"{name}", kept, [0.0] * 4)
            model.law(f"{name}")
    return model


def best_pace(law: list[float], times: list[float]) -> int:
    rates = [tokens / ms for tokens, ms in zip(expected_tokens(law), times, strict=True)]
    return 1 + int(np.argmax(rates[1:]))


def test_a_text_that_may_be_hopeless_is_looked_at_with_few_drafts_where_they_are_dear() -> None:
    model = mixture(0, 4)
    assert best_pace(model.law("new"), STEEP) == 4  # what the mean of both would ask for
    assert model.cheapest("new", STEEP) < 3
    assert model.cheapest("new", FLAT) == 4
    for _ in range(12):
        model.observe("new", 4, [0.0] * 4)
    assert model.cheapest("new", STEEP) == best_pace(model.law("new"), STEEP) == 4


def test_where_all_texts_are_alike_nothing_is_wasted_by_the_best_pace() -> None:
    for kept, times in ((4, STEEP), (4, FLAT), (0, STEEP)):
        model = mixture(kept)
        assert model.cheapest("new", times) == best_pace(model.law("new"), times)
