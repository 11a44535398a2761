"""The Python face: `LLM.from_pretrained(...)`, `.generate(...)`, `.stream(...)`."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from paceline.calibration import Pair, table_for
from paceline.control.auto import Auto
from paceline.control.kinds import Kinds
from paceline.control.store import Stored
from paceline.drafters import Drafter, MtpDraft, NgramDraft, NoDrafter
from paceline.engine import Engine, Writer, check_bias, check_draft_length, check_prompt
from paceline.errors import ConfigError, PromptError, UsageError
from paceline.kernels import get_ops
from paceline.models.gemma4 import Target
from paceline.resolve import Options, Resolved, resolve
from paceline.steering import LONGEST
from paceline.structure import Ids, Structure
from paceline.text import Text
from paceline.types import AUTO, Completion, DraftLength, Prompt, SamplingParams, TokenEvent
from paceline.weights import load_drafter, load_target

if TYPE_CHECKING:
    from paceline.device.serve import DeviceServer

    AnyEngine: TypeAlias = Engine | DeviceServer

NO_ROUNDS = "rounds are timed on the CPU, with and without drafts; load a drafter, on device 'cpu'"
OPTIONS = {field.name for field in fields(Options)} - {"target", "drafter"}


class Stream:
    """Iterates over the events of one request; `completion()` is the finished text afterwards."""

    def __init__(
        self, engine: AnyEngine, prompt: list[int], params: SamplingParams, k: DraftLength, text: Text | None
    ) -> None:
        self._writer = Writer(engine.end_ids, params, text.detokenizer() if text else None, len(prompt))
        self._events = engine.run(prompt, params, k, self._writer)
        self._request = (prompt, params, k)
        self._engine = engine

    def __iter__(self) -> Iterator[TokenEvent]:
        return self._events

    def __next__(self) -> TokenEvent:
        return next(self._events)

    @property
    def job(self) -> Any:
        """The request and where its text goes, for an engine that runs many side by side."""
        return self._engine.request(*self._request), self._writer  # type: ignore[union-attr]

    def completion(self) -> Completion:
        """What has been generated so far: everything, once the events are used up."""
        return self._writer.completion()


class LLM:
    """A Gemma 4 model with its drafter, ready to generate."""

    def __init__(self, resolved: Resolved, engine: AnyEngine, text: Text | None) -> None:
        self.resolved, self.engine, self.text = resolved, engine, text
        self.costs = ""  # where the controller's cost table comes from, once there is one

    @classmethod
    def from_pretrained(cls, target: str, drafter: str | None = "auto", **options: Any) -> LLM:
        """Loads a checkpoint folder, a hub name, or "embedded".

        drafter: "auto" finds the -assistant checkpoint that belongs to the target; None decodes plainly; "ngram"
        looks the prompt up; anything else is a checkpoint. Options: device, dtype, backend, draft_position, context,
        sequences, draft_weights, as in `paceline.resolve.Options`. Raises PacelineError with one sentence for anything
        that does not fit.
        """
        unknown = sorted(set(options) - OPTIONS)
        if unknown:
            raise UsageError(f"from_pretrained has no option {unknown[0]!r}")
        return cls.load(
            resolve(Options(target=str(target), drafter=None if drafter is None else str(drafter), **options))
        )

    @classmethod
    def load(cls, resolved: Resolved) -> LLM:
        """Loads what `resolve` settled."""
        text = Text.from_folder(resolved.target)
        if resolved.backend == "cuda":
            from paceline.device.load import load_server  # needs Triton

            return cls(resolved, load_server(resolved, text.tokenizer if text else None), text)
        target = load_target(resolved.target, get_ops(resolved.backend))
        end_ids = frozenset(resolved.generation.eos_ids or target.config.eos_ids)
        suppress = resolved.generation.suppress
        structure = Structure(text.tokenizer if text else None, Ids(target.config.vocab, end_ids, suppress))
        engine = Engine(target, _drafter(resolved, target), end_ids, suppress, structure,
                        asked_confidence=resolved.asked_confidence)  # fmt: skip
        return cls(resolved, engine, text)

    def generate(
        self, prompts: list[Prompt], params: SamplingParams | None = None, k: DraftLength | None = None
    ) -> list[Completion]:
        """A completion for each prompt: a string, token ids, or chat messages.

        k is the draft length: "auto" lets the controller choose it round by round, 0 decodes plainly, None takes what
        `resolve` settled. The text is the same for all.
        With params.n above 1, the n texts of the first prompt come first, then those of the second; with best_of the
        likeliest first.
        """
        if isinstance(prompts, str):
            raise PromptError("generate takes a list of prompts; write [prompt] for a single one")
        params = params or SamplingParams()
        texts = params.streams()
        streams = [self.stream(prompt, text, k) for prompt in prompts for text in texts]
        if isinstance(self.engine, Engine):
            for stream in streams:
                for _ in stream:
                    pass
        else:
            self.engine.run_all([stream.job for stream in streams])
        done = [stream.completion() for stream in streams]
        return done if params.best_of is None else _best(done, params, params.best_of)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, k: DraftLength | None = None) -> Stream:
        """Token events as they come; the last one carries the finish reason. Refuses bad input before the first."""
        params = params or SamplingParams()
        for name, count in (("n", params.n), ("best_of", params.best_of or 1)):
            if count > 1:
                raise UsageError(
                    f"a stream is one text, and {name} is {count}; use generate, or a stream for each text"
                )
        k = self._draft_length(k)
        if params.stop and self.text is None:
            raise UsageError("stop strings need a tokenizer; this checkpoint has none")
        ids = self.encode(prompt)
        check_prompt(ids, params, self.engine.target)
        check_bias(params, self.engine.target)
        if isinstance(self.engine, Engine):
            self.engine.constraint(params)  # refuses what no text can be
        else:
            self.engine.request(ids, params, k)  # refuses what a GPU does not serve or has no room for
        if k == AUTO:
            self.prepare_auto()
        return Stream(self.engine, ids, params, k, self.text)

    @property
    def sampling(self) -> dict[str, Any]:
        """What the checkpoint's generation_config.json advises, as keywords of SamplingParams; empty for greedy.

        Raises ConfigError for values out of range.
        """
        advised = dict(self.resolved.generation.sampling)
        advised = {"temperature": 1.0, **advised} if advised else advised
        try:
            SamplingParams(**advised)  # type: ignore[arg-type]
        except UsageError as error:
            raise ConfigError(f"{self.resolved.target}/generation_config.json: {error}") from None
        return advised

    def _draft_length(self, k: DraftLength | None) -> DraftLength:
        """What to do for a call that names k, or none."""
        if k is None:
            k = AUTO if self.resolved.auto else self.resolved.k
        k = check_draft_length(k)
        if k and not self.engine.drafts:
            if k != AUTO:
                raise UsageError(f"k={k} needs a drafter; load one, or use k=0")
            return 0  # what the controller could only come to as well
        return k

    def prepare_auto(self) -> None:
        """Makes the controller ready. The first time on a machine, that takes seconds, in which rounds are timed."""
        if isinstance(self.engine, Engine) and self.engine.policy is None:
            self._steer(table_for(self.engine, Pair.of(self.resolved)))

    def time_rounds(self, contexts: Sequence[int]) -> Stored:
        """Times rounds of every draft length afresh, behind so many tokens; the controller starts over from that.

        On the CPU only, and with a drafter: UsageError otherwise.
        """
        if not isinstance(self.engine, Engine) or not self.engine.drafts:
            raise UsageError(NO_ROUNDS)
        found = table_for(self.engine, Pair.of(self.resolved), contexts)
        self._steer(found)
        return found

    def _steer(self, found: Stored) -> None:
        assert isinstance(self.engine, Engine)
        assert found.table is not None
        listens = isinstance(self.engine.drafter, MtpDraft)
        self.engine.policy = Kinds(Auto(found.table, LONGEST, listens=listens))
        self.costs = found.origin

    def warm_up(self) -> None:
        """Runs a few tokens of every kind, so that no later request waits for kernels to be compiled.

        Nor does one wait for a garbage collection that walks through all that is there by then (`gc.freeze`): beside
        the modules of PyTorch, that takes as long as hundreds of rounds of a small model. For processes that keep their
        model: of what is there by then, cycles are never freed.
        """
        lengths = {0, self.resolved.k}
        if isinstance(self.engine, Engine):
            self.engine.target.ops.prepare()
        else:
            lengths |= set(self.engine.offered)
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=4, temperature=temperature, top_k=2, ignore_eos=True)
            for k in sorted(lengths):
                self.generate([[0] * 20], params, k)
        gc.collect()
        gc.freeze()

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
            "costs": self.costs,
            "threads": torch.get_num_threads(),
            "labels": ["CPU" if isinstance(self.engine, Engine) else "GPU"],
            **({} if isinstance(self.engine, Engine) else self.engine.describe()),
        }


def _best(done: list[Completion], params: SamplingParams, group: int) -> list[Completion]:
    """Of each `group` texts the n with the greatest mean log-probability, best first; the earlier one where equal."""
    chosen = []
    for start in range(0, len(done), group):
        ranked = sorted(done[start : start + group], key=lambda text: text.mean_logprob or 0.0, reverse=True)
        chosen += ranked[: params.n]
    return chosen if params.logprobs is not None else [replace(text, logprobs=None) for text in chosen]


def _drafter(resolved: Resolved, target: Target) -> Drafter:
    if resolved.drafter is None:
        return NoDrafter()
    if isinstance(resolved.drafter, str):
        return NgramDraft()
    model = load_drafter(resolved.drafter, target.config, target.ops)
    return MtpDraft(model, target, resolved.draft_position, resolved.min_confidence)
