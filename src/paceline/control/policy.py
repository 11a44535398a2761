"""Who chooses the draft length: the interface, and the simple policies that the controller is measured against.

A policy knows the rounds before this one and nothing of the round it chooses for: on a GPU a round runs as one graph,
without a word to the host. In particular a choice never looks at drafted tokens, so it cannot bend what is emitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from paceline.control.stop import SUREST, Stop, surety
from paceline.errors import UsageError


class State(NamedTuple):
    """What is known before a round: whose it is, its batch and its context.

    kind: requests of one kind are taken to cost and to be guessed alike; that of a temperature, for instance.
    """

    request: str
    batch: int = 1
    context: int = 0
    kind: str = ""


class Served(NamedTuple):
    """A finished round: k drafts, of which `accepted` were kept, and the drafter's margins or confidences, [k] each.

    Either may be empty where the drafter does not tell. ms: how long it took, 0 where that is not known. unmade: the
    confidence of one guess more, which the round's `Stop` dropped. Of the rounds before that nothing was told of,
    `tries` drafted, and in `hits` of these the first draft was kept.
    """

    request: str
    k: int
    accepted: int
    ms: float
    batch: int = 1
    context: int = 0
    margins: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    unmade: float | None = None
    kind: str = ""
    tries: int = 0
    hits: int = 0

    @property
    def certainty(self) -> Sequence[float]:
        """One number for each draft: the margin, else the logit of the confidence, else nothing known (0)."""
        if self.margins:
            return [min(margin, SUREST) for margin in self.margins]
        return [surety(p) for p in self.confidences] or (0.0,) * self.k


class Policy(Protocol):
    """Chooses draft lengths."""

    @property
    def stop(self) -> Stop | None:
        """Ends the coming round's draft early, where the drafter can listen to itself; None drafts all k."""

    @property
    def reason(self) -> str:
        """Why the last choice was made, in words."""

    @property
    def patience(self) -> int:
        """Rounds that the last choice stands for, 1 or more; of the last of them `observe` is told."""

    def choose(self, state: State) -> int:
        """How many tokens to draft in the coming round, at most."""

    def observe(self, served: Served) -> None:
        """A round has finished."""


class Turns:
    """Asks a policy about the rounds of one request, no oftener than it wants to be asked.

    Between rounds that sweep the caches with a model's weights, every question costs the time to fetch its code anew.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.left, self.k, self.tries, self.hits = policy, 0, 0, 0, 0

    def choose(self, state: State) -> None:
        """A new choice, wanted where none is `left`: `k` drafts for so many rounds."""
        self.k = self.policy.choose(state)
        self.left, self.tries, self.hits = self.policy.patience, 0, 0

    def over(self, drafted: int, accepted: int) -> bool:
        """A round is over; whether the policy wants to be told of it. Of others, only `tries` and `hits` are kept."""
        self.left -= 1
        if self.left and drafted:
            self.tries += 1
            self.hits += accepted > 0
        return not self.left


class Constant:
    """Always the same k, or k at most where `stop` ends drafts early."""

    patience = 1

    def __init__(self, k: int, stop: Stop | None = None) -> None:
        self.k, self.stop, self.reason = k, stop, f"constant: k = {k}"

    def choose(self, state: State) -> int:
        return self.k

    def observe(self, served: Served) -> None:
        """Learns nothing."""


class Heuristic:
    """The "heuristic" schedule of Hugging Face Transformers: two more if all drafts were accepted, else one fewer."""

    stop, patience = None, 1

    def __init__(self, k_max: int, start: int = 5) -> None:
        self.k_max, self.first, self.reason = k_max, min(start, k_max), ""
        self.ks: dict[str, int] = {}

    def choose(self, state: State) -> int:
        k = self.ks.get(state.request, self.first)
        self.reason = f"heuristic: k = {k} after the last round"
        return k

    def observe(self, served: Served) -> None:
        k = served.k + 2 if served.accepted == served.k else served.k - 1
        self.ks[served.request] = max(1, min(k, self.k_max))


class Confidence:
    """Drafts as far as the drafter's running confidence stays above a threshold, by the rounds before.

    The rule of `--min-confidence`, a round late. Confidence by position is averaged over the request; a position
    that is not drafted drifts to the last that was.
    """

    stop, patience = None, 1

    def __init__(self, k_max: int, threshold: float = 0.4, weight: float = 0.3) -> None:
        self.k_max, self.threshold, self.weight, self.reason = k_max, threshold, weight, ""
        self.sure: dict[str, list[float]] = {}

    def choose(self, state: State) -> int:
        sure = self.sure.get(state.request, [0.8])
        whole, k = 1.0, 0
        while k < self.k_max:
            whole *= sure[min(k, len(sure) - 1)]
            if whole < self.threshold:
                break
            k += 1
        # One draft at least: without any, its confidence would never be heard of again.
        self.reason = f"confidence: a draft of {k} was at least {self.threshold} sure of late"
        return max(k, 1)

    def observe(self, served: Served) -> None:
        heard = served.confidences or tuple(1.0 / (1.0 + math.exp(-m)) for m in served.margins)
        sure = self.sure.setdefault(served.request, [])
        for j, p in enumerate(heard):
            if j < len(sure):
                sure[j] += self.weight * (p - sure[j])
            else:
                sure.append(p)
        # What is not drafted is not heard: without forgetting, one unsure round would keep drafts short for ever.
        for j in range(len(heard), len(sure)):
            sure[j] += self.weight * ((heard[-1] if heard else 0.8) - sure[j])
        if not sure:
            sure.append(0.8)


def parse_number(text: str, low: float, high: float, what: str) -> float:
    """A number of a policy's name; UsageError outside [low, high]."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UsageError(f"{what} must be a number from {low:g} to {high:g}, not {text!r}")
    return value
