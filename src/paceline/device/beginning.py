"""A text's first token on the device, and its place in the batch: one graph for each way of choosing.

The host says all it has to say in one copy, and launches little: beside the rounds of a small model, a text that begins
would else take longer than they do. Nothing here may wait for the device, which would run out of rounds.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from paceline.device.graphs import Graphs
from paceline.device.request import Request
from paceline.device.round import DeviceModel, How, Places
from paceline.kernels.gpu.accept import COUNT, FINISHED, KEPT
from paceline.kernels.gpu.rows import mode_of, numbers_of
from paceline.kernels.gpu.rules import begin_history, remember, rules_of
from paceline.processors import reshapes


class Beginnings:
    """Prepares one text after another in a place of its own, `desk`, and moves it to its place in the batch."""

    def __init__(self, model: DeviceModel, graphs: Graphs) -> None:
        self.model, self.graphs = model, graphs
        self.hidden = torch.zeros_like(model.places.sequences.hidden[:1])
        self.desk = Places.create(1, self.hidden.shape[1], self.hidden.dtype, self.hidden.device)
        self.fractions = [tensor.is_floating_point() for tensor in self._wanted()]
        self.told = torch.zeros(1 + len(self.fractions), dtype=torch.int64, device=self.hidden.device)

    def begin(self, request: Request, place: int, hidden: Tensor) -> Places:
        """Chooses the first token after a prompt's last state [1, D] like every other, and seats the text.

        Returns the desk, whose outcome and reports are this text's until the next begins.
        """
        params = request.params
        how = How(mode_of([params]), self._begin_rules(request, place), request.reported)
        ends = request.stop_ids and not params.ignore_eos
        numbers = len(request.prompt), request.most, int(ends), params.max_tokens, *numbers_of(params)
        bits = [bits_of(n) if fraction else n for n, fraction in zip(numbers, self.fractions, strict=True)]
        self.told.copy_(torch.tensor([place, *bits]), non_blocking=True)
        self.hidden.copy_(hidden)
        if how.rules or how.report:  # rare, and each of the many combinations would cost a graph
            self._choose(how, self._ruled(place))
        else:
            self.graphs.replay(("begin", how.mode), lambda rehearsal: self._choose(how, self.desk))
        if how.rules:
            remember(self.model.keep_histories()[place : place + 1], self.desk.outcome)
        return self.desk

    def _wanted(self) -> list[Tensor]:
        """What the host says of a text beside its place."""
        s = self.desk.sequences
        return [s.length, s.limit, s.stops, s.remaining, *self.desk.params]

    def _choose(self, how: How, own: Places) -> None:
        """The first token of the text at the desk, and all that rounds go on from. own: the desk, with rules if any."""
        s, o, end_ids = self.desk.sequences, self.desk.outcome, self.model.ending.end_ids
        for mine, number, fraction in zip(self._wanted(), self.told[1:, None], self.fractions, strict=True):
            mine.copy_(number.view(torch.float64) if fraction else number)
        token = self.model.first_token(self.hidden, own, how)
        s.last.copy_(token)
        s.hidden.copy_(self.hidden)
        s.remaining.sub_(1).mul_((token != end_ids).all() | (s.stops == 0))
        o[:, 0], o[:, COUNT], o[:, KEPT], o[:, FINISHED] = token, 1, 0, s.remaining == 0
        at, places = self.told[:1], self.model.places
        for theirs, mine in zip((*places.sequences, *places.params), (*s, *self.desk.params), strict=True):
            theirs.index_copy_(0, at, mine)

    def _ruled(self, place: int) -> Places:
        """The desk, with the rules and the history of a place."""
        own, d = self.model.places.part(place, place + 1), self.desk
        return Places(d.sequences, d.params, own.rules, d.outcome, d.reports, own.history)

    def _begin_rules(self, request: Request, place: int) -> bool:
        """Puts a text's rules in place, and its prompt into the history; whether it has any."""
        rules = reshapes(request.params)
        if not rules and self.model.places.history is None:
            return False  # nobody ever had any: all places are neutral still
        history, own = self.model.keep_histories()[place], self.model.places.part(place, place + 1)
        for mine, theirs in zip(own.rules, rules_of([request.params], history.device), strict=True):
            mine.copy_(theirs)
        if rules:
            prompt = torch.tensor(request.prompt, dtype=torch.int64)
            begin_history(history, prompt.to(history.device, non_blocking=True))
        return rules


def bits_of(number: float) -> int:
    """The bits of a float64 as an int64."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits
