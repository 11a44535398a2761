"""Short texts on measured GPU times, told a round late: what the controller reaches, and what it would not without."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline.acceptance import PROFILES, Profile, expected_tokens, survival
from paceline.control import auto, drift, requests
from paceline.control.auto import Auto
from paceline.control.belief import BEFORE
from paceline.control.cost import CostTable, Timing
from paceline.control.policy import Served
from paceline.device.pilot import DRAFTS, Pilot, Seat, prior_table
from paceline.shapes import drafter_config, target_config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import controller_sim as sim
import controller_texts as texts

ROUNDS = json.loads((sim.RESULTS / "cuda_rounds.json").read_text("utf-8"))
REAL = {size: sim.gpu_table(size, ROUNDS) for size in sim.SIZES}
PRIOR = {size: prior_table(target_config(size), drafter_config(size)) for size in sim.SIZES}
HOPELESS, CHAT, CODE = ("hopeless",), ("chat",), ("code",)


def over_best(size: str, turns: texts.Turns, seeds: int = 3, length: int = 96) -> float:
    """The controller over the best fixed k, in the mean."""
    rates = [texts.auto(REAL[size], PRIOR[size], turns, length, seed).rate for seed in range(seeds)]
    return float(np.mean(rates)) / max(texts.fixed(REAL[size], turns).values())


@pytest.mark.parametrize("size", sim.SIZES)
@pytest.mark.parametrize("turns", [(HOPELESS,), (CHAT,), (CODE,), (("perfect",),)])
def test_texts_that_are_alike(size: str, turns: texts.Turns) -> None:
    assert over_best(size, turns) > 0.975
    assert over_best(size, turns, seeds=1, length=256) > 0.98


@pytest.mark.parametrize("size", sim.SIZES)
@pytest.mark.parametrize(
    "turns",
    [(CODE, HOPELESS, CHAT), (HOPELESS, CODE), (HOPELESS, HOPELESS, HOPELESS, HOPELESS, CODE), (CODE, CODE, HOPELESS)],
)
def test_texts_that_are_mixed_beat_every_fixed_length(size: str, turns: texts.Turns) -> None:
    reached, best = over_best(size, turns), max(texts.fixed(REAL[size], turns).values())
    known = texts.oracle(REAL[size], turns) / best
    assert reached > 1.0 + 0.55 * (known - 1.0)
    assert reached < known + 0.05  # tokens of few texts are counted by what they come to in the mean


def test_what_earlier_texts_were_like_is_worth_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a controller to which every text is the first."""
    turns = (HOPELESS, ("perfect",))
    learnt = over_best("26b-a4b", turns)
    monkeypatch.setattr(requests, "usual", lambda book, at, before: BEFORE)
    assert over_best("26b-a4b", turns) < learnt - 0.01


def test_a_hopeless_text_costs_little_once_a_few_were_seen() -> None:
    runs = [texts.auto(REAL["26b-a4b"], PRIOR["26b-a4b"], (HOPELESS,), 96, seed) for seed in range(4)]
    later = [k for run in runs for ks in run.ks[texts.FIRST :] for k in ks]
    assert 0.005 < sum(k > 0 for k in later) / len(later) < 0.036  # a draft costs two fifths of a round
    assert sum(k > 1 for k in later) < 0.003 * len(later)  # looked at with one, but for the lucky
    first = [k for run in runs for k in run.ks[0]]
    assert sum(k > 0 for k in first) / len(first) > 0.05  # the control: before any was seen it takes more


def test_drafts_of_a_known_mixture_are_long_at_once_and_given_up_soon() -> None:
    run = texts.auto(REAL["31b"], PRIOR["31b"], (CODE, HOPELESS), 96, 0)
    code, hopeless = run.ks[4], run.ks[5]
    assert min(code[:4]) >= 6
    assert hopeless[0] >= 6
    assert max(hopeless[12:]) <= 3


