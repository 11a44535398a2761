"""What else a request may ask for: log-probabilities, many texts of one prompt; and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import copy
from families import PROMPT, VOCAB, Oracle, Pair
from test_processors import FAMILY, NEW, RULES, WINDOW, generate, unruled
from zoo import ZOO, Model, Scripted

from paceline.drafters import NoDrafter
from paceline.engine import Engine
from paceline.errors import ConfigError, UsageError
from paceline.kernels import get_ops
from paceline.llm import LLM
from paceline.models.gemma4 import Target
from paceline.types import SamplingParams
from paceline.weights import load_target

pytestmark = pytest.mark.usefixtures("quiet_torch")


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models(FAMILY, WINDOW)


# ---- log-probabilities ----------------------------------------------------------------------------------------------


def test_logprobs_are_the_models_own(pairs: dict[str, Pair]) -> None:
    """Transformers' log-softmax of the soft-capped logits, whatever temperature, cuts and rules chose the token."""
    target = load_target(pairs[FAMILY].target, get_ops("cpu"))
    params = replace(RULES["all"], max_tokens=20, min_tokens=5, logprobs=4)
    done, _ = generate(Engine(target, NoDrafter(), suppress=(5, 6)), params, 0)
    assert done.logprobs is not None
    assert len(done.logprobs) == 20
    logits = Oracle.load(pairs[FAMILY]).prefill_logits(PROMPT + done.token_ids)[len(PROMPT) - 1 : -1]
    logs = logits.double().log_softmax(-1)
    for row, token, entry in zip(logs, done.token_ids, done.logprobs, strict=True):
        values, ids = row.topk(4)
        assert entry.chosen == pytest.approx(float(row[token]), abs=1e-4)
        assert [i for i, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_logprobs_end_with_the_text(model: Model, limit: int) -> None:
    """Also where a run of accepted drafts goes on after an end token."""
    ids = unruled(model, SamplingParams())
    at = next(i for i in range(limit, NEW) if ids[i] not in ids[:i])
    drafter = ZOO["oracle"](model, PROMPT + ids)
    params = SamplingParams(max_tokens=NEW, logprobs=0)
    done, events = generate(Engine(model.target, drafter, frozenset({ids[at]})), params, 15)
    assert done.logprobs is not None
    assert len(done.logprobs) == len(events) == at + 1
    assert all(entry.top == () and entry.chosen < 0 for entry in done.logprobs)


def test_logprobs_come_only_where_asked(model: Model) -> None:
    done, events = generate(Engine(model.target, NoDrafter()), SamplingParams(max_tokens=3), 0)
    assert done.logprobs is None
    assert {event.logprobs for event in events} == {None}


# ---- many texts of one prompt ---------------------------------------------------------------------------------------

SAMPLED = SamplingParams(temperature=1.0, seed=2**64 - 3, max_tokens=12)


def test_n_texts_come_in_order_with_seeds_of_their_own(pairs: dict[str, Pair]) -> None:
    llm = LLM.from_pretrained(str(pairs[FAMILY].target), str(pairs[FAMILY].assistant))
    prompts: list[Any] = [PROMPT, PROMPT[:7]]
    texts = [done.token_ids for done in llm.generate(prompts, replace(SAMPLED, n=3), k=0)]
    assert len(set(map(tuple, texts))) == 6
    alone = [llm.generate([prompt], one, k=0)[0].token_ids for prompt in prompts for one in seeds_of(SAMPLED, 3)]
    assert texts == alone
    assert texts[::3] == [done.token_ids for done in llm.generate(prompts, SAMPLED)]
    assert texts == [done.token_ids for done in llm.generate(prompts, replace(SAMPLED, n=3), k=4)]
    with pytest.raises(UsageError, match="a stream is one text, and n is 3"):
        llm.stream(PROMPT, replace(SAMPLED, n=3))


def seeds_of(params: SamplingParams, n: int) -> list[SamplingParams]:
    """As documented: steps of 0x9E3779B97F4A7C15 modulo 2^64."""
    return [replace(params, seed=(params.seed + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(n)]


def test_seeds_of_streams_do_not_meet() -> None:
    seeds = [stream.seed for start in range(100) for stream in replace(SAMPLED, seed=start, n=100).streams()]
    assert len(set(seeds)) == 100 * 100
    assert seeds[0] == 0


def test_best_of_gives_the_likeliest_first(pairs: dict[str, Pair]) -> None:
    """By the model's own log-probabilities, of the same texts that n would give; drafting or not."""
    llm = LLM.from_pretrained(str(pairs[FAMILY].target), str(pairs[FAMILY].assistant))
    prompts: list[Any] = [PROMPT, PROMPT[:7]]
    every = llm.generate(prompts, replace(SAMPLED, n=5, logprobs=0), k=0)
    for k in (0, 4):
        best = llm.generate(prompts, replace(SAMPLED, n=2, best_of=5, logprobs=1), k=k)
        for start in (0, 5):
            means = [sum(e.chosen for e in d.logprobs or []) / len(d.token_ids) for d in every[start : start + 5]]
            ranked = sorted(range(5), key=lambda i: -means[i])[:2]
            found = best[:2] if start == 0 else best[2:]
            assert [d.token_ids for d in found] == [every[start + i].token_ids for i in ranked]
            assert [d.mean_logprob for d in found] == pytest.approx([means[i] for i in ranked])
            assert all(len(e.top) == 1 for d in found for e in d.logprobs or [])
    silent = llm.generate([PROMPT], replace(SAMPLED, best_of=5))
    assert [(d.token_ids, d.logprobs, d.mean_logprob) for d in silent] == [(best[0].token_ids, None, None)]
    with pytest.raises(UsageError, match="a stream is one text, and best_of is 5"):
        llm.stream(PROMPT, replace(SAMPLED, best_of=5))


class Recorder:
    """Stands where the GPU's engine does, and notes the jobs it is given."""

    end_ids, drafts = frozenset[int](), False

    def __init__(self, target: Target) -> None:
        self.target, self.seeds = target, list[int]()

    def request(self, prompt: Sequence[int], params: SamplingParams, k: int) -> tuple[int, int]:
        return len(prompt), params.seed

    def run(self, *request: Any) -> None:
        return None

    def run_all(self, jobs: Any) -> None:
        self.seeds = [request for request, _ in jobs]


def test_n_texts_reach_a_batching_engine_as_requests(pairs: dict[str, Pair]) -> None:
    llm = LLM.from_pretrained(str(pairs[FAMILY].target), None)
    llm.engine = Recorder(llm.engine.target)  # type: ignore[assignment]
    assert len(llm.generate([PROMPT, PROMPT[:7]], replace(SAMPLED, n=2))) == 4
    own = [params.seed for params in seeds_of(SAMPLED, 2)]
    assert llm.engine.seeds == [(size, seed) for size in (len(PROMPT), 7) for seed in own]  # type: ignore[union-attr]


# ---- what the checkpoint advises ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advice", "wanted"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95}, {"temperature": 0.7, "top_k": 64,
          "top_p": 0.95}),
        ({"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.2, "top_k": None}, {"temperature": 1.0, "min_p": 0.1,
          "repetition_penalty": 1.2}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        ({"temperature": 0.7}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoints_advice_is_offered(
    pairs: dict[str, Pair], tmp_path: Path, advice: dict[str, Any], wanted: dict[str, Any]
) -> None:
    llm = LLM.from_pretrained(str(advised(pairs, tmp_path, advice)), None)
    assert llm.sampling == wanted
    assert SamplingParams(**llm.sampling, seed=3).temperature == wanted.get("temperature", 0.0)


def test_advice_out_of_range_is_refused_where_it_is_asked_for(pairs: dict[str, Pair], tmp_path: Path) -> None:
    llm = LLM.from_pretrained(str(advised(pairs, tmp_path, {"do_sample": True, "top_p": 7, "temperature": 1.0})), None)
    with pytest.raises(ConfigError, match=r"generation_config.json: top_p must lie in \(0, 1\], not 7"):
        llm.sampling  # noqa: B018


def advised(pairs: dict[str, Pair], to: Path, advice: dict[str, Any]) -> Path:
    folder = copy(pairs[FAMILY].target, to)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(advice))
    return folder


# ---- what is refused ------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"min_p": -0.1}, r"min_p must lie in \[0, 1\], not -0.1"),
    ({"min_p": 1.1}, "min_p must lie"),
    ({"min_p": math.nan}, "min_p must lie"),
    ({"min_p": "x"}, "min_p must be a number"),
    ({"repetition_penalty": 0.0}, r"repetition_penalty must lie in \[0.01, 100\]"),
    ({"repetition_penalty": math.inf}, "repetition_penalty must lie"),
    ({"presence_penalty": 2.1}, r"presence_penalty must lie in \[-2, 2\]"),
    ({"frequency_penalty": -2.1}, r"frequency_penalty must lie in \[-2, 2\]"),
    ({"frequency_penalty": None}, "frequency_penalty must be a number"),
    ({"logit_bias": {3: 101}}, r"logit_bias must map .* to numbers in \[-100, 100\], not \(3, 101.0\)"),
    ({"logit_bias": {3: math.nan}}, "logit_bias must map"),
    ({"logit_bias": {-1: 1.0}}, r"logit_bias must map token ids from 0 on .*, not \(-1, 1.0\)"),
    ({"logit_bias": {"3": 1.0}}, "logit_bias must map token ids to numbers"),
    ({"logit_bias": {3: "x"}}, "logit_bias must map token ids to numbers"),
    ({"logit_bias": 3}, "logit_bias must map token ids to numbers, not 3"),
    ({"logit_bias": [3]}, "logit_bias must map token ids to numbers"),
    ({"min_tokens": -1}, r"min_tokens must lie in 0 \.\. max_tokens, not -1"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must lie"),
    ({"min_tokens": 1.5}, "min_tokens must be a whole number"),
    ({"logprobs": -1}, r"logprobs must be None or 0 \.\. 20"),
    ({"logprobs": 21}, "logprobs must be None"),
    ({"logprobs": "3"}, "logprobs must be a whole number"),
    ({"n": 0}, "n must be at least 1"),
    ({"n": 2.0}, "n must be a whole number"),
    ({"best_of": 1, "n": 2}, "best_of must be at least n, not 1"),
    ({"best_of": 1.5}, "best_of must be a whole number"),
    ({"accept": "typical"}, "accept must be one of coupled, rejection, block, not 'typical'"),
]


@pytest.mark.parametrize(("values", "match"), WRONG, ids=str)
def test_parameters_out_of_range(values: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        SamplingParams(**values)


def test_bias_is_kept_as_sorted_pairs_that_hash() -> None:
    params = SamplingParams(logit_bias={9: 1, 3: -2.0})
    assert params.logit_bias == ((3, -2.0), (9, 1.0))
    assert replace(params, seed=0) == params == SamplingParams(logit_bias=((9, 1.0), (3, -2.0)))
    assert len({params, SamplingParams(logit_bias={3: -2, 9: 1.0})}) == 1


def test_bias_of_unknown_tokens_is_refused_before_the_first(pairs: dict[str, Pair], model: Model) -> None:
    params, wanted = SamplingParams(logit_bias={VOCAB: 1.0}), f"logit_bias names token id {VOCAB}, outside the vocab"
    llm = LLM.from_pretrained(str(pairs[FAMILY].target), None)
    for call in (lambda: llm.stream(PROMPT, params), lambda: llm.generate([PROMPT], params)):
        with pytest.raises(UsageError, match=wanted):
            call()
    drafter = Scripted([])
    with pytest.raises(UsageError, match=wanted):
        generate(Engine(model.target, drafter), params, 3)
    assert drafter.rounds == 0
