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

from paceline.kernels import Array, Cuts, Ops
from paceline.processors import Context, log_softmax, reshapes
from paceline.rejection import Laws, Rejection
from paceline.structure import Constraint
from paceline.types import SamplingParams, TokenLogprobs


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
    cuts: Cuts = field(init=False)

    def __post_init__(self) -> None:
        p = self.params
        self.cuts = Cuts(float(p.temperature), float(p.top_p), float(p.min_p), p.top_k)

    def begin(self, prompt: Sequence[int], vocab: int) -> None:
        """A text starts after this prompt."""
        self.logprobs.clear()
        tested = self.params.accept != "coupled" and self.params.temperature > 0.0
        self.rejection = Rejection(self.params.accept, self.params.seed) if tested else None
        # Without rules that look back there is nothing to keep.
        self.context = Context(self.params, prompt, list(self.end_ids), vocab) if reshapes(self.params) else None

    @property
    def picks(self) -> bool:
        """Whether a token is chosen that is the greatest of all, and so of any that it is among: a mask that allows it
        changes nothing. Where rows are cut first, what is left depends on the others; tested drafts need whole laws.
        """
        whole = not self.cuts.top_k and self.cuts.top_p >= 1.0 and not self.cuts.min_p
        return self.rejection is None and (whole or not self.cuts.temperature)

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
        if self.rejection is not None:
            return self.rejection.verify(self._laws(self._rows(logits, draft), None), first, draft)
        if self.constraint is None:
            return self.ops.draw(self._rows(logits, draft), None, self.cuts, (self.params.seed, first), draft)
        if not self.picks:
            return self._verify_masked(logits, first, draft)
        rows = self._rows(logits, draft, masked=False)
        chosen = self.ops.draw(rows, None, self.cuts, (self.params.seed, first), draft)
        last = len(chosen) - 1  # the others are drafts, of which none is left that the grammar forbids
        if self.constraint.allows(draft[:last], chosen[last]):
            return chosen
        return self._verify_masked(logits, first, draft, last)

    def _verify_masked(self, logits: Array, first: int, draft: Sequence[int], start: int = 0) -> list[int]:
        """`verify` under the grammar, of which the rows before `start` chose their drafts."""
        assert self.constraint is not None
        chosen, r = list(draft[:start]), start
        while r < len(logits) and chosen == list(draft[:r]):
            stop = r + 1  # what follows a draft that does not stay is nobody's: no mask is computed for it
            while stop < len(logits) and self.constraint.knows(draft[:stop]):
                stop += 1
            rows = self._rows(self.ops.rows(logits, r, stop), draft[: stop - 1])
            chosen += self.ops.draw(rows, None, self.cuts, (self.params.seed, first + r), draft[r:stop])
            r = stop
        return chosen

    def choose(self, logits: Array, position: int, draft: Sequence[int] = ()) -> list[int]:
        """One token for each row of logits [n, vocab]; row r's token will sit at `position` + r.

        The last row follows all of the draft, the one before it all but one, and so on.
        """
        return self.ops.draw(self._rows(logits, draft), None, self.cuts, (self.params.seed, position))

    def guess(self, logits: Array, ids: Array | None, position: int, draft: Sequence[int] = ()) -> int:
        """A drafter's choice from its own logits [1, m], which stand for `ids` [1, m] or for the whole vocabulary.

        The token will follow `draft`, which follows what was emitted. Coupled: by the target's noise at that position;
        otherwise drawn, and then it must be verified.
        """
        if self.context is not None:
            logits = self._ruled(self.context, logits, ids, draft)
        if self.constraint is None:
            return self._guess(logits, ids, position, draft)
        if self.picks:
            token = self._guess(logits, ids, position, draft)
            if self.constraint.allows(draft, token):
                return token
        logits = self._masked(self.constraint, logits, ids, draft)
        if logits is None:  # the grammar allows nothing that the drafter sees; whatever is guessed here is cut
            return 0 if ids is None else int(ids[0, 0])
        return self._guess(logits, ids, position, draft)

    def _guess(self, logits: Array, ids: Array | None, position: int, draft: Sequence[int]) -> int:
        """`guess` from a processed row."""
        if self.rejection is not None:
            return self.rejection.draw(self._laws(logits, ids).row(0), position - len(draft), len(draft))
        return self.ops.draw(logits, ids, self.cuts, (self.params.seed, position))[0]

    def _rows(self, logits: Array, draft: Sequence[int], masked: bool = True) -> Array:
        """Every row [n, vocab] under the rules, grammar and suppression that hold after the drafts before it."""
        if self.context is not None:
            logits = self._ruled(self.context, logits, None, draft)
        if masked and self.constraint is not None:
            logits = self._masked(self.constraint, logits, None, draft)
        return self.ops.mask_columns(logits, self.suppress) if self.suppress else logits

    def _ruled(self, context: Context, logits: Array, ids: Array | None, draft: Sequence[int]) -> Array:
        """The rows [n, vocab], as rules have them, the last after all of the draft.

        Or one row [1, m] of a drafter that scores `ids` only; ids it leaves out count as impossible.
        """
        return self.ops.reshape(logits, ids, context.rules, draft)

    def _masked(self, constraint: Constraint, logits: Array, ids: Array | None, draft: Sequence[int]) -> Array:
        """The same rows with nothing left that the grammar forbids; None where that leaves nothing of a part."""
        if len(logits) == 1:
            return self.ops.permit(logits, ids, constraint.allowed(draft)[None])
        ends = range(len(draft) - len(logits) + 1, len(draft) + 1)
        return self.ops.permit(logits, ids, np.array([constraint.allowed(draft[:end]) for end in ends]))

    def _laws(self, logits: Array, ids: Array | None) -> Laws:
        """What each processed row [n, m] draws a token from."""
        return Laws(*self.ops.laws(logits, ids, self.cuts))

    def _report(self, logits: Array, token: int) -> TokenLogprobs:
        """Log-probabilities of the token that the unprocessed row [1, vocab] brought forth, and of the likeliest."""
        assert self.params.logprobs is not None
        logs = log_softmax(self.ops.host(logits)[0])
        best = self.ops.host(self.ops.top(logits, self.params.logprobs)[0])[0] if self.params.logprobs else ()
        return TokenLogprobs(float(logs[token]), tuple((int(i), float(logs[i])) for i in best))


def count_agreeing(draft: Sequence[int], chosen: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, token in enumerate(draft):
        if token != chosen[i]:
            return i
    return len(draft)
