"""How numbers and foreign texts are written in every report: one place for each."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

UNKNOWN = "-"
LONGEST_NAME = 60
# Joiners shape letters of several scripts; every other invisible character could only hide or reorder what is shown.
JOINERS = "‌‍"


def times(value: float | None) -> str:
    """A ratio as "1.52x"."""
    return UNKNOWN if value is None else f"{value:.2f}x"


def interval(value: Sequence[float] | None) -> str:
    """A 95% interval as "[1.45, 1.59]"."""
    return UNKNOWN if value is None else f"[{value[0]:.2f}, {value[1]:.2f}]"


def times_in(value: float | None, ci95: Sequence[float] | None) -> str:
    """A ratio with its interval, where there is one."""
    return times(value) if ci95 is None else f"{times(value)} {interval(ci95)}"


def percent(value: float | None) -> str:
    """A fraction as a percentage, rounded down: 99.97% equal must not read as 100%."""
    return UNKNOWN if value is None else f"{int(value * 1000) / 10:g}%"


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals, and none from a thousand on."""
    return UNKNOWN if value is None else f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, three digits or more."""
    if seconds is None:
        return UNKNOWN
    return number(seconds * 1e3, 2 if seconds < 0.01 else 1)


def count(n: int, noun: str) -> str:
    """ "1 prompt", "2,000 prompts"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listing(parts: Sequence[str], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    return f" {last} ".join([*([", ".join(parts[:-1])] if len(parts) > 1 else []), *parts[-1:]])


def plain(text: object) -> str:
    """Foreign text on one line, without characters that hide or reorder what stands beside them."""
    kept = "".join(c if c in JOINERS or unicodedata.category(c)[0] != "C" else " " for c in str(text))
    return " ".join(kept.split())


def name(text: object, longest: int = LONGEST_NAME) -> str:
    """A name out of a user's file, plain and cut to a length that tables bear; never empty."""
    short = plain(text)
    return (short if len(short) <= longest else short[: longest - 1] + "…") or "(no name)"


def context(text: str) -> str:
    """A piece of generated text, with its line ends to be seen."""
    return plain(text.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\t", " ⇥ "))
