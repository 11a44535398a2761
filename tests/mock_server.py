"""An OpenAI-compatible server on loopback with everything planted, faults included. Real sockets, a thread of its own.

    with MockServer(Plan(drafts=True)) as server:
        ...  # server.url

Also a program of its own, so that a client can be measured apart from it: `python tests/mock_server.py '{"k": 4}'`
prints the URL and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL = "mock-model"


@dataclass
class Plan:
    """What a server does. Texts depend on prompt, temperature and seed alone, so two servers write the same ones.

    speedup: of a server that drafts, by its times; `accept`: the probability that a draft is kept while all before it
    were. events: tokens of each streamed event. Faults, each for every so many-th request (0: never): change_token (one
    token), overrun (twice the tokens asked for), malformed (an event that is no JSON), truncate (no end of the stream),
    stall (silence after the first event), no_usage. dies_after: requests until it breaks all connections for good.
    stamp: events carry when they were sent, as "sent_s" (time.perf_counter, which processes of a Linux machine share).
    """

    drafts: bool = False
    k: int = 4
    speedup: float = 1.5
    ttft_s: float = 0.002
    tpot_s: float = 0.0005
    tokens: int = 24
    accept: float = 0.7
    events: int = 1
    model: str = MODEL
    change_token: int = 0
    overrun: int = 0
    malformed: int = 0
    truncate: int = 0
    stall: int = 0
    no_usage: int = 0
    dies_after: int = 0
    stamp: bool = False

    def hit(self, fault: str, number: int) -> bool:
        """Whether a fault strikes the request of that number, from 1."""
        every = getattr(self, fault)
        return bool(every) and number % every == 0


class MockServer:
    """Serves a plan. asked: requests for texts so far; bodies: what they said; took_s: until their last tokens."""

    def __init__(self, plan: Plan, port: int = 0) -> None:
        self.plan, self.port = plan, port
        self.asked = 0
        self.rounds = self.drafted = self.accepted = 0
        self.by_position = [0] * plan.k
        self.bodies: list[dict[str, Any]] = []
        self.took_s: list[float] = []
        self.writers = set[asyncio.StreamWriter]()
        self.random = random.Random(0)
        self._dead = False
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> MockServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        self._die()
        await asyncio.sleep(0.01)  # who was let in meanwhile is thrown out first
        self._server.close()

    def _die(self) -> None:
        # Still listens: asyncio forgets a connection that comes while its server closes, and the client would wait.
        self._dead = True
        for writer in self.writers:
            writer.transport.abort()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._dead:
            return writer.transport.abort()
        self.writers.add(writer)
        try:
            while request := await _request(reader):
                await self._answer(*request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _answer(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            return _send(writer, {"data": [{"id": self.plan.model, "object": "model", "owned_by": "vllm"}]})
        if path == "/metrics":
            return _send(writer, self.metrics(), kind="text/plain")
        if path == "/version":
            return _send(writer, {"version": "0.33.0"})
        if method != "POST" or path not in ("/v1/chat/completions", "/v1/completions"):
            return _send(writer, {"error": {"message": "no such page"}}, status="404 Not Found")
        asked = json.loads(body)
        self.bodies.append(asked)
        if asked.get("model") != self.plan.model:
            return _send(writer, {"error": {"message": f"no model {asked.get('model')!r}"}}, status="404 Not Found")
        self.asked += 1
        if self.plan.dies_after and self.asked > self.plan.dies_after:
            self._die()
            raise ConnectionResetError
        await self._stream(asked, self.asked, writer)
        return None

    def metrics(self) -> str:
        """Counters under vLLM's names; without drafting there are none."""
        lines = ["# HELP vllm:num_requests_running Requests.", "vllm:num_requests_running 0.0"]
        if self.plan.drafts:
            label = f'engine="0",model_name="{self.plan.model}"'
            counts = {"drafts": self.rounds, "draft_tokens": self.drafted, "accepted_tokens": self.accepted}
            lines += [f"vllm:spec_decode_num_{name}_total{{{label}}} {n:.1f}" for name, n in counts.items()]
            lines += [
                f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{label},position="{i}"}} {n:.1f}'
                for i, n in enumerate(self.by_position)
            ]
        return "\n".join([*lines, ""])

    def text(self, asked: Mapping[str, Any], number: int) -> list[str]:
        """The tokens of an answer, each with a space before it."""
        what = json.dumps([asked.get("messages") or asked.get("prompt"), asked.get("temperature"), asked.get("seed")])
        own = random.Random(what)
        natural = max(2, round(self.plan.tokens * math.exp(own.gauss(0.0, 0.3))))
        count = min(natural, asked["max_tokens"])
        if self.plan.hit("overrun", number):
            count = 2 * asked["max_tokens"]
        words = [f" w{own.randrange(1000)}" for _ in range(count)]
        if self.plan.hit("change_token", number):
            words[count // 2] += "x"
        return words

    async def _stream(self, asked: dict[str, Any], number: int, writer: asyncio.StreamWriter) -> None:
        plan, words = self.plan, self.text(asked, number)
        faster = plan.speedup if plan.drafts else 1.0
        if plan.drafts:
            self._count(len(words))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        begin = time.perf_counter()
        for start in range(0, len(words), plan.events):
            # By the clock from the beginning: sleeps that take longer than they should must not add up.
            due = begin + (plan.ttft_s + plan.tpot_s * start) / faster
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if start and plan.hit("malformed", number):
                _chunk(writer, 'data: {"choices": [{"del\n\n')
            if start and plan.hit("stall", number):
                await asyncio.sleep(3600)
            took_s = time.perf_counter() - begin
            self._event(writer, asked, words[start : start + plan.events])
            await writer.drain()
        if plan.hit("truncate", number):
            writer.write(b"0\r\n\r\n")
            return
        self.took_s.append(took_s)
        self._end(writer, asked, len(words), number)

    def _count(self, tokens: int) -> None:
        """Rounds for so many tokens; every round drafts k, as vLLM counts them."""
        left = tokens - 1
        while left > 0:
            kept = next((i for i in range(self.plan.k) if self.random.random() > self.plan.accept), self.plan.k)
            kept = min(kept, left - 1)
            for i in range(kept):
                self.by_position[i] += 1
            self.rounds, self.drafted, self.accepted = self.rounds + 1, self.drafted + self.plan.k, self.accepted + kept
            left -= kept + 1

    def _event(
        self, writer: asyncio.StreamWriter, asked: dict[str, Any], words: list[str], finish: str | None = None
    ) -> None:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if "messages" in asked:
            choice["delta"] = {"content": "".join(words)} if words else {}
        else:
            choice["text"] = "".join(words)
        if asked.get("return_token_ids"):
            choice["token_ids"] = [sum(map(ord, word)) + 1000 * len(word) for word in words]
        event: dict[str, Any] = {"id": "x", "model": self.plan.model, "choices": [choice]}
        if self.plan.stamp:
            event["sent_s"] = time.perf_counter()
        _chunk(writer, f"data: {json.dumps(event)}\n\n")

    def _end(self, writer: asyncio.StreamWriter, asked: dict[str, Any], tokens: int, number: int) -> None:
        self._event(writer, asked, [], "length" if tokens >= asked["max_tokens"] else "stop")
        if not self.plan.hit("no_usage", number):
            usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": tokens + 7}
            _chunk(writer, f"data: {json.dumps({'model': self.plan.model, 'choices': [], 'usage': usage})}\n\n")
        _chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


async def _request(reader: asyncio.StreamReader) -> tuple[str, str, bytes] | None:
    """Method, path and body of the next request; None at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return method, path, await reader.readexactly(int(headers.get("content-length", "0")))


def _chunk(writer: asyncio.StreamWriter, text: str) -> None:
    data = text.encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _send(writer: asyncio.StreamWriter, what: object, kind: str = "application/json", status: str = "200 OK") -> None:
    data = (what if isinstance(what, str) else json.dumps(what)).encode()
    writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)


def main() -> None:
    with MockServer(Plan(**json.loads(sys.argv[1]))) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
