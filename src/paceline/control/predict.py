"""How likely drafts are to be accepted, learnt from rounds that were verified.

Two logistic laws. Before a round, one for each draft position, over what earlier rounds of the request showed: the
drafter's own certainty (top-2 logit margin, or confidence) and how its drafts fared. Within a round, where the drafter
can listen to itself, one over the confidence of the guess at hand (`Reading`). Both are fitted by Newton's method as
served rounds come in. What stands behind the first rejection was never verified and teaches nothing: position j is
learnt from the rounds that reached it, which makes it the conditional probability a round needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paceline.control.belief import hear_round, hear_rounds, mark_rounds, pooled_law
from paceline.control.logistic import FEATURES, WINDOW, Floats, Ints, counted, least_wasted, mark, newton, note
from paceline.control.policy import Served
from paceline.control.requests import Requests
from paceline.control.stop import SUREST, Stop, surety

# Rounds after which all laws are fitted, and then those after which one is, in turns: nothing changes faster.
EARLY, REFIT, REREAD = (8, 24, 64), 24, 96
LEAST = 6  # drafts of a position worth a fit
PRIOR = (1.1, 0.4, 0.2)  # logit of 0.75; a surer drafter is more often right
PRECISION = np.array([2.0, 8.0, 8.0])
NEIGHBOUR = 6.0  # how closely a position keeps to the one before it, in verified drafts of certainty
CONFIDENT, TRUST = np.array([0.0, 1.0, 0.0]), np.array([2.0, 8.0, 40.0])  # offset, slope, depth, and their precision


class Samples:
    """Rings of the last verified drafts, one for each law."""

    def __init__(self, laws: int = 1) -> None:
        self.rows, self.seen = np.zeros((laws, WINDOW, FEATURES + 2)), np.zeros(laws, np.int64)

    def fit(self, law: int, mean: Floats, precision: Floats) -> Floats:
        """Most likely weights of a logistic law over what is in its ring."""
        weights: Floats = newton(self.rows[law, : self.seen[law]], mean, precision)
        return weights


class Acceptance:
    """Predicts the conditional acceptance of each draft position of a request's next round."""

    def __init__(self, k_max: int, prior: Sequence[float] | None = None) -> None:
        """prior: conditional acceptance by position, [k_max], to start from; by default 0.75 everywhere."""
        self.k_max = k_max
        self.prior = np.tile(PRIOR, (k_max, 1))
        if prior is not None:
            self.prior[:, 0] = [logit(p) for p in prior]
        self.weights: Floats = self.prior.copy()
        self.samples = Samples(k_max)
        self.requests = Requests()
        self.scale = np.array([0.0, 1.0, 0.0])  # of all requests' certainty: mean, variance, how many marks
        self.rounds, self.turn = 0, 1

    def start_from(self, other: Acceptance) -> None:
        """Takes the other's laws for a prior, its scale of certainty, and what its texts were like."""
        self.prior, self.weights = other.weights.copy(), other.weights.copy()
        self.scale = np.minimum(other.scale, (np.inf, np.inf, 64.0))
        self.requests.start_from(other.requests)

    def law(self, *requests: str) -> list[float]:
        """Conditional acceptance by position, [k_max], of requests together, from earlier rounds only."""
        law: list[float] = pooled_law(self.weights, self.requests.book, self.requests.places(requests)).tolist()
        return law

    def cheapest(self, request: str, times: Sequence[float]) -> int:
        """The k from 1 up that wastes the least time in the mean, where rounds take times [k_max + 1].

        Wasted is what a round takes longer than its tokens would at the best pace of the text, which later rounds will
        know: of a text that may be hopeless long drafts waste much, of a good one short drafts only a little.
        """
        known = self.requests.of(request)
        return int(least_wasted(self.weights, known.marks, known.odds, np.array(times)))

    def observe(
        self,
        request: str,
        accepted: int,
        certainty: Sequence[float],
        rested: bool = False,
        unmade: tuple[float, float] | None = None,
    ) -> None:
        """A verified round: `accepted` of len(certainty) drafts; certainty = margin (or logit of confidence) of each.

        Only positions up to the first rejection are looked at. rested: the first after some that drafted nothing.
        unmade: certainty of one guess more, which was dropped, and the chance it had: without it, a drafter that knows
        its guesses to be bad would never be heard of.
        """
        drafted, known = min(len(certainty), self.k_max), self.requests.of(request)
        kept, further = min(accepted, drafted), 0.0 if accepted < drafted else -1.0
        if unmade is not None and accepted == len(certainty) < self.k_max:
            further = unmade[1]
        hear_round(self._laws, (known.marks, known.table), (kept, drafted, further, rested))
        reached = min(accepted + 1, drafted)
        if reached:
            self._heard(1)
            if any(certainty):  # else nothing is known of it
                mark(known.marks, self.scale, np.array(certainty[:reached], np.float64))
        if unmade is not None:
            mark(known.marks, self.scale, np.array(unmade[:1]))

    def observe_batch(self, batch: Sequence[Served], rested: bool = False) -> None:
        """A verified round of many requests, each of which drafted as much."""
        at, drafted = self.requests.places(tuple([served.request for served in batch])), min(batch[0].k, self.k_max)
        kept = np.array([min(served.accepted, drafted) for served in batch])
        hear_rounds(self._laws, self.requests.book, at, (kept, drafted, rested))
        self._heard(len(batch))
        if any(served.margins for served in batch):
            told = np.array([served.margins or (0.0,) * batch[0].k for served in batch])
            certainty = np.minimum(told, SUREST)
            mark_rounds(self.requests.book[0], at, self.scale, certainty, kept)

    @property
    def told(self) -> bool:
        """Whether the drafter tells how certain it is."""
        return bool(self.scale[2])

    def hear(self, request: str, tries: int, hits: int) -> None:
        """Of so many rounds that drafted, so many kept their first draft; nothing else is known of them."""
        known = self.requests.of(request)
        known.hear(counted(self.weights, known.marks, tries, hits))

    @property
    def _laws(self) -> tuple[Floats, Floats, Ints]:
        return self.weights, self.samples.rows, self.samples.seen

    def _heard(self, count: int) -> None:
        """Fits what is due after so many rounds more."""
        before, self.rounds = self.rounds, self.rounds + count
        if any(before < due <= self.rounds for due in EARLY):
            for j in range(self.k_max):
                self._fit(j)
        elif self.rounds // REFIT > before // REFIT:
            self.turn += 1
            self._fit(self.turn % self.k_max)

    def _fit(self, j: int) -> None:
        """Newton's method for one position; with few verified drafts, it keeps close to the one before it."""
        mean = self.prior[j]
        if j:
            mean = mean + self.weights[j - 1] - self.prior[j - 1]
        enough = self.samples.seen[j] >= (LEAST if j else 1)
        self.weights[j] = self.samples.fit(j, mean, PRECISION + NEIGHBOUR * (j > 0)) if enough else mean


