"""One dialect for each engine, and which one is behind a URL.

Fields, counters and flags as read in: vLLM 0.32 and 0.33, SGLang 0.5.23, llama.cpp of October 2026, mlx-vlm 0.7.10,
Ollama of August 2026, TensorRT-LLM 1.2, LM Studio 0.4, LiteRT-LM 0.18. The first four but SGLang were run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from paceline.bench.adapters.dialect import NOTHING, Dialect, Reply, Signs
from paceline.bench.adapters.prometheus import by_position, drafted_alike, drafting_counters, samples
from paceline.bench.adapters.wire import Framing, Wire
from paceline.bench.arms import ArmError, Ask, Drafting
from paceline.errors import UsageError
from paceline.types import Prompt, SamplingParams


class Vllm(Dialect):
    """vLLM: acceptance of each answer with --per-request-spec-decode-metrics, else from counters."""

    name = "vllm"
    version_page = "/version"
    no_top_k = -1

    def more(self, k: int) -> dict[str, Any]:
        """Token ids, and the tokens so far with each event: a round's tokens come in one."""
        return {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "return_token_ids": True}

    def drafting(self, reply: Reply) -> Drafting | None:
        told = reply.find("metrics", "speculative_decoding")
        if not told:
            return None
        drafted, accepted, rounds = (
            int(told[f"num_{what}"]) for what in ("draft_tokens", "accepted_draft_tokens", "spec_steps")
        )
        by_length = told.get("acceptance_histogram") or []
        k = told.get("num_spec_tokens") or max(len(by_length) - 1, 0)
        return Drafting(
            drafted, accepted, rounds, drafted_alike(drafted, rounds, k),
            at_least(by_length),
        )  # fmt: skip

    async def counters(self, wire: Wire) -> Drafting | None:
        page = await wire.page("/metrics")
        return drafting_counters(page.text, "vllm:spec_decode_") if page else None

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        page, own = await wire.page("/metrics"), self.drafting(probe)
        total = drafting_counters(page.text, "vllm:spec_decode_") if page else None
        if page is None and own is None:
            return Signs(None, "it has no /metrics page")
        if total is None and own is None:
            return Signs(False, "its /metrics page has no vllm:spec_decode_ counters")
        k = len(own.drafted_by_position if own else total.accepted_by_position if total else ()) or None
        where = "metrics.speculative_decoding of each answer" if own else "vllm:spec_decode_ counters of /metrics"
        return Signs(True, f"it has {where}", k=k, acceptance=where)

    async def raw_prompt(self, wire: Wire, prompt: Prompt, so_far: str, model: str) -> Prompt | None:
        """Ids: the server renders a chat itself, and takes ids back."""
        key = "prompt" if isinstance(prompt, str) else "messages"
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            start = list(prompt)
        else:
            start = (await wire.post("/tokenize", {"model": model, key: prompt}))["tokens"]
        if not so_far:
            return start
        body = {"model": model, "prompt": so_far, "add_special_tokens": False}
        return start + list((await wire.post("/tokenize", body))["tokens"])


class SGLang(Dialect):
    """SGLang: acceptance in each answer on request; its gauges are of the moment, and are not used."""

    name = "sglang"
    no_top_k = -1
    version_page = "/server_info"

    def more(self, k: int) -> dict[str, Any]:
        return {
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "return_spec_tokens_details": True,
        }  # fmt: skip

    def drafting(self, reply: Reply) -> Drafting | None:
        told = reply.find("sglext", "spec_tokens_details")
        if not told:
            return None
        drafted, rounds = int(told["spec_num_proposed_drafts"]), int(told["spec_verify_ct"])
        accepted = at_least(told.get("spec_correct_drafts_histogram") or [])
        return Drafting(
            drafted, int(told["spec_num_correct_drafts"]), rounds, drafted_alike(drafted, rounds, len(accepted)),
            accepted,
        )  # fmt: skip

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        page = await wire.json_page("/server_info")
        told = page if isinstance(page, dict) else {}
        if "speculative_algorithm" not in told and self.drafting(probe) is None:
            return Signs(None, "it has no /server_info page")
        method = told.get("speculative_algorithm")
        drafts = bool(method) or self.drafting(probe) is not None
        return Signs(
            drafts, f"its /server_info has speculative_algorithm {method}", method=method,
            k=told.get("speculative_num_steps") if drafts else None,
            acceptance="sglext.spec_tokens_details of each answer" if drafts else NOTHING,
        )  # fmt: skip


