"""What differs from engine to engine behind HTTP, and the OpenAI shape that they share.

One subclass for each engine, in `engines`: how a request is extended, where acceptance is read, what tells whether it
drafts. A dialect holds no connection and no state; `http.HttpArm` does the talking.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from paceline.bench.adapters.wire import Framing, Wire
from paceline.bench.arms import ArmError, Ask, Candidate, Drafting
from paceline.errors import UsageError
from paceline.types import Prompt, SamplingParams

NOTHING = "nothing but time"
COUNTED = frozenset({"temperature", "top_k", "top_p", "seed", "max_tokens", "ignore_eos", "stop", "min_p", "n"})


@dataclass(slots=True)
class Reply:
    """One streamed answer, as it adds up. extras: the last value of every other key, such as usage and timings."""

    texts: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    event_tokens: list[int | None] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    tokens_so_far: int = 0
    finish_reason: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def find(self, *keys: str) -> Any:
        """The value at a path of keys in the extras; None where there is none."""
        value: Any = self.extras
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user says of an arm: the model's name there (None: the only one), draft length, whether it drafts."""

    model: str | None = None
    k: int | None = None
    drafts: bool = False


@dataclass(frozen=True, slots=True)
class Signs:
    """What an engine tells of itself. drafts: None where nothing tells; why: in words, either way."""

    drafts: bool | None
    why: str
    k: int | None = None
    method: str | None = None
    acceptance: str = NOTHING
    details: Mapping[str, Any] = field(default_factory=dict)


