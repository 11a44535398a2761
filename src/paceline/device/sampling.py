"""Choosing tokens on the device: which kernels serve the requests at hand."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from paceline.kernels.gpu import choose, matmul
from paceline.kernels.gpu.centroids import centroid_choice
from paceline.kernels.gpu.matmul import HeadWeight
from paceline.kernels.gpu.rows import Columns
from paceline.kernels.gpu.rows import Rows as Params
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter

GREEDY = "greedy"


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen in one graph: `mode` as in `choose.mode_of`, with each sequence's parameters [B].

    suppressed: int32 ids that never come out, or None.
    """

    mode: str
    params: Params
    suppressed: Tensor | None = None

    def choose(self, target: Target, hidden: Tensor, positions: Tensor) -> Tensor:
        """The target's own token int64 [n] for each hidden state [n, D]; the token will sit at positions [n]."""
        head = HeadWeight(target.embedding.tensor, target.config.softcap or 0.0)  # type: ignore[attr-defined]
        if self.mode == GREEDY:
            return choose.pick_best(*matmul.head_best(hidden, head, self.suppressed))
        logits = matmul.head_logits(hidden, head)
        return choose.sample(logits, self.params, positions, self.mode, Columns(suppress=self.suppressed))

    def guess(self, drafter: MtpDrafter, head: HeadWeight, state: Tensor, positions: Tensor) -> Tensor:
        """The drafter's token int64 [B] from its state [B, d], with the noise the target will use there."""
        if drafter.config.centroids is not None:
            return self._guess_in_clusters(drafter, state, positions)
        if self.mode == GREEDY:
            return choose.pick_best(*matmul.head_best(state, head))
        return choose.sample(matmul.head_logits(state, head), self.params, positions, self.mode)

    def _guess_in_clusters(self, drafter: MtpDrafter, state: Tensor, positions: Tensor) -> Tensor:
        assert drafter.config.centroids is not None
        scores = drafter.ops.linear(state, drafter.centroids)
        table = drafter.head.tensor  # type: ignore[attr-defined]
        found = centroid_choice(scores, drafter.config.centroids.active, drafter.clusters, state, table)
        if self.mode == GREEDY:
            return choose.pick_best(found.tile_values, found.tile_ids)
        return choose.sample(found.logits, self.params, positions, self.mode, Columns(found.ids))
