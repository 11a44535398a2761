"""Penalties, bias, cuts and log-probabilities: as Transformers has them, and the same with and without drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import EOS, PROMPT, VOCAB, Oracle, Pair
from zoo import ZOO, Model

from paceline import sampling
from paceline.drafters import NoDrafter
from paceline.engine import Engine, Writer
from paceline.kernels import get_ops
from paceline.sampling import Sampler
from paceline.types import Completion, SamplingParams, TokenEvent
from paceline.weights import load_target

pytestmark = pytest.mark.usefixtures("quiet_torch")
tf = pytest.importorskip("transformers")

BACKENDS = [get_ops("cpu"), get_ops("reference")]
FAMILY, WINDOW, NEW = "e2b", 8, 48
BIAS = {7: 8.0, 40: -2.5, 90: 6.0}
MILD = {7: 1.5, 40: -2.5, 90: 1.0, 200: 2.0}  # lets texts wander


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


# ---- against Transformers' processors -------------------------------------------------------------------------------

SAME_NAMES = ("repetition_penalty", "temperature", "top_p", "min_p", "top_k")
LAWS = {
    "plain": SamplingParams(temperature=1.0),
    "repetition": SamplingParams(temperature=1.0, repetition_penalty=1.4),
    "repetition below one": SamplingParams(temperature=1.0, repetition_penalty=0.7),
    "bias": SamplingParams(temperature=1.0, logit_bias=BIAS),
    "min_p": SamplingParams(temperature=1.3, min_p=0.07),
    "min_p, top_k": SamplingParams(temperature=1.3, min_p=0.02, top_k=30),
    "min_tokens": SamplingParams(temperature=1.0, min_tokens=6),
    "all": SamplingParams(
        temperature=0.8, top_k=60, top_p=0.95, min_p=0.01, repetition_penalty=1.3, logit_bias=BIAS, min_tokens=6
    ),
}


@pytest.fixture(scope="module")
def theirs(pairs: dict[str, Pair]) -> Any:
    """Transformers' model, whose own code says which processors a configuration means, and in which order."""
    return Oracle.load(pairs[FAMILY]).target


def their_law(model: Any, params: SamplingParams, tokens: Sequence[int], x: torch.Tensor) -> torch.Tensor:
    options = {name: getattr(params, name) for name in SAME_NAMES}
    config = tf.GenerationConfig(do_sample=True, min_new_tokens=params.min_tokens, eos_token_id=EOS, **options)
    config.sequence_bias = [[[token], bias] for token, bias in params.biases] or None
    config._eos_token_tensor = torch.tensor(EOS)
    prompt = torch.tensor([PROMPT])
    processors = model._get_logits_processor(config, len(PROMPT), encoder_input_ids=prompt, device="cpu")
    return processors(torch.tensor([[*PROMPT, *tokens]]), x[None].clone())[0].double().softmax(-1)


def our_laws(ops: Any, params: SamplingParams, text: Sequence[int], draft: Sequence[int], x: Any) -> torch.Tensor:
    """The distributions [rows, VOCAB] that rows after draft[:r] draw from."""
    sampler = Sampler(ops, params, end_ids=frozenset(EOS))
    sampler.begin(PROMPT, VOCAB)
    sampler.extend(text, ops.array(x))
    laws, processed = [], sampler._laws(sampler._rows(ops.array(x), draft), None)
    for r in range(len(x)):
        found = processed.row(r)
        law = torch.zeros(VOCAB, dtype=torch.float64)
        law[torch.as_tensor(found.ids.copy())] = torch.as_tensor(found.chances.copy())
        laws.append(law)
    return torch.stack(laws)


@pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: ops.name)
@pytest.mark.parametrize("params", LAWS.values(), ids=list(LAWS))
def test_distributions_are_those_of_transformers(theirs: Any, ops: Any, params: SamplingParams) -> None:
    text, draft = [9, 9, 33], [200, 9, 90, 7]  # rows reach over the sixth token, where end tokens are allowed again
    for seed in range(5):
        x = rows(len(draft) + 1, seed)
        x[:, EOS] += 4
        ours = our_laws(ops, params, text, draft, x)
        wanted = [their_law(theirs, params, text + draft[:r], x[r]) for r in range(len(x))]
        torch.testing.assert_close(ours, torch.stack(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in LAWS if name != "plain"])
def test_every_rule_changes_the_distribution(name: str) -> None:
    """Or the comparison above would compare nothing."""
    x = rows(1)
    x[:, EOS] += 4
    plain = SamplingParams(temperature=LAWS[name].temperature)
    laws = [our_laws(BACKENDS[0], params, [9, 9, 33], [], x) for params in (LAWS[name], plain)]
    assert float((laws[0] - laws[1]).abs().max()) > 1e-4


