"""When a parked request is probed."""

from __future__ import annotations

from paceline.control.parking import PROBE_FIRST, PROBE_LAST, Parking


def test_probes_that_miss_become_rare_up_to_what_is_allowed() -> None:
    parking, waits = Parking(longest=40), []
    for _ in range(6):
        parking.since = 0
        parking.told(False, 0.5)
        waits.append(parking.rest)
    assert waits == [8, 16, 32, 40, 40, 40]
    assert parking.wait <= PROBE_LAST


def test_one_lucky_hit_is_followed_up_at_once_but_changes_little() -> None:
    parking = Parking(wait=32)
    parking.told(True, 0.4)
    assert (parking.rest, parking.wait) == (0, 32)
    parking.told(False, 0.4)
    assert parking.rest == 64


def test_two_in_a_row_and_one_that_was_unlikely_bring_the_next_forward() -> None:
    parking = Parking(wait=32)
    parking.told(True, 0.4)
    parking.told(True, 0.4)
    parking.told(False, 0.4)
    assert parking.wait == 32  # halved, and doubled again
    parking = Parking(wait=32)
    parking.told(True, 0.02)
    assert parking.wait == PROBE_FIRST


def test_a_new_request_drafts_until_it_shows_worse_but_waits_on() -> None:
    fresh = Parking(parked=True, since=20, wait=64, longest=50).next()
    assert not fresh.parked
    assert fresh.rest == 30
