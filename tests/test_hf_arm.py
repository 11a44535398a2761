"""Transformers as an arm: which versions are refused, and what its drafts count on the embedded pair."""

from __future__ import annotations

import asyncio

import pytest

from paceline.bench.adapters import hf
from paceline.bench.arms import Answer, Ask
from paceline.errors import UsageError
from paceline.hub import EMBEDDED_PAIR
from paceline.types import ChatMessage, SamplingParams

pytestmark = pytest.mark.usefixtures("quiet_torch")
needs_pair = pytest.mark.skipif(not (EMBEDDED_PAIR / "target" / "config.json").is_file(), reason="no embedded pair")
CHAT: list[ChatMessage] = [{"role": "user", "content": "How do I make a cup of tea?"}]


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("5.18.0", "two of its arguments"),
        ("5.19.0", "two of its arguments"),
        ("5.23.0", "layer types"),
        ("5.16.2", "older than Gemma 4's drafters"),
        ("4.57.1", "older than Gemma 4's drafters"),
    ],
)
def test_versions_that_cannot_draft_are_refused_with_the_reason(version: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"transformers {version} cannot draft with Gemma 4: .*{why}.*==5.22.2"):
        hf.check_version(version)


@pytest.mark.parametrize("version", ["5.17.0", "5.20.2", "5.21.1", "5.22.2", "5.24.0", "6.0.0"])
def test_other_versions_are_taken(version: str) -> None:
    hf.check_version(version)


def test_what_generate_does_not_take_is_refused() -> None:
    for params in (SamplingParams(stop=("x",)), SamplingParams(ignore_eos=True), SamplingParams(frequency_penalty=1.0)):
        with pytest.raises(UsageError, match="not passed on to transformers"):
            hf.options_of(params)
    with pytest.raises(UsageError, match="k must be at least 1"):
        hf.transformers_contest("x", "y", [0])


@pytest.fixture
def loaded() -> hf.Loaded:
    """The embedded pair in fp32: in bf16 two openings of the answer are a near-tie."""
    pair = hf.load(str(EMBEDDED_PAIR / "target"), str(EMBEDDED_PAIR / "assistant"))
    pair.target.float()
    pair.assistant.float()
    return pair


@needs_pair
def test_drafts_are_counted_and_change_no_greedy_text(loaded: hf.Loaded) -> None:
    ask = Ask(CHAT, SamplingParams(max_tokens=40))

    def answer(k: int) -> Answer:
        return asyncio.run(hf.TransformersArm(loaded, k).answer(ask))

    plain, drafted = answer(0), answer(3)
    assert plain.token_ids == drafted.token_ids
    assert plain.drafting is not None
    assert drafted.drafting is not None
    assert plain.drafting.drafted == 0
    told = drafted.drafting
    assert told.drafted_by_position[0] == told.rounds
    assert len(told.drafted_by_position) == 3  # the assistant's own configuration says 5
    assert told.accepted == sum(told.accepted_by_position) > 0
    # The first token is nobody's round; each round brings its accepted drafts and one token more.
    assert told.accepted + (told.rounds or 0) == drafted.tokens - 1
    assert sum(drafted.event_tokens) == drafted.tokens
    assert len(drafted.event_times_s) < len(plain.event_times_s) == plain.tokens
    sampled = asyncio.run(hf.TransformersArm(loaded, 3).check())
    assert hf.BIASED in sampled.details["labels"]


@needs_pair
def test_next_tokens_are_the_targets_own(loaded: hf.Loaded) -> None:
    arm = hf.TransformersArm(loaded, 3)
    text = asyncio.run(arm.answer(Ask(CHAT, SamplingParams(max_tokens=12)))).text
    found = asyncio.run(arm.next_tokens(Ask(CHAT, SamplingParams()), "", 2))
    assert found is not None
    assert text.startswith(found[0].text)
    assert 0.0 >= found[0].logprob >= found[1].logprob
