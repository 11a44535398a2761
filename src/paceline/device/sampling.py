"""Choosing tokens on the device: which kernels serve the requests at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.kernels.gpu import choose, matmul
from paceline.kernels.gpu.centroids import Clustered, centroid_choice
from paceline.kernels.gpu.matmul import HeadWeight
from paceline.kernels.gpu.report import report
from paceline.kernels.gpu.rows import Columns
from paceline.kernels.gpu.rows import Rows as Params
from paceline.kernels.gpu.rules import Ruling, reshape
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter

GREEDY = "greedy"
Draft = Sequence[Tensor]
DraftModel = tuple[MtpDrafter, HeadWeight]


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen in one graph: `mode` as in `choose.mode_of`, with each sequence's parameters [B].

    suppressed: int32 ids that never come out, or None. ruling: penalties, biases and least lengths, where any are on.
    report: float64 [B, 16] that the log-probabilities of the tokens go to, by the model itself, where they are wanted.
    margins: int64 [B, 15] that those of the guesses go to, in units of `rows.MARGIN_UNIT`, where they are wanted.
    """

    mode: str
    params: Params
    suppressed: Tensor | None = None
    ruling: Ruling | None = None
    report: Tensor | None = None
    margins: Tensor | None = None

    def choose(self, target: Target, hidden: Tensor, positions: Tensor, drafts: Tensor | None = None) -> Tensor:
        """The target's own token int64 [n] for each hidden state [n, D]; the token will sit at positions [n].

        Each sequence's rows stand after none, one, ... of its drafts int64 [k, B].
        """
        head = head_of(target)
        if self.mode == GREEDY and self.ruling is None and self.report is None:
            return choose.pick_best(*matmul.head_best(hidden, head, self.suppressed))
        logits = ruled = matmul.head_logits(hidden, head)
        if self.ruling is not None:
            ruled = logits if self.report is None else logits.clone()  # rules reshape in place
            reshape(ruled, None, self.ruling, drafts)
        chosen = choose.sample(ruled, self.params, positions, self.mode, Columns(suppress=self.suppressed))
        if self.report is not None:
            report(logits, chosen, self.report)
        return chosen

    def guess(self, model: DraftModel, state: Tensor, positions: Tensor, draft: Draft) -> Tensor:
        """The drafter's token int64 [B] from its state [B, d], with the rules and the noise the target will use there.

        draft: the guesses before it.
        """
        drafter, head = model
        if drafter.config.centroids is not None:
            return self._guess_in_clusters(_cluster(drafter, state), positions, draft)
        if self.mode == GREEDY and self.ruling is None:
            return choose.pick_best(*matmul.head_best(state, head), margins=self._margins(draft))
        logits = matmul.head_logits(state, head)
        self._reshape_guess(logits, None, draft)
        return choose.sample(logits, self.params, positions, self.mode, Columns(margins=self._margins(draft)))

    def _margins(self, draft: Draft) -> Tensor | None:
        """Where those of the guess after this draft go."""
        return None if self.margins is None else self.margins[:, len(draft)]

    def _reshape_guess(self, logits: Tensor, ids: Tensor | None, draft: Draft) -> None:
        if self.ruling is not None:
            reshape(logits, ids, self.ruling, torch.stack(list(draft)) if draft else None, first=len(draft))

    def _guess_in_clusters(self, found: Clustered, positions: Tensor, draft: Draft) -> Tensor:
        if self.mode == GREEDY and self.ruling is None:
            return choose.pick_best(found.tile_values, found.tile_ids, found.tile_seconds, self._margins(draft))
        self._reshape_guess(found.logits, found.ids, draft)
        columns = Columns(found.ids, margins=self._margins(draft))
        return choose.sample(found.logits, self.params, positions, self.mode, columns)


def head_of(target: Target) -> HeadWeight:
    """The target's LM head, soft cap included."""
    return HeadWeight(target.embedding.tensor, target.config.softcap or 0.0)  # type: ignore[attr-defined]


def scores(model: DraftModel, state: Tensor) -> tuple[Tensor, Tensor | None]:
    """The drafter's logits fp32 [B, m] from its state [B, d], and the ids int64 [B, m] that they stand for.

    None means the whole vocabulary.
    """
    drafter, head = model
    if drafter.config.centroids is None:
        return matmul.head_logits(state, head), None
    found = _cluster(drafter, state)
    return found.logits, found.ids


def _cluster(drafter: MtpDrafter, state: Tensor) -> Clustered:
    assert drafter.config.centroids is not None
    near = drafter.ops.linear(state, drafter.centroids)
    table = drafter.head.tensor  # type: ignore[attr-defined]
    return centroid_choice(near, drafter.config.centroids.active, drafter.clusters, state, table)
