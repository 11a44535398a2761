"""Follows two texts token by token to the place where they part, with somebody who knows what is likely there.

Texts come without token boundaries, so the way begins before the place, at a boundary that both surely share, and goes
on with whichever likely token both texts could have begun with. All of it is in bytes: a token may be part of a
character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol

from paceline.bench.arms import Arm, Ask, Candidate
from paceline.text import BYTE_PIECE

STEPS = 24
BACK_CHARS = 40
END_TEXTS = frozenset(
    {"", "<eos>", "</s>", "<turn|>", "<end_of_turn>", "<|tool_response>", "<|im_end|>", "<|endoftext|>"}
)
REPLACEMENT = "\ufffd".encode()
IN_WORD = re.compile(rb"[\w\x80-\xff]")
LAST_WORD = re.compile(r"\s*\S*\Z")


@dataclass(frozen=True, slots=True)
class Likely:
    """A token that may come next: its bytes, its natural log-probability, whether it ends the text, its id if known."""

    spells: bytes
    logprob: float
    ends: bool = False
    token_id: int | None = None


class Trail(Protocol):
    """A place up to which two texts agree. rests: what each of them writes from there."""

    rests: tuple[bytes, bytes]

    async def likeliest(self, n: int) -> list[Likely] | None:
        """At least n likely tokens at this place, best first; None where nobody can tell."""

    def step(self, token: Likely) -> None:
        """Goes past a token that both texts, or the second, begin with."""

    def fork(self) -> Trail:
        """A second trail from here, to look ahead on."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Where two texts part: how far, in nats, each one's token lies below the likeliest, None for one not among them.

    reach_nats: how far the last of the candidates lies below the first. inner_nats: where the second text goes on in
    the middle of a word, how far what follows lies below the likeliest there, infinite for what is not among them; a
    wrong token that only begins like a likely one is seen by that.
    """

    gaps: tuple[float | None, float | None]
    reach_nats: float
    inner_nats: float = 0.0

    @property
    def strangeness(self) -> float:
        """How unlikely the second text's way is, in nats."""
        return math.inf if self.gaps[1] is None else max(self.gaps[1], self.inner_nats)


async def follow(trail: Trail, n: int) -> Fork | None:
    """The place where the texts of the trail part; None where nobody can tell.

    The first text's token is the likeliest that it can have begun with, the second's the longest, as tokenizers cut.
    Where the first one's token would do for both, the texts may also part later: of all such places, that counts where
    the second text is least strange. So a gap may be too small, seldom too large.
    """
    forks = list[Fork]()
    for _ in range(STEPS):
        candidates = await trail.likeliest(n)
        if not candidates:
            break
        first, second = likeliest_of(trail.rests[0], candidates), longest_of(trail.rests[1], candidates)
        shared = first is not None and not first.ends and first in fitting(trail.rests[1], candidates)
        if first != second or not shared:
            inner = await _inner(trail.fork(), second, n)
            gaps = _gap(first, candidates), _gap(second, candidates)
            forks.append(Fork(gaps, candidates[0].logprob - candidates[-1].logprob, inner))
        if first is None or not shared:
            break
        trail.step(first)
    return min(forks, key=lambda fork: fork.strangeness, default=None)


async def _inner(trail: Trail, token: Likely | None, n: int) -> float:
    """How far the second text's next token lies below the likeliest, where it goes on inside a word after `token`."""
    if token is None or not IN_WORD.match(after(trail.rests[1], token)):
        return 0.0
    trail.step(token)
    candidates = await trail.likeliest(n)
    if not candidates:
        return 0.0
    gap = _gap(longest_of(trail.rests[1], candidates), candidates)
    return math.inf if gap is None else gap


def _gap(token: Likely | None, candidates: Sequence[Likely]) -> float | None:
    return None if token is None else candidates[0].logprob - token.logprob


def fitting(rest: bytes, candidates: Sequence[Likely]) -> list[Likely]:
    """The candidates that a text can have begun with: those that end it, where nothing is left."""
    if not rest:
        return [token for token in candidates if token.ends]
    if rest.startswith(REPLACEMENT):
        return [token for token in candidates if _is_part(token.spells)]
    return [token for token in candidates if token.spells and rest.startswith(token.spells)]


def likeliest_of(rest: bytes, candidates: Sequence[Likely]) -> Likely | None:
    """The first of those that a text can have begun with."""
    return next(iter(fitting(rest, candidates)), None)


def longest_of(rest: bytes, candidates: Sequence[Likely]) -> Likely | None:
    """The longest of those, of equal ones the first."""
    return max(fitting(rest, candidates), key=lambda token: len(token.spells), default=None)


def after(rest: bytes, token: Likely) -> bytes:
    """What is left of a text after a token; a replacement character stands for one byte that made no character."""
    if _is_part(token.spells) and rest.startswith(REPLACEMENT):
        return rest.removeprefix(REPLACEMENT)
    return rest.removeprefix(token.spells)


def _is_part(spelling: bytes) -> bool:
    try:
        spelling.decode()
    except UnicodeDecodeError:
        return True
    return False


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many characters, or tokens, two texts begin with alike."""
    both = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(first), len(second)))


class ArmTrail:
    """Asks the engine itself, by text: from before the last word that both share, where most tokenizers cut."""

    def __init__(self, arm: Arm, ask: Ask, texts: tuple[str, str]) -> None:
        common = texts[0][: common_length(*texts)].partition("\ufffd")[0]
        match = LAST_WORD.search(common[-BACK_CHARS:])
        cut = len(common) - len(common[-BACK_CHARS:]) + (match.start() if match else 0)
        self.arm, self.ask = arm, ask
        self.so_far = spell(common[:cut])
        self.rests = spell(texts[0][cut:]), spell(texts[1][cut:])

    async def likeliest(self, n: int) -> list[Likely] | None:
        """The engine's own candidates; None inside a character, which no text can hold half of."""
        try:
            so_far = self.so_far.decode()
        except UnicodeDecodeError:
            return None
        told = await self.arm.next_tokens(self.ask, so_far, n)
        return None if told is None else sorted(map(likely_of, told), key=lambda token: -token.logprob)

    def step(self, token: Likely) -> None:
        """Goes past a token that both texts, or the second, begin with."""
        self.so_far += token.spells
        self.rests = after(self.rests[0], token), after(self.rests[1], token)

    def fork(self) -> ArmTrail:
        """A second trail from here, to look ahead on."""
        return copy(self)


def spell(text: str) -> bytes:
    """UTF-8, half surrogate pairs included: a server may send anything."""
    return text.encode("utf-8", "surrogatepass")


def likely_of(candidate: Candidate) -> Likely:
    """A candidate as bytes; the name of an end token stands for the end."""
    if BYTE_PIECE.fullmatch(candidate.text):
        return Likely(bytes([int(candidate.text[3:5], 16)]), candidate.logprob)
    return Likely(spell(candidate.text), candidate.logprob, candidate.text in END_TEXTS)
