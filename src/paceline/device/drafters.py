"""Drafters whose guesses never leave the device: what a graph can capture."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from paceline.config import FULL, SLIDING
from paceline.device.cache import PassCache
from paceline.device.sampling import Choice, scores
from paceline.kernels import Reach
from paceline.kernels.cuda import weight_of
from paceline.kernels.gpu import parts
from paceline.kernels.gpu.accept import Rows, Sequences, draft_rows
from paceline.kernels.gpu.matmul import head_weight
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter


class DeviceDrafter(Protocol):
    """Guesses the next k tokens of every sequence at once. `state`: tensors with a row for each place, if any."""

    state: list[Tensor]

    def propose(self, sequences: Sequences, cache: PassCache, choice: Choice, k: int) -> Tensor:
        """Token ids int64 [k, B], for the positions after each sequence's last token."""


def quantize_drafter(model: MtpDrafter, head: bool, body: bool) -> None:
    """Keeps a drafter's dense head, its body's matrices or both in int8 from now on, and gives back the rest.

    Before an `MtpDraft` is made of it. Guesses may change; what the target makes of them does not.
    """
    for matrix in [model.head] * head + model.body * body:
        matrix.quantize()  # type: ignore[attr-defined]
    if head or body:
        torch.cuda.empty_cache()


class MtpDraft:
    """Gemma 4's MTP assistant, k steps at one constant position: see `paceline.drafters.MtpDraft`.

    `back` is 0 where it stands at the bonus token's index n, 1 at n - 1.
    """

    def __init__(self, model: MtpDrafter, target: Target, context: int, back: int = 0) -> None:
        self.model, self.target, self.back, self.state = model, target, back, list[Tensor]()
        self.head = head_weight(weight_of(model.head))  # type: ignore[arg-type]
        self.ropes = {kind: target.ropes.get(layer, context) for kind, layer in model.kinds.items()}
        self.window = max((layer.window or 0) for layer in model.kinds.values()) or context

    def propose(self, sequences: Sequences, cache: PassCache, choice: Choice, k: int) -> Tensor:
        rows, reach = self._reach(sequences, k)
        token, hidden, drafts = sequences.last, sequences.hidden, list[Tensor]()
        for j in range(k):
            state, hidden = self._step(token, hidden, reach, cache)
            token = choice.guess((self.model, self.head), state, rows.chosen_at[j], drafts)
            drafts.append(token)
        return torch.stack(drafts) if k > 1 else drafts[0][None]

    def step(self, sequences: Sequences, cache: PassCache) -> tuple[Tensor, Tensor | None, Tensor]:
        """One step, of which somebody else chooses the token: `scores` of what follows each sequence's last token, and
        the next step's hidden states [B, D]. Within a round, only last and hidden may change between steps.
        """
        _, reach = self._reach(sequences, 1)
        state, hidden = self._step(sequences.last, sequences.hidden, reach, cache)
        return *scores((self.model, self.head), state), parts.total(hidden, sequences.hidden.dtype)

    def _reach(self, sequences: Sequences, k: int) -> tuple[Rows, dict[str, Reach]]:
        """Where the round's steps stand, and what they see."""
        rows, last = draft_rows(sequences, self.back, self.window, k)
        firsts = {SLIDING: rows.first, FULL: rows.zero}
        return rows, {kind: Reach(rows.positions, firsts[kind], last, rope) for kind, rope in self.ropes.items()}

    def _step(self, token: Tensor, hidden: Tensor, reach: dict[str, Reach], cache: PassCache) -> tuple[Tensor, Tensor]:
        """(The state [B, d] that chooses, the next step's hidden states as parts)."""
        return self.model.step(self.target.embed(token), hidden, reach, cache)  # type: ignore[arg-type]


class ScriptedDraft:
    """Guesses from given texts: for tests, and for showing that drafts decide nothing.

    script int64 [B, T]: the token to guess for each position of each sequence.
    """

    def __init__(self, script: Tensor) -> None:
        self.script, self.state = script, [script]

    def propose(self, sequences: Sequences, cache: PassCache, choice: Choice, k: int) -> Tensor:
        at = sequences.length.long()[:, None] + 1 + torch.arange(k, device=self.script.device)
        rows = self.script[: len(at)]
        return rows.gather(1, at.clamp(max=rows.shape[1] - 1)).T.contiguous()
