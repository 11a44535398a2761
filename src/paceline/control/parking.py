"""Requests that do not draft for now, and when to try again."""

from __future__ import annotations

from dataclasses import dataclass

PROBE_FIRST, PROBE_LAST = 4, 128  # rounds between probes: doubles from the first with each that fails
UNLIKELY = 0.25  # acceptance below which a probe that hits is news of another text


@dataclass(slots=True)
class Parking:
    """Whether a request drafts, rounds since it last did, how many to wait before a probe, and how long at most.

    hopeful: the last probe hit, so another follows at once; hits: so many of them in a row. heard: rounds with drafts
    that were told of.
    """

    parked: bool = False
    since: int = 0
    wait: int = PROBE_FIRST
    longest: int = PROBE_LAST
    probing: bool = False
    hopeful: bool = False
    hits: int = 0
    heard: int = 0

    @property
    def rest(self) -> int:
        """Rounds until it is time for a probe."""
        return 0 if self.hopeful else max(0, min(self.wait, self.longest) - self.since)

    def told(self, hit: bool, expected: float) -> None:
        """What a probe came to, of which so much was expected: the next one comes later where it missed.

        It comes sooner where two in a row hit, and soon where one did that was taken for unlikely.
        """
        self.hopeful, self.hits = hit, self.hits + 1 if hit else 0
        wait = min(self.wait, self.longest)
        if hit and expected < UNLIKELY:
            self.wait = PROBE_FIRST
        elif self.hits != 1:
            self.wait = max(PROBE_FIRST, wait // 2 if hit else min(2 * wait, PROBE_LAST))

    def next(self) -> Parking:
        """That of a new request: it waits on where the last one did, or many short ones would be mostly probes."""
        return Parking(False, self.since, self.wait, self.longest)
