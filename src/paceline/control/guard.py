"""The two-armed guard: the controller against the best constant k, on the same rounds.

Both arms are scored after every round, whichever was played: a shorter draft than the one played is known exactly, a
longer one too once a draft was rejected, and only what lies behind a draft accepted whole is filled in from the
predicted acceptance. Playing the arms in turns would need thousands of rounds to see one per cent.
"""

from __future__ import annotations

import math

import numpy as np

from paceline.control.cost import Floats
from paceline.control.policy import Served
from paceline.control.predict import expected_tokens

LONG, SHORT = 1 / 200, 1 / 32  # weights of the newest round in the two averages of the lead
LEAST = 0.01  # a smaller lead is no reason to change hands
FORGET = 0.998  # of the counts behind the constant k, a round


class Guard:
    """Chooses between the controller's k and the best constant k by running statistics over all requests."""

    def __init__(self, k_max: int) -> None:
        self.k_max = k_max
        self.reached, self.kept = np.full(k_max, 1e-9), np.full(k_max, 0.75e-9)
        self.lead = self.lately = self.spread = 0.0
        self.rounds = 0
        self.holds = False
        self.own = self.constant = 0
        self.law, self.times = np.zeros(k_max), np.ones(k_max + 1)

    def choose(self, own: int, law: Floats, times: Floats, spared: bool = False) -> int:
        """The k of the arm that decides. law [k_max], times [k_max + 1]: the controller's view of this round.

        spared: the controller's k stands, and the round is a draw.
        """
        self.law, self.times = law, times
        self.constant = int(np.argmax(expected_tokens(self._pooled()) / times))
        self.own = self.constant if spared else own
        if spared:
            return own
        error = math.sqrt(self.spread * LONG / 2)
        leads = self.rounds >= 64 and self.lead > max(LEAST, 2 * error) and self.lately > 0
        self.holds = self.lately > -2 * LEAST and self.lead > 0 if self.holds else leads
        return self.constant if self.holds else own

    def observe(self, served: Served) -> None:
        """Scores both arms in milliseconds saved, relative to the round, at the pace of the constant arm."""
        reached = min(served.accepted + 1, served.k)
        self.reached *= FORGET
        self.kept *= FORGET
        self.reached[:reached] += 1
        self.kept[: served.accepted] += 1
        pace = float(np.max(expected_tokens(self._pooled()) / self.times))
        scores = [self._tokens(k, served) / pace - float(self.times[k]) for k in (self.constant, self.own)]
        difference = (scores[0] - scores[1]) / float(self.times[served.k])
        self.rounds += 1
        self.lead += LONG * (difference - self.lead)
        self.lately += SHORT * (difference - self.lately)
        self.spread += LONG * ((difference - self.lead) ** 2 - self.spread)

    def _tokens(self, k: int, served: Served) -> float:
        """Tokens that k drafts would have given in this round."""
        if k <= served.k or served.accepted < served.k:
            return 1.0 + min(k, served.accepted)
        return served.accepted + float(expected_tokens(self.law[served.k : k])[-1])

    def _pooled(self) -> Floats:
        """Conditional acceptance by position over all requests; one hardly seen is taken to be like the one before."""
        law, before = np.empty(self.k_max), 0.75
        for j in range(self.k_max):
            before = law[j] = (self.kept[j] + 4 * before) / (self.reached[j] + 4)
        return law