class Reading:
    """What the drafter's confidence of a guess is worth: slope, offset and depth of `Stop`, learnt from outcomes."""

    def __init__(self) -> None:
        self.samples, self.law, self.rounds = Samples(), (0.0, 1.0, 0.0), 0

    def stop(self, keep: float, go: float) -> Stop:
        """A rule with these two bounds on the chance of the whole draft."""
        offset, slope, depth = self.law
        return Stop(keep, go, slope, offset, depth)

    def observe(self, accepted: int, confidences: Sequence[float]) -> None:
        """A verified round of len(confidences) drafts."""
        for j, confidence in enumerate(confidences[: accepted + 1]):
            note(self.samples.rows, self.samples.seen, 0, (surety(confidence), float(j), 0.0, j < accepted))
        self.rounds += 1
        if self.rounds % REREAD == 0 or self.rounds in EARLY:
            offset, slope, depth = self.samples.fit(0, CONFIDENT, TRUST).tolist()
            self.law = offset, max(slope, 0.0), depth


def logit(p: float) -> float:
    """Log-odds, with probabilities kept within [0.001, 0.999]."""
    p = min(max(p, 0.001), 0.999)
    return math.log(p / (1 - p))


def expected_tokens(law: Sequence[float]) -> list[float]:
    """Tokens of a round of each k, the target's own counted, [k_max + 1]."""
    tokens, total, whole = [1.0], 1.0, 1.0
    for p in law:
        whole *= p
        total += whole
        tokens.append(total)
    return tokens
