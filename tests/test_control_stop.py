"""Where a draft ends, by the drafter's own confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paceline.control.predict import Reading
from paceline.control.stop import Stop, surety


@pytest.mark.parametrize(
    ("stop", "length"),
    [
        (Stop(), (4, 4)),
        (Stop(keep=0.5), (2, 3)),  # 0.9, 0.72, then 0.29: a step was made for it
        (Stop(go=0.5), (3, 3)),
        (Stop(go=0.8), (2, 2)),
        (Stop(keep=0.95, go=0.95), (0, 1)),
        (Stop(keep=0.5, offset=-20.0), (0, 1)),
    ],
)
def test_drafts_end_at_the_first_unlikely_guess(stop: Stop, length: tuple[int, int]) -> None:
    assert stop.length([0.9, 0.8, 0.4, 0.9], 4) == length


def test_no_more_than_what_was_asked_for() -> None:
    assert Stop().length([0.9] * 8, 3) == (3, 3)
    assert Stop(go=0.5).length([0.9, 0.1, 0.9], 2) == (2, 2)


def test_a_confidence_counts_for_itself_until_it_is_recalibrated() -> None:
    assert Stop().chance(3, 0.7) == pytest.approx(0.7)
    assert Stop(offset=-1.0).chance(0, 0.7) < 0.5
    assert Stop(depth=-0.5).chance(2, 0.7) < Stop(depth=-0.5).chance(1, 0.7)
    assert all(math.isfinite(surety(p)) for p in (0.0, 1.0))
    assert Stop(slope=100.0).chance(0, 1e-9) == 0.0


def test_a_boastful_drafter_is_seen_through() -> None:
    """It says 0.9 and is right half of the time; 0.6, and is right one time in five."""
    noise, reading = np.random.default_rng(0), Reading()
    for _ in range(300):
        said = (0.9, 0.6)
        kept = [noise.random() < p for p in (0.5, 0.2)]
        reading.observe(int(kept[0]) + int(all(kept)), said)
    learnt, raw = reading.stop(0.0, 0.0), Stop()
    assert learnt.chance(0, 0.9) == pytest.approx(0.5, abs=0.1)
    assert learnt.chance(1, 0.6) == pytest.approx(0.2, abs=0.1)
    assert raw.chance(0, 0.9) > 0.85  # the control: what it says of itself


def test_guesses_behind_a_rejection_teach_nothing() -> None:
    reading = Reading()
    for _ in range(40):
        reading.observe(0, (0.9, 0.9, 0.9))
    assert reading.samples.seen == 40