class Dialect:
    """Any OpenAI-compatible server: no more than the standard says. Engines override what they do beyond."""

    name: ClassVar[str] = "openai"
    framing: ClassVar[Framing] = "sse"
    models_page: ClassVar[str] = "/v1/models"
    version_page: ClassVar[str | None] = None
    chat_path: ClassVar[str] = "/v1/chat/completions"
    text_path: ClassVar[str | None] = "/v1/completions"
    seed_bits: ClassVar[int] = 63
    no_top_k: ClassVar[int | None] = None  # the value that means no cut; None where the field is not known

    def path(self, prompt: Prompt) -> str:
        """Where a prompt is sent. Raises UsageError for raw text where only chats are served."""
        if is_chat(prompt):
            return self.chat_path
        if self.text_path is None:
            raise UsageError(f"{self.name} answers chats only; give prompts as messages, not as raw text")
        return self.text_path

    def body(self, ask: Ask, model: str, k: int) -> dict[str, Any]:
        """The streamed request. k is the arm's draft length, for engines that take it here."""
        given: dict[str, Any] = {"messages" if is_chat(ask.prompt) else "prompt": ask.prompt}
        return {
            "model": model, **given, "stream": True, "stream_options": {"include_usage": True},
            **self.sampling(ask.params), **self.more(k),
        }  # fmt: skip

    def sampling(self, params: SamplingParams) -> dict[str, Any]:
        """Sampling parameters, all of them spelled out: servers have defaults of their own. Raises UsageError."""
        check_carried(params, self.name)
        body: dict[str, Any] = {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        if params.temperature > 0:
            body["seed"] = params.seed % 2**self.seed_bits
        if params.stop:
            body["stop"] = list(params.stop)
        return body | self.beyond_standard(params)

    def beyond_standard(self, params: SamplingParams) -> dict[str, Any]:
        """top_k, min_p and ignore_eos, under their usual names where the engine knows them."""
        if self.no_top_k is not None:
            extra: dict[str, Any] = {"top_k": params.top_k or self.no_top_k}
            if params.min_p:
                extra["min_p"] = params.min_p
            return extra | ({"ignore_eos": True} if params.ignore_eos else {})
        # A greedy text is the same with any cut.
        cuts = params.temperature > 0 and (params.top_k or params.min_p)
        if cuts or params.ignore_eos:
            raise UsageError(
                f"{self.name} takes no top_k, min_p or ignore_eos in a request; add --top-k 0, or name its engine"
            )
        return {}

    def more(self, k: int) -> dict[str, Any]:
        """What else the engine is asked for."""
        return {}

    def read(self, reply: Reply, event: dict[str, Any], at_s: float) -> None:
        """Adds one streamed event to the reply."""
        reply.extras.update({key: value for key, value in event.items() if value is not None and key != "choices"})
        total = self.total_tokens(event)
        for choice in event.get("choices") or ():
            ids = choice.get("token_ids") or []
            reply.token_ids += ids
            text = text_of(choice)
            if text:
                reply.texts.append(text)
                reply.times_s.append(at_s)
                reply.event_tokens.append(len(ids) or (None if total is None else total - reply.tokens_so_far))
            reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
        reply.tokens_so_far = total or reply.tokens_so_far

    def total_tokens(self, event: dict[str, Any]) -> int | None:
        """How many tokens the text has up to this event, where every event tells."""
        return (event.get("usage") or {}).get("completion_tokens")

    def counts(self, reply: Reply) -> tuple[int | None, int | None, int | None]:
        """Tokens of the text, of the prompt, and of the prompt from a cache."""
        usage = reply.find("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return usage.get("completion_tokens"), usage.get("prompt_tokens"), cached

    def drafting(self, reply: Reply) -> Drafting | None:
        """What the answer itself says about drafting."""
        return None

    def method(self, reply: Reply) -> str | None:
        """What the answer says it was drafted with."""
        return None

    async def counters(self, wire: Wire) -> Drafting | None:
        """Totals since the server started."""
        return None

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        """Whether it drafts, from its pages and from a short answer."""
        return Signs(None, "its API does not tell")

    async def version(self, wire: Wire) -> str | None:
        """The engine's version, where it tells."""
        page = await wire.json_page(self.version_page) if self.version_page else None
        return page.get("version") if isinstance(page, dict) else None

    async def models(self, wire: Wire) -> list[str]:
        """Names of the models it serves. Raises ArmError."""
        page = await wire.json_page(self.models_page)
        rows = page.get("data") if isinstance(page, dict) else None
        if not isinstance(rows, list):
            raise ArmError(f"{wire.url} has no model list at {self.models_page}; is it an OpenAI-compatible server?")
        return [str(row.get("id")) for row in rows]

    async def raw_prompt(self, wire: Wire, prompt: Prompt, so_far: str, model: str) -> Prompt | None:
        """The prompt and the text after it as raw text or ids; None where the engine does not render chats."""
        return prompt + so_far if isinstance(prompt, str) and self.text_path else None

    async def next_tokens(self, wire: Wire, ask: Ask, so_far: str, request: tuple[str, int]) -> list[Candidate] | None:
        """The likeliest next tokens; request: the model's name, and how many."""
        model, n = request
        raw = await self.raw_prompt(wire, ask.prompt, so_far, model)
        if raw is None or self.text_path is None:
            return None
        body = {"model": model, "prompt": raw, "max_tokens": 1, "temperature": 0.0, "logprobs": n}
        return candidates(await wire.post(self.text_path, body))


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def check_carried(params: SamplingParams, name: str) -> None:
    """Refuses what no request carries here rather than leave it out."""
    for rule in dataclasses.fields(params):
        if rule.name not in COUNTED and getattr(params, rule.name) != rule.default:
            raise UsageError(f"{rule.name} is not passed on to {name}; leave it out")


def text_of(choice: dict[str, Any]) -> str:
    """The text of a streamed choice: thoughts are text too."""
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or ""
    return (delta.get("reasoning_content") or delta.get("reasoning") or "") + (delta.get("content") or "")


def candidates(answer: Any) -> list[Candidate] | None:
    """The first token's likeliest ones out of a completion, in either of the two shapes in use."""
    logprobs = (answer.get("choices") or [{}])[0].get("logprobs") or {}
    if logprobs.get("content"):
        rows = logprobs["content"][0].get("top_logprobs") or []
        found = [Candidate(row["token"], row["logprob"]) for row in rows]
    else:
        first = (logprobs.get("top_logprobs") or [{}])[0] or {}
        found = [Candidate(text, logprob) for text, logprob in first.items()]
    return sorted(found, key=lambda c: -c.logprob) or None
