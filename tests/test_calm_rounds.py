"""What texts take with calm rounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from calm_rounds import Kind, Timed, Watch, calm_seconds


class Clock:
    """Moments that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rounds_are_told_apart_by_what_they_draft_and_by_what_came_before() -> None:
    clock, drafter = Clock(), SimpleNamespace(confidences=[], propose=lambda k: [7] * min(k, 2))
    watch = Watch(clock)
    found: Any = watch.over(drafter)  # type: ignore[arg-type]
    for at, k, heard in ((0.0, 2, []), (1.0, 0, [0.5]), (3.0, 3, [0.9, 0.8, 0.1])):
        clock.now, drafter.confidences = at, heard
        assert found.propose(k) == [7] * min(k, 2)
    assert watch.rounds(6.0) == [
        (Kind(2, 2, "prompt"), 1.0), (Kind(0, 0, "drafts"), 2.0), (Kind(2, 3, "plain"), 3.0)
    ]  # fmt: skip
    assert watch.rounds(7.0) == []  # forgotten


def test_slow_spells_fall_on_nobody_but_a_slow_kind_does() -> None:
    plain, draft = Kind(0, 0, "plain"), Kind(1, 1, "drafts")
    calm = [Timed(plain, 1.0), Timed(draft, 1.5)]
    spell = [Timed(plain, 9.0), Timed(draft, 9.0)]
    texts = [*[("a", calm)] * 3, *[("a", spell)] * 7, ("b", [Timed(plain, 2.0)] * 2), ("b", [])]
    assert calm_seconds(texts) == pytest.approx([*[2.5] * 10, 4.0, 0.0])
