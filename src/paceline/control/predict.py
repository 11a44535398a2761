"""How likely drafts are to be accepted, learnt from rounds that were verified.

One logistic law per draft position, over what earlier rounds of the request showed: the drafter's own certainty
(top-2 logit margin, or confidence) and how its drafts fared. Fitted by Newton's method as served rounds come in. What
stands behind the first rejection was never verified and teaches nothing: position j is learnt from the rounds that
reached it, which makes it the conditional probability a round needs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEATURES = 3  # one, certainty of late, certainty over the request
WINDOW = 512  # verified drafts of one position that a fit looks back on
REFIT = 32  # rounds between two fits; the first ones come sooner
NEWTON_STEPS = 4
PRIOR = np.array([1.1, 0.4, 0.2])  # logit of 0.75; a surer drafter is more often right
PRECISION = np.array([2.0, 8.0, 8.0])
NEIGHBOUR = 6.0  # how closely a position keeps to the one before it, in verified drafts of certainty
FAST, SLOW = 0.3, 0.05  # weights of the newest position in the two averages of certainty
BIAS_STEP, BIAS_KEPT = 0.12, 0.995
REQUESTS = 1024  # remembered at once


@dataclass(slots=True)
class Request:
    """What is known of one request: certainty of late and over all, standardised, and its bias in logits."""

    fast: float = 0.0
    slow: float = 0.0
    bias: float = 0.0


@dataclass(slots=True)
class Samples:
    """A ring of the last verified drafts of one position: features, offset and outcome."""

    x: Floats = field(default_factory=lambda: np.zeros((WINDOW, FEATURES)))
    offset: Floats = field(default_factory=lambda: np.zeros(WINDOW))
    y: Floats = field(default_factory=lambda: np.zeros(WINDOW))
    seen: int = 0

    def add(self, x: Sequence[float], offset: float, y: bool) -> None:
        at = self.seen % WINDOW
        self.x[at], self.offset[at], self.y[at] = x, offset, y
        self.seen += 1


class Acceptance:
    """Predicts the conditional acceptance of each draft position of a request's next round."""

    def __init__(self, k_max: int, prior: Sequence[float] | None = None) -> None:
        """prior: conditional acceptance by position, [k_max], to start from; by default 0.75 everywhere."""
        self.k_max = k_max
        self.prior = np.tile(PRIOR, (k_max, 1))
        if prior is not None:
            self.prior[:, 0] = [logit(p) for p in prior]
        self.weights = self.prior.copy()
        self.samples = [Samples() for _ in range(k_max)]
        self.requests: OrderedDict[str, Request] = OrderedDict()
        self.mean, self.variance, self.marks = 0.0, 1.0, 0
        self.rounds = 0

    def law(self, request: str) -> Floats:
        """Conditional acceptance by position, [k_max], from earlier rounds only."""
        known = self._request(request)
        z = self.weights @ np.array([1.0, known.fast, known.slow]) + known.bias
        return np.asarray(1.0 / (1.0 + np.exp(-z)))

    def observe(self, request: str, accepted: int, certainty: Sequence[float], news: float = 1.0) -> None:
        """A verified round: `accepted` of len(certainty) drafts; certainty = margin (or logit of confidence) of each.

        Only positions up to the first rejection are looked at. news: how many times its usual step the bias takes.
        """
        reached = min(accepted + 1, len(certainty), self.k_max)
        if not reached:
            return
        known, law = self._request(request), self.law(request)
        x = (1.0, known.fast, known.slow)
        for j in range(reached):
            kept = j < accepted
            self.samples[j].add(x, known.bias, kept)
        surprise = sum((j < accepted) - law[j] for j in range(reached))
        known.bias = BIAS_KEPT**reached * known.bias + news * BIAS_STEP * surprise
        for mark in certainty[:reached]:
            self._mark(known, mark)
        self.rounds += 1
        if self.rounds % REFIT == 0 or self.rounds in (8, 16):
            self._fit()

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
        if name not in self.requests:
            self.requests[name] = Request()
            if len(self.requests) > REQUESTS:
                self.requests.popitem(last=False)
        return self.requests[name]

    def _fit(self) -> None:
        """Newton's method, position by position; one with few verified drafts keeps close to the one before it."""
        for j, samples in enumerate(self.samples):
            count = min(samples.seen, WINDOW)
            step = self.prior[j] - self.prior[j - 1] if j else 0.0
            mean = self.weights[j - 1] + step if j else self.prior[0]
            precision = PRECISION + NEIGHBOUR * (j > 0)
            data = samples.x[:count], samples.offset[:count], samples.y[:count]
            self.weights[j] = newton(*data, mean, precision) if count else mean


def newton(x: Floats, offset: Floats, y: Floats, mean: Floats, precision: Floats) -> Floats:
    """Most likely weights [F] of a logistic law over x [N, F] with offsets [N], under a Gaussian prior."""
    weights = mean.copy()
    for _ in range(NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights + offset, -30, 30)))
        gradient = x.T @ (y - p) - precision * (weights - mean)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(precision)
        # A step of more than 2 logits leaves the region where the quadratic says anything.
        weights = weights + np.clip(np.linalg.solve(hessian, gradient), -2.0, 2.0)
    return weights


def logit(p: float) -> float:
    """Log-odds, with probabilities kept within [0.001, 0.999]."""
    p = min(max(p, 0.001), 0.999)
    return math.log(p / (1 - p))


def expected_tokens(law: Floats) -> Floats:
    """Tokens of a round of each k, the target's own counted, [k_max + 1]."""
    return np.concatenate(([1.0], 1.0 + np.cumsum(np.cumprod(law))))
