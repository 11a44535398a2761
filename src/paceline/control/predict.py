"""How likely drafts are to be accepted, learnt from rounds that were verified.

Two logistic laws. Before a round, one for each draft position, over what earlier rounds of the request showed: the
drafter's own certainty (top-2 logit margin, or confidence) and how its drafts fared. Within a round, where the drafter
can listen to itself, one over the confidence of the guess at hand (`Reading`). Both are fitted by Newton's method as
served rounds come in. What stands behind the first rejection was never verified and teaches nothing: position j is
learnt from the rounds that reached it, which makes it the conditional probability a round needs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from paceline.control.belief import BEFORE, LEVELS, Belief, Floats, conditional, survival, tempered, usual
from paceline.control.stop import Stop, surety

FEATURES = 3  # one, certainty of late, certainty over the request
WINDOW = 256  # verified drafts of one position that a fit looks back on
# Rounds after which all laws are fitted, and then those after which one is, in turns: a fit takes as long as a tenth of
# a small model's round.
EARLY, REFIT, REREAD = (8, 24, 64), 24, 96
NEWTON_STEPS, SMALL, LEAST = 4, 0.02, 6  # at most; a step that needs no other; drafts of a position worth a fit
PRIOR = (1.1, 0.4, 0.2)  # logit of 0.75; a surer drafter is more often right
PRECISION = np.array([2.0, 8.0, 8.0])
NEIGHBOUR = 6.0  # how closely a position keeps to the one before it, in verified drafts of certainty
FAST, SLOW = 0.3, 0.05  # weights of the newest position in the two averages of certainty
REQUESTS = 1024  # remembered at once
CONFIDENT, TRUST = np.array([0.0, 1.0, 0.0]), np.array([2.0, 8.0, 40.0])  # offset, slope, depth, and their precision


class Request(Belief):
    """What is known of one request: how well it is guessed, and its certainty of late and over all, standardised."""

    __slots__ = ("fast", "slow")

    def __init__(self, odds: Floats) -> None:
        super().__init__(odds)
        self.fast = self.slow = 0.0


class Samples:
    """A ring of the last verified drafts: a row of features, then offset and outcome."""

    def __init__(self) -> None:
        self.rows, self.seen = np.zeros((WINDOW, FEATURES + 2)), 0

    def add(self, one: float, two: float, offset: float, y: bool) -> None:
        self.rows[self.seen % WINDOW] = (1.0, one, two, offset, y)
        self.seen += 1

    def fit(self, mean: Floats, precision: Floats) -> Floats:
        """Most likely weights of a logistic law over what is in the ring."""
        rows = self.rows[: min(self.seen, WINDOW)]
        return newton(rows[:, :FEATURES], rows[:, FEATURES], rows[:, -1], mean, precision) if self.seen else mean


class Acceptance:
    """Predicts the conditional acceptance of each draft position of a request's next round."""

    def __init__(self, k_max: int, prior: Sequence[float] | None = None) -> None:
        """prior: conditional acceptance by position, [k_max], to start from; by default 0.75 everywhere."""
        self.k_max = k_max
        self.prior = np.tile(PRIOR, (k_max, 1))
        if prior is not None:
            self.prior[:, 0] = [logit(p) for p in prior]
        self.weights: Floats = self.prior.copy()
        self.samples = [Samples() for _ in range(k_max)]
        self.requests: OrderedDict[str, Request] = OrderedDict()
        self.mean, self.variance, self.marks = 0.0, 1.0, 0
        self.rounds, self.before = 0, BEFORE
        self._of: tuple[float, float] | None = None  # the certainties that these are of
        self._chances, self._told = np.ones((k_max + 1, len(LEVELS))), dict[tuple[int, bool], Floats]()

    def start_from(self, other: Acceptance) -> None:
        """Takes the other's laws for a prior, its scale of certainty, and what its texts were like."""
        self.prior, self.weights = other.weights.copy(), other.weights.copy()
        self.mean, self.variance, self.marks = other.mean, other.variance, min(other.marks, 64)
        self.before, self._of = usual(reversed(other.requests.values()), other.before), None

    def law(self, request: str) -> list[float]:
        """Conditional acceptance by position, [k_max], from earlier rounds only."""
        known = self._request(request)
        law: list[float] = conditional(self._survival(known), known.odds).tolist()
        return law

    def cheapest(self, request: str, times: Sequence[float]) -> int:
        """The k from 1 up that wastes the least time in the mean, where rounds take times [k_max + 1].

        Wasted is what a round takes longer than its tokens would at the best pace of the text, which later rounds will
        know: of a text that may be hopeless long drafts waste much, of a good one short drafts only a little.
        """
        known = self._request(request)
        tokens, ms = np.cumsum(self._survival(known), axis=0), np.array(times)
        best_pace = (tokens / ms[:, None]).max(axis=0)
        return 1 + int(np.argmax((tokens @ (known.odds / best_pace) - ms)[1:]))

    def _survival(self, known: Request) -> Floats:
        """The chance at each level that so many drafts are kept, [k_max + 1, levels]."""
        of = known.fast, known.slow
        if of != self._of:
            self._of, self._told = of, {}
            self._chances = survival(self.weights, *of)
        return self._chances

    def _outcome(self, known: Request, kept: int, rejected: bool) -> Floats:
        """How likely each level makes it that so many drafts are kept, and then one is not, [levels]."""
        whole, outcome = self._survival(known), (kept, rejected)
        if outcome not in self._told:
            self._told[outcome] = tempered(whole[kept] - whole[kept + 1] if rejected else whole[kept])
        return self._told[outcome]

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
        drafted = min(len(certainty), self.k_max)
        reached = min(accepted + 1, drafted)
        known = self._request(request)
        if unmade is not None and accepted == len(certainty) < self.k_max:
            chance, whole = unmade[1], self._survival(known)
            likelihood = tempered((1.0 - chance) * whole[accepted] + (2.0 * chance - 1.0) * whole[accepted + 1])
        else:
            likelihood = self._outcome(known, min(accepted, drafted), accepted < drafted)
        known.hear(likelihood, rested)
        level = known.level
        if reached:
            for j in range(reached):
                self.samples[j].add(known.fast, known.slow, level, j < accepted)
            self.rounds += 1
            if self.rounds in EARLY:
                for j in range(self.k_max):
                    self._fit(j)
            elif self.rounds % REFIT == 0:
                self._fit(self.rounds // REFIT % self.k_max)
            if any(certainty):  # else nothing is known of it
                for mark in certainty[:reached]:
                    self._mark(known, mark)
        if unmade is not None:
            self._mark(known, unmade[0])

    def hear(self, request: str, tries: int, hits: int) -> None:
        """Of so many rounds that drafted, so many kept their first draft; nothing else is known of them."""
        known = self._request(request)
        first = self._survival(known)[1]
        known.hear(tempered(first**hits * (1.0 - first) ** (tries - hits)))

    def _mark(self, known: Request, mark: float) -> None:
        """Averages one certainty, standardised by those of all requests."""
        self.marks += 1
        weight = max(1.0 / self.marks, 0.001)
        off = mark - self.mean
        self.mean += weight * off
        self.variance += weight * (off * off - self.variance) if self.marks > 1 else 0.0
        standard = max(-3.0, min(3.0, (mark - self.mean) / math.sqrt(max(self.variance, 1e-2))))
        known.fast += FAST * (standard - known.fast)
        known.slow += SLOW * (standard - known.slow)

    def _request(self, name: str) -> Request:
        known = self.requests.get(name)
        if known is None:
            known = self.requests[name] = Request(usual(reversed(self.requests.values()), self.before))
            if len(self.requests) > REQUESTS:
                self.requests.popitem(last=False)
        return known

    def _fit(self, j: int) -> None:
        """Newton's method for one position; with few verified drafts, it keeps close to the one before it."""
        mean, samples = self.prior[j], self.samples[j]
        if j:
            mean = mean + self.weights[j - 1] - self.prior[j - 1]
        enough = samples.seen >= (LEAST if j else 1)
        self._of = None
        self.weights[j] = samples.fit(mean, PRECISION + NEIGHBOUR * (j > 0)) if enough else mean


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
            self.samples.add(surety(confidence), float(j), 0.0, j < accepted)
        self.rounds += 1
        if self.rounds % REREAD == 0 or self.rounds in EARLY:
            offset, slope, depth = self.samples.fit(CONFIDENT, TRUST).tolist()
            self.law = offset, max(slope, 0.0), depth


def newton(x: Floats, offset: Floats, y: Floats, mean: Floats, precision: Floats) -> Floats:
    """Most likely weights [F] of a logistic law over x [N, F] with offsets [N], under a Gaussian prior."""
    weights, ridge = mean.copy(), precision * np.eye(len(mean))
    for _ in range(NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights + offset, -30, 30)))
        gradient = x.T @ (y - p) - precision * (weights - mean)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge
        # A step of more than 2 logits leaves the region where the quadratic says anything.
        step = np.clip(np.linalg.solve(hessian, gradient), -2.0, 2.0)
        weights = weights + step
        if abs(step).max() < SMALL:
            break
    return weights


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
