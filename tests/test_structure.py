"""Structured output: the text is what the grammar says, and the same with any drafter; nothing else is let through."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from families import EOS, PROMPT, VOCAB
from test_rejection import FINE, Near, Tree
from tokenizers import Tokenizer, decoders, models
from zoo import ZOO, Model

from paceline import structure as module
from paceline.drafters import NoDrafter
from paceline.engine import Engine, Writer
from paceline.errors import UsageError
from paceline.hub import EMBEDDED_PAIR
from paceline.llm import LLM
from paceline.models.gemma4 import Target
from paceline.structure import Constraint, Ids, Structure, check_structure
from paceline.types import ACCEPT_MODES, Completion, SamplingParams

pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("quiet_torch")
needs_target = pytest.mark.skipif(not (EMBEDDED_PAIR / "target" / "config.json").is_file(), reason="no embedded target")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}
LARK = 'start: pair ("," pair){0,3}\npair: KEY "=" KEY\nKEY: /[a-c]{1,4}/\n'
REGEX = "(ab|ba){2,6}[xyz]{1,5}(end|stop)?"
WISHES: dict[str, dict[str, Any]] = {
    "json_schema": {"json_schema": SCHEMA}, "regex": {"regex": REGEX}, "grammar": {"grammar": LARK}
}  # fmt: skip
WRITING = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=1.0, top_k=40, top_p=0.95, seed=3),
    "whole": SamplingParams(temperature=1.0, seed=3),
}
NEW = 60
PIECES = [
    '{"',
    '":',
    '",',
    "true",
    "false",
    "ab",
    "ba",
    "aba",
    "xy",
    "end",
    "sto",
    ",a",
    "=b",
    "a=",
    "bc",
    "nam",
    '"name',
]


def alphabet() -> dict[str, int]:
    """256 tokens: those that end texts, all printable characters, and pieces that span what a grammar tells apart."""
    names = {1: "<eos>", 106: "<turn|>", 50: "<end>", 0: "<pad>", 2: "<bos>"}
    free = iter(i for i in range(VOCAB) if i not in names)
    words = [chr(c) for c in range(33, 127)] + ["Ġ"] + PIECES
    made = {word: next(free) for word in dict.fromkeys(words)}
    fill = {f"<unused{i}>": i for i in free}
    return made | {name: i for i, name in names.items()} | fill


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vocab = alphabet()
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([word for word in vocab if re.fullmatch("<.+>", word)])
    assert made.get_vocab_size() == VOCAB
    return made


@pytest.fixture(scope="module")
def structure(tokenizer: Tokenizer) -> Structure:
    return Structure(tokenizer, Ids(VOCAB, frozenset(EOS)))


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models("e2b", 8)


def write(
    model: Model, structure: Structure, drafter: Any, params: SamplingParams, k: int, ends: Sequence[int] = EOS
) -> Completion:
    engine = Engine(model.target, drafter, frozenset(ends), structure=structure)
    writer = Writer(engine.end_ids, params, None, len(PROMPT))
    for _ in engine.run(PROMPT, params, k, writer):
        pass
    return writer.completion()


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def fits(name: str, text: str) -> bool:
    """By an outside judge."""
    if name == "regex":
        return re.fullmatch(REGEX, text) is not None
    if name == "grammar":
        return re.fullmatch("[a-c]{1,4}=[a-c]{1,4}(,[a-c]{1,4}=[a-c]{1,4}){0,3}", text) is not None
    found = json.loads(text)
    return set(found) == {"name", "ok"} and len(found["name"]) <= 6 and isinstance(found["ok"], bool)


def tokens_of(bits: np.ndarray) -> set[int]:
    """The tokens whose bits are set."""
    return {32 * word + bit for word in range(len(bits)) for bit in range(32) if int(bits[word]) >> bit & 1}


# ---- the text -------------------------------------------------------------------------------------------------------


def check_zoo(model: Model, structure: Structure, params: SamplingParams) -> Completion:
    """The text without drafts, after comparing all drafters' with it."""
    plain = write(model, structure, NoDrafter(), params, 0)
    longer = PROMPT + plain.token_ids + [7] * 16
    for name, make in ZOO.items():
        for k in (1, 3, 5):
            done = write(model, structure, make(model, longer), params, k)
            assert done.token_ids == plain.token_ids, (name, k)
            assert done.finish_reason == plain.finish_reason
    return plain


@pytest.mark.parametrize("writing", WRITING)
@pytest.mark.parametrize("name", WISHES)
def test_no_drafter_changes_the_text(
    model: Model, structure: Structure, tokenizer: Tokenizer, name: str, writing: str
) -> None:
    """In coupled mode; greedy in every mode."""
    params = replace(WRITING[writing], max_tokens=NEW, **WISHES[name])
    plain = check_zoo(model, structure, params)
    text = text_of(tokenizer, plain.token_ids)
    assert plain.finish_reason == "stop"
    assert plain.token_ids[-1] in EOS
    assert fits(name, text), text
    for accept in ACCEPT_MODES[1:] if writing == "greedy" else ():
        assert check_zoo(model, structure, replace(params, accept=accept)).token_ids == plain.token_ids


