"""Log-probabilities on the device: from the batch's rounds, or from the host where the likeliest are asked for too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from device_models import (
    CUT,
    END,
    FREE,
    GREEDY,
    PAIRS,
    PROMPTS,
    Both,
    check_idle,
    make,
    on_the_cpu,
    quick_interpreter,
    request,
    run,
)

from paceline.device.serve import DeviceServer
from paceline.drafters import NoDrafter
from paceline.engine import Engine
from paceline.llm import LLM
from paceline.types import SamplingParams

RULED = replace(GREEDY, repetition_penalty=1.6, logit_bias={2: 1.5, 33: -2.0})
PROMPT = PROMPTS[0]


@pytest.fixture(scope="module")
def made() -> dict[str, Both]:
    return {name: make(configs) for name, configs in PAIRS.items()}


@pytest.fixture
def experts(made: dict[str, Both]) -> Both:
    return made["experts"]


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> Iterator[None]:
    with quick_interpreter(monkeypatch):
        yield


@pytest.mark.parametrize(
    ("name", "params", "likeliest"),
    [("sharing", GREEDY, 2), ("experts", CUT, 2), ("sharing", CUT, 0), ("experts", RULED, 0)],
)
def test_log_probabilities(made: dict[str, Both], name: str, params: SamplingParams, likeliest: int) -> None:
    """Those of the CPU's engine, the same bits for every k; the text is the one without them.

    With the likeliest tokens they come from the host, without from the batch's rounds.
    """
    k, both, asked = 2, made[name], replace(params, logprobs=likeliest, max_tokens=4)
    expected = on_the_cpu(both, asked, 0)
    found = []
    for length in (0, k):
        each = request(PROMPT, 4, length, asked)
        assert run(both.engine(both.mtp(), ends=(END,)), each) == [expected.token_ids]
        found.append(each.logprobs)
    assert expected.token_ids == both.plain(PROMPT, params, 4)
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert expected.logprobs is not None
    for mine, theirs in zip(found[0], expected.logprobs, strict=True):
        assert mine.chosen == pytest.approx(theirs.chosen, abs=1e-3)
        assert [i for i, _ in mine.top] == [i for i, _ in theirs.top]
        assert [p for _, p in mine.top] == pytest.approx([p for _, p in theirs.top], abs=1e-3)


def test_reports_of_drafts_that_stay(experts: Both) -> None:
    """From the batch's rounds, beside a text that wants none and whose place its neighbour takes over."""
    asked = replace(GREEDY, logprobs=0, repetition_penalty=1.3, max_tokens=8)
    expected, short = on_the_cpu(experts, asked, 0), experts.plain(PROMPTS[3], FREE, 2)
    script = experts.script((PROMPTS[3], short), (PROMPT, expected.token_ids))
    script.script[0, len(PROMPT) + 5 :] = script.script[1, len(PROMPT) + 5 :]  # for when it has moved
    each, other = request(PROMPT, 8, 3, asked), request(PROMPTS[3], 2, 0, FREE)
    assert run(experts.engine(script, places=2), other, each) == [short, expected.token_ids]
    assert max(done.accepted for done in each.rounds) > 1
    assert other.logprobs == []
    assert expected.logprobs is not None
    assert [e.chosen for e in each.logprobs] == pytest.approx([e.chosen for e in expected.logprobs], abs=1e-3)


def test_best_of_is_the_cpus(experts: Both) -> None:
    """The likeliest of three texts, side by side."""
    params = SamplingParams(temperature=1.3, seed=5, max_tokens=4, n=2, best_of=3, logprobs=0)
    resolved: Any = SimpleNamespace(k=0)
    device = LLM(resolved, DeviceServer(experts.engine(experts.mtp(), places=2), frozenset()), None)
    host = LLM(resolved, Engine(experts.host.target, NoDrafter()), None)
    found, expected = device.generate([PROMPT], params, 1), host.generate([PROMPT], params, 0)
    assert [done.token_ids for done in found] == [done.token_ids for done in expected]
    assert [done.mean_logprob for done in found] == pytest.approx([done.mean_logprob for done in expected], abs=1e-3)
    assert len({tuple(done.token_ids) for done in found}) == 2
    check_idle(device.engine.engine)  # type: ignore[union-attr]
    [silent] = device.generate([PROMPT], replace(params, n=1, best_of=2, max_tokens=2, logprobs=None), 0)
    assert silent.logprobs is None
