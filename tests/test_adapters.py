"""Adapters against what engines really answered (and, where marked so in the files, what their documents say)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from replay import RECORDED, STALL, Spoil, recording, replaying

from paceline.bench.adapters.dialect import Wish
from paceline.bench.adapters.engines import DIALECTS, detect, named, trt_counters
from paceline.bench.adapters.http import HttpArm, choose_model
from paceline.bench.adapters.prometheus import drafting_counters
from paceline.bench.adapters.wire import Wire, identity_of, root_of
from paceline.bench.arms import Answer, ArmError, Ask, Drafting, Facts
from paceline.errors import UsageError
from paceline.types import ChatMessage, SamplingParams

T = TypeVar("T")
CHAT: list[ChatMessage] = [{"role": "user", "content": "How do I make a cup of tea?"}]
TEA = "Plants are made up of 1 cup of tea."
GREEDY = Ask(CHAT, SamplingParams(max_tokens=24))


def on_arm(arm: HttpArm, use: Callable[[HttpArm], Coroutine[Any, Any, T]]) -> T:
    """Opens an arm, uses it, and closes it."""

    async def run() -> T:
        await arm.open()
        try:
            return await use(arm)
        finally:
            await arm.close()

    return asyncio.run(run())


async def look_and_ask(arm: HttpArm) -> tuple[Facts, Answer]:
    return await arm.check(), await arm.answer(GREEDY)


def played(engine: str, name: str, spoil: Spoil = list) -> tuple[Facts, Answer]:
    """Facts and an answer of a recorded server, its engine found out by the arm itself."""
    with replaying(recording(engine, name), spoil) as server:
        return on_arm(HttpArm(server.url, Wish(drafts=name == "on"), stall_s=1.0), look_and_ask)


# Counts of one answer of 15 tokens to the same prompt, as each engine told them when this was recorded.
TOLD = {
    "llamacpp": Drafting(20, 9, 5),
    "vllm": Drafting(20, 9, 5, (5, 5, 5, 5), (4, 2, 2, 1)),
    "mlx": Drafting(25, 10, 5),
}


@pytest.mark.parametrize("engine", TOLD)
def test_an_engine_that_drafts_says_so_and_how_much(engine: str) -> None:
    facts, answer = played(engine, "on")
    assert (facts.engine, facts.drafts) == (engine, True)
    assert answer.drafting == TOLD[engine]
    assert (answer.text, answer.tokens, answer.finish_reason) == (TEA, 15, "stop")
    assert answer.prompt_tokens == 20
    assert answer.event_times_s == sorted(answer.event_times_s)


@pytest.mark.parametrize("engine", TOLD)
def test_the_same_engine_without_its_drafter_says_that_it_does_not_draft(engine: str) -> None:
    facts, answer = played(engine, "off")
    assert (facts.engine, facts.drafts) == (engine, False)
    assert not answer.drafting
    assert answer.text == TEA  # what a drafter must not change


def test_a_rounds_tokens_come_in_one_event_of_vllm_and_are_counted() -> None:
    facts, answer = played("vllm", "on")
    assert facts.k == 4
    assert answer.event_tokens[0] == 1
    assert max(answer.event_tokens) > 1
    assert len(answer.token_ids or []) == answer.tokens


def test_acceptance_of_vllm_comes_from_its_counters_where_answers_do_not_tell() -> None:
    def without_metrics(lines: list[str]) -> list[str]:
        return [line.replace('"metrics"', '"removed"') for line in lines]

    async def ask(arm: HttpArm) -> tuple[Facts, Drafting | None]:
        before = await arm.dialect.counters(arm.wire)
        facts = await arm.check()
        after = await arm.counters()
        assert before is not None
        assert after is not None
        return facts, after - before

    with replaying(recording("vllm", "on"), without_metrics) as server:
        facts, spent = on_arm(HttpArm(server.url, Wish(drafts=True)), ask)
    assert "counters" in facts.acceptance
    assert spent is not None
    assert 0 < spent.accepted < spent.drafted == 4 * (spent.rounds or 0)
    assert spent.accepted == sum(spent.accepted_by_position)


def test_llama_cpp_is_told_on_by_its_slots_not_by_its_props() -> None:
    record = recording("llamacpp", "on")
    props = next(e["body"] for e in record["exchanges"] if e["path"] == "/props")
    assert '"speculative.types":"none"' in props  # while it drafts
    assert played("llamacpp", "on")[0].method == "draft-mtp"


DOCUMENTED = {
    "sglang": (True, Drafting(15, 7, 3, (), (3, 2, 1, 1, 0))),
    "lmstudio": (True, Drafting(15, 7)),
    "trtllm": (True, None),
    "ollama": (None, None),
    "litert": (None, None),
}


@pytest.mark.parametrize("engine", DOCUMENTED)
def test_documented_engines(engine: str) -> None:
    record = recording(engine, "on")
    assert record["source"] == "documented format, not recorded"
    facts, answer = played(engine, "on")
    drafts, told = DOCUMENTED[engine]
    assert (facts.engine, facts.drafts, answer.drafting) == (engine, drafts, told)
    assert (answer.text, answer.tokens) == ("One, two, three, four.", 10)


@pytest.mark.parametrize("engine", ["sglang", "trtllm"])
def test_documented_engines_without_a_drafter(engine: str) -> None:
    facts, answer = played(engine, "off")
    assert (facts.drafts, answer.drafting) == (False, None)


def test_every_recorded_engine_is_recognised() -> None:
    async def name(wire: Wire) -> str:
        await wire.open()
        try:
            return (await detect(wire)).name
        finally:
            await wire.close()

    for folder in sorted(RECORDED.iterdir()):
        with replaying(recording(folder.name, "on")) as server:
            assert asyncio.run(name(Wire(server.url))) == folder.name


def test_trtllm_counts_over_a_step_are_differences_of_its_page() -> None:
    old = 'trtllm_spec_decode_num_draft_tokens_total{a="b"} 15.0\ntrtllm_spec_decode_num_accepted_tokens_total{} 7.0\n'
    new = "".join(
        f'trtllm_spec_decode_{what}_tokens_total{{token_position="{i}"}} {n}\n'
        for what, counts in (("drafted", (5, 5)), ("accepted", (4, 2)))
        for i, n in enumerate(counts)
    )
    assert trt_counters(old) == Drafting(15, 7)
    assert trt_counters(new) == Drafting(10, 6, None, (5, 5), (4, 2))
    assert trt_counters("trtllm_request_success_total 3\n") is None


def test_counters_are_summed_over_engines_and_gauges_of_creation_are_left_out() -> None:
    page = "".join(
        f'vllm:spec_decode_num_{name}{{engine="{i}"}} {value}\n'
        for i in (0, 1)
        for name, value in (("drafts_total", 2), ("draft_tokens_total", 8), ("draft_tokens_created", 1.7e9),
                            ("accepted_tokens_total", 3))
    )  # fmt: skip
    assert drafting_counters(page, "vllm:spec_decode_") == Drafting(16, 6, 4)
    assert drafting_counters(page, "llamacpp:spec_decode_") is None


# What goes wrong, and the words that must be in the report.


def with_event(event: dict[str, Any] | str) -> Spoil:
    """Puts an event into the middle of every stream."""
    line = "data: " + (event if isinstance(event, str) else json.dumps(event))
    return lambda lines: [*lines[:6], line, *lines[6:]]


def with_usage(tokens: int) -> Spoil:
    def spoil(lines: list[str]) -> list[str]:
        usage = {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": tokens}}
        return [*lines[:-2], f"data: {json.dumps(usage)}", "data: [DONE]"]

    return spoil


def endless(lines: list[str]) -> list[str]:
    text = [line for line in lines if '"content":"' in line or '"content": "' in line]
    return text * 200


WRONGS: dict[str, tuple[Spoil, str]] = {
    "malformed": (with_event('{"choices": [{"del'), "streamed an event that is not JSON"),
    "a list": (with_event("[1, 2]"), "streamed an event that is no object"),
    "odd shape": (with_event({"choices": [{"delta": 7}]}), "streamed an event of no known shape"),
    "an error": (with_event({"error": {"message": "out of memory"}}), "failed while streaming: out of memory"),
    "dies": (lambda lines: lines[:6], "ended a stream in the middle of a text"),
    "stalls": (lambda lines: [*lines[:6], STALL], "sent nothing for 1 s"),
    "too many": (with_usage(25), "wrote 25 tokens where"),
    "endless": (endless, "does not stop"),
    "no usage": (lambda lines: [line for line in lines if "completion_tokens" not in line], "sends no usage"),
}


@pytest.mark.parametrize("name", WRONGS)
def test_a_stream_that_goes_wrong_ends_in_a_clear_error(name: str) -> None:
    spoil, words = WRONGS[name]
    arm_params = Ask(CHAT, SamplingParams(max_tokens=24))

    async def ask(arm: HttpArm) -> None:
        arm.model = "m"
        await arm.answer(arm_params)

    with replaying(recording("mlx", "on"), spoil) as server:
        with pytest.raises(ArmError, match=words) as caught:
            on_arm(HttpArm(server.url, Wish(drafts=True), named("mlx"), stall_s=1.0), ask)
        assert server.url in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_same_stream_unspoiled_is_fine() -> None:
    assert played("mlx", "on", list)[1].text == TEA


def test_an_unreachable_server_is_named() -> None:
    with pytest.raises(ArmError, match=r"cannot reach http://127.0.0.1:9: .*is the server up"):
        on_arm(HttpArm("http://127.0.0.1:9", Wish()), look_and_ask)


def test_a_server_without_the_model_says_what_it_has() -> None:
    with (
        replaying(recording("vllm", "on")) as server,
        pytest.raises(ArmError, match="does not serve 'gemma-9'; it has: /models/target"),
    ):
        on_arm(HttpArm(server.url, Wish("gemma-9")), look_and_ask)


def test_a_model_without_a_chat_template_is_probed_with_raw_text() -> None:
    record = recording("vllm", "on")
    chats = [e for e in record["exchanges"] if e["path"] == "/v1/chat/completions"]
    for exchange in chats:
        exchange.pop("lines", None)
        exchange.update(status=400, body='{"error": {"message": "there is no chat template"}}')
    with replaying(record) as server:
        assert on_arm(HttpArm(server.url, Wish(drafts=True)), lambda arm: arm.check()).drafts
        assert isinstance(server.bodies[-1]["prompt"], str)


def test_of_several_models_one_must_be_chosen() -> None:
    record = recording("lmstudio", "on")
    record["exchanges"][0]["body"] = json.dumps({"data": [{"id": "a", "owned_by": "organization_owner"}, {"id": "b"}]})
    with replaying(record) as server:
        with pytest.raises(ArmError, match="serves 2 models; choose one with --model: a, b"):
            on_arm(HttpArm(server.url, Wish()), look_and_ask)
        assert on_arm(HttpArm(server.url, Wish("b")), look_and_ask)[0].model == "b"


def test_ollamas_own_tag_may_be_left_out() -> None:
    assert choose_model(["gemma4:latest", "x"], "gemma4", "u") == "gemma4:latest"
    with pytest.raises(ArmError, match="does not serve 'gemma4'; it has: gemma4:e4b"):
        choose_model(["gemma4:e4b"], "gemma4", "u")


def test_another_draft_length_than_the_one_named_is_refused() -> None:
    with (
        replaying(recording("vllm", "on")) as server,
        pytest.raises(ArmError, match="drafts 4 tokens a round, not k = 3"),
    ):
        on_arm(HttpArm(server.url, Wish(k=3, drafts=True)), look_and_ask)


def test_an_engine_that_refuses_is_quoted() -> None:
    async def ask(arm: HttpArm) -> None:
        await arm.wire.post("/v1/chat/completions", {"model": "no-such-model", "messages": CHAT})

    record = recording("vllm", "on")
    record["exchanges"] = [e for e in record["exchanges"] if e["status"] == 404 and e["method"] == "POST"]
    with (
        replaying(record) as server,
        pytest.raises(ArmError, match=r"answered 404: The model .no-such-model. does not"),
    ):
        on_arm(HttpArm(server.url, Wish(), named("vllm")), ask)


# What is asked.


def bodies_of(engine: str, ask: Ask, k: int | None = None) -> dict[str, Any]:
    """The body that an arm of this engine sends."""
    body = named(engine).body(ask, "m", k or 0)
    json.dumps(body)
    return body


def test_defaults_of_servers_never_decide() -> None:
    sampled = Ask(CHAT, SamplingParams(temperature=0.7, seed=2**63 - 1, max_tokens=5))
    assert bodies_of("vllm", sampled)["top_k"] == -1  # else the checkpoint's generation_config.json decides
    assert bodies_of("llamacpp", sampled)["min_p"] == 0.0  # else 0.05
    assert bodies_of("ollama", sampled, 3)["options"] == {
        "temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 2**31 - 1, "num_predict": 5,
        "draft_num_predict": 3, "repeat_penalty": 1.0,
    }  # fmt: skip
    for engine in ("vllm", "sglang", "llamacpp", "mlx", "lmstudio", "trtllm"):
        assert bodies_of(engine, sampled)["top_p"] == 1.0
        assert bodies_of(engine, sampled)["seed"] > 0


def test_prompts_are_not_reused_where_a_request_can_say_so() -> None:
    assert bodies_of("llamacpp", GREEDY)["cache_prompt"] is False
    assert played("llamacpp", "on")[1].cached_tokens == 0


@pytest.mark.parametrize("engine", DIALECTS)
def test_what_no_request_carries_is_refused(engine: str) -> None:
    for params in (SamplingParams(presence_penalty=0.5), SamplingParams(logit_bias={1: 2.0})):
        with pytest.raises(UsageError, match=f"is not passed on to {engine}; leave it out"):
            bodies_of(engine, Ask(CHAT, params))


def test_a_plain_openai_server_takes_no_top_k() -> None:
    with pytest.raises(UsageError, match="takes no top_k, min_p or ignore_eos"):
        bodies_of("openai", Ask(CHAT, SamplingParams(temperature=1.0, top_k=64)))
    assert "top_k" not in bodies_of("openai", Ask(CHAT, SamplingParams(top_k=64)))  # greedy: it makes no difference


def test_raw_text_where_only_chats_are_served_is_refused() -> None:
    with pytest.raises(UsageError, match="answers chats only"):
        named("mlx").path("def add(")


# The likeliest next tokens.


async def next_after(arm: HttpArm) -> Any:
    return await arm.next_tokens(GREEDY, "Plants are", 2)


@pytest.mark.parametrize("engine", ["llamacpp", "vllm"])
def test_next_tokens_come_from_a_raw_completion(engine: str) -> None:
    with replaying(recording(engine, "off")) as server:
        found = on_arm(HttpArm(server.url, Wish()), next_after)
        body = server.bodies[-1]
    assert [c.logprob for c in found] == sorted((c.logprob for c in found), reverse=True)
    assert len(found) == 2
    assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (1, 0.0, 2)
    assert body["prompt"]
    assert body["model"].startswith("/models/target")  # looked up, though nobody looked at the arm before


def test_an_engine_that_cannot_be_asked_for_next_tokens_says_nothing() -> None:
    with replaying(recording("mlx", "off")) as server:
        assert on_arm(HttpArm(server.url, Wish()), next_after) is None


# Addresses.


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:99999", "http://x?a=1", "http://x:0"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no server's address"):
        root_of(url)


def test_one_server_under_two_names_is_one() -> None:
    assert identity_of("localhost:8000") == identity_of("http://127.0.0.1:8000/v1/")
    assert identity_of("localhost:8000") != identity_of("localhost:8001")


def test_an_engine_that_takes_k_with_each_request_is_two_arms_of_one_server() -> None:
    with replaying(recording("ollama", "on")) as server:
        on, off = (HttpArm(server.url, Wish(k=4 if d else None, drafts=d)) for d in (True, False))
        identities = [on_arm(arm, look_and_ask)[0].identity for arm in (on, off)]
        lengths = {body["options"]["draft_num_predict"] for body in server.bodies}
    assert identities[0] != identities[1]
    assert lengths == {0, 4}
