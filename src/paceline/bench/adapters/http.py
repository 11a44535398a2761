"""An engine behind HTTP as an arm of the benchmark."""

from __future__ import annotations

from typing import Any

from paceline.bench.adapters.dialect import Dialect, Reply, Wish
from paceline.bench.adapters.engines import detect
from paceline.bench.adapters.wire import STALL_S, Wire, identity_of
from paceline.bench.arms import Answer, ArmError, Ask, Candidate, Drafting, Facts
from paceline.types import ChatMessage, SamplingParams

PROBE_TOKENS = 16
PROBE: list[ChatMessage] = [{"role": "user", "content": "Count from one to twenty."}]
SLACK_EVENTS = 64


class HttpArm:
    """A server that runs already. Without a dialect, the engine behind the URL is found out when it is opened."""

    def __init__(self, url: str, wish: Wish, dialect: Dialect | None = None, stall_s: float = STALL_S) -> None:
        self.wire, self.wish, self._dialect = Wire(url, stall_s), wish, dialect
        self.model = ""
        self.answers_tell = False

    @property
    def dialect(self) -> Dialect:
        """How the engine is talked to."""
        assert self._dialect is not None, "open() comes first"
        return self._dialect

    async def open(self) -> None:
        """Connects. Raises ArmError for a server out of reach."""
        await self.wire.open()
        if self._dialect is None:
            self._dialect = await detect(self.wire)

    async def close(self) -> None:
        """Disconnects; the server stays up."""
        await self.wire.close()

    async def check(self) -> Facts:
        """Looks at the model list and at a short answer. Raises ArmError."""
        dialect, wire = self.dialect, self.wire
        await self._choose_model()
        probe = await self._probe()
        signs = await dialect.signs(wire, probe)
        self.answers_tell = dialect.drafting(probe) is not None
        if self.wish.drafts and signs.k is not None and self.wish.k not in (None, signs.k):
            raise ArmError(f"{wire.url} drafts {signs.k} tokens a round, not k = {self.wish.k}; say --k {signs.k}")
        return Facts(
            engine=dialect.name, version=await dialect.version(wire), model=self.model, drafts=signs.drafts,
            why=signs.why, k=self.wish.k if signs.k is None and self.wish.drafts else signs.k, method=signs.method,
            acceptance=signs.acceptance, identity=self.identity, details=dict(signs.details),
        )  # fmt: skip

    async def _choose_model(self) -> str:
        """The model to ask for, looked up once."""
        if not self.model:
            self.model = choose_model(await self.dialect.models(self.wire), self.wish.model, self.wire.url)
        return self.model

    async def _probe(self) -> Reply:
        """A short answer to look at; raw text for models without a chat template."""
        params = SamplingParams(max_tokens=PROBE_TOKENS)
        try:
            return await self._stream(Ask(PROBE, params))
        except ArmError:
            if self.dialect.text_path is None:
                raise
            return await self._stream(Ask(PROBE[0]["content"], params))

    @property
    def identity(self) -> str:
        """Address and port; and the draft length, for an engine that takes it with each request."""
        by_request = " k=" + str(self._k) if self.dialect.more(0) != self.dialect.more(1) else ""
        return identity_of(self.wire.url) + by_request

    @property
    def _k(self) -> int:
        return (self.wish.k or 1) if self.wish.drafts else 0

    async def answer(self, ask: Ask) -> Answer:
        """One streamed request. Raises ArmError when the server refuses, stalls, dies or talks nonsense."""
        reply = await self._stream(ask)
        tokens, prompt_tokens, cached = self.dialect.counts(reply)
        where = f"{self.wire.url}{self.dialect.path(ask.prompt)}"
        if reply.finish_reason is None:
            raise ArmError(f"{where} ended a stream in the middle of a text, after {len(reply.texts)} events")
        if tokens is None:
            raise ArmError(f"{where} sends no usage, so tokens cannot be counted; let it answer include_usage")
        if tokens > ask.params.max_tokens:
            raise ArmError(f"{where} wrote {tokens} tokens where {ask.params.max_tokens} were asked for")
        known = [n for n in reply.event_tokens if n is not None]
        return Answer(
            text="".join(reply.texts), tokens=tokens, finish_reason=reply.finish_reason,
            event_times_s=reply.times_s, event_tokens=known if len(known) == len(reply.times_s) else [],
            token_ids=reply.token_ids if len(reply.token_ids) == tokens else None,
            prompt_tokens=prompt_tokens, cached_tokens=cached, drafting=self.dialect.drafting(reply),
            method=self.dialect.method(reply),
        )  # fmt: skip

    async def _stream(self, ask: Ask) -> Reply:
        dialect, reply = self.dialect, Reply()
        path, body = dialect.path(ask.prompt), dialect.body(ask, await self._choose_model(), self._k)
        async for at_s, event in self.wire.events(path, body, dialect.framing):
            self._read(reply, event, at_s)
            if len(reply.texts) > 2 * ask.params.max_tokens + SLACK_EVENTS:
                raise ArmError(
                    f"{self.wire.url}{path} does not stop: {len(reply.texts)} events where {ask.params.max_tokens}"
                    " tokens were asked for"
                )
        return reply

    def _read(self, reply: Reply, event: Any, at_s: float) -> None:
        try:
            self.dialect.read(reply, event, at_s)
        except (AttributeError, TypeError, KeyError, ValueError):
            raise ArmError(f"{self.wire.url} streamed an event of no known shape: {str(event)[:200]}") from None

    async def counters(self) -> Drafting | None:
        """Totals of the server, where single answers do not tell."""
        return None if self.answers_tell else await self.dialect.counters(self.wire)

    async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
        """The likeliest tokens after prompt and text, by a raw completion; None where the engine cannot be asked."""
        return await self.dialect.next_tokens(self.wire, ask, so_far, (await self._choose_model(), n))


def choose_model(served: list[str], wanted: str | None, url: str) -> str:
    """The model to ask for. Raises ArmError for one that the server does not have, or several to choose from."""
    if wanted is None and len(served) == 1:
        return served[0]
    for name in (wanted, f"{wanted}:latest"):  # Ollama's models have a tag
        if name in served:
            return str(name)
    names = ", ".join(served[:8]) or "none"
    if wanted is None:
        raise ArmError(f"{url} serves {len(served)} models; choose one with --model: {names}")
    raise ArmError(f"{url} does not serve {wanted!r}; it has: {names}")
