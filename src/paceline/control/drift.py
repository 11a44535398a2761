"""What served rounds differ by from a table of their times: a factor of all, and another of what drafts add to one.

Both are learnt side by side, by recursive least squares over logarithms with slow random walks (a Kalman filter of two
states): a slower machine makes all rounds dearer, a slower drafter only those that draft, and rounds of any two lengths
tell which. One length alone cannot, and then nearly all counts as the machine's: no other k must look cheap for not
being in use.
"""

from __future__ import annotations

import math

MACHINE, DRAFTS = 0.15, 0.05  # standard deviations of both logarithms where a table was measured
VAGUE = 8.0  # times as much where it was only predicted
NOISE = 0.05  # of a round
WALK, SLOW_WALK = 0.005**2, 0.001**2  # variance that each round adds
# A round slower by more is a stall, unless no more was known; nothing makes one faster than it is.
MOST = math.log(1.5)
STALLED = 0.09  # of such a one, cut down to MOST, is believed
DOUBTED = 0.1**2  # variance that it adds: many of them are no stalls


class Drift:
    """Logarithms of both factors."""

    __slots__ = ("_between", "_drafts", "_machine", "drafts", "machine")

    def __init__(self, vague: bool = False) -> None:
        self.machine = self.drafts = 0.0
        width = VAGUE if vague else 1.0
        self._machine, self._between, self._drafts = (width * MACHINE) ** 2, 0.0, (width * DRAFTS) ** 2

    def copy(self, vague: bool) -> Drift:
        """Another that starts where this one is, and has all to learn."""
        other = Drift(vague)
        other.machine, other.drafts = self.machine, self.drafts
        return other

    def learn(self, off: float, share: float) -> float | None:
        """A round was off by so much, in logarithms, of which drafts made up a share: what remains off of it.

        None for one that stalled.
        """
        a = self._machine + share * self._between
        d = self._between + share * self._drafts
        total = a + share * d + NOISE**2
        if off > max(MOST, 3 * math.sqrt(total)):
            self.machine += STALLED * MOST
            self._machine += DOUBTED
            return None
        to_machine, to_drafts = a / total * off, d / total * off
        self.machine += to_machine
        self.drafts += to_drafts
        self._machine += WALK - a * a / total
        self._between -= a * d / total
        self._drafts += SLOW_WALK - d * d / total
        return off - to_machine - share * to_drafts
