"""What a text takes where nothing else disturbs its rounds, so that a machine's slow spells fall on no arm.

A shared machine may run half as fast again for seconds at a time, and a mean over texts then needs thousands of them.
Rounds are of one kind where they hand out as many drafts after as many steps, and come alike after a prompt, after a
round without drafts, or after one with. The first decile of what an arm's rounds of one kind take over a whole workload
is that of the calm ones, as long as a tenth of them are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from paceline.drafters import Drafter

DECILE = 0.1


class Kind(NamedTuple):
    """drafted: guesses handed out; steps: of the drafter; after: "prompt", "plain" or "drafts"."""

    drafted: int
    steps: int
    after: str


class Timed(NamedTuple):
    """A round, in seconds."""

    kind: Kind
    seconds: float


class Watch:
    """Notes when the rounds of a text begin and what they draft.

    Between rounds that sweep the caches even this takes time, so every arm's drafter is watched, or none.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.begun = list[tuple[float, int, int]]()

    def over(self, drafter: Drafter) -> Drafter:
        """The same drafter, watched."""
        propose = drafter.propose

        def watched(k: int) -> list[int]:
            at = self.clock()
            draft = propose(k)
            heard = len(getattr(drafter, "confidences", ())) if k else 0
            self.begun.append((at, len(draft), max(len(draft), heard)))
            return draft

        drafter.propose = watched  # type: ignore[method-assign]
        return drafter

    def rounds(self, at: float) -> list[Timed]:
        """Those of a text whose last token came at this moment. Forgets them."""
        begun, self.begun = self.begun, []
        found, after = list[Timed](), "prompt"
        for (start, drafted, steps), (end, *_) in pairwise([*begun, (at, 0, 0)]):
            found.append(Timed(Kind(drafted, steps, after), end - start))
            after = "drafts" if steps else "plain"
        return found


def calm_seconds(texts: Iterable[tuple[str, Sequence[Timed]]]) -> list[float]:
    """Of each text, (arm, its rounds): the seconds of these, each as fast as the first decile of its arm and kind."""
    texts = list(texts)
    taken = defaultdict[tuple[str, Kind], list[float]](list)
    for arm, rounds in texts:
        for one in rounds:
            taken[arm, one.kind].append(one.seconds)
    typical = {key: float(np.quantile(seconds, DECILE)) for key, seconds in taken.items()}
    return [sum(typical[arm, one.kind] for one in rounds) for arm, rounds in texts]