def test_bounds_are_those_of_the_profiles() -> None:
    times = REAL["31b"].times(1, texts.CONTEXT)
    statics = texts.fixed(REAL["31b"], (CHAT,))
    assert list(statics) == list(DRAFTS)
    assert statics[4] == pytest.approx(expected_tokens(PROFILES["chat"], 4) / times[4])
    assert texts.oracle(REAL["31b"], (CHAT,)) == pytest.approx(max(statics.values()))
    assert texts.oracle(REAL["31b"], (CODE, HOPELESS)) > max(texts.fixed(REAL["31b"], (CODE, HOPELESS)).values())


def test_the_judge_goes_by_the_worst() -> None:
    good = {"size": "x", "workload": "chat", "tokens": 96, "over_best": 1.0, "over_best_later": 1.0, "over_plain": 1.1}
    rows = [good, {**good, "workload": "mixed", "over_best": 1.1}, {**good, "workload": "code", "over_best": 0.9}]
    aims = texts.judge(rows)
    assert not aims["stationary, over the best k"]["reached"]
    assert aims["stationary, over the best k"]["where"] == "x code, 96 tokens"
    assert aims["mixed, over the best k"]["reached"]
    assert not texts.judge([*rows, {**good, "over_plain": 0.97}])["anywhere, over k = 0"]["reached"]


def test_times_that_were_predicted_all_wrong_are_put_right_by_serving() -> None:
    """A miniature: half as slow as was predicted, and each draft twice as dear beside a round without any."""
    real = CostTable([Timing(1, k, texts.CONTEXT, 0.36 + 0.08 * k) for k in range(9)])
    guess = [Timing(1, k, texts.CONTEXT, 0.72 + 0.07 * k) for k in range(9)]
    best = max(texts.fixed(real, (CHAT,)).values())

    def reached(vague: bool) -> float:
        prior = CostTable(guess, vague=vague)
        return float(np.mean([texts.auto(real, prior, (CHAT,), 96, seed).rate for seed in range(4)])) / best

    assert reached(True) > 0.975
    assert reached(False) < reached(True) - 0.01  # the control: what was measured is not doubted so much


MINIATURE = CostTable([Timing(1, k, texts.CONTEXT, 0.36 + 0.07 * k) for k in range(9)])
FORETOLD = CostTable([Timing(1, k, texts.CONTEXT, 0.72 + 0.07 * k) for k in range(9)], vague=True)


def after_stalls(factor: float, first: int, many: int) -> float:
    """The controller over the best fixed k where so many of its first rounds, from the `first` on, stall."""
    begins = [1.0] * first + [factor] * many
    rates = [texts.write(texts.Late(MINIATURE, FORETOLD, seed, begins), (CHAT,), 192).rate for seed in range(2)]
    return float(np.mean(rates)) / max(texts.fixed(MINIATURE, (CHAT,)).values())


@pytest.mark.parametrize("factor", [1.3, 1.6, 2.0, 4.0])
@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("many", [1, 5, 14])
def test_rounds_that_stall_at_the_start_do_not_decide_for_good(factor: float, first: int, many: int) -> None:
    assert after_stalls(factor, first, many) > 0.975


