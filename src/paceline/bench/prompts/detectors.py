"""Finds what a text should not give away: each detector is a pattern, and a judgement that spares look-alikes.

Patterns propose, judgements decide: card and account numbers must pass their check digits, addresses must parse, and
secrets must look like noise. Whoever writes a placeholder must see to it that no detector finds it again.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

# Share of characters in runs of three small letters or more: on average 0.15 in random base64, 0.7 in names of words.
WORDY = 0.4
MARK = "REDACTED"  # how every placeholder of a secret begins


@dataclass(frozen=True, slots=True)
class Detector:
    """`judge` gets what was found and the 16 characters before it; it gives how much of it is to go, 0 for none.

    Where the pattern has a group `value`, only that is what was found.
    """

    kind: str
    pattern: re.Pattern[str]
    judge: Callable[[str, str], int]


def digits(text: str) -> str:
    """The decimal digits of a text."""
    return re.sub(r"\D", "", text)


def luhn(number: str) -> bool:
    """Whether the digits pass the check of payment cards (ISO/IEC 7812)."""
    doubled = [int(digit) * (2 if i % 2 else 1) for i, digit in enumerate(reversed(number))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def mod97(account: str) -> bool:
    """Whether an account number passes the check of IBANs (ISO 13616)."""
    turned = account[4:] + account[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def entropy(text: str) -> float:
    """Bits a character, by the text's own frequencies."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _always(found: str, before: str) -> int:
    return 0 if found.startswith(MARK) else len(found)


def _with_digit(found: str, before: str) -> int:
    return _always(found, before) if any(character.isdigit() for character in found) else 0


def _url(found: str, before: str) -> int:
    host = found.split("://", 1)[-1].split("/", 1)[0].rsplit("@", 1)[-1].split(":")[0].lower()
    return 0 if host in ("example.com", "localhost", "127.0.0.1") else len(found.rstrip(".,;:!?)'"))


def _email(found: str, before: str) -> int:
    return 0 if found.lower().endswith("@example.com") else len(found)


def _iban(found: str, before: str) -> int:
    # The pattern may run on into words in capitals: try shorter ends at each gap.
    while len(account := found.replace(" ", "")) >= 15:
        if mod97(account) and account[2:4] != "00":
            return len(found)
        if " " not in found:
            return 0
        found = found.rsplit(" ", 1)[0]
    return 0


def _card(found: str, before: str) -> int:
    number = digits(found)
    return len(found) if number[0] in "23456" and luhn(number) and len(set(number)) > 1 else 0


def _ipv4(found: str, before: str) -> int:
    if re.search(r"(version|release|build|\bv)\W{0,2}$", before, re.IGNORECASE) or re.search(r"[=<>~]=\s?$", before):
        return 0
    try:
        address = ipaddress.IPv4Address(found)
    except ValueError:
        return 0
    spared = address.is_loopback or address.is_unspecified or found.startswith(("198.18.", "255.255."))
    return 0 if spared else len(found)


def _ipv6(found: str, before: str) -> int:
    try:
        address = ipaddress.IPv6Address(found)
    except ValueError:
        return 0
    groups = [group for group in found.split(":") if group]
    return len(found) if len(groups) >= 3 and not found.lower().startswith("2001:db8:") and int(address) else 0


def _phone(found: str, before: str) -> int:
    number = digits(found)
    return len(found) if 7 <= len(number) <= 15 and not number.startswith("000") else 0


def _uuid(found: str, before: str) -> int:
    return 0 if found.startswith("00000000-0000-") else len(found)


def _hex(found: str, before: str) -> int:
    letters = sum(character.isalpha() for character in found.removeprefix("0x"))
    return len(found) if letters >= 4 and len(set(found.lower())) >= 8 else 0


def _noise(found: str, before: str) -> int:
    """Long runs of capitals, digits and small letters in which few stand together as in words: not a name or a path."""
    mixed = all(re.search(kind, found) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    in_words = sum(map(len, re.findall(r"[a-z]{3,}", found))) / len(found)
    longest = max(map(len, re.split(r"[/_\-]", found)))
    noisy = mixed and in_words < WORDY and entropy(found) >= 4.0 and longest >= 16
    return _always(found, before) if noisy else 0


KEY_WORD = r"(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|secret[_-]?key|auth[_-]?token|token)"
BARE = r"[^\s\"'`(){}\[\],;<>]"  # what a password without quotes is written in, unlike code
PHONE_WORD = "(?:tel|phone|mobile|fax|whatsapp)"
TOKENS = (
    r"(?:sk-(?:[a-z]+-)*[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|xox[abeprs]-[\w-]{10,}|hf_\w{20,}|glpat-[\w-]{16,}|npm_\w{30,}|pypi-[\w-]{30,}|[rsp]k_(?:live|test)_\w{16,}"
    r"|ya29\.[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{5,})"
)
URL = r"\b(?:https?|ftp|wss?|postgres(?:ql)?|mysql|redis|mongodb(?:\+srv)?)://[^\s<>\"'`\\]+|\bwww\.[\w-]+\.[^\s<>\"'`\\]+"
PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


# What stands first wins where two find the same place.
DETECTORS = (
    Detector("secret", PEM, _always),
    Detector("secret", re.compile(rf"(?<![\w-]){TOKENS}"), _with_digit),
    Detector("secret", _pattern(r"\bbearer\s+(?P<value>[\w.~+/=-]{16,})"), _with_digit),
    Detector("secret", _pattern(rf"(?<![a-z]){KEY_WORD}[\"']?\s*[:=]\s*([\"'])(?P<value>[^\s\"']{{6,}})\1"), _always),
    Detector("secret", _pattern(rf"(?<![a-z]){KEY_WORD}\s*(?:[:=]|\bis\b)\s*(?P<value>{BARE}{{6,}})"), _with_digit),
    Detector("url", _pattern(URL), _url),
    Detector("email", _pattern(r"(?<![\w.+-])[\w.+%-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}(?!\w)"), _email),
    Detector("account", re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"), _iban),
    Detector("uuid", _pattern(r"(?<![\w-])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![\w-])"), _uuid),
    Detector("phone", re.compile(r"(?<![\w.+])\+\d{1,3}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}(?!\w)"), _phone),
    Detector("card", re.compile(r"(?<![\w.\-])\d(?:[ \-]?\d){12,18}(?![\w\-])"), _card),
    Detector("ip", re.compile(r"(?<![\w.\-])\d{1,3}(?:\.\d{1,3}){3}(?![\w\-]|\.\d)"), _ipv4),
    Detector("ip", _pattern(r"(?<![\w:.])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])"), _ipv6),
    Detector("secret", _pattern(r"(?<!\w)(?:0x)?[0-9a-f]{32,}(?!\w)"), _hex),
    Detector("secret", re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{32,}={0,2}(?![\w+/=-])"), _noise),
    Detector("phone", re.compile(r"(?<![\w.])\(\d{3}\) ?\d{3}[-. ]\d{4}(?!\w)"), _phone),
    Detector("phone", re.compile(r"(?<![\w.\-])\d{3}([-.])\d{3}\1\d{4}(?![\w\-])"), _phone),
    Detector("phone", re.compile(r"(?<![\w.\-/])0\d{2,4}[ /\-]\d{3,8}(?: \d{2,4}){0,3}(?![\w\-])"), _phone),
    Detector("phone", _pattern(rf"\b{PHONE_WORD}\b\D{{0,12}}(?P<value>\d[\d ().\-]{{6,16}}\d)(?!\w)"), _phone),
)