def test_presence_and_frequency_count_the_text_and_not_the_prompt() -> None:
    """By the definition in OpenAI's reference: logit - times * frequency_penalty - (times > 0) * presence_penalty."""
    params = SamplingParams(temperature=1.0, presence_penalty=0.6, frequency_penalty=0.3)
    x, text, draft = rows(3), [9, 9, 33], [9, 200]
    wanted = x.double().clone()
    for r in range(3):
        for token in {*text, *draft[:r]}:
            wanted[r, token] -= 0.6 + 0.3 * (text + draft[:r]).count(token)
    ours = our_laws(BACKENDS[0], params, text, draft, x)
    torch.testing.assert_close(ours, wanted.softmax(-1), rtol=0, atol=1e-6)


GREEDY: dict[str, tuple[SamplingParams, dict[str, Any]]] = {
    "plain": (SamplingParams(), {}),
    "repetition": (SamplingParams(repetition_penalty=1.5), {"repetition_penalty": 1.5}),
    "min_tokens": (SamplingParams(min_tokens=20), {"min_new_tokens": 20}),
    "all": (
        SamplingParams(repetition_penalty=1.3, min_tokens=20, logit_bias=MILD),
        {"repetition_penalty": 1.3, "min_new_tokens": 20, "sequence_bias": [[[t], b] for t, b in MILD.items()]},
    ),
}


@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.parametrize("family", ["e2b", "26b-a4b"])
def test_greedy_texts_are_those_of_transformers(pairs: dict[str, Pair], family: str, name: str) -> None:
    """Token by token, end tokens ending the text; one of them is a token that the plain text holds early."""
    params, options = GREEDY[name]
    oracle, target = Oracle.load(pairs[family]).target, load_target(pairs[family].target, get_ops("cpu"))
    ids = torch.tensor([PROMPT])
    early = generate(Engine(target, NoDrafter()), SamplingParams(max_tokens=6), 0)[0].token_ids[-1]
    oracle.generation_config = tf.GenerationConfig(
        do_sample=False, max_new_tokens=NEW, pad_token_id=0, bos_token_id=2, eos_token_id=[early, *EOS], **options
    )
    wanted = oracle.generate(ids, attention_mask=torch.ones_like(ids))[0, len(PROMPT) :].tolist()
    done, _ = generate(Engine(target, NoDrafter(), frozenset({early, *EOS})), replace(params, max_tokens=NEW), 0)
    assert done.token_ids == wanted
    # The plain text ends early; min_tokens keeps it from that, or the rule would go untested.
    assert len(wanted) <= 6 if name == "plain" else len(wanted) >= params.min_tokens
    assert len(set(wanted)) > len(wanted) // 3


# ---- drafts change nothing ------------------------------------------------------------------------------------------

RULES = {
    "min_p": SamplingParams(temperature=1.5, min_p=0.2, seed=1),
    "repetition": SamplingParams(temperature=0.7, repetition_penalty=1.5, seed=2),
    "repetition, greedy": SamplingParams(repetition_penalty=1.5),
    "presence": SamplingParams(temperature=1.0, presence_penalty=2.0, seed=3),
    "presence, greedy": SamplingParams(presence_penalty=2.0),
    "frequency": SamplingParams(temperature=1.0, frequency_penalty=2.0, seed=4),
    "frequency, greedy": SamplingParams(frequency_penalty=1.0),
    "bias": SamplingParams(temperature=1.0, logit_bias=MILD, seed=5),
    "bias, greedy": SamplingParams(logit_bias=MILD),
    "min_tokens": SamplingParams(temperature=1.0, min_tokens=30, seed=6),
    "min_tokens, greedy": SamplingParams(min_tokens=30),
    "all": SamplingParams(
        temperature=0.9, top_k=80, top_p=0.97, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.5,
        frequency_penalty=0.3, logit_bias=MILD, min_tokens=30, seed=7,
    ),
}  # fmt: skip
OFF = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": (),
       "min_tokens": 0}  # fmt: skip


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models(FAMILY, WINDOW)


def generate(engine: Engine, params: SamplingParams, k: int) -> tuple[Completion, list[TokenEvent]]:
    writer = Writer(engine.end_ids, params, None, len(PROMPT))
    events = list(engine.run(PROMPT, params, k, writer))
    return writer.completion(), events


def unruled(model: Model, params: SamplingParams) -> list[int]:
    """What comes without the rules and without any end."""
    return generate(Engine(model.target, NoDrafter()), replace(params, max_tokens=NEW, **OFF), 0)[0].token_ids


def plain(model: Model, params: SamplingParams, extra: int = 0) -> tuple[Completion, frozenset[int]]:
    """The text without drafts, and the end tokens: one, which the text without rules holds at its tenth place."""
    ends = frozenset({unruled(model, params)[9]}) if params.min_tokens else frozenset[int]()
    params = replace(params, max_tokens=NEW + extra)
    return generate(Engine(model.target, NoDrafter(), ends), params, 0)[0], ends


@pytest.mark.parametrize("name", RULES)
def test_no_drafter_changes_a_text_with_rules(model: Model, name: str) -> None:
    params = replace(RULES[name], max_tokens=NEW, logprobs=3)
    wanted, ends = plain(model, params)
    text = PROMPT + plain(model, params, extra=16)[0].token_ids
    assert wanted.token_ids != unruled(model, params)[: len(wanted.token_ids)]  # the rule is felt
    for drafter, make in ZOO.items():
        for k in range(6):
            done, events = generate(Engine(model.target, make(model, text), ends), params, k)
            assert done.token_ids == wanted.token_ids, (drafter, k)
            assert done.logprobs == wanted.logprobs, (drafter, k)  # bit by bit
            assert [event.logprobs for event in events] == done.logprobs


