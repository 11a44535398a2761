"""Rejection and block verification in the engine: the law is plain sampling's with every drafter, greedy is greedy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from families import PROMPT, WINDOW
from zoo import ZOO, Model

from paceline import verification
from paceline.drafters import MtpDraft, NoDrafter
from paceline.errors import UsageError
from paceline.kernels import get_ops
from paceline.kernels import noise as kernel_noise
from paceline.rejection import Law, Laws, Rejection
from paceline.sampling import Sampler
from paceline.types import ACCEPT_MODES, AcceptMode, SamplingParams

pytestmark = pytest.mark.usefixtures("quiet_torch")

TESTED: list[AcceptMode] = ["rejection", "block"]
TOKENS, DRAWS, K = 3, 500, 2
START = PROMPT[:6]
PARAMS = SamplingParams(temperature=1.5, top_k=2)
FINE, CAUGHT = 1e-3, 1e-6


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models("12b", WINDOW)


# ---- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", TESTED)
def test_greedy_texts_are_the_same_in_every_mode(model: Model, accept: AcceptMode) -> None:
    plain = model.plain(PROMPT, SamplingParams(), 24)
    for name, make in ZOO.items():
        ids, _ = model.write(make(model, plain), PROMPT, SamplingParams(accept=accept), K, 24)
        assert ids == plain[: len(PROMPT) + 24], name


# ---- the law --------------------------------------------------------------------------------------------------------


class Tree:
    """The target's laws of the first tokens of a text, from one pass over each prefix without any draft."""

    def __init__(self, model: Model, params: SamplingParams) -> None:
        self.model, self.sampler = model, Sampler(model.target.ops, params)
        self.chances = {text: chance for chance, text in self._grow([(1.0, ())], TOKENS)}

    def _grow(self, texts: list[tuple[float, tuple[int, ...]]], more: int) -> list[tuple[float, tuple[int, ...]]]:
        if not more:
            return texts
        grown = [(chance * p, (*text, token)) for chance, text in texts for token, p in self.after(text)]
        return self._grow(grown, more - 1)

    def after(self, text: tuple[int, ...]) -> list[tuple[int, float]]:
        cache = self.model.cache(64)
        logits = self.model.target.logits(self.model.target.prefill([*START, *text], cache))
        self.sampler.begin(START, self.model.target.config.vocab)
        self.sampler.extend(text, logits)
        law = self.sampler._laws(self.sampler._rows(logits, ()), None).row(0)
        return [(int(i), float(p)) for i, p in zip(law.ids, law.chances, strict=True) if p > 0]

    def p_value(self, texts: Sequence[tuple[int, ...]]) -> float:
        """Of the texts being drawn from the tree's law; the rarest cells count as one."""
        order = sorted(self.chances, key=lambda text: -self.chances[text])
        counts = np.array([*(texts.count(text) for text in order), sum(text not in self.chances for text in texts)])
        law = np.array([*(self.chances[text] for text in order), 0.0])
        if counts[-1]:
            return 0.0
        common = law * len(texts) >= 5
        pooled = [np.append(values[common], values[~common].sum()) for values in (counts, law)]
        return worlds.g_test(*pooled)


def written(model: Model, make: Any, params: SamplingParams, draws: int = DRAWS) -> list[tuple[int, ...]]:
    """The first tokens of a text for each seed."""
    texts = []
    for seed in range(draws):
        ids, _ = model.write(make(model), START, replace(params, seed=seed), K, TOKENS)
        texts.append(tuple(ids[len(START) :]))
    return texts


class Near(MtpDraft):
    """Draws from the target's own logits with an error added, so that rounds keep none, some and all of the drafts."""

    error = 0.7

    def propose(self, k: int) -> list[int]:
        ops, n, draft = self.target.ops, self.cache.length, list[int]()
        error = torch.randn(1, self.target.config.vocab, generator=torch.Generator().manual_seed(5)) * self.error
        for j in range(k):
            hidden = self.target.forward([self.last, *draft], self.cache)
            self.cache.rollback(j + 1)
            logits = ops.tensor(self.target.logits(ops.rows(hidden, j, j + 1))) + error
            draft.append(self.sampler.guess(ops.array(logits), None, n + 1 + j, draft))
        return draft


class Farther(Near):
    """More is rejected."""

    error = 1.5


def near(model: Model) -> Near:
    return Near(model.mtp, model.target)