class LlamaCpp(Dialect):
    """llama.cpp's server: acceptance in the timings of each answer."""

    name = "llamacpp"
    no_top_k = 0
    seed_bits = 31  # a seed of 2^32-1 means a random one, and larger ones wrap

    def more(self, k: int) -> dict[str, Any]:
        """No prompt cache; and `timings` with each event, which count its tokens."""
        return {"cache_prompt": False, "timings_per_token": True}

    def beyond_standard(self, params: SamplingParams) -> dict[str, Any]:
        """min_p always: the server's own default is 0.05."""
        return super().beyond_standard(params) | {"min_p": params.min_p}

    def total_tokens(self, event: dict[str, Any]) -> int | None:
        return (event.get("timings") or {}).get("predicted_n")

    def drafting(self, reply: Reply) -> Drafting | None:
        """Rounds are not told, and follow: each brings its accepted drafts and one token, the first token is none's."""
        told, tokens = drafting_of_timings(reply), reply.find("timings", "predicted_n")
        return told and replace(told, rounds=max(int(tokens) - 1 - told.accepted, 0))

    async def counters(self, wire: Wire) -> Drafting | None:
        page = await wire.page("/metrics")
        return drafting_counters(page.text, "llamacpp:spec_decode_") if page else None

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        """From /slots; /props says "none" even while it drafts."""
        slots = await wire.json_page("/slots")
        acceptance = "timings.draft_n and draft_n_accepted of each answer"
        if not isinstance(slots, list) or not slots:
            drafts = bool(drafting_of_timings(probe))
            return Signs(drafts, f"an answer {'has' if drafts else 'lacks'} timings.draft_n", acceptance=acceptance)
        drafts = any(slot.get("speculative") for slot in slots)
        method = (slots[0].get("params") or {}).get("speculative.types") if drafts else None
        return Signs(
            drafts, f"its /slots page says speculative: {str(drafts).lower()}", method=method,
            acceptance=acceptance if drafts else NOTHING, details={"slots": len(slots)},
        )  # fmt: skip

    async def version(self, wire: Wire) -> str | None:
        page = await wire.json_page("/props")
        return page.get("build_info") if isinstance(page, dict) else None

    async def raw_prompt(self, wire: Wire, prompt: Prompt, so_far: str, model: str) -> Prompt | None:
        if isinstance(prompt, str):
            return prompt + so_far
        if prompt and isinstance(prompt[0], dict):
            return str((await wire.post("/apply-template", {"messages": prompt}))["prompt"]) + so_far
        return None


class Mlx(Dialect):
    """mlx-vlm's server, and mlx-lm's. Its draft statistics are of the whole batch: exact for one request at a time."""

    name = "mlx"
    text_path = None
    no_top_k = 0
    seed_bits = 31

    def sampling(self, params: SamplingParams) -> dict[str, Any]:
        if params.ignore_eos:
            raise UsageError("mlx-vlm's server ignores ignore_eos; leave it out")
        return super().sampling(params)

    def drafting(self, reply: Reply) -> Drafting | None:
        return drafting_of_timings(reply)

    def method(self, reply: Reply) -> str | None:
        kind = reply.find("timings", "draft_kind")
        return None if kind is None else str(kind)

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        kind = self.method(probe)
        if not probe.find("timings"):
            return Signs(None, "its answers have no timings")
        acceptance = "timings of each answer, which mix requests that run together" if kind else NOTHING
        return Signs(kind is not None, f"an answer has timings.draft_kind {kind}", method=kind, acceptance=acceptance)

    async def version(self, wire: Wire) -> str | None:
        answer = await wire.page(self.models_page)
        return answer.headers.get("server", "").partition("/")[2] or None if answer else None


class Ollama(Dialect):
    """Ollama's own API, where the draft length is an option of each request (a changed one reloads the model)."""

    name = "ollama"
    framing: ClassVar[Framing] = "lines"
    models_page = "/api/tags"
    version_page = "/api/version"
    chat_path = "/api/chat"
    text_path = "/api/generate"
    no_top_k = 0
    seed_bits = 31

    def body(self, ask: Ask, model: str, k: int) -> dict[str, Any]:
        params = ask.params
        if params.ignore_eos:
            raise UsageError("ollama has no ignore_eos; leave it out")
        given = {"prompt": ask.prompt, "raw": True} if isinstance(ask.prompt, str) else {"messages": ask.prompt}
        options = self.sampling(params)
        options["num_predict"] = options.pop("max_tokens")
        return {"model": model, **given, "stream": True, "options": {**options, **self.more(k), "repeat_penalty": 1.0}}

    def beyond_standard(self, params: SamplingParams) -> dict[str, Any]:
        return super().beyond_standard(params) | {"min_p": params.min_p}

    def more(self, k: int) -> dict[str, Any]:
        return {"draft_num_predict": k}

    def read(self, reply: Reply, event: dict[str, Any], at_s: float) -> None:
        message = event.get("message") or {}
        text = (message.get("thinking") or event.get("thinking") or "") + (
            message.get("content") or event.get("response") or ""
        )
        if text:
            reply.texts.append(text)
            reply.times_s.append(at_s)
            reply.event_tokens.append(None)
        if event.get("done"):
            reply.extras.update(event)
            reply.finish_reason = event.get("done_reason") or "stop"

    def counts(self, reply: Reply) -> tuple[int | None, int | None, int | None]:
        return reply.find("eval_count"), reply.find("prompt_eval_count"), None

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        return Signs(None, "it takes draft_num_predict, and no answer says whether it drafted")

    async def models(self, wire: Wire) -> list[str]:
        page = await wire.json_page(self.models_page)
        if not isinstance(page, dict) or not isinstance(page.get("models"), list):
            raise ArmError(f"{wire.url} has no model list at {self.models_page}; is it Ollama?")
        return [str(row.get("name")) for row in page["models"]]

    async def raw_prompt(self, wire: Wire, prompt: Prompt, so_far: str, model: str) -> Prompt | None:
        return None