@pytest.mark.parametrize("family", ["e4b", "26b-a4b"])
def test_no_drafter_changes_a_text_with_rules_other_families(models: Callable[[str, int], Model], family: str) -> None:
    test_no_drafter_changes_a_text_with_rules(models(family, WINDOW), "all")


def check_counted_through_drafts(model: Model) -> None:
    """The text may end with its token `at`, and not before: that token must not stay masked within a round."""
    ids = unruled(model, SamplingParams())
    at = next(i for i in range(10, NEW) if ids[i] not in ids[:i])
    params = SamplingParams(max_tokens=NEW, min_tokens=at)
    for drafter, make in ZOO.items():
        for k in range(6):
            done, _ = generate(Engine(model.target, make(model, PROMPT + ids), frozenset({ids[at]})), params, k)
            assert done.token_ids == ids[: at + 1], (drafter, k)


def test_min_tokens_counts_the_drafted_prefix(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    check_counted_through_drafts(model)
    honest = Sampler._rows
    monkeypatch.setattr(Sampler, "_rows", lambda self, logits, draft: honest(self, logits, ()))
    with pytest.raises(AssertionError, match=r"\('[\w-]+', [1-5]\)"):
        check_counted_through_drafts(model)


CONTEXTUAL = [name for name in RULES if not name.startswith(("min_p", "bias", "min_tokens"))]


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_rules_that_overlook_the_drafted_prefix_are_caught(
    model: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a sampler that processes every row after the emitted tokens only."""
    honest = Sampler._rows
    monkeypatch.setattr(Sampler, "_rows", lambda self, logits, draft: honest(self, logits, ()))
    with pytest.raises(AssertionError, match=r"\('[\w-]+', [1-5]\)"):
        test_no_drafter_changes_a_text_with_rules(model, name)


def test_the_drafter_is_told_what_it_has_drafted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, told = Sampler.guess, list[tuple[int, ...]]()

    def guess(self: Sampler, logits: Any, ids: Any, position: int, draft: Sequence[int] = ()) -> int:
        told.append(tuple(draft))
        return honest(self, logits, ids, position, draft)

    monkeypatch.setattr(Sampler, "guess", guess)
    generate(Engine(model.target, ZOO["mtp"](model, [])), replace(RULES["repetition"], max_tokens=6), 4)
    assert [len(draft) for draft in told[:4]] == [0, 1, 2, 3]
    assert told[3][:2] == told[2]


@pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: ops.name)
@pytest.mark.parametrize("params", RULES.values(), ids=list(RULES))
def test_a_drafter_guesses_under_the_same_rules(ops: Any, params: SamplingParams) -> None:
    """From the target's own scores it guesses the target's own choice, also where it names ids in another order."""
    sampler = Sampler(ops, params, end_ids=frozenset(EOS))
    sampler.begin(PROMPT, VOCAB)
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))
    for seed in range(10):
        x, draft = rows(4, seed), [200, 9, 90]
        x[:, EOS] += 4
        chosen = sampler.choose(ops.array(x), 50, draft)
        for r in range(4):
            row, at = x[r : r + 1], 50 + r
            assert sampler.guess(ops.array(row), None, at, draft[:r]) == chosen[r]
            assert sampler.guess(ops.array(row[:, order]), ops.array(order[None]), at, draft[:r]) == chosen[r]


def test_nothing_is_done_where_no_rule_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "Context", None)
    ops = BACKENDS[0]
    for params in (SamplingParams(), SamplingParams(temperature=1.0, top_k=5, min_p=0.1, logprobs=2)):
        sampler, x = Sampler(ops, params, end_ids=frozenset(EOS)), ops.array(rows(3))
        sampler.begin(PROMPT, VOCAB)
        sampler.extend(sampler.choose(x, 5, [3, 4]), x)
        assert sampler.context is None
    with pytest.raises(TypeError):  # the patches bite
        Sampler(ops, RULES["bias"]).begin(PROMPT, VOCAB)


@pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: ops.name)
def test_ties_after_processing_go_to_the_lowest_id(ops: Any) -> None:
    sampler = Sampler(ops, SamplingParams(logit_bias={4: 1.0, 2: 2.0}, presence_penalty=1.0))
    sampler.begin([], 6)
    x = ops.array(torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0, 2.0]] * 2))
    assert sampler.choose(x, 0, [5]) == [2, 2]
    sampler.extend([2], x)
    assert sampler.choose(x, 0, [5]) == [4, 4]


def test_logits_are_left_as_they_were() -> None:
    sampler, x = Sampler(BACKENDS[0], RULES["all"], end_ids=frozenset(EOS)), rows(2)
    sampler.begin(PROMPT, VOCAB)
    sampler.choose(BACKENDS[0].array(x), 3, [5])
    assert torch.equal(x, rows(2))
