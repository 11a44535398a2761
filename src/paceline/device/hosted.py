"""Texts whose tokens the host chooses: with grammars, drafts that are drawn and tested, or likeliest tokens to report.

`paceline.speculate` and `paceline.sampling` run them as they run on the CPU, one sequence at a time, in places that the
batch's rounds do not touch. Passes and draft steps are graphs of the kernels of the batch's rounds, so a row of logits
has the same bits; it alone comes to the host. Hidden states, keys and values stay on the device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paceline.cache import MAX_TENTATIVE, Extent
from paceline.control.policy import Policy
from paceline.device.cache import BatchCache, PassCache
from paceline.device.drafters import MtpDraft
from paceline.device.graphs import Graphs
from paceline.device.request import Request
from paceline.device.round import DeviceModel, Places, span_of
from paceline.device.sampling import head_of
from paceline.drafters import Drafter, NoDrafter
from paceline.drafters import MtpDraft as HostMtpDraft
from paceline.errors import PacelineError, UsageError
from paceline.kernels import Ops, get_ops
from paceline.kernels.gpu import matmul
from paceline.sampling import Sampler
from paceline.speculate import Round, speculate, start
from paceline.steering import Asked, Steered, kind_of
from paceline.types import AUTO

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Scores = tuple[Logits, Ids | None]


class Lease(Extent):
    """A place's share of the cache: stands where a `KVCache` does in `speculate`."""

    def __init__(self, cache: BatchCache, place: int, tokens: int) -> None:
        super().__init__()
        self.cache, self.place, self.where = cache, place, cache.lend(place, tokens)

    def release(self) -> None:
        """Gives the place back. The lease must not be used afterwards."""
        self.cache.release(self.place)


class Desk:
    """Passes and draft steps of one sequence at a time. Graphs know the tensors here by their addresses."""

    def __init__(self, model: DeviceModel, graphs: Graphs) -> None:
        self.model, self.graphs = model, graphs
        self.sitting: Lease | None = None
        like = model.places.sequences.hidden
        self.ids = torch.zeros(MAX_TENTATIVE, dtype=torch.int64, device=like.device)
        one = Places.create(1, like.shape[1], like.dtype, like.device).sequences
        self.sequences = one._replace(last=self.ids[:1])
        self.where, self.nobody = model.cache.nobody, model.cache.nobody

    def verify(self, tokens: Sequence[int], lease: Lease) -> Tensor:
        """Appends the tokens to the sequence: hidden states [n, D], which stay."""
        first, k = lease.append(len(tokens)).start, len(tokens) - 1
        self._sit(lease, first, tokens)
        span = span_of(lease.length, self.model.cache.context)

        def run(rehearsal: bool) -> Tensor:
            drafts = self.ids[1 : 1 + k, None] if k else None
            return self.model.verify(self.sequences, drafts, self._cache(span, rehearsal))[1]

        return self.graphs.replay(("verify", k, span), run).clone()

    def step(self, token: int, hidden: Tensor, lease: Lease) -> tuple[Scores, Tensor]:
        """A draft step after `token`, from the hidden state [1, D]: scores [1, m], and the state of the next step.

        That state is good until the next pass of any graph.
        """
        drafter = self.model.drafter
        assert isinstance(drafter, MtpDraft)
        self._sit(lease, lease.length, [token])
        self.sequences.hidden.copy_(hidden)
        span = span_of(lease.length, self.model.cache.context)
        logits, ids, after = self.graphs.replay(
            ("step", span), lambda rehearsal: drafter.step(self.sequences, self._cache(span, rehearsal))
        )
        return (download(logits), None if ids is None else download(ids)), after

    def _sit(self, lease: Lease, length: int, tokens: Sequence[int]) -> None:
        """Puts a sequence of `length` tokens where the graphs look for it, and the tokens that follow."""
        if self.sitting is not lease:
            self.sitting = lease
            for mine, theirs in zip(self.where, lease.where, strict=True):
                mine.copy_(theirs)
        self.sequences.length.fill_(length)
        self.ids[: len(tokens)].copy_(torch.tensor(tokens, dtype=torch.int64), non_blocking=True)

    def _cache(self, span: int, rehearsal: bool) -> PassCache:
        return PassCache(self.model.cache, *(self.nobody if rehearsal else self.where), span)


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host, complete once the device has come so far."""
    out = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return out.copy_(tensor, non_blocking=True)


def download(tensor: Tensor) -> Any:
    """A tensor's values in NumPy, once they are there."""
    out = to_host(tensor)
    if tensor.is_cuda:
        torch.cuda.current_stream().synchronize()
    return out.numpy()


# ---- what `speculate` and the drafters call -------------------------------------------------------------------------


class HostedTarget:
    """Stands where a `Target` does: hidden states are the device's, logits NumPy's."""

    def __init__(self, desk: Desk) -> None:
        self.desk, target = desk, desk.model.target
        self.config, self.ops, self.head = target.config, target.ops, head_of(target)

    def prefill(self, prompt: Sequence[int], lease: Lease) -> Tensor:
        """Reads a whole prompt: the last token's hidden state [1, D]."""
        lease.length = len(prompt)
        return self.desk.graphs.prompt(prompt, lease.where).clone()

    def forward(self, tokens: Sequence[int], lease: Lease) -> Tensor:
        """Appends tokens: their hidden states [n, D]."""
        return self.desk.verify(tokens, lease)

    def logits(self, hidden: Tensor) -> Logits:
        """Soft-capped logits [n, vocab] of hidden states [n, D]."""
        found: Logits = download(matmul.head_logits(hidden, self.head))
        return found

    def embed(self, ids: Ids) -> Ids:
        """The ids themselves: a draft step's graph looks them up."""
        return ids


