"""The two-armed guard: the controller against the best constant k, on the same rounds.

Both arms are scored on the same rounds, whichever was played: a shorter draft than the one played is known exactly, a
longer one too once a draft was rejected, and only what lies behind a draft accepted whole is filled in from the
predicted acceptance. Playing the arms in turns would need thousands of rounds to see one per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from paceline.control.policy import Served
from paceline.control.predict import expected_tokens

SCORED = 4  # one round in so many is: the others would cost as much time and tell little more
LONG, SHORT = 1 / 100, 1 / 16  # weights of the newest scored round in the two averages of the lead
LEAST, ENOUGH = 0.01, 32  # a smaller lead is no reason to change hands, nor is one of fewer rounds
FORGET = 0.994  # of the counts behind the constant k, a scored round
AFRESH = 4  # scored rounds after which the best constant k is looked up again


class Guard:
    """Chooses between the controller's k and the best constant k by running statistics over all requests.

    Of one size of batch, since the best constant k of another is another.
    """

    def __init__(self, k_max: int) -> None:
        self.k_max = k_max
        self.reached, self.kept = [1e-9] * k_max, [0.75e-9] * k_max
        self.lead = self.lately = self.spread = 0.0
        self.rounds, self.weight = 0, 1.0
        self.holds = False
        self.constant = 0
        self.pace = 0.0
        self.law: Sequence[float] = (0.0,) * k_max
        self.times: Sequence[float] = (1.0,) * (k_max + 1)

    def choose(self, own: int, law: Sequence[float], times: Sequence[float], spared: bool = False) -> int:
        """The k of the arm that decides. law [k_max], times [k_max + 1]: the controller's view of this round.

        spared: the controller's k stands, and the round is a draw.
        """
        self.law, self.times = law, times
        if self.rounds % AFRESH == 0 or not self.pace:
            self._look_up()
        if spared:
            return own
        error = math.sqrt(self.spread * LONG / 2)
        leads = self.rounds >= ENOUGH and self.lead > max(LEAST, 2 * error) and self.lately > 0
        self.holds = self.lately > -2 * LEAST and self.lead > 0 if self.holds else leads
        return self.constant if self.holds else own

    def score(self, served: Served, own: int, own_ms: float | None = None, beyond: float | None = None) -> float:
        """What the constant arm would have saved on a sequence's round, at its pace: a share of the round's time.

        own: the controller's k; own_ms: what its draft takes where `times` do not tell, because a guess was dropped;
        beyond: the chance which that guess had. Dropped ones are worse than most: by the law of all, constants would
        look better than they are.
        """
        self.weight /= FORGET  # instead of shrinking all counts: the newest weighs most
        for j in range(min(served.accepted + 1, served.k)):
            self.reached[j] += self.weight
            self.kept[j] += self.weight * (j < served.accepted)
        ms = self.times[own] if own_ms is None else own_ms
        won = (self._tokens(self.constant, served, beyond) - self._tokens(own, served, beyond)) / self.pace
        return (won - self.times[self.constant] + ms) / self.times[served.k]

    def observe(self, saved: float) -> None:
        """A round was scored, in the mean of its sequences."""
        self.rounds += 1
        self.lead += LONG * (saved - self.lead)
        self.lately += SHORT * (saved - self.lately)
        self.spread += LONG * ((saved - self.lead) ** 2 - self.spread)

    def _tokens(self, k: int, served: Served, beyond: float | None) -> float:
        """Tokens that k drafts would have given in this round."""
        if k <= served.k or served.accepted < served.k:
            return 1.0 + min(k, served.accepted)
        law = self.law[served.k : k]
        return served.accepted + expected_tokens(law if beyond is None else (beyond, *law[1:]))[-1]

    def _look_up(self) -> None:
        """The best constant k, and its tokens a millisecond."""
        tokens = expected_tokens(self._pooled())
        rates = [won / ms for won, ms in zip(tokens, self.times, strict=True)]
        self.pace = max(rates)
        self.constant = rates.index(self.pace)

    def _pooled(self) -> list[float]:
        """Conditional acceptance by position over all requests; one hardly seen is taken to be like the one before."""
        law, before = [], 0.75
        if self.weight > 1e9:
            self.reached = [count / self.weight for count in self.reached]
            self.kept = [count / self.weight for count in self.kept]
            self.weight = 1.0
        for kept, reached in zip(self.kept, self.reached, strict=True):
            before = (kept / self.weight + 4 * before) / (reached / self.weight + 4)
            law.append(before)
        return law
