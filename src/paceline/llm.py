"""The Python face: `LLM.from_pretrained(...)`, `.generate(...)`, `.stream(...)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from paceline.drafters import Drafter, MtpDraft, NgramDraft, NoDrafter
from paceline.engine import Engine, Writer, check_draft_length, check_prompt
from paceline.errors import PromptError, UsageError
from paceline.kernels import get_ops
from paceline.models.gemma4 import Target
from paceline.resolve import Options, Resolved, resolve
from paceline.text import Text
from paceline.types import Completion, Prompt, SamplingParams, TokenEvent
from paceline.weights import load_drafter, load_target


class Stream:
    """Iterates over the events of one request; `completion()` is the finished text afterwards."""

    def __init__(self, engine: Engine, prompt: list[int], params: SamplingParams, k: int, text: Text | None) -> None:
        self._writer = Writer(engine, params, text.detokenizer() if text else None, len(prompt))
        self._events = engine.run(prompt, params, k, self._writer)

    def __iter__(self) -> Iterator[TokenEvent]:
        return self._events

    def __next__(self) -> TokenEvent:
        return next(self._events)

    def completion(self) -> Completion:
        """What has been generated so far: everything, once the events are used up."""
        return self._writer.completion()


class LLM:
    """A Gemma 4 model with its drafter, ready to generate."""

    def __init__(self, resolved: Resolved, engine: Engine, text: Text | None) -> None:
        self.resolved, self.engine, self.text = resolved, engine, text

    @classmethod
    def from_pretrained(cls, target: str, drafter: str | None = "auto", **options: Any) -> LLM:
        """Loads a checkpoint folder, a hub name, or "embedded".

        drafter: "auto" finds the -assistant checkpoint that belongs to the target; None decodes plainly; "ngram"
        looks the prompt up; anything else is a checkpoint. Options: device, dtype, backend, draft_position, as in
        `paceline.resolve.Options`. Raises PacelineError with one sentence for anything that does not fit.
        """
        unknown = sorted(set(options) - {"device", "dtype", "backend", "draft_position", "min_confidence"})
        if unknown:
            raise UsageError(f"from_pretrained has no option {unknown[0]!r}")
        return cls.load(
            resolve(Options(target=str(target), drafter=None if drafter is None else str(drafter), **options))
        )

    @classmethod
    def load(cls, resolved: Resolved) -> LLM:
        """Loads what `resolve` settled."""
        target = load_target(resolved.target, get_ops(resolved.backend))
        text = Text.from_folder(resolved.target)
        end_ids = frozenset(resolved.generation.eos_ids or target.config.eos_ids)
        engine = Engine(target, _drafter(resolved, target), end_ids, resolved.generation.suppress)
        return cls(resolved, engine, text)

    def generate(
        self, prompts: list[Prompt], params: SamplingParams | None = None, k: int | None = None
    ) -> list[Completion]:
        """A completion for each prompt: a string, token ids, or chat messages.

        k is the draft length: None takes what the drafter advises, 0 decodes plainly. The text is the same for all.
        """
        if isinstance(prompts, str):
            raise PromptError("generate takes a list of prompts; write [prompt] for a single one")
        done = []
        for prompt in prompts:
            stream = self.stream(prompt, params, k)
            for _ in stream:
                pass
            done.append(stream.completion())
        return done

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, k: int | None = None) -> Stream:
        """Token events as they come; the last one carries the finish reason. Refuses bad input before the first."""
        params = params or SamplingParams()
        k = check_draft_length(self.resolved.k if k is None else k)
        if k and isinstance(self.engine.drafter, NoDrafter):
            raise UsageError(f"k={k} needs a drafter; load one, or use k=0")
        if params.stop and self.text is None:
            raise UsageError("stop strings need a tokenizer; this checkpoint has none")
        ids = self.encode(prompt)
        check_prompt(ids, params, self.engine.target)
        return Stream(self.engine, ids, params, k, self.text)

    def warm_up(self) -> None:
        """Runs a few tokens of every kind, so that no later request waits for kernels to be compiled."""
        self.engine.target.ops.prepare()
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=4, temperature=temperature, top_k=2, ignore_eos=True)
            for k in {0, self.resolved.k}:
                self.generate([[0] * 20], params, k)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. A checkpoint without a tokenizer takes lists of ids only."""
        if isinstance(prompt, list) and prompt and all(isinstance(t, int) for t in prompt):
            return list(prompt)  # type: ignore[arg-type]
        if not isinstance(prompt, str | list):
            raise PromptError(f"a prompt is a string, a list of token ids or of messages, not {type(prompt).__name__}")
        if not prompt:
            raise PromptError("the prompt is empty")
        if self.text is None:
            raise PromptError(f"{self.resolved.target} has no tokenizer.json; give token ids instead of text")
        return self.text.encode(prompt)  # type: ignore[arg-type]

    def describe(self) -> Mapping[str, Any]:
        """What runs here, for a benchmark's record."""
        return {
            "name": "paceline",
            "decisions": {d.what: f"{d.value} ({d.why})" for d in self.resolved.decisions},
            "threads": torch.get_num_threads(),
            "labels": ["CPU"],
        }


def _drafter(resolved: Resolved, target: Target) -> Drafter:
    if resolved.drafter is None:
        return NoDrafter()
    if isinstance(resolved.drafter, str):
        return NgramDraft()
    model = load_drafter(resolved.drafter, target.config, target.ops)
    return MtpDraft(model, target, resolved.draft_position, resolved.min_confidence)
