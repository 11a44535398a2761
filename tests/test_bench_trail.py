"""Following two texts to where they part: words, parts of words, parts of characters, and ends."""

from __future__ import annotations

import asyncio
import math

import pytest
from divergence_texts import FakeArm

from paceline.bench.arms import Ask, Candidate
from paceline.bench.trail import ArmTrail, Fork, Likely, common_length, fitting, follow, likely_of, longest_of
from paceline.types import SamplingParams

ASK = Ask("prompt", SamplingParams())


def fork(arm: FakeArm, off: str, on: str, n: int = 20) -> Fork | None:
    return asyncio.run(follow(ArmTrail(arm, ASK, (off, on)), n))


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [("", "", 0), ("a", "", 0), ("abc", "abd", 2), ("abc", "abc", 3), ("ab", "abc", 2), ("xb", "ab", 0)],
)
def test_common_length(first: str, second: str, length: int) -> None:
    assert common_length(first, second) == common_length(second, first) == length


@pytest.mark.parametrize(
    ("common", "asked_from"),
    [("I see the", "I see"), ("I see the ", "I see the"), ("one\n\n", "one"), ("wor", ""), ("", "")],
)
def test_the_question_goes_back_to_before_the_last_word(common: str, asked_from: str) -> None:
    arm = FakeArm({})
    assert fork(arm, common + "X", common + "Y") is None
    assert arm.asked == [asked_from]


def test_text_without_spaces_goes_back_a_few_characters_only() -> None:
    arm = FakeArm({})
    fork(arm, "x" * 500 + "A", "x" * 500 + "B")
    assert arm.asked == ["x" * 460]


def test_parting_in_the_middle_of_a_word_of_two_tokens() -> None:
    """ " th" is written by both, and "ink" and "ing" come after it: the second question is the one that counts."""
    arm = FakeArm({"some": [(" th", -0.1), (" x", -3.0)], "some th": [("ing", -0.5), ("ink", -0.8), ("e", -5.0)]})
    told = fork(arm, "some thing", "some think")
    assert told is not None
    assert told.gaps == (0.0, pytest.approx(0.3))
    assert arm.asked == ["some", "some th"]


def test_parting_inside_one_token() -> None:
    """Neither text holds " thi" as a token: the whole words are what was chosen between."""
    told = fork(FakeArm({"some": [(" thing", -0.5), (" think", -0.9)]}), "some thing", "some think")
    assert told is not None
    assert told.gaps == (0.0, pytest.approx(0.4))


def test_a_space_that_could_begin_both_does_not_hide_the_longer_token() -> None:
    """As real tokenizers have it: " " before digits is a token of its own, " to" another."""
    arm = FakeArm({"it is": [(" ", -0.2), (" to", -0.5)], "it is ": [("1", -0.1), ("to", -15.0)]})
    told = fork(arm, "it is 100", "it is to be")
    assert told is not None
    assert told.gaps == (0.0, pytest.approx(0.3))


def test_a_wrong_word_that_begins_like_a_likely_one() -> None:
    arm = FakeArm({"better": [(" than", -0.5), (" then", -0.6)], "better then": [(" we", -0.1), ("ks", -12.0)]})
    told = fork(arm, "better than us", "better thenks us")
    assert told is not None
    assert told.gaps[1] == pytest.approx(0.1)
    assert told.inner_nats == pytest.approx(11.9)
    assert told.strangeness > 10
    unknown = FakeArm({"better": [(" than", -0.5), (" then", -0.6)], "better then": [(" we", -0.1)]})
    told = fork(unknown, "better than us", "better thenks us")
    assert told is not None
    assert told.inner_nats == math.inf


def test_an_end_is_a_candidate() -> None:
    for name in ("", "<eos>", "<turn|>"):
        arm = FakeArm({"so": [(" it", -0.5)], "so it": [(" goes", -0.6), (name, -0.7)]})
        told = fork(arm, "so it goes", "so it")
        assert told is not None
        assert told.gaps == (0.0, pytest.approx(0.1))


def test_parting_inside_a_character() -> None:
    """In é and è the first byte is the same; what an engine is asked must be text, so it cannot tell the second."""
    arm = FakeArm({"caf": [("<0xC3>", -0.1)], "": [("caf", -0.1)]})
    trail = ArmTrail(arm, ASK, ("café", "cafè"))
    assert asyncio.run(follow(trail, 20)) is None
    assert trail.so_far == b"caf\xc3"
    assert trail.rests == (b"\xa9", b"\xa8")


def test_byte_candidates_tell_characters_of_other_first_bytes_apart() -> None:
    told = fork(FakeArm({"": [("<0xC3>", -0.5), ("<0xE2>", -0.75)]}), "é", "€")
    assert told is not None
    assert told.gaps == (0.0, pytest.approx(0.25))


def test_replacement_characters_stand_for_bytes_that_made_no_character() -> None:
    part, whole = likely_of(Candidate("<0xA8>", -0.5)), likely_of(Candidate("x", -0.1))
    assert fitting("\ufffdabc".encode(), [whole, part]) == [part]
    told = fork(FakeArm({"": [("<0xA8>", -0.5), ("a", -0.75)]}), "\ufffd", "a")
    assert told is not None
    assert told.gaps == (0.0, pytest.approx(0.25))


def test_half_a_surrogate_pair_is_no_crash() -> None:
    assert fork(FakeArm({"": [("a", -0.5)]}), "a\ud83d", "\ud83d") is not None


def test_candidates_are_ranked_here() -> None:
    """An engine may list them in any order."""
    told = fork(FakeArm({"": [("a", -3.0), ("b", -0.5), ("c", -1.0)]}), "b", "c")
    assert told == Fork((0.0, 0.5), 2.5)


def test_a_text_that_never_parts_ends_the_questions() -> None:
    class Parrot(FakeArm):
        async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
            self.asked.append(so_far)
            return [Candidate("x", -0.1)]

    arm = Parrot()
    assert fork(arm, "x" * 100 + "a", "x" * 100 + "b") is None
    assert len(arm.asked) < 50


def test_of_several_that_fit_the_longest_counts() -> None:
    tokens = [Likely(b"t", -0.1), Likely(b"the", -0.3), Likely(b"th", -0.2), Likely(b"then", -0.9)]
    assert longest_of(b"these", tokens) == tokens[1]
    assert longest_of(b"x", tokens) is None
