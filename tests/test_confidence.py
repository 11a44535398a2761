"""Drafting stops where the drafter is unsure; the text stays, and out-of-range bounds are refused."""

from __future__ import annotations

import pytest

from paceline.errors import UsageError
from paceline.llm import LLM
from paceline.types import SamplingParams, Stats

PROMPT = [{"role": "user", "content": "What is a list in Python?"}]


def run(bound: float | None, temperature: float) -> tuple[list[int], Stats]:
    llm = LLM.from_pretrained("embedded", min_confidence=bound)
    params = SamplingParams(max_tokens=80, temperature=temperature, top_k=64, top_p=0.95, seed=3, ignore_eos=True)
    done = llm.generate([PROMPT], params, k=6)[0]
    return done.token_ids, done.stats


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bound_saves_drafts_and_changes_no_token(temperature: float) -> None:
    text, free = run(0.0, temperature)
    same, bound = run(0.6, temperature)
    assert same == text
    assert 0 < sum(bound.drafted) < sum(free.drafted)
    assert sum(bound.accepted) / sum(bound.drafted) > sum(free.accepted) / sum(free.drafted)


def test_the_drafters_own_advice_is_the_default() -> None:
    resolved = LLM.from_pretrained("embedded").resolved
    assert (resolved.k, resolved.min_confidence) == (5, 0.4)
    assert {d.what: d.value for d in resolved.decisions}["min_confidence"] == "0.4"


@pytest.mark.parametrize("bound", [-0.1, 1.0, "high"])
def test_bounds_out_of_range_are_refused(bound: object) -> None:
    with pytest.raises(UsageError, match="confidence"):
        LLM.from_pretrained("embedded", min_confidence=bound)
