"""The device engine as `paceline.llm.LLM` uses it: requests in, token events out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from paceline.device.engine import DeviceEngine
from paceline.device.memory import within_memory
from paceline.device.request import Request
from paceline.engine import Writer, check_draft_length, check_prompt
from paceline.errors import PromptError
from paceline.models.gemma4 import Target
from paceline.steering import asked, chosen
from paceline.structure import Ids, Structure
from paceline.types import AUTO, DraftLength, SamplingParams, TokenEvent


class DeviceServer:
    """Stands where `paceline.engine.Engine` does. drafts: whether there is a drafter; structure: compiles grammars."""

    def __init__(self, engine: DeviceEngine, end_ids: frozenset[int], structure: Structure | None = None) -> None:
        self.engine, self.end_ids = engine, end_ids
        self.structure = structure or Structure(None, Ids(engine.model.target.config.vocab, end_ids))
        self.drafts = engine.model.drafter is not None

    @property
    def target(self) -> Target:
        """The model that writes."""
        return self.engine.model.target

    @property
    def offered(self) -> Sequence[int]:
        """Draft lengths that the controller may choose, each of which has a graph of its own."""
        return self.engine.pilot.offered if self.engine.pilot else ()

    def describe(self) -> Mapping[str, Any]:
        """The GPU and what is set aside on it, for a benchmark's record. Graphs are captured as they are needed."""
        cache, graphs = self.engine.model.cache, self.engine.graphs
        return {
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "places": cache.places,
            "context": cache.context,
            "cache_bytes": cache.nbytes,
            "graph_bytes": graphs.bytes,
        }

    def run(
        self, prompt: Sequence[int], params: SamplingParams, k: DraftLength, writer: Writer
    ) -> Iterator[TokenEvent]:  # fmt: skip
        """Generates one text, one event for each token; see `paceline.engine.Engine.run`."""
        request, first = self.request(prompt, params, k), True
        self._attach(request, writer)
        self.engine.submit(request)
        try:
            while not writer.finish_reason:
                while not request.rounds:
                    _raise_failure(request)
                    self._step()
                yield from writer.take(request.rounds.popleft(), first)
                first = False
        finally:
            if not request.finished:
                self.engine.cancel(request)

    def run_all(self, jobs: Sequence[tuple[Request, Writer]]) -> None:
        """Generates many texts side by side; each writer holds its completion afterwards."""
        started = set[int]()
        writers = {id(request): writer for request, writer in jobs}
        for request, writer in jobs:
            self._attach(request, writer)
            self.engine.submit(request)
        try:
            while self.engine.busy:
                for request in self._step():
                    _raise_failure(request)
                    self._write(request, writers[id(request)], started)
        finally:
            for request, _ in jobs:
                if not request.finished:
                    self.engine.cancel(request)

    def _attach(self, request: Request, writer: Writer) -> None:
        """Tells the writer where log-probabilities will be, and how draft lengths were chosen."""
        pilot, k, writer.logprobs = self.engine.pilot, request.k, request.logprobs
        if k != AUTO:
            writer.choice = lambda: asked(k)
        elif pilot:
            writer.choice = lambda: chosen(writer.stats, pilot.reason(request.hosted))

    def _step(self) -> list[Request]:
        """A round; its graph is captured when it is first needed, which takes memory too."""
        return within_memory(self.engine.step, "ask for a shorter context or fewer sequences when loading")

    def _write(self, request: Request, writer: Writer, started: set[int]) -> None:
        while request.rounds and not writer.finish_reason:
            writer.put(request.rounds.popleft(), id(request) not in started)
            started.add(id(request))
        if writer.finish_reason and not request.finished:
            self.engine.cancel(request)

    def request(self, prompt: Sequence[int], params: SamplingParams, k: DraftLength) -> Request:
        """A checked request.

        Raises PromptError for what does not fit the context that was set aside, UsageError for grammars that cannot be
        used.
        """
        check_prompt(prompt, params, self.target)
        stops, constraint = bool(self.end_ids) and not params.ignore_eos, self.structure.constraint(params)
        request = Request(prompt, params, check_draft_length(k), stops, constraint)
        context = self.engine.model.cache.context
        if request.tokens > context:
            raise PromptError(
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} exceed the {context} tokens set aside;"
                " load with a longer context, shorten the prompt or lower max_tokens"
            )
        return request


def _raise_failure(request: Request) -> None:
    if request.failure:
        raise request.failure
