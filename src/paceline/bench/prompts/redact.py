"""Takes out of prompts what should not leave the house, and leaves stable placeholders of like length.

The same value gets the same placeholder everywhere, numbered by first appearance: nothing about the value can be worked
out from it. No list of patterns is complete; what is written must be looked through before it is given away.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from paceline.bench.prompts.detectors import DETECTORS, MARK, Detector
from paceline.bench.prompts.files import lines
from paceline.bench.prompts.prompt import BenchPrompt
from paceline.errors import PromptError
from paceline.types import ChatMessage, Prompt

CAUTION = "No redaction is complete: names, places and what people tell are not found by patterns. Look it through."


class Redactor:
    """Redacts texts one after another; `counts` has how often each kind was found."""

    def __init__(self, words: list[str] | None = None) -> None:
        """`words` are names and the like that must go too, in any case."""
        self.counts: Counter[str] = Counter()
        self._seen: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self._detectors = (*DETECTORS, *([_words_detector(words)] if words else []))

    def text(self, text: str) -> str:
        """`text` with placeholders."""
        pieces, end = [], 0
        for start, stop, kind in sorted(self._spans(text)):
            pieces += [text[end:start], self._placeholder(kind, text[start:stop])]
            end = stop
        return "".join([*pieces, text[end:]])

    def prompt(self, prompt: BenchPrompt) -> BenchPrompt:
        """The prompt, its id and its category, redacted."""
        return BenchPrompt(self.text(prompt.id), self.text(prompt.category), self._content(prompt.prompt))

    def distinct(self, kind: str) -> int:
        """How many different values of a kind were found."""
        return self._numbers[kind]

    def _content(self, prompt: Prompt) -> Prompt:
        if isinstance(prompt, str):
            return self.text(prompt)
        return [
            item if isinstance(item, int) else ChatMessage(role=item["role"], content=self.text(item["content"]))
            for item in prompt
        ]  # type: ignore[return-value]

    def _spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        taken = bytearray(len(text))
        for detector in self._detectors:
            group = "value" if "value" in detector.pattern.groupindex else 0
            for match in detector.pattern.finditer(text):
                start = match.start(group)
                stop = start + detector.judge(match.group(group), text[max(0, start - 16) : start])
                if stop > start and not any(taken[start:stop]):
                    taken[start:stop] = b"\x01" * (stop - start)
                    yield start, stop, detector.kind

    def _placeholder(self, kind: str, value: str) -> str:
        self.counts[kind] += 1
        key = (kind, value.lower() if kind in ("name", "email") else value)
        if key not in self._seen:
            self._numbers[kind] += 1
            self._seen[key] = PLACEHOLDERS[kind](self._numbers[kind], value)
        return self._seen[key]


def redact_all(prompts: list[BenchPrompt], redactor: Redactor) -> list[BenchPrompt]:
    """Each prompt redacted, in order."""
    return [redactor.prompt(prompt) for prompt in prompts]


def summary(redactor: Redactor) -> str:
    """What was found, by kind, in a sentence."""
    if not redactor.counts:
        return "nothing was found to redact"
    found = [f"{n} {kind} ({redactor.distinct(kind)} different)" for kind, n in redactor.counts.most_common()]
    return f"redacted: {', '.join(found)}"


def read_words(path: Path) -> list[str]:
    """Words and phrases to redact, one on each line; an unusable file is a PromptError."""
    if not path.is_file():
        raise PromptError(f"cannot read the list of words {path}: there is no such file")
    words = [(number, line.strip()) for number, line in lines(path)]
    for number, word in words:
        if len(word) < 2:
            raise PromptError(
                f"{path}:{number}: {word!r} is too short to redact everywhere; give at least two characters"
            )
    if not words:
        raise PromptError(f"{path} holds no words; write one on each line")
    return [word for _, word in words]


def _words_detector(words: list[str]) -> Detector:
    longest_first = sorted({re.escape(word) for word in words}, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", re.IGNORECASE)
    return Detector("name", pattern, lambda found, before: len(found))


def _stretch(start: str, more: str, end: str, length: int) -> str:
    """`start` + as many times `more` as bring it to about `length` + `end`."""
    return start + more * max(0, round((length - len(start) - len(end)) / len(more))) + end


def _noise(number: int, value: str) -> str:
    # Filled with noise, since a run of one letter would be fewer tokens than a secret is.
    noise = "".join(hashlib.sha256(f"{number}.{i}".encode()).hexdigest() for i in range(1 + len(value) // 64))
    return f"{MARK}{number}{noise}"[: max(len(value), len(MARK) + len(str(number)))]


def _digits(number: int, value: str) -> str:
    """The digits replaced by zeros and the number, everything between them as it was."""
    count = sum(character.isdigit() for character in value)
    fresh = iter(f"{number:0{count}d}"[-count:])
    return "".join(next(fresh) if character.isdigit() else character for character in value)


def _account(number: int, value: str) -> str:
    return "XX00" + _digits(number, re.sub(r"[A-Z]", "0", value[4:]))


def _ip(number: int, value: str) -> str:
    # Addresses set aside for benchmarks and for documents (RFC 2544, RFC 3849).
    return f"2001:db8::{number:x}:0:1" if ":" in value else f"198.18.{number >> 8 & 255}.{number & 255}"


def _url(number: int, value: str) -> str:
    scheme = value.split("://")[0] if "://" in value else "https"
    return _stretch(f"{scheme}://example.com/page{number}", "/part", "", len(value))


PLACEHOLDERS: dict[str, Callable[[int, str], str]] = {
    "secret": _noise,
    "url": _url,
    "email": lambda number, value: _stretch(f"person{number}", ".name", "@example.com", len(value)),
    "account": _account,
    "uuid": lambda number, value: f"00000000-0000-4000-8000-{number:012x}",
    "card": _digits,
    "ip": _ip,
    "phone": _digits,
    "name": lambda number, value: " ".join([f"Name{number}"] * len(value.split())),
}
