"""Synthetic acceptance: the profiles say what their sources say, and bad ones are refused."""

from __future__ import annotations

from itertools import pairwise

import pytest

from paceline.acceptance import POSITIONS, PROFILES, Profile, expected_tokens, parse, survival
from paceline.cache import MAX_TENTATIVE
from paceline.errors import UsageError


def test_a_profile_covers_the_longest_draft() -> None:
    assert POSITIONS == MAX_TENTATIVE - 1
    assert list(PROFILES) == ["speed-bench", "chat", "code", "hopeless", "perfect"]
    assert all(profile.basis and PROFILES[name] is profile for name, profile in PROFILES.items())


def test_survival_and_tokens_of_a_round() -> None:
    profile = parse("0.5,0.4,0.25")
    assert survival(profile)[:4] == pytest.approx((0.5, 0.2, 0.05, 0.0125))
    assert expected_tokens(profile, 0) == 1.0
    assert expected_tokens(profile, 2) == pytest.approx(1.7)
    assert expected_tokens(PROFILES["perfect"], 15) == 16
    assert expected_tokens(PROFILES["hopeless"], 15) == pytest.approx(1 / 0.98, rel=1e-9)


def test_the_profiles_meet_the_published_points() -> None:
    kept = survival(PROFILES["speed-bench"])
    assert kept[0] == pytest.approx(0.80)
    assert kept[7] < 0.2 < kept[4]
    assert survival(PROFILES["chat"])[:4] == pytest.approx((0.844, 0.599, 0.385, 0.271))
    assert expected_tokens(PROFILES["code"], 7) == pytest.approx(5.37, abs=0.05)


def test_the_order_of_the_profiles() -> None:
    at_four = {name: expected_tokens(profile, 4) for name, profile in PROFILES.items()}
    assert at_four["hopeless"] < at_four["chat"] < at_four["speed-bench"] < at_four["code"] < at_four["perfect"]
    for profile in PROFILES.values():
        kept = survival(profile)
        assert all(later <= before for before, later in pairwise(kept))


def test_a_list_repeats_its_last_number() -> None:
    assert parse("0.9, 0.5").conditional == (0.9, *[0.5] * 14)
    assert parse("1").conditional == (1.0,) * 15
    assert parse("code") is PROFILES["code"]
    assert parse("0.9,0.5").name == "0.9,0.5"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prose", "no acceptance profile 'prose'; choose speed-bench, chat, code, hopeless, perfect, or give numbers"),
        ("", "no acceptance profile ''"),
        ("nan", "no acceptance profile 'nan'"),
        ("1.5", r"numbers in \[0, 1\], not '1.5'"),
        ("0.5,-0.1", r"not '-0.1'"),
        ("0.5,nan", r"not 'nan'"),
        ("0.5,,0.4", r"not ''"),
        ("0.5,high", r"not 'high'"),
        (",".join(["0.5"] * 16), "at most 15 numbers, not 16"),
    ],
)
def test_bad_input_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_bad_profiles_and_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="15 numbers"):
        Profile("short", (0.5,), "made up")
    for k in (-1, 16):
        with pytest.raises(UsageError, match=f"0 to 15 drafts, not {k}"):
            expected_tokens(PROFILES["code"], k)