DRAFTERS: dict[str, Any] = {
    "near": near,
    "mtp": lambda model: MtpDraft(model.mtp, model.target, min_confidence=0.05),
    "none": lambda model: NoDrafter(),
    "random": lambda model: ZOO["random"](model, []),
    "ngram": lambda model: ZOO["ngram"](model, []),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("accept", TESTED)
def test_the_law_is_plain_samplings(model: Model, accept: AcceptMode, drafter: str) -> None:
    texts = written(model, DRAFTERS[drafter], replace(PARAMS, accept=accept))
    assert Tree(model, PARAMS).p_value(texts) > FINE


@pytest.mark.parametrize("accept", TESTED)
def test_rules_that_look_back_keep_the_law(model: Model, accept: AcceptMode) -> None:
    rules = replace(PARAMS, repetition_penalty=1.8, presence_penalty=1.0, top_p=0.95)
    texts = written(model, near, replace(rules, accept=accept))
    assert Tree(model, rules).p_value(texts) > FINE
    assert Tree(model, PARAMS).p_value(texts) < CAUGHT  # the rules are felt


def test_drafts_are_kept_and_rejected(model: Model) -> None:
    """Or the texts above would say nothing about drafts; and block keeps no fewer than rejection, these no fewer than
    coupled (exact statements are in `test_verification_exact`)."""
    kept = {}
    for accept in ACCEPT_MODES:
        rounds = [model.write(near(model), START, replace(PARAMS, accept=accept, seed=s), K, 24)[1] for s in range(40)]
        flat = list(itertools.chain(*rounds))
        assert set(flat) == set(range(K + 1)), accept
        kept[accept] = float(np.mean(flat))
    assert kept["block"] > 0.9 * kept["rejection"] > 0.9 * 0.9 * kept["coupled"]


# ---- negative controls, in the engine -------------------------------------------------------------------------------


def caught(model: Model, accept: AcceptMode, drafter: type[Near] = Near) -> float:
    texts = written(model, lambda m: drafter(m.mtp, m.target), replace(PARAMS, accept=accept), 3 * DRAWS)
    return Tree(model, PARAMS).p_value(texts)


def test_argmax_drafts_verified_as_if_sampled_are_caught(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: Rejection, law: Law, first: int, step: int) -> int:
        token = int(law.ids[law.chances.argmax()])
        self.drawn[step:] = [(token, law)]
        return token

    monkeypatch.setattr(Rejection, "draw", draw)
    assert caught(model, "rejection") < CAUGHT


def test_cuts_of_the_drafter_alone_are_caught(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification is told the target's law without top-k, as the drafter is told its own with it."""
    honest = Sampler._laws

    def laws(self: Sampler, logits: Any, ids: Any) -> Laws:
        if self.rejection is not None and ids is None and not self.rejection.drawing:
            return honest(Sampler(self.ops, replace(self.params, top_k=0)), logits, ids)
        return honest(self, logits, ids)

    plain_draw = Sampler.guess

    def guess(self: Sampler, *args: Any) -> int:
        assert self.rejection is not None
        self.rejection.drawing = True  # type: ignore[attr-defined]
        token = plain_draw(self, *args)
        self.rejection.drawing = False  # type: ignore[attr-defined]
        return token

    monkeypatch.setattr(Rejection, "drawing", False, raising=False)
    monkeypatch.setattr(Sampler, "_laws", laws)
    monkeypatch.setattr(Sampler, "guess", guess)
    assert caught(model, "rejection") < CAUGHT


def test_noise_shared_by_draft_and_test_is_caught(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual drawn with the numbers that drew the first draft."""
    honest = verification.round_noise

    def noise(mode: AcceptMode, seed: int, first: int, k: int, ids: Any) -> verification.Noise:
        fair = honest(mode, seed, first, k, ids)
        own = [verification.draw_uniforms(mode, seed, first, step, ids) for step in range(k)]
        return verification.Noise(fair.accept, np.stack([*own, fair.token[-1]]))

    monkeypatch.setattr(kernel_noise, "COMPILED", False)  # the plain twin asks for its noise
    monkeypatch.setattr(verification, "draw_uniforms", verification.draft_uniforms, raising=False)
    monkeypatch.setattr(verification, "round_noise", noise)
    assert caught(model, "rejection", Farther) < CAUGHT


class Peeking(Near):
    """Looks at what it drew, and hands on only the likely ones."""

    def propose(self, k: int) -> list[int]:
        draft = super().propose(k)
        rejection = self.sampler.rejection
        assert rejection is not None
        likely = [law.chances[law.ids == token].item() > 0.5 for token, law in rejection.drawn]
        return draft[: [*likely, False].index(False)]


def test_a_drafter_that_looks_before_it_hands_on_is_refused(model: Model) -> None:
    for accept in TESTED:
        with pytest.raises(UsageError, match=f"accept '{accept}' needs every draft .* use accept 'coupled'"):
            written(model, lambda m: Peeking(m.mtp, m.target), replace(PARAMS, accept=accept))


def test_and_would_be_caught(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Rejection._taken

    def taken(self: Rejection, draft: Sequence[int]) -> list[Law]:
        self.cut(len(draft))
        return honest(self, draft)

    monkeypatch.setattr(Rejection, "_taken", taken)
    texts = written(model, lambda m: Peeking(m.mtp, m.target), replace(PARAMS, accept="rejection"), 3 * DRAWS)
    assert Tree(model, PARAMS).p_value(texts) < CAUGHT


# ---- the parts ------------------------------------------------------------------------------------------------------


def test_drafts_have_the_documented_noise() -> None:
    law = Law(np.array([40, 7, 300]), np.array([0.2, 0.5, 0.3]))
    ids = law.ids.astype(np.uint64)
    for step in range(3):
        rejection = Rejection("block", 9)
        uniforms = verification.draft_uniforms("block", 9, 50, step, ids)
        assert rejection.draw(law, 50, step) == law.ids[np.argmax(np.log(law.chances) - np.log(-np.log(uniforms)))]


def test_the_order_of_a_laws_tokens_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    for seed in range(50):
        ids = rng.permutation(300)[:20]
        chances = rng.dirichlet(np.ones(20))
        order = rng.permutation(20)
        verdicts = []
        for law in (Law(ids, chances), Law(ids[order], chances[order])):
            rejection = Rejection("rejection", seed)
            draft = [rejection.draw(law, 5, 0)]
            verdicts.append((draft, rejection.verify(Laws.of([law, law]), 5, draft)))
        assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize("accept", TESTED)
def test_the_compiled_test_of_drafts_is_the_plain_one(accept: AcceptMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over laws of one token to a hundred, disjoint and alike, with holes; drafts drawn, or taken, or both."""
    rng, kept = np.random.default_rng(7), []
    for case in range(400):
        k, width = int(rng.integers(0, 6)), int(rng.choice([1, 2, 5, 30, 100]))
        spread = int(width + rng.choice([0, 3, 400]))
        rows = [odd_law(rng, width, spread) for _ in range(k + 1)]
        laws = [
            rows[j] if rng.random() < 0.3 else odd_law(rng, int(rng.integers(1, width + 1)), spread) for j in range(k)
        ]
        drawn, first, both = int(rng.integers(0, k + 1)), int(rng.integers(2**34)), list[list[int]]()
        for compiled in (True, False):
            monkeypatch.setattr(kernel_noise, "COMPILED", compiled)
            rejection = Rejection(accept, case)
            draft = [rejection.draw(law, first, j) for j, law in enumerate(laws[:drawn])]
            draft += [int(law.ids[0]) for law in laws[drawn:]]
            both.append(draft + rejection.verify(Laws.of(rows), first, draft))
        assert both[0] == both[1], case
        kept.append((len(both[0]) - k - 1) / max(k, 1))
    assert min(kept) == 0 < np.mean(kept) < max(kept) == 1


def odd_law(rng: np.random.Generator, width: int, spread: int) -> Law:
    chances = rng.dirichlet(np.full(width, 0.4)) * (rng.random(width) < 0.8)
    chances[0] += 0.1
    return Law(rng.permutation(spread)[:width], chances / chances.sum())


@pytest.mark.parametrize("compiled", [True, False])
def test_a_draft_that_its_own_law_rules_out_is_refused(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_noise, "COMPILED", compiled)
    rejection, law = Rejection("block", 3), Law(np.array([4, 9]), np.array([0.0, 1.0]))
    rejection.drawn = [(4, law)]
    with pytest.raises(UsageError, match="probability 0 in q"):
        rejection.verify(Laws.of([law, law]), 5, [4])


def test_a_draft_that_the_target_rules_out_never_stays() -> None:
    law = Law(np.array([1, 2]), np.array([0.5, 0.5]))
    for accept, seed in itertools.product(TESTED, range(50)):
        tokens = Rejection(accept, seed).verify(Laws.of([law] * 3), 9, [1, 250])
        assert 250 not in tokens
        assert len(tokens) <= 2


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_backends_draw_the_same_tokens(name: str) -> None:
    """Also for a drafter that scores part of the vocabulary, in another order."""
    rows = torch.randn(4, 60, generator=torch.Generator().manual_seed(2)) * 2
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    ops = get_ops(name)
    params = SamplingParams(temperature=1.0, top_k=8, top_p=0.9, accept="block", seed=3)
    found = []
    for ids in (None, order):
        sampler = Sampler(ops, params)
        sampler.begin([1], 60)
        draft: list[int] = []
        for r in range(3):
            row = rows[r : r + 1] + 0.5
            part = (ops.array(row), None) if ids is None else (ops.array(row[:, ids]), ops.array(ids[None]))
            draft.append(sampler.guess(*part, 10 + r, list(draft)))
        found.append((draft, sampler.verify(ops.array(rows), 10, draft)))
    assert found[0] == found[1] == BY_BOTH


BY_BOTH = ([27, 28, 36], [27, 28, 36, 27])
