"""What the instrument itself costs for each streamed event, with 32 answers in flight."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx2

from paceline.bench.adapters.dialect import Wish
from paceline.bench.adapters.engines import named
from paceline.bench.adapters.http import HttpArm
from paceline.bench.arms import Answer, Ask
from paceline.types import SamplingParams

EVENTS, IN_FLIGHT = 100, 32
MOST_S = 0.001
ASK = Ask([{"role": "user", "content": "Tea?"}], SamplingParams(max_tokens=EVENTS))
END = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class Events(httpx2.AsyncByteStream):
    """A stream as vLLM writes it, event by event, with others let in between."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for i in range(EVENTS):
            await asyncio.sleep(0)
            yield f"data: {json.dumps(event(i + 1))}\n\n".encode()
        yield END.encode()


def event(tokens: int) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": "word "}, "logprobs": None, "finish_reason": None, "token_ids": [5]}
    usage = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], "usage": usage}


def test_an_event_costs_far_less_than_a_millisecond() -> None:
    async def run() -> list[Answer]:
        arm = HttpArm("http://127.0.0.1:1", Wish("m"), named("vllm"))
        arm.model = "m"
        answers = httpx2.MockTransport(lambda request: httpx2.Response(200, stream=Events()))
        arm.wire._client = httpx2.AsyncClient(transport=answers, base_url=arm.wire.url)
        try:
            return await asyncio.gather(*(arm.answer(ASK) for _ in range(IN_FLIGHT)))
        finally:
            await arm.close()

    begin = time.process_time()  # of this process alone: other work on the machine must not fail the test
    answers = asyncio.run(run())
    cost_s = (time.process_time() - begin) / (EVENTS * IN_FLIGHT)
    assert [answer.tokens for answer in answers] == [EVENTS] * IN_FLIGHT
    assert cost_s < MOST_S, f"{cost_s * 1e6:.0f} us an event"
