"""Logits to tokens, as a function of (logits, parameters, seed, position) and nothing else.

Greedy takes the greatest logit, ties by lowest id. Sampling takes argmax(log p + Gumbel noise), the noise a function
of (seed, position, id): the Gumbel-max trick, so the law is p, and the choice does not depend on how the logits came
about. A drafter that uses the same noise guesses the same token as often as its p and the target's overlap
("drafter-invariant" coupling, Daliri et al. 2024, arXiv 2408.07978).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from paceline.kernels import Array, Ops
from paceline.types import SamplingParams

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampler:
    """Chooses tokens for one request. `suppress` are ids that never come out."""

    ops: Ops
    params: SamplingParams
    suppress: tuple[int, ...] = ()

    def choose(self, logits: Array, position: int) -> list[int]:
        """One token for each row of logits [n, vocab]; row r's token will sit at `position` + r."""
        if self.suppress:
            logits = self.ops.mask_columns(logits, self.suppress)
        if self.params.temperature == 0.0:
            best: list[int] = self.ops.host(self.ops.top(logits, 1)[0])[:, 0].tolist()
            return best
        return [self._sample(self.ops.rows(logits, r, r + 1), None, position + r) for r in range(len(logits))]

    def guess(self, logits: Array, ids: Array | None, position: int) -> int:
        """A drafter's choice from its own logits [1, m], which stand for `ids` [1, m] or for the whole vocabulary."""
        if self.params.temperature > 0.0:
            return self._sample(logits, ids, position)
        best = self.ops.top(logits, 1)[0]
        return int(best[0, 0]) if ids is None else int(ids[0, int(best[0, 0])])

    def _sample(self, logits: Array, ids: Array | None, position: int) -> int:
        kept, scores = self._candidates(logits, ids)
        noise = self.ops.host(self.ops.gumbel(self.params.seed, position, self.ops.array(torch.from_numpy(kept))))
        return int(kept[int(np.argmax(scores + noise))])

    def _candidates(self, logits: Array, ids: Array | None) -> tuple[Ids, Scores]:
        """The tokens that top-k and top-p leave, likeliest first, with logits over temperature."""
        p = self.params
        if p.top_k or p.top_p < 1.0:
            order, values = self.ops.top(logits, min(p.top_k or logits.shape[1], logits.shape[1]))
            columns, kept = self.ops.host(order)[0], np.asarray(self.ops.host(values)[0], np.float64) / p.temperature
        else:
            columns = np.arange(logits.shape[1])
            kept = np.asarray(self.ops.host(logits)[0], np.float64) / p.temperature
        names = columns if ids is None else self.ops.host(ids)[0][columns]
        if p.top_p < 1.0:
            count = nucleus(kept, p.top_p)
            names, kept = names[:count], kept[:count]
        return names, kept


def nucleus(scores: Scores, top_p: float) -> int:
    """How many of the descending log-scores top-p keeps: the fewest that hold at least `top_p` of the mass."""
    mass = np.exp(scores - scores[0])
    return int(np.searchsorted(np.cumsum(mass), top_p * mass.sum(), side="left")) + 1