def test_rules_and_grammars_go_together(model: Model, structure: Structure, tokenizer: Tokenizer) -> None:
    params = replace(
        WRITING["sampled"], max_tokens=NEW, regex=REGEX, repetition_penalty=1.3, presence_penalty=0.5,
        logit_bias={9: 2.0}, logprobs=0,
    )  # fmt: skip
    plain = check_zoo(model, structure, params)
    assert fits("regex", text_of(tokenizer, plain.token_ids))


@pytest.mark.parametrize("accept", ACCEPT_MODES[1:])
def test_sampled_texts_keep_their_law(model: Model, structure: Structure, accept: Any) -> None:
    """The first tokens under a grammar with few of them, drawn drafts that it forbids in part, G-test; see Tree."""
    params = SamplingParams(temperature=1.5, regex="[xyz]{4,6}", max_tokens=16)

    class Grammatical(Tree):
        def after(self, text: tuple[int, ...]) -> list[tuple[int, float]]:
            self.sampler.constraint = structure.constraint(params)
            return super().after(text)

    tree, texts = Grammatical(model, params), []
    for seed in range(400):
        constrained = replace(params, accept=accept, seed=seed)
        engine = Engine(model.target, Near(model.mtp, model.target), frozenset(EOS), structure=structure)
        writer = Writer(engine.end_ids, constrained, None, 6)
        ids = [event.token_id for event in engine.run(PROMPT[:6], constrained, 2, writer)]
        texts.append(tuple(ids[:3]))
    assert len(set(texts)) > 4
    assert tree.p_value(texts) > FINE


@pytest.mark.parametrize("accept", ACCEPT_MODES[1:])
def test_sampled_texts_fit_with_every_drafter(
    model: Model, structure: Structure, tokenizer: Tokenizer, accept: Any
) -> None:
    params = replace(WRITING["sampled"], accept=accept, max_tokens=NEW)
    for name, wish in WISHES.items():
        for drafter, make in ZOO.items():
            done = write(model, structure, make(model, PROMPT + [5] * 90), replace(params, **wish), 4)
            text = text_of(tokenizer, done.token_ids)
            assert done.finish_reason == "stop", (drafter, text)
            assert fits(name, text), (drafter, text)


