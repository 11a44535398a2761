"""The Python face: `LLM.from_pretrained(...)`, `.generate(...)`, `.stream(...)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numba
import torch

from paceline.config import read_drafter
from paceline.drafters import Drafter, MtpDraft, NgramDraft, NoDrafter
from paceline.engine import Engine, Writer, check_draft_length
from paceline.errors import PromptError, UsageError
from paceline.kernels import get_ops
from paceline.models.gemma4 import Target
from paceline.resolve import Options, Resolved, resolve
from paceline.text import Text
from paceline.types import Completion, Prompt, SamplingParams, TokenEvent
from paceline.weights import load_drafter, load_target


class LLM:
    """A Gemma 4 model with its drafter, ready to generate."""

    def __init__(self, resolved: Resolved, engine: Engine, text: Text | None) -> None:
        self.resolved, self.engine, self.text = resolved, engine, text

    @classmethod
    def from_pretrained(cls, target: str, drafter: str | None = "auto", **options: str) -> LLM:
        """Loads a checkpoint folder, a hub name, or "embedded".

        drafter: "auto" finds the -assistant checkpoint that belongs to the target; None decodes plainly; "ngram"
        looks the prompt up; anything else is a checkpoint. Options: device, dtype, backend, draft_position, as in
        `paceline.resolve.Options`. Raises PacelineError with one sentence for anything that does not fit.
        """
        unknown = sorted(set(options) - {"device", "dtype", "backend", "draft_position"})
        if unknown:
            raise UsageError(f"from_pretrained has no option {unknown[0]!r}")
        return cls.load(resolve(Options(target=str(target), drafter=None if drafter is None else str(drafter), **options)))

    @classmethod
    def load(cls, resolved: Resolved) -> LLM:
        """Loads what `resolve` settled."""
        if isinstance(resolved.drafter, str) or resolved.drafter is None:
            pass
        else:
            read_drafter(resolved.drafter)  # a wrong drafter is refused before gigabytes are read
        target = load_target(resolved.target, get_ops(resolved.backend))
        text = Text.from_folder(resolved.target)
        end_ids = frozenset(resolved.generation.eos_ids or target.config.eos_ids)
        engine = Engine(target, _drafter(resolved, target), end_ids, resolved.generation.suppress)
        return cls(resolved, engine, text)

    def generate(self, prompts: list[Prompt], params: SamplingParams | None = None, k: int | None = None) -> list[Completion]:
        """A completion for each prompt: a string, token ids, or chat messages. k: draft length, 0 for plain decoding."""
        if isinstance(prompts, str):
            raise PromptError("generate takes a list of prompts; write [prompt] for a single one")
        done = []
        for prompt in prompts:
            writer, events = self._start(prompt, params or SamplingParams(), k)
            for _ in events:
                pass
            done.append(writer.completion())
        return done

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, k: int | None = None) -> Iterator[TokenEvent]:
        """Token events as they come; the last one carries the finish reason."""
        return self._start(prompt, params or SamplingParams(), k)[1]

    def _start(self, prompt: Prompt, params: SamplingParams, k: int | None) -> tuple[Writer, Iterator[TokenEvent]]:
        k = check_draft_length(self.resolved.k if k is None else k)
        if k and isinstance(self.engine.drafter, NoDrafter):
            raise UsageError(f"k={k} needs a drafter; load one, or use k=0")
        ids = self.encode(prompt)
        writer = Writer(self.engine, params, self.text.detokenizer() if self.text else None, len(ids))
        if params.stop and self.text is None:
            raise UsageError("stop strings need a tokenizer; this checkpoint has none")
        return writer, self.engine.run(ids, params, k, writer)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. A checkpoint without a tokenizer takes lists of ids only."""
        if isinstance(prompt, list) and prompt and all(isinstance(t, int) for t in prompt):
            return list(prompt)  # type: ignore[arg-type]
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
            "threads": numba.get_num_threads() if self.resolved.backend == "cpu" else torch.get_num_threads(),
            "labels": ["CPU"],
        }


def _drafter(resolved: Resolved, target: Target) -> Drafter:
    if resolved.drafter is None:
        return NoDrafter()
    if isinstance(resolved.drafter, str):
        return NgramDraft()
    model = load_drafter(resolved.drafter, target.config, target.ops)
    return MtpDraft(model, target, resolved.draft_position)