class LmStudio(Dialect):
    """LM Studio's own REST API, whose answers hold draft counts; its OpenAI endpoint leaves them out."""

    name = "lmstudio"
    chat_path = "/api/v0/chat/completions"
    text_path = "/api/v0/completions"
    no_top_k = 0
    seed_bits = 31

    def drafting(self, reply: Reply) -> Drafting | None:
        """Older versions have the counts in `stats`, newer ones in `usage`."""
        for place in ("stats", "usage"):
            told = reply.find(place) or {}
            if "accepted_draft_tokens_count" in told:
                return Drafting(int(told["total_draft_tokens_count"]), int(told["accepted_draft_tokens_count"]))
        return None

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        if self.drafting(probe) is None:
            return Signs(None, "its answers have no draft counts")
        return Signs(True, "an answer has accepted_draft_tokens_count", acceptance="draft counts of each answer")


class TrtLlm(Dialect):
    """TensorRT-LLM: counters of its Prometheus page."""

    name = "trtllm"
    version_page = "/version"
    no_top_k = 0
    page: ClassVar[str] = "/prometheus/metrics"

    async def counters(self, wire: Wire) -> Drafting | None:
        answer = await wire.page(self.page)
        return trt_counters(answer.text) if answer else None

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        answer = await wire.page(self.page)
        if answer is None:
            return Signs(None, f"it has no {self.page} page")
        drafts = trt_counters(answer.text) is not None
        why = f"its {self.page} page {'has' if drafts else 'lacks'} trtllm_spec_decode_ counters"
        return Signs(drafts, why, acceptance=f"counters of {self.page}" if drafts else NOTHING)


class LiteRt(Dialect):
    """LiteRT-LM's server: chats only, and no word about drafts."""

    name = "litert"
    text_path = None

    async def signs(self, wire: Wire, probe: Reply) -> Signs:
        return Signs(None, "its server has no draft statistics")


DIALECTS: dict[str, Dialect] = {
    d.name: d for d in (Vllm(), SGLang(), LlamaCpp(), Mlx(), Ollama(), LmStudio(), TrtLlm(), LiteRt(), Dialect())
}
BY_OWNER = {
    "vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "library": "ollama", "organization_owner": "lmstudio",
    "tensorrt_llm": "trtllm", "litert-lm": "litert",
}  # fmt: skip
BY_SERVER = {"llama.cpp": "llamacpp", "mlx_vlm": "mlx", "mlx-vlm": "mlx", "mlx_lm": "mlx"}


def named(engine: str) -> Dialect:
    """The dialect of that name. Raises UsageError for any other."""
    if engine not in DIALECTS:
        raise UsageError(f"no engine {engine!r}; there are: {', '.join(DIALECTS)}")
    return DIALECTS[engine]


async def detect(wire: Wire) -> Dialect:
    """The dialect of the engine behind a URL: by its Server header, its model list, or Ollama's greeting.

    Anything else is taken for a plain OpenAI-compatible server. Raises ArmError for one out of reach.
    """
    answer = await wire.page("/v1/models")
    server = answer.headers.get("server", "").partition("/")[0] if answer else ""
    if server in BY_SERVER:
        return DIALECTS[BY_SERVER[server]]
    if await wire.json_page("/api/version"):
        return DIALECTS["ollama"]
    page = await wire.json_page("/v1/models")
    rows = page.get("data") if isinstance(page, dict) else None
    owner = str(rows[0].get("owned_by", "")) if isinstance(rows, list) and rows else ""
    return DIALECTS[BY_OWNER.get(owner, "openai")]


def drafting_of_timings(reply: Reply) -> Drafting | None:
    """Draft counts out of `timings`, as llama.cpp and mlx-vlm name them."""
    timings = reply.find("timings") or {}
    if timings.get("draft_n") is None:
        return None
    rounds = timings.get("draft_rounds")
    return Drafting(int(timings["draft_n"]), int(timings["draft_n_accepted"]), None if rounds is None else int(rounds))


def at_least(histogram: list[int]) -> tuple[int, ...]:
    """Drafts accepted at each position, out of how many rounds accepted exactly 0, 1, 2, ... of them."""
    return tuple(sum(histogram[i:]) for i in range(1, len(histogram)))


def trt_counters(page: str) -> Drafting | None:
    """TensorRT-LLM's totals, by position in newer versions; None where the page lacks them."""
    drafted, accepted = (
        [(labels, value) for name, labels, value in samples(page) if name.removeprefix("trtllm_spec_decode_") in names]
        for names in (
            ("num_draft_tokens_total", "drafted_tokens_total"),
            ("num_accepted_tokens_total", "accepted_tokens_total"),
        )
    )
    if not drafted:
        return None
    return Drafting(
        int(sum(value for _, value in drafted)), int(sum(value for _, value in accepted)),
        drafted_by_position=by_position(drafted), accepted_by_position=by_position(accepted),
    )  # fmt: skip