@pytest.mark.parametrize(("without", "stalls"), [("SETTLING", (4.0, 1, 14)), ("YOUNG", (1.3, 2, 1))])
def test_what_first_stalls_would_decide(
    without: str, stalls: tuple[float, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, without, 0)
    assert after_stalls(*stalls) < 0.95


def plain_and_timed(rounds: int) -> tuple[int, int]:
    """Rounds without drafts, and those of them that were timed, where the drafter tells how sure it is."""
    policy, seen = Auto(PRIOR["31b"].copy(), 8), Counter[str]()
    note, policy.table.observe = policy.table.observe, lambda k, *rest: (seen.update(timed=k == 0), note(k, *rest))
    pilot, chance, waiting = Pilot(policy), np.random.default_rng(0), None
    for i in range(rounds):
        k, plan = pilot.choose([Seat("a", 256 + i, True)], 1)
        if waiting:
            pilot.observe(*waiting)
        seen.update(plain=k == 0)
        hits = int((chance.random() < np.array(survival(PROFILES["code"])[:k])).sum())
        waiting = plan, [Served("a", k, hits, REAL["31b"].ms(k, 1, 256), 1, 256, (2.0,) * k)]
    return seen["plain"], seen["timed"]


def test_a_plain_round_that_is_made_to_be_timed_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: as familiar as any other, most are left out."""
    assert plain_and_timed(1800) == (7, 7)
    familiar = Auto._familiar
    monkeypatch.setattr(Auto, "_familiar", lambda self, plan: familiar(self, replace(plan, timing=False)))
    plain, timed = plain_and_timed(1800)
    assert plain == 7
    assert timed < 3


def drained(policy: Auto, profile: Profile, sizes: int, seed: int) -> list[float]:
    """Shares of the best pace that batches reach while all texts of each are under way; then they drain."""
    real, pilot, chance = PRIOR["26b-a4b"], Pilot(policy), np.random.default_rng(seed)
    kept, found = np.array(survival(profile)), list[float]()
    times = real.times(sizes, 256)
    best = max(expected_tokens(profile, k) / times[k] for k in DRAFTS)
    for batch in range(6):
        left, tokens, ms = {f"{batch} {i}": 144 for i in range(sizes)}, 0.0, 0.0
        while left:
            padded = 1 << (len(left) - 1).bit_length()
            k, plan = pilot.choose([Seat(name, 256, True) for name in left], padded)
            took = real.ms(k, padded, 256)
            if len(left) == sizes:
                tokens, ms = tokens + expected_tokens(profile, k), ms + took
            hits = {name: int((chance.random() < kept[:k]).sum()) for name in left}
            served = [Served(name, k, n, took * chance.normal(1.0, 0.01), padded, 256) for name, n in hits.items()]
            pilot.observe(plan, served)
            left = {name: rest - hits[name] - 1 for name, rest in left.items() if rest > hits[name] + 1}
        found.append(tokens / ms / best)
    return found


FLAT = [12.0, 13.9, 15.2, 16.1, 16.8, 17.8, 18.9, 20.3, 21.7]  # ms: four drafts pay best, where six are foretold to


def flat_batch(seed: int) -> float:
    """Share of the best pace that two batches of 32 reach in rounds of those times."""
    pilot, chance = Pilot(Auto(PRIOR["26b-a4b"].copy(), 8)), np.random.default_rng(seed)
    kept, tokens, ms = survival(PROFILES["chat"]), 0.0, 0.0
    for i in range(80):
        k, plan = pilot.choose([Seat(f"{i // 40} {place}", 256, True) for place in range(32)], 32)
        hits = (chance.random((32, 1)) < np.array(kept[:k])).sum(1).tolist()
        took = FLAT[k] * chance.normal(1.0, 0.01)
        pilot.observe(plan, [Served(f"{i // 40} {place}", k, n, took, 32, 256) for place, n in enumerate(hits)])
        tokens, ms = tokens + expected_tokens(PROFILES["chat"], k), ms + FLAT[k]
    return tokens / ms / max(expected_tokens(PROFILES["chat"], k) / FLAT[k] for k in DRAFTS)


def test_a_length_is_tried_whose_time_is_foretold_a_little_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what is served alone is timed."""
    tried = np.mean([flat_batch(seed) for seed in range(4)])
    assert tried > 0.98
    monkeypatch.setattr(auto, "PRICED_FIRST", 10**9)
    assert np.mean([flat_batch(seed) for seed in range(4)]) < tried - 0.005


def test_a_batch_that_drains_teaches_nothing_wrong_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is best for few texts says nothing of many; the control has one guard for all sizes of batch."""

    def worst() -> float:
        prior, chat = PRIOR["26b-a4b"], PROFILES["chat"]
        return float(np.min([drained(Auto(prior.copy(), 8), chat, size, seed) for size in (8, 32) for seed in (0, 1)]))

    assert worst() > 0.975
    of_each = Auto._guarded
    monkeypatch.setattr(Auto, "_guarded", lambda self, own, plan, batch: of_each(self, own, plan, 1))
    assert worst() < 0.95
