"""When masks are computed and when the matcher is asked instead: the text must not tell, nor which tokens are legal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from families import EOS, PROMPT, VOCAB
from test_structure import NEW, REGEX, WISHES, WRITING, check_zoo, model, structure, tokenizer, tokens_of, write
from tokenizers import Tokenizer
from zoo import ZOO, Model

from paceline import structure as module
from paceline.drafters import NoDrafter
from paceline.sampling import Sampler
from paceline.structure import Constraint, Ids, Structure
from paceline.types import SamplingParams

__all__ = ["model", "structure", "tokenizer"]  # fixtures
pytest.importorskip("llguidance")
pytestmark = pytest.mark.usefixtures("quiet_torch")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many drafts stood before each mask that was computed."""
    honest, found = Constraint._compute, list[int]()

    def compute(self: Constraint) -> bytes:
        found.append(len(self.ahead))
        return honest(self)

    monkeypatch.setattr(Constraint, "_compute", compute)
    return found


def test_a_round_computes_each_mask_once(model: Model, structure: Structure, computed: list[int]) -> None:
    """Guesses and rows behind the same drafts share one; none is computed behind a draft that did not stay."""
    params = replace(WRITING["sampled"], max_tokens=NEW, regex=REGEX)
    plain = write(model, structure, NoDrafter(), params, 0).token_ids
    assert computed == [0] * len(plain)
    computed.clear()
    done = write(model, structure, ZOO["mtp"](model, []), params, 3)
    assert len(computed) <= 4 * done.stats.rounds + 1
    computed.clear()
    done = write(model, structure, ZOO["right-then-wrong"](model, PROMPT + plain + [7] * 9), params, 3)
    assert len(computed) <= len(plain) + done.stats.rounds  # and one for a draft at most whose mask nobody needs


@pytest.mark.parametrize("writing", ["greedy", "whole"])
def test_masks_are_computed_only_for_choices_that_they_change(
    model: Model, structure: Structure, computed: list[int], monkeypatch: pytest.MonkeyPatch, writing: str
) -> None:
    """The greatest of all stays the greatest of those allowed; the text is that of a sampler that always masks."""
    params, honest, forbidden = replace(WRITING[writing], max_tokens=NEW, regex="[ -~]{30}"), Constraint.allows, [0]

    def allows(self: Constraint, draft: Sequence[int], token: int) -> bool:
        found = honest(self, draft, token)
        forbidden[0] += not found and token not in self.end_ids  # whether the text may end is read off a mask
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Constraint, "allows", allows)
        plain = write(model, structure, NoDrafter(), params, 0).token_ids
    assert 0 < forbidden[0] <= len(computed) < len(plain)
    check_zoo(model, structure, params)
    monkeypatch.setattr(Sampler, "picks", False)
    assert check_zoo(model, structure, params).token_ids == plain


@pytest.mark.parametrize("rules", [{}, {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {9: 2.0}}])
@pytest.mark.parametrize("name", WISHES)
def test_rows_that_are_not_masked_change_no_text(
    model: Model, structure: Structure, monkeypatch: pytest.MonkeyPatch, name: str, rules: dict[str, Any]
) -> None:
    params = [replace(WRITING[way], max_tokens=NEW, **WISHES[name], **rules) for way in ("greedy", "whole")]
    plain = [check_zoo(model, structure, each).token_ids for each in params]
    monkeypatch.setattr(Sampler, "picks", False)
    assert [check_zoo(model, structure, each).token_ids for each in params] == plain


def test_rows_that_are_cut_must_be_masked(
    model: Model, structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Negative control: what top-k leaves depends on what the grammar leaves."""
    params = [
        SamplingParams(temperature=2.0, top_k=3, seed=seed, max_tokens=NEW, regex="[a-z]{20}") for seed in range(5)
    ]
    honest = [write(model, structure, NoDrafter(), each, 0).token_ids for each in params]
    monkeypatch.setattr(Sampler, "picks", True)
    assert [write(model, structure, NoDrafter(), each, 0).token_ids for each in params] != honest


@pytest.mark.parametrize("name", WISHES)
def test_a_matcher_reads_what_its_masks_allow(structure: Structure, name: str) -> None:
    """Token by token along random texts: asked with a mask and without one, and with drafts before it."""
    rng = np.random.default_rng(2)
    masked, asked = (structure.constraint(SamplingParams(**WISHES[name])) for _ in range(2))
    assert masked is not None
    assert asked is not None
    draft: list[int] = []
    for _ in range(12):
        allowed = tokens_of(masked.allowed(draft))
        assert {token for token in range(VOCAB) if asked.allows(draft, token)} == allowed
        assert not asked.allows([*draft, min(set(range(VOCAB)) - allowed)], 9)  # nothing follows what is forbidden
        asked.masks.clear()
        if not allowed - {*EOS}:
            break
        draft.append(int(rng.choice(sorted(allowed - {*EOS}))))
        if len(draft) == 4:
            masked.extend(draft)
            asked.extend(draft)
            draft = []


def test_what_never_comes_out_is_never_read(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.token_to_id("a"), tokenizer.token_to_id("b")
    constraint = Structure(tokenizer, Ids(VOCAB, frozenset(EOS), (a,))).constraint(SamplingParams(regex="[ab]{4}"))
    assert constraint is not None
    assert not constraint.allows([], a)
    assert constraint.legal([b, a, b]) == 1
    constraint.allowed([b, a])
    assert constraint.legal([b, a, b]) == 1


def test_slices_of_words_change_no_mask(structure: Structure, tokenizer: Tokenizer) -> None:
    library = module.require_llguidance("regex")
    bare = library.LLTokenizer(tokenizer.to_str(), n_vocab=VOCAB, eos_token=sorted(EOS), slices=[])
    spoken = [i for i in range(VOCAB) if re.fullmatch("[a-zA-Z]+", tokenizer.id_to_token(i) or "")]
    for regex in ("[a-z ]{3,40}", "[a-zA-Z ,.]{2,9}", "(ab|ba){2,6}[xyz]{1,5}", '"[^"]{1,20}"'):
        constraint = structure.constraint(SamplingParams(regex=regex))
        assert constraint is not None
        matcher = library.LLMatcher(bare, module.compile_grammar("regex", regex))
        for token in np.random.default_rng(1).choice(spoken, 60):
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: VOCAB // 32]
            assert np.array_equal(constraint.allowed(), mask)
            if tokens_of(mask) >= {int(token)}:
                matcher.consume_tokens([int(token)])
                constraint.extend([int(token)])
