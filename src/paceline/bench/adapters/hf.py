"""Hugging Face Transformers in this process: `generate` with and without the drafter as its assistant."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from paceline.bench.adapters.dialect import check_carried, is_chat
from paceline.bench.adapters.local import check_lengths
from paceline.bench.arms import Answer, ArmError, Ask, Candidate, Drafting, Facts
from paceline.bench.harness import Contest
from paceline.errors import UsageError
from paceline.types import Prompt, SamplingParams, Stats

OLDEST = (5, 17)
BROKEN = {
    (5, 18): "its candidate generator is called without two of its arguments",
    (5, 19): "its candidate generator is called without two of its arguments",
    (5, 23): "it refuses every Gemma 4 drafter for its layer types when it is loaded",
}
BIASED = "sampled texts are biased: drafts are argmax, and are tested as if they had been sampled"


@dataclass(slots=True)
class Tally:
    """Counts drafts from outside: what `get_candidates` adds, and what `update_candidate_strategy` hears was kept."""

    stats: Stats = field(default_factory=Stats)
    drafted: int = 0

    def watch(self, target: Any) -> None:
        """Every candidate generator that the model makes from now on is counted."""
        make = target._get_candidate_generator

        def made(*args: Any, **options: Any) -> Any:
            return self._attach(make(*args, **options))

        target._get_candidate_generator = made

    def _attach(self, generator: Any) -> Any:
        propose, learn = generator.get_candidates, generator.update_candidate_strategy

        def get_candidates(input_ids: Any, *args: Any, **options: Any) -> Any:
            ids, logits = propose(input_ids, *args, **options)
            self.drafted = ids.shape[1] - input_ids.shape[1]
            return ids, logits

        def update_candidate_strategy(input_ids: Any, scores: Any, num_matches: int) -> Any:
            if self.drafted:  # its first turn reads the prompt and drafts nothing
                self.stats.count_round(self.drafted, int(num_matches))
            return learn(input_ids, scores, num_matches)

        generator.get_candidates, generator.update_candidate_strategy = get_candidates, update_candidate_strategy
        return generator


class Moments:
    """A streamer that keeps when tokens came and how many; the first call brings the prompt."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.times_s: list[float] = []
        self.tokens: list[int] = []
        self.prompt_seen = False

    def put(self, value: Any) -> None:
        """Hears of new tokens."""
        if self.prompt_seen:
            self.times_s.append(time.perf_counter() - self.begin)
            self.tokens.append(value.numel())
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing more comes."""


@dataclass(slots=True)
class Loaded:
    """The models in memory, shared by all arms."""

    target: Any
    assistant: Any
    tokenizer: Any
    name: str
    tally: Tally


def check_version(version: str) -> None:
    """Refuses versions that cannot run a Gemma 4 drafter. Raises UsageError with the reason."""
    major, minor, *_ = (int(part) for part in version.split(".")[:2])
    why = BROKEN.get((major, minor))
    if (major, minor) < OLDEST:
        why = "it is older than Gemma 4's drafters"
    if why:
        raise UsageError(f"transformers {version} cannot draft with Gemma 4: {why}; install transformers==5.22.2")


def load(target: str, drafter: str) -> Loaded:
    """Loads both checkpoints in their own dtype, on the GPU where there is one.

    Raises UsageError for a version that is known to be broken, ArmError for a checkpoint that cannot be read.
    """
    try:
        check_version(metadata.version("transformers"))
    except metadata.PackageNotFoundError:
        raise UsageError("--engine transformers needs it installed: pip install transformers==5.22.2") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = []
    for folder in (target, drafter):
        try:
            models.append(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval())
        except (OSError, ValueError) as error:
            raise ArmError(f"transformers cannot load {folder}: {' '.join(str(error).split())[:200]}") from None
    tally = Tally()
    tally.watch(models[0])
    return Loaded(models[0], models[1], AutoTokenizer.from_pretrained(target), target, tally)


class TransformersArm:
    """`generate` with k drafts a round, or without an assistant for k = 0. One text at a time."""

    def __init__(self, loaded: Loaded, k: int) -> None:
        self.loaded, self.k = loaded, k

    async def open(self) -> None:
        """Is loaded already."""

    async def close(self) -> None:
        """Stays loaded."""

    async def check(self) -> Facts:
        """What is known without running it; a first answer shows whether it drafts."""
        return Facts(
            engine="transformers", version=metadata.version("transformers"), model=self.loaded.name, drafts=self.k > 0,
            why=f"generate is called {'with' if self.k else 'without'} an assistant_model", k=self.k,
            method="assistant" if self.k else None, acceptance="counted around its candidate generator",
            details={"labels": [BIASED] if self.k else [], "device": str(self.loaded.target.device)},
        )  # fmt: skip

    async def answer(self, ask: Ask) -> Answer:
        """Generates one text. Raises UsageError for parameters it does not take."""
        import torch

        loaded, moments = self.loaded, Moments()
        loaded.tally.stats, loaded.tally.drafted = Stats(), 0
        ids = self._encode(ask.prompt)
        torch.manual_seed(ask.params.seed)
        with torch.inference_mode():
            out = loaded.target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=moments,
                **options_of(ask.params),
                **self._assistant(),
            )
        new = out[0, ids.shape[1] :].tolist()
        ends = loaded.target.generation_config.eos_token_id
        stats = loaded.tally.stats
        return Answer(
            text=loaded.tokenizer.decode(new, skip_special_tokens=True), tokens=len(new),
            finish_reason="stop" if new[-1] in (ends if isinstance(ends, list) else [ends]) else "length",
            event_times_s=moments.times_s, event_tokens=moments.tokens, token_ids=new, prompt_tokens=ids.shape[1],
            drafting=Drafting(sum(stats.drafted), sum(stats.accepted), stats.rounds, tuple(stats.drafted),
                              tuple(stats.accepted), tuple(stats.judged)),
        )  # fmt: skip

    def _assistant(self) -> dict[str, Any]:
        """Only the assistant's own configuration sets the draft length; `generate` ignores the argument."""
        if not self.k:
            return {}
        self.loaded.assistant.generation_config.num_assistant_tokens = self.k
        return {"assistant_model": self.loaded.assistant}

    def _encode(self, prompt: Prompt) -> Any:
        """Token ids [1, n] of a prompt."""
        import torch

        tokenizer = self.loaded.tokenizer
        if is_chat(prompt):
            prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        if isinstance(prompt, str):
            prompt = tokenizer(prompt, add_special_tokens=False).input_ids
            bos = tokenizer.bos_token_id
            prompt = prompt if bos is None or prompt[:1] == [bos] else [bos, *prompt]
        return torch.tensor([prompt], device=self.loaded.target.device)

    async def counters(self) -> Drafting | None:
        """Every answer tells."""
        return None

    async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
        """From one pass of the target over prompt and text."""
        import torch

        tokenizer = self.loaded.tokenizer
        after = torch.tensor([tokenizer(so_far, add_special_tokens=False).input_ids], dtype=torch.long)
        ids = torch.cat([self._encode(ask.prompt), after.to(self.loaded.target.device)], dim=1)
        with torch.inference_mode():
            logprobs = self.loaded.target(ids).logits[0, -1].float().log_softmax(-1)
        best = logprobs.topk(n)
        return [
            Candidate(tokenizer.decode([i]), v)
            for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def options_of(params: SamplingParams) -> dict[str, Any]:
    """Arguments of `generate`, which has defaults of its own. Raises UsageError."""
    check_carried(params, "transformers")
    if params.stop or params.ignore_eos:
        raise UsageError("stop and ignore_eos are not passed on to transformers; leave them out")
    if not params.temperature:
        return {"max_new_tokens": params.max_tokens, "do_sample": False, "temperature": None, "top_k": None,
                "top_p": None}  # fmt: skip
    return {
        "max_new_tokens": params.max_tokens, "do_sample": True, "temperature": params.temperature,
        "top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p or None,
    }  # fmt: skip


def transformers_contest(target: str, drafter: str, ks: Sequence[int]) -> Contest:
    """The arms of Transformers. Raises UsageError for a version or a draft length that cannot be used."""
    check_lengths(ks)
    loaded = load(target, drafter)
    return Contest(TransformersArm(loaded, 0), {k: TransformersArm(loaded, k) for k in ks})
