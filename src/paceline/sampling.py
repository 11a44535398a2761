"""Logits to tokens, as a function of (logits, parameters, seed, position) and nothing else.

Greedy takes the greatest logit, ties by lowest id. Sampling takes argmax(log p + Gumbel noise), the noise a function
of (seed, position, id): the Gumbel-max trick, so the law is p, and the choice does not depend on how the logits came
about. A drafter that uses the same noise guesses the same token as often as its p and the target's overlap
("drafter-invariant" coupling, Daliri et al. 2024, arXiv 2408.07978).

Penalties and the like (`paceline.processors`) and grammars (`paceline.structure`) also look at the tokens before a
position: the sampler keeps them, and a verified row is processed after the drafts before it.

With accept "rejection" or "block" drafts are drawn with noise of their own and tested (`paceline.rejection`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from paceline.kernels import Array, Cuts, Ops
from paceline.kernels.reference import cut
from paceline.processors import Context, Row, log_softmax, reshapes
from paceline.rejection import Law, Rejection
from paceline.structure import Constraint
from paceline.types import SamplingParams, TokenLogprobs

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]


@dataclass
class Sampler:
    """Chooses tokens for one request. `suppress` are ids that never come out, `end_ids` those that may end the text.

    `begin` and `extend` tell it what was read and emitted. logprobs: of every emitted token, where they are asked for.
    """

    ops: Ops
    params: SamplingParams
    suppress: tuple[int, ...] = ()
    end_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list, init=False)
    context: Context | None = field(default=None, init=False)
    rejection: Rejection | None = field(default=None, init=False)
    vocab: int = field(default=0, init=False)
    cuts: Cuts = field(init=False)

    def __post_init__(self) -> None:
        self.cuts = Cuts(self.params.temperature, self.params.top_p, self.params.min_p)

    def begin(self, prompt: Sequence[int], vocab: int) -> None:
        """A text starts after this prompt."""
        self.logprobs.clear()
        self.vocab, tested = vocab, self.params.accept != "coupled" and self.params.temperature > 0.0
        self.rejection = Rejection(self.params.accept, self.params.seed) if tested else None
        # Without rules that look back there is nothing to keep.
        self.context = Context(self.params, prompt, list(self.end_ids)) if reshapes(self.params) else None

    def extend(self, tokens: Sequence[int], logits: Array) -> None:
        """These tokens were emitted, the r-th by row r of logits [at least n, vocab]."""
        if self.context is not None:
            self.context.extend(tokens)
        if self.constraint is not None:
            self.constraint.extend(tokens)
        if self.params.logprobs is not None:
            self.logprobs += [self._report(self.ops.rows(logits, r, r + 1), token) for r, token in enumerate(tokens)]

    def legal(self, draft: Sequence[int]) -> list[int]:
        """The drafts before the first that the grammar forbids: the target would never choose that one."""
        if self.constraint is None:
            return list(draft)
        count = self.constraint.legal(draft)
        if self.rejection is not None:
            self.rejection.cut(count)
        return list(draft[:count])

    def verify(self, logits: Array, first: int, draft: Sequence[int] = ()) -> list[int]:
        """What a round emits: the drafts that stay, then one more token. Row r of logits [n, vocab] follows draft[:r].

        The first of them will sit at `first`. Coupled: the target's own choices, up to the first that differs from its
        draft. Otherwise drafts stay as `paceline.verification` says.
        """
        if self.rejection is None:
            chosen = self.choose(logits, first, draft)
            return chosen[: count_agreeing(draft, chosen) + 1]
        rows = self._rows(logits, draft)
        return self.rejection.verify(
            [self._law(self.ops.rows(rows, r, r + 1), None) for r in range(len(rows))], first, draft
        )

    def choose(self, logits: Array, position: int, draft: Sequence[int] = ()) -> list[int]:
        """One token for each row of logits [n, vocab]; row r's token will sit at `position` + r, after draft[:r]."""
        logits = self._rows(logits, draft)
        if self.params.temperature == 0.0:
            best: list[int] = self.ops.host(self.ops.top(logits, 1)[0])[:, 0].tolist()
            return best
        return [self._sample(self.ops.rows(logits, r, r + 1), None, position + r) for r in range(len(logits))]

    def guess(self, logits: Array, ids: Array | None, position: int, draft: Sequence[int] = ()) -> int:
        """A drafter's choice from its own logits [1, m], which stand for `ids` [1, m] or for the whole vocabulary.

        The token will follow `draft`, which follows what was emitted. Coupled: by the target's noise at that position;
        otherwise drawn, and then it must be verified.
        """
        if self.context is not None or self.constraint is not None:
            logits = self._reshape_part(logits, ids, draft)
            if self.constraint is not None and not np.isfinite(self.ops.host(logits)).any():
                # The grammar allows nothing that the drafter sees; whatever is guessed here is cut.
                return 0 if ids is None else int(ids[0, 0])
        if self.rejection is not None:
            return self.rejection.draw(self._law(logits, ids), position - len(draft), len(draft))
        if self.params.temperature > 0.0:
            return self._sample(logits, ids, position)
        best = self.ops.top(logits, 1)[0]
        return int(best[0, 0]) if ids is None else int(ids[0, int(best[0, 0])])

    def _rows(self, logits: Array, draft: Sequence[int]) -> Array:
        """Every row [n, vocab] under the rules, grammar and suppression that hold after the drafts before it."""
        if self.context is not None or self.constraint is not None:
            rows = self._reshape(self.ops.host(logits), [draft[:r] for r in range(len(logits))])
            logits = self.ops.array(torch.from_numpy(rows))
        return self.ops.mask_columns(logits, self.suppress) if self.suppress else logits

    def _reshape_part(self, logits: Array, ids: Array | None, draft: Sequence[int]) -> Array:
        """The row [1, m] of a drafter that scores `ids` only; ids it leaves out count as impossible."""
        if ids is None:
            return self.ops.array(torch.from_numpy(self._reshape(self.ops.host(logits), [draft])))
        columns = self.ops.host(ids)[0]
        row = np.full((1, self.vocab), -np.inf, np.float32)
        row[0, columns] = self.ops.host(logits)[0]
        return self.ops.array(torch.from_numpy(self._reshape(row, [draft])[:, columns]))

    def _reshape(self, rows: Row, drafts: Sequence[Sequence[int]]) -> Row:
        """New rows [n, vocab], as rules and grammar have them after drafts[r]."""
        if self.context is not None:
            rows = self.context.process(rows, drafts)
        if self.constraint is not None:
            rows = np.where([self.constraint.allowed(draft) for draft in drafts], rows, np.float32(-np.inf))
        return rows

    def _report(self, logits: Array, token: int) -> TokenLogprobs:
        """Log-probabilities of the token that the unprocessed row [1, vocab] brought forth, and of the likeliest."""
        assert self.params.logprobs is not None
        logs = log_softmax(self.ops.host(logits)[0])
        best = self.ops.host(self.ops.top(logits, self.params.logprobs)[0])[0] if self.params.logprobs else ()
        return TokenLogprobs(float(logs[token]), tuple((int(i), float(logs[i])) for i in best))

    def _sample(self, logits: Array, ids: Array | None, position: int) -> int:
        return self.ops.draw(*self._top(logits, ids), self.cuts, self.params.seed, position)

    def _law(self, logits: Array, ids: Array | None) -> Law:
        """What the row [1, m] draws a token from."""
        kept, scores = cut(*self._top(logits, ids), self.cuts)
        chances = np.exp(scores - scores.max())
        return Law(kept, chances / chances.sum())

    def _top(self, logits: Array, ids: Array | None) -> tuple[Values, Ids]:
        """Logits that top-k leaves and their tokens; likeliest first where anything is cut but by min-p."""
        p = self.params
        if p.top_k or p.top_p < 1.0:
            order, values = self.ops.top(logits, min(p.top_k or logits.shape[1], logits.shape[1]))
            columns, logits = self.ops.host(order)[0], values
        else:
            columns = np.arange(logits.shape[1])
        return self.ops.host(logits)[0], columns if ids is None else self.ops.host(ids)[0][columns]


def count_agreeing(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, token in enumerate(draft):
        if token != chosen[i]:
            return i
    return len(draft)