def test_masks_that_overlook_the_drafted_prefix_are_caught(
    model: Model, structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: every row gets the mask of the emitted tokens only."""
    honest = Constraint.allowed
    params = replace(WRITING["greedy"], max_tokens=NEW, regex=REGEX)
    check_zoo(model, structure, params)
    monkeypatch.setattr(Constraint, "allowed", lambda self, draft=(): honest(self))
    with pytest.raises(AssertionError, match=r"\('[\w-]+', [135]\)"):
        check_zoo(model, structure, params)


def test_forbidden_drafts_never_reach_the_target(
    model: Model, structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, passes = Target.forward, list[list[int]]()

    def forward(self: Target, ids: Sequence[int], cache: Any, **more: Any) -> Any:
        if not more:  # the prompt's last tokens are no drafts
            passes.append(list(ids))
        return honest(self, ids, cache, **more)

    params = replace(WRITING["greedy"], max_tokens=NEW, regex=REGEX)
    plain = write(model, structure, NoDrafter(), params, 0).token_ids
    monkeypatch.setattr(Target, "forward", forward)
    write(model, structure, ZOO["random"](model, []), params, 5)
    assert passes
    constraint = structure.constraint(params)
    assert constraint is not None
    legal = {i for r in range(len(plain)) for i in tokens_of(constraint.allowed(plain[:r]))}
    assert all(token in legal for ids in passes for token in ids[1:])
    passes.clear()
    write(model, structure, ZOO["right-then-wrong"](model, PROMPT + plain + [7] * 9), params, 5)
    assert max(map(len, passes)) > 2  # drafts that the grammar allows do


def test_the_end_comes_where_the_grammar_is_complete(model: Model, structure: Structure, tokenizer: Tokenizer) -> None:
    """Not before, and at once where nothing may follow; drafts beyond it are nobody's."""
    for regex, wanted in (("abba", "abba"), ("(a|b)", None), ("x{20}", "x" * 20)):
        params = SamplingParams(regex=regex, max_tokens=NEW)
        for k, drafter in ((0, NoDrafter()), (5, ZOO["random"](model, []))):
            done = write(model, structure, drafter, params, k)
            text = text_of(tokenizer, done.token_ids)
            assert re.fullmatch(regex, text)
            assert wanted in (None, text)
            assert [token in EOS for token in done.token_ids] == [False] * (len(done.token_ids) - 1) + [True]
    cut = write(model, structure, NoDrafter(), SamplingParams(regex="x{20}", max_tokens=5), 0)
    assert cut.finish_reason == "length"


def test_any_end_token_may_end_it(structure: Structure) -> None:
    constraint = structure.constraint(SamplingParams(regex="ab?"))
    assert constraint is not None
    a = structure.tokenizer.token_to_id("a")  # type: ignore[union-attr]
    assert not tokens_of(constraint.allowed()) & {*EOS}
    assert tokens_of(constraint.allowed([a])) > {*EOS}
    assert constraint.legal([a, EOS[1], a]) == 2
    assert constraint.legal([EOS[1]]) == 0
    assert len(tokens_of(constraint.allowed([a, EOS[1]]))) == VOCAB  # nobody reads that row
    constraint.extend([a, EOS[0], 7])
    assert tokens_of(constraint.allowed()) > {*EOS}


# ---- what is refused ------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": "{"}, "json_schema is not valid JSON"),
    ({"json_schema": "3"}, "json_schema must be a JSON object, not 3"),
    ({"json_schema": {"type": "strin"}}, "json_schema cannot be used: Invalid type: strin"),
    ({"json_schema": {"type": "object", "if": {}}}, 'json_schema cannot be used: Unimplemented keys: ."if".'),
    ({"regex": "a("}, "regex cannot be used: .*regex parse error$"),
    ({"grammar": "start: nothing"}, 'grammar cannot be used: .*unknown name: "nothing"'),
    ({"regex": " "}, "regex must be a string that is not empty"),
    ({"regex": 3}, "regex must be a string that is not empty, not 3"),
    ({"grammar": ["start"]}, "grammar must be a string"),
    ({"json_schema": {"a": {1, 2}}}, "json_schema must hold nothing but JSON"),
    ({"json_schema": {"a": float("nan")}}, "json_schema must hold nothing but JSON"),
    ({"regex": "a", "grammar": LARK}, "regex and grammar exclude each other"),
    ({"regex": "a", "ignore_eos": True}, "ignore_eos does not go with regex"),
    ({"regex": "a", "min_tokens": 3}, "min_tokens does not go with regex"),
]


@pytest.mark.parametrize(("values", "match"), WRONG, ids=str)
def test_what_cannot_be_is_refused_by_the_fields_name(values: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=f"^{match}"):
        check_structure(SamplingParams(**values))


def test_a_mapping_is_kept_as_text_that_hashes() -> None:
    params = SamplingParams(json_schema=SCHEMA)
    assert params == SamplingParams(json_schema=json.dumps(SCHEMA)) == replace(params, seed=0)
    assert hash(params) == hash(replace(params, seed=0))
    assert params.structure == ("json_schema", json.dumps(SCHEMA))


def test_grammars_need_a_tokenizer_an_end_and_the_library(
    model: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(regex="a")
    with pytest.raises(UsageError, match="regex needs a tokenizer"):
        write(model, None, NoDrafter(), params, 0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="regex needs an end token"):
        Structure(tokenizer, Ids(VOCAB, frozenset())).constraint(params)
    every = tuple(i for i in range(VOCAB) if i not in EOS)
    constraint = Structure(tokenizer, Ids(VOCAB, frozenset(EOS), every)).constraint(params)
    assert constraint is not None
    with pytest.raises(UsageError, match="regex leaves no token to go on with"):
        constraint.allowed()

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"regex needs llguidance: pip install 'paceline\[structured\]'"):
        check_structure(params)


def test_llguidance_is_not_imported_without_need() -> None:
    code = "import sys, paceline.llm; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the whole way --------------------------------------------------------------------------------------------------


@needs_target
def test_the_embedded_pair_writes_json() -> None:
    """A real tokenizer with pieces of many letters: the schema holds, drafting or not, in every mode."""
    llm = LLM.from_pretrained("embedded")
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "green", "blue"]}, "size": {"type": "integer",
              "minimum": 1, "maximum": 99}}, "required": ["colour", "size"], "additionalProperties": False}  # fmt: skip
    chat: Any = [{"role": "user", "content": "Describe a ball."}]
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, json_schema=schema, max_tokens=120, seed=1)
        plain = llm.generate([chat], params, k=0)[0]
        assert llm.generate([chat], params, k=5)[0].token_ids == plain.token_ids
        for accept in ACCEPT_MODES:
            found = json.loads(llm.generate([chat], replace(params, accept=accept), k=5)[0].text)
            assert found["colour"] in ("red", "green", "blue")
            assert 1 <= found["size"] <= 99
    with pytest.raises(UsageError, match="json_schema cannot be used"):
        llm.stream(chat, SamplingParams(json_schema={"type": "x"}))
