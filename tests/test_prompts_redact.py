"""Redaction: planted values go, look-alikes stay, placeholders are stable, of like length, and found by no detector."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from paceline.bench.prompts.describe import token_counter
from paceline.bench.prompts.detectors import luhn, mod97
from paceline.bench.prompts.prompt import BenchPrompt
from paceline.bench.prompts.redact import Redactor, read_words, redact_all, summary
from paceline.errors import PromptError
from paceline.hub import EMBEDDED_PAIR

HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"
BASE64 = "q7Zk2vX9bT4nR8wY1cJ6mH3fL5sD0gPa" + "K2uE7oQ4"
# Joined from pieces, so that no scanner takes this file for a leak.
PLANTED = [
    ("email", "anna.schmidt+news@firma-beispiel.de"),
    ("email", "BOB@Corp.co.uk"),
    ("phone", "+49 30 901820"),
    ("phone", "+1-202-555-0187"),
    ("phone", "(415) 555-2671"),
    ("phone", "212-555-0187"),
    ("phone", "030 9018204"),
    ("url", "https://intranet.acme.corp/people/4711?token=abc#top"),
    ("url", "postgres://admin:hunter2@db.internal:5432/main"),
    ("url", "www.acme.corp/people"),
    ("ip", "10.20.30.40"),
    ("ip", "2a02:8109:9a40:1b2c::5"),
    ("card", "4111 1111 1111 1111"),
    ("card", "5500-0055-5555-5559"),
    ("card", "378282246310005"),
    ("account", "DE89 3704 0044 0532 0130 00"),
    ("account", "GB82WEST12345698765432"),
    ("uuid", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    ("secret", HEX),
    ("secret", BASE64),
    ("secret", "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90Kl"),
    ("secret", "ghp" + "_a1B2c3D4e5F6g7H8i9J0k1L2"),
    ("secret", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("secret", "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "dBjftJeZ4CVPmB92K27u"),
    ("secret", "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBgkq\n-----END PRIVATE KEY-----"),
]
LABELLED = [
    ('password = "correct horse"'.replace(" h", "-h"), "correct-horse"),
    ("my password is hunter22", "hunter22"),
    ('{"api_key": "abcdefghij"}', "abcdefghij"),
    ("Authorization: Bearer abc123def456ghi789", "abc123def456ghi789"),
    ("Phone: 5551234567", "5551234567"),
]
LOOK_ALIKES = [
    "Python 3.11.7 and version 1.2.3.4 of v10.0.0.1, pip install x==10.0.0.2",
    "listen on 127.0.0.1:8080 or 0.0.0.0, mask 255.255.255.0",
    "commit 29e87ac on 2024-01-15 10:30:45, due 09-12-2023 10:30",
    "3.14159265358979, 1_000_000, 1700000000000, 12345678901234567890123456789012345",
    "the number 4111 1111 1111 1112 fails its check, and so does GB82 WEST 1234 5698 7654 33",
    "ISBN 978-3-16-148410-0, #1a2b3c, std::vector<int> x; a::b::c; 10:20:30",
    "camelCaseIdentifierWithNumber42AndMore7Parts3 = getPasswordFromUserRecord2()",
    "src/components2/Header3/v1/LongFileNameHere.tsx",
    "password = get_password(); token = tokens[12]; if secret is None: pass",
    "the token is returned by the parser, @decorator and user@host",
    "100 apples + 20 pears = 120; call(1234567890)",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGH, " + "=" * 60 + ", " + "0" * 40 + ", " + "ab" * 20,
]


@pytest.mark.parametrize(("kind", "value"), PLANTED)
def test_planted_value_goes(kind: str, value: str) -> None:
    redactor = Redactor()
    redacted = redactor.text(f"Write to {value} please, not to {value}.")
    assert value not in redacted
    assert redactor.counts == {kind: 2}
    assert redactor.distinct(kind) == 1
    placeholder = redacted.removeprefix("Write to ").split(" please")[0]
    assert redacted == f"Write to {placeholder} please, not to {placeholder}."


@pytest.mark.parametrize(("text", "value"), LABELLED)
def test_value_told_by_its_label_goes(text: str, value: str) -> None:
    redacted = Redactor().text(text)
    assert value not in redacted
    assert redacted.startswith(text.split(value)[0])


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_look_alikes_stay(text: str) -> None:
    redactor = Redactor()
    assert redactor.text(text) == text
    assert not redactor.counts


def test_placeholders_tell_values_apart_and_nothing_about_them() -> None:
    first, second = Redactor(), Redactor()
    a, b, a_again = first.text("x@a.org y@b.org x@A.org").split()
    assert a == a_again != b
    # Numbered by appearance: the same value elsewhere gets another placeholder, so nobody can look values up.
    assert second.text("y@b.org") == a


def test_redacting_again_changes_nothing() -> None:
    text = "\n".join(value for _, value in PLANTED)
    once = Redactor().text(text)
    again = Redactor()
    assert again.text(once) == once
    assert not again.counts


@pytest.mark.parametrize(("kind", "value"), PLANTED)
def test_placeholders_cost_about_as_many_tokens(kind: str, value: str) -> None:
    count = token_counter(EMBEDDED_PAIR / "target")
    assert 0.4 <= count(Redactor().text(value)) / count(value) <= 2.0


def test_words_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Anna Schmidt\nSchmidt\n\nC++ Guild\n", encoding="utf-8")
    redactor = Redactor(read_words(path))
    redacted = redactor.text("anna schmidt met SCHMIDT of the C++ Guild; Schmidts and schmidt_2 are others")
    assert redacted == "Name1 Name1 met Name2 of the Name3 Name3; Schmidts and schmidt_2 are others"
    assert redactor.counts == {"name": 3}


def test_unusable_word_lists(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    for text, says in (("\n", "holds no words"), ("Bob\na\n", "words.txt:2: 'a' is too short")):
        path.write_text(text)
        with pytest.raises(PromptError, match=says):
            read_words(path)
    with pytest.raises(PromptError, match="no such file"):
        read_words(tmp_path / "none.txt")


def test_whole_prompts_with_ids_are_redacted_and_counted() -> None:
    chat = [{"role": "system", "content": "I am x@a.org"}, {"role": "user", "content": "call +49 30 901820"}]
    prompts = [BenchPrompt("x@a.org-1", "x@a.org", chat), BenchPrompt("2", "c", "x@a.org")]  # type: ignore[arg-type]
    redactor = Redactor()
    first, second = redact_all(prompts, redactor)
    assert (first.id, first.category, second.prompt) == (
        "person1@example.com-1",
        "person1@example.com",
        "person1@example.com",
    )
    assert "901820" not in str(first.prompt)
    assert summary(redactor) == "redacted: 4 email (1 different), 1 phone (1 different)"
    assert summary(Redactor()) == "nothing was found to redact"


def test_check_digits_catch_every_single_wrong_digit() -> None:
    card, account = "4111111111111111", "DE89370400440532013000"
    assert luhn(card)
    assert mod97(account)
    for place in range(4, 16):
        for digit in "0123456789":
            if digit != card[place]:
                assert not luhn(card[:place] + digit + card[place + 1 :])
            if digit != account[place]:
                assert not mod97(account[:place] + digit + account[place + 1 :])


def test_hostile_text_takes_no_time() -> None:
    rng = random.Random(0)
    pieces = ["a-", "1.", "0 ", "sk-", "a@", "+1", "::", "AB12", "password ", "-----BEGIN PRIVATE KEY-----", "eyJ", "/"]
    for text in ("".join(rng.choices(pieces, k=20_000)), *(piece * 20_000 for piece in pieces)):
        start = time.perf_counter()
        Redactor().text(text)
        assert time.perf_counter() - start < 5


def with_luhn(digits: str) -> str:
    return next(digits + check for check in "0123456789" if luhn(digits + check))


def with_mod97(country: str, account: str) -> str:
    return next(found for n in range(2, 99) if mod97(found := f"{country}{n:02d}{account}"))


def spaced(text: str, step: int) -> str:
    return " ".join(text[i : i + step] for i in range(0, len(text), step))


def drawn(rng: random.Random) -> dict[str, str]:
    """One made-up value of each kind."""

    def some(alphabet: str, n: int) -> str:
        return "".join(rng.choices(alphabet, k=n))

    digits, lower, hexes = "0123456789", "abcdefghijklmnopqrstuvwxyz", "0123456789abcdef"
    return {
        "email": f"{some(lower + digits, 8)}.{some(lower, 4)}@{some(lower, 9)}.{rng.choice(['de', 'com', 'co.uk'])}",
        "phone": f"+{rng.choice(['1', '44', '49', '352'])} {some('123456789', 3)} {some(digits, 3)} {some(digits, 4)}",
        "url": f"https://{some(lower, 7)}.org/{some(lower + digits, 9)}?q={some(digits, 3)}",
        "ip": ".".join(str(rng.randrange(20, 120)) for _ in range(4)),
        "card": spaced(with_luhn("4" + some(digits, 14)), 4),
        "account": spaced(with_mod97("DE", some(digits, 18)), 4),
        "secret": some(hexes, 40),
        "uuid": "-".join(some(hexes, n) for n in (8, 4, 4, 4, 12)),
    }


WRAPS = [
    "My {0}: {1}.",
    "({1})",
    '"{1}",',
    "is it {1}?",
    "{1}",
    "a\n{1}\nb",
    "[x]({1})",
    "`{1}`",
    "<{1}>",
    "{1}; ok",
    "to={1}",
]


def test_made_up_values_of_every_kind_go_from_every_surrounding() -> None:
    rng = random.Random(5)
    missed = []
    for _ in range(60):
        for kind, value in drawn(rng).items():
            for wrap in WRAPS:
                redactor = Redactor()
                redacted = redactor.text(wrap.format(kind, value))
                if value in redacted or set(redactor.counts) != {kind}:
                    missed.append((wrap.format(kind, value), redacted))
    assert not missed, missed[:5]


def test_numbers_that_fail_their_check_stay() -> None:
    """The negative control: the same digits with a wrong check digit are no card and no account."""
    rng = random.Random(6)
    for _ in range(200):
        card = drawn(rng)["card"].replace(" ", "")
        wrong = card[:-1] + str((int(card[-1]) + rng.randrange(1, 10)) % 10)
        redactor = Redactor()
        assert redactor.text(f"order {wrong} today") == f"order {wrong} today"


def test_random_tokens_go_and_long_names_stay() -> None:
    """Told apart by how much of them reads as words; at least 49 of 50 of either kind must come out right."""
    rng = random.Random(7)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    words = ["Get", "User", "Record", "2", "From", "Table", "Index", "10", "Query", "Result", "Http", "Parser", "Name"]
    tokens = ["".join(rng.choices(letters, k=rng.randrange(36, 64))) for _ in range(300)]
    names = ["find" + "".join(rng.choices(words, k=9)) + "32" for _ in range(300)]
    gone = [Redactor().text(f"use {text} now") != f"use {text} now" for text in tokens + names]
    assert sum(gone[:300]) >= 0.98 * 300
    assert sum(gone[300:]) <= 0.02 * 300


def test_many_placeholders_are_found_by_no_detector() -> None:
    rng = random.Random(8)
    values = [value for _ in range(300) for value in drawn(rng).values()]
    once = Redactor()
    redacted = [once.text(value) for value in values]
    assert len(set(redacted)) == len(set(values))
    again = Redactor()
    assert [again.text(value) for value in redacted] == redacted
