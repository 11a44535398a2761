"""A draft-length controller in the loop bends no law: every course that a text's rounds can take, added up exactly."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import worlds
from worlds import World

from paceline import verification as v
from paceline.control.auto import Auto
from paceline.control.cost import CostTable, Timing
from paceline.control.policy import Confidence, Constant, Heuristic, Policy, Served, State

EXACT, CAUGHT = 1e-12, 1e-6
TOKENS, K = 4, 3
# So dear that what the last rounds kept decides how many drafts pay.
DEAR = CostTable([Timing(1, k, 0, ms) for k, ms in enumerate((1.0, 1.6, 2.11, 2.5))])
POLICIES: dict[str, Callable[[], Policy]] = {
    "auto": lambda: Auto(DEAR.copy(), K),
    "auto, no guard": lambda: Auto(DEAR.copy(), K, guard=False),
    "heuristic": lambda: Heuristic(K, start=2),
    "confidence": lambda: Confidence(K, threshold=0.5, weight=0.9),
    "constant": lambda: Constant(2),
}
Peek = Callable[[list[float]], int]
"""How many drafts to verify, from the drafter's probability of each drawn token: what no controller may see."""


def honest(chances: list[float]) -> int:
    return len(chances)


def likely_only(chances: list[float]) -> int:
    """Stops before the first draft that came out unlikely."""
    return next((j for j, chance in enumerate(chances) if chance < 0.5), len(chances))


@dataclass
class Loop:
    """Rounds of one text under a policy that learns from each; `law` is that of the text's first tokens."""

    world: World
    mode: v.AcceptMode
    greedy: bool = False
    peek: Peek = honest
    law: Any = None
    lengths: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))  # by round, the k that were chosen

    def run(self, policy: Policy) -> Any:
        self.law = np.zeros((self.world.columns,) * TOKENS)
        self._round((), 1.0, policy, 0)
        return self.law.ravel()

    def _round(self, text: tuple[int, ...], weight: float, policy: Policy, number: int) -> None:
        k = policy.choose(State("request", context=len(text)))
        self.lengths[number].add(k)
        for (emitted, served), chance in self._outcomes(text, k).items():
            longer = (*text, *emitted)
            if len(longer) >= TOKENS:
                self.law[longer[:TOKENS]] += weight * chance
                continue
            told = copy.deepcopy(policy)  # each course has a controller that saw this one only
            told.observe(served)
            self._round(longer, weight * chance, told, number + 1)

    def _outcomes(self, text: tuple[int, ...], k: int) -> dict[tuple[tuple[int, ...], Served], float]:
        """What a round may emit, with all that the controller is told about it."""
        found: dict[tuple[tuple[int, ...], Served], float] = defaultdict(float)
        for draft, weight, sure in self._drafts(text, k):
            joint = self._verdicts(text, draft)
            for kept, token in zip(*np.nonzero(joint), strict=True):
                served = Served("request", len(draft), int(kept), 1.0 + len(draft), context=len(text), confidences=sure)
                found[(*draft[:kept], int(token)), served] += weight * float(joint[kept, token])
        return found

    def _drafts(self, text: tuple[int, ...], k: int) -> list[tuple[tuple[int, ...], float, tuple[float, ...]]]:
        """Drafts of a round: tokens, their probability, and the drafter's confidences, its greatest probabilities."""
        grown: list[tuple[tuple[int, ...], float, tuple[float, ...], list[float]]] = [((), 1.0, (), [])]
        for _ in range(k):
            grown = [
                ((*draft, token), weight * float(law[token]), (*sure, float(q.max())), [*chances, float(q[token])])
                for draft, weight, sure, chances in grown
                for q in [self.world.q[len(text) + len(draft)][self._at((*text, *draft))]]
                for law in [v.one_hot(q.argmax(), len(q)) if self.greedy else q]
                for token in np.flatnonzero(law)
            ]
        return [(d[: self.peek(c)], weight, sure[: self.peek(c)]) for d, weight, sure, c in grown]

    def _verdicts(self, text: tuple[int, ...], draft: tuple[int, ...]) -> Any:
        """The law [k + 1, V] of how many drafts stay and what follows them."""
        paths = np.array([(*text, *draft)], dtype=np.int64).reshape(1, -1)
        q, p = worlds.honest_laws(self.world, paths, len(text))
        drafts = paths[:, len(text) :]
        return v.law(self.mode, drafts, v.one_hot(drafts, self.world.columns) if self.greedy else q, p)[0]

    def _at(self, path: tuple[int, ...]) -> int:
        return int(worlds.index(np.array([path], dtype=np.int64).reshape(1, -1), self.world.columns)[0])


def made(seed: int, columns: int) -> World:
    return World.make(seed, columns, TOKENS + K)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", v.ACCEPT_MODES)
def test_no_controller_bends_the_law(mode: v.AcceptMode, policy: str) -> None:
    for greedy in (False, True):
        world = made(21, 2)
        loop = Loop(world, mode, greedy)
        assert np.abs(loop.run(POLICIES[policy]()) - world.plain(TOKENS)).max() < EXACT


def test_the_controllers_choose_by_what_they_saw() -> None:
    """Or the test above would hold of a constant: later rounds of one text get different lengths."""
    for name in POLICIES:
        loop = Loop(made(21, 2), "rejection")
        loop.run(POLICIES[name]())
        assert (len(set.union(*loop.lengths.values())) > 1) == (name != "constant"), name
        assert len(loop.lengths[0]) == 1


@pytest.mark.parametrize("policy", ["auto", "heuristic", "constant"])
@pytest.mark.parametrize("mode", ["rejection", "block"])
def test_a_controller_that_peeks_is_caught(mode: v.AcceptMode, policy: str) -> None:
    """Negative control: it looks at the drafted token before it includes it."""
    world = made(21, 2)
    loop = Loop(world, mode, peek=likely_only)
    assert np.abs(loop.run(POLICIES[policy]()) - world.plain(TOKENS)).max() > CAUGHT


@pytest.mark.slow
@pytest.mark.parametrize("mode", v.ACCEPT_MODES)
def test_no_controller_bends_the_law_of_more_tokens(mode: v.AcceptMode) -> None:
    for seed in range(3):
        world = made(seed, 3)
        assert np.abs(Loop(world, mode).run(POLICIES["auto"]()) - world.plain(TOKENS)).max() < EXACT