class HostedSteps:
    """Stands where an `MtpDrafter` does in `paceline.drafters.MtpDraft`; `ops` are those of what it returns."""

    def __init__(self, desk: Desk, ops: Ops) -> None:
        self.desk, self.ops = desk, ops

    def rows(self, target: HostedTarget, lease: Lease, position: int) -> None:
        """Nothing: a step's graph finds where it stands."""

    def step(self, ids: Ids, hidden: Tensor, rows: None, lease: Lease) -> tuple[Scores, Tensor]:
        """(What `logits` returns, the next hidden state) of one token's step."""
        return self.desk.step(int(ids[0]), hidden, lease)

    def logits(self, scores: Scores) -> Scores:
        """Logits [1, m], and the ids that they stand for, or None for the vocabulary."""
        return scores


# ---- texts ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class HostedText:
    """A request under way. last: its newest token, once there is one."""

    request: Request
    lease: Lease
    drafter: Drafter
    sampler: Sampler
    steering: Asked | Steered
    last: int | None = None

    def round(self, target: Any) -> Round:
        """The next round, of which the first reads the prompt; cut where the text ends, and then it is finished."""
        r, lease = self.request, self.lease
        if self.last is None:
            done = Round([start(target, self.drafter, lease, self.sampler, r.prompt)], 0)  # type: ignore[arg-type]
        else:
            # The bonus token comes anyway: never draft past the last token that is wanted.
            wanted = self.steering.before(lease.length, r.params.max_tokens - r.emitted - 1)
            done = speculate(target, self.drafter, lease, self.sampler, self.last, wanted)  # type: ignore[arg-type]
            self.steering.after(done)
        self.last = done.tokens[-1]
        ends = [i for i, token in enumerate(done.tokens) if token in self.sampler.end_ids]
        done = Round(done.tokens[: ends[0] + 1], done.drafted) if ends else done
        r.emitted += len(done.tokens)
        r.rounds.append(done)
        r.finished = bool(ends) or r.emitted == r.params.max_tokens
        return done


class Host:
    """The hosted texts of a `DeviceEngine`, by their places. policy: chooses draft lengths where k is "auto"."""

    def __init__(self, model: DeviceModel, graphs: Graphs, policy: Policy | None = None) -> None:
        self.model, self.desk, self.policy = model, Desk(model, graphs), policy
        self.target = HostedTarget(self.desk)
        self.end_ids = frozenset(model.ending.end_ids.tolist())
        self.suppress = () if model.suppressed is None else tuple(model.suppressed.tolist())
        self.texts: dict[int, HostedText] = {}

    @cached_property
    def ops(self) -> Ops:
        """The operations that choose tokens; made when the first text wants them."""
        return get_ops("cpu")

    def seat(self, request: Request, place: int) -> None:
        """Takes a request in; `round` serves it. Raises UsageError for a k that nobody can choose."""
        ends = self.end_ids if request.stop_ids and not request.params.ignore_eos else frozenset[int]()
        sampler = Sampler(self.ops, request.params, self.suppress, ends, request.constraint)
        sampler.logprobs = request.logprobs
        drafter = self.drafter() if request.k else NoDrafter()
        steering = self._steering(request, drafter)
        lease = Lease(self.model.cache, place, request.tokens)
        self.texts[place] = HostedText(request, lease, drafter, sampler, steering)

    def drafter(self) -> Drafter:
        """A drafter for one text: the device's own, each guess of which the sampler draws; none beside any other."""
        if not isinstance(self.model.drafter, MtpDraft):
            return NoDrafter()
        return HostMtpDraft(HostedSteps(self.desk, self.ops), self.target)  # type: ignore[arg-type]

    def leave(self, request: Request) -> None:
        """Frees the place of a request, if it has one here."""
        for place, text in list(self.texts.items()):
            if text.request is request:
                self.texts.pop(place).lease.release()

    def rounds(self) -> list[Request]:
        """A round of each text. Returns the requests that got tokens, or a failure of their own."""
        served = [text.request for text in self.texts.values()]
        for text in list(self.texts.values()):
            try:
                text.round(self.target)
            except PacelineError as error:  # a grammar that leaves no token, for instance: nobody else's affair
                text.request.failure, text.request.finished = error, True
            if text.request.finished:
                self.leave(text.request)
        return served

    def _steering(self, request: Request, drafter: Drafter) -> Asked | Steered:
        """Who says how many tokens its rounds draft."""
        if request.k != AUTO or isinstance(drafter, NoDrafter):
            return Asked(0 if request.k == AUTO else request.k)
        if self.policy is None:
            raise UsageError("k='auto' needs a pilot; give the engine one, or requests a number")
        return Steered(self.policy, drafter, request.name, kind_of(request.params), time.perf_counter)
