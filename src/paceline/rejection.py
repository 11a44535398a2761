"""Drafts drawn from laws of their own, and tested: the engine's side of `paceline.verification`.

A drafter that draws does so through `draw`, which keeps the law that each draft came from. Drafts that it did not draw
(argmax, n-grams) could not have come out otherwise, and count as such.

Laws know few tokens each, so where Numba is installed compiled twins of `verification.draw` and `verification.verify`
decide over these alone (`kernels/choose.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from paceline import verification
from paceline.cache import MAX_TENTATIVE
from paceline.errors import UsageError
from paceline.kernels import noise
from paceline.types import AcceptMode
from paceline.verification import Purpose, word

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Law(NamedTuple):
    """What a token is drawn from: the chances [m], some perhaps 0, of the tokens `ids` [m]; all others have none."""

    ids: Ids
    chances: Floats

    def filled(self, width: int) -> Law:
        """As many more tokens without a chance as make `width`."""
        more = (0, width - len(self.ids))
        return Law(np.pad(self.ids, more), np.pad(self.chances, more))


class Laws(NamedTuple):
    """Laws of several tokens: ids [n, m] and their chances; an id that stands there twice has the sum of both."""

    ids: Ids
    chances: Floats

    def row(self, r: int) -> Law:
        """The r-th."""
        return Law(self.ids[r], self.chances[r])

    @classmethod
    def of(cls, laws: Sequence[Law]) -> Laws:
        """Several laws together; shorter ones are filled up with what has no chance."""
        if not laws:
            return cls(np.empty((0, 0), np.int64), np.empty((0, 0)))
        width = max([len(law.ids) for law in laws])
        parts = [law if len(law.ids) == width else law.filled(width) for law in laws]
        return cls(np.array([law.ids for law in parts]), np.array([law.chances for law in parts]))


class Rejection:
    """Draws and tests the drafts of one text in "rejection" or "block" mode."""

    def __init__(self, mode: AcceptMode, seed: int) -> None:
        self.mode, self.seed, self.word = mode, seed, np.uint64(seed)
        self.drawn: list[tuple[int, Law]] = []

    def draw(self, law: Law, first: int, step: int) -> int:
        """The round's draft number `step` (from 0), drawn from `law`; the round's first token will sit at `first`."""
        column = (_draw if noise.COMPILED else _draw_slowly)(self, law, first, step)
        token = int(law.ids[column])
        self.drawn[step:] = [(token, law)]
        return token

    def cut(self, count: int) -> None:
        """Only the first `count` drafts are verified, the next being one that the target never chooses."""
        del self.drawn[count:]

    def verify(self, rows: Laws, first: int, draft: Sequence[int]) -> list[int]:
        """The drafts that stay and the token after them; row j is the target's law after draft[:j].

        Raises UsageError for a drafter that left out, or put others for, drafts it had drawn: that bends the law.
        """
        laws = Laws.of(self._taken(draft)), rows
        kept, token = (_settle if noise.COMPILED else _settle_slowly)(self, laws, first, draft)
        return [*draft[:kept], token]

    def _taken(self, draft: Sequence[int]) -> list[Law]:
        """The law of each draft."""
        drawn, self.drawn = self.drawn, []
        if [token for token, _ in drawn] != list(draft[: len(drawn)]):
            raise UsageError(
                f"accept {self.mode!r} needs every draft that the drafter drew; it left some out: use accept 'coupled'"
            )
        rest = [Law(np.array([token]), np.ones(1)) for token in draft[len(drawn) :]]
        return [law for _, law in drawn] + rest


# ---- compiled -------------------------------------------------------------------------------------------------------

# The noise's words for each draft, for the first test, and for the token after the drafts.
DRAWN = [np.uint64(word(Purpose.DRAFT, step)) for step in range(MAX_TENTATIVE)]
TESTED = np.uint64(word(Purpose.ACCEPT, 0)), np.uint64(word(Purpose.RESIDUAL, 0))


@cache
def _compiled() -> Any:
    """The kernels, which only texts need whose drafts are tested."""
    from paceline.kernels import choose

    return choose


def _draw(self: Rejection, law: Law, first: int, step: int) -> int:
    key = self.word, np.uint64(first)
    return int(_compiled().draw_law(law.chances, law.ids, key, DRAWN[step]))


def _settle(self: Rejection, laws: tuple[Laws, Laws], first: int, draft: Sequence[int]) -> tuple[int, int]:
    """How many drafts stay, and the token after them; laws: those of the drafts, and the target's."""
    key, (q, p) = (self.word, np.uint64(first)), laws
    kept, token = _compiled().settle(self.mode == "block", np.array(draft, np.int64), TESTED, key, q[:], p[:])
    if kept < 0:
        raise UsageError(verification.RULED_OUT)
    return int(kept), int(token)


# ---- plain ----------------------------------------------------------------------------------------------------------


def _draw_slowly(self: Rejection, law: Law, first: int, step: int) -> int:
    uniforms = verification.draft_uniforms(self.mode, self.seed, first, step, law.ids.astype(np.uint64))
    return int(verification.draw(law.chances, uniforms))


def _settle_slowly(self: Rejection, laws: tuple[Laws, Laws], first: int, draft: Sequence[int]) -> tuple[int, int]:
    q, p = laws
    ids = np.unique(np.concatenate([q.ids.ravel(), p.ids.ravel()]))
    uniforms = verification.round_noise(self.mode, self.seed, first, len(draft), ids.astype(np.uint64))
    columns = np.searchsorted(ids, np.array(draft, dtype=np.int64))
    kept, token = verification.verify(self.mode, columns, _dense(q, ids), _dense(p, ids), uniforms)
    return int(kept), int(ids[int(token)])


def _dense(laws: Laws, ids: Ids) -> Floats:
    """The laws as rows [n, V] over the tokens `ids` [V]."""
    rows = np.zeros((len(laws.ids), len(ids)))
    np.add.at(rows, (np.arange(len(rows))[:, None], np.searchsorted(ids, laws.ids)), laws.chances)
    return rows
