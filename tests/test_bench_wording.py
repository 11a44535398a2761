"""How numbers and foreign texts are written."""

from __future__ import annotations

import pytest

from paceline.bench import wording


def test_numbers() -> None:
    assert wording.times(1.5) == "1.50x"
    assert wording.times(None) == wording.interval(None) == wording.percent(None) == "-"
    assert wording.times_in(1.5, [1.4, 1.6]) == "1.50x [1.40, 1.60]"
    assert wording.times_in(1.5, None) == "1.50x"
    assert wording.percent(0.9997) == "99.9%"
    assert wording.percent(1.0) == "100%"
    assert wording.number(1234.5) == "1,234"
    assert wording.milliseconds(0.00149) == "1.49"
    assert wording.milliseconds(0.1234) == "123.4"
    assert wording.count(1, "prompt") == "1 prompt"
    assert wording.count(2000, "prompt") == "2,000 prompts"


@pytest.mark.parametrize(
    ("parts", "says"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_listing(parts: list[str], says: str) -> None:
    assert wording.listing(parts) == says


def test_foreign_text_cannot_hide_or_reorder() -> None:
    assert wording.plain("a\u202eb\x1b[31m\x00c\ud800\n d") == "a b [31m c d"
    assert wording.plain("نص 数学") == "نص 数学"
    assert wording.name("") == wording.name("\u200b\n") == "(no name)"
    assert wording.name("x" * 200) == "x" * 59 + "…"
    assert wording.context("a\r\nb\tc\n") == "a ⏎ b ⇥ c ⏎"
    # A joiner shapes the letters beside it.
    assert "‍" in wording.plain("क्‍ष")
