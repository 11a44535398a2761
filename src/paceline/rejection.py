"""Drafts drawn from laws of their own, and tested: the engine's side of `paceline.verification`.

A drafter that draws does so through `draw`, which keeps the law that each draft came from. Drafts that it did not draw
(argmax, n-grams) could not have come out otherwise, and count as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paceline import verification
from paceline.errors import UsageError
from paceline.types import AcceptMode

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Law(NamedTuple):
    """What a token is drawn from: the chances [m] of the tokens `ids` [m], each once; all others have none."""

    ids: Ids
    chances: Floats


class Rejection:
    """Draws and tests the drafts of one text in "rejection" or "block" mode."""

    def __init__(self, mode: AcceptMode, seed: int) -> None:
        self.mode, self.seed = mode, seed
        self.drawn: list[tuple[int, Law]] = []

    def draw(self, law: Law, first: int, step: int) -> int:
        """The round's draft number `step` (from 0), drawn from `law`; the round's first token will sit at `first`."""
        uniforms = verification.draft_uniforms(self.mode, self.seed, first, step, law.ids.astype(np.uint64))
        token = int(law.ids[verification.draw(law.chances, uniforms)])
        self.drawn[step:] = [(token, law)]
        return token

    def cut(self, count: int) -> None:
        """Only the first `count` drafts are verified, the next being one that the target never chooses."""
        del self.drawn[count:]

    def verify(self, rows: Sequence[Law], first: int, draft: Sequence[int]) -> list[int]:
        """The drafts that stay and the token after them; rows[j] is the target's law after draft[:j].

        Raises UsageError for a drafter that left out, or put others for, drafts it had drawn: that bends the law.
        """
        laws = self._taken(draft)
        ids = _union([*laws, *rows])
        noise = verification.round_noise(self.mode, self.seed, first, len(draft), ids.astype(np.uint64))
        columns = np.searchsorted(ids, np.array(draft, dtype=np.int64))
        kept, token = verification.verify(self.mode, columns, _dense(laws, ids), _dense(rows, ids), noise)
        return [*draft[: int(kept)], int(ids[int(token)])]

    def _taken(self, draft: Sequence[int]) -> list[Law]:
        """The law of each draft."""
        drawn, self.drawn = self.drawn, []
        if [token for token, _ in drawn] != list(draft[: len(drawn)]):
            raise UsageError(
                f"accept {self.mode!r} needs every draft that the drafter drew; it left some out: use accept 'coupled'"
            )
        rest = [Law(np.array([token]), np.ones(1)) for token in draft[len(drawn) :]]
        return [law for _, law in drawn] + rest


def _union(laws: Sequence[Law]) -> Ids:
    """All tokens that any law knows, ascending."""
    known = np.zeros(1 + max(int(law.ids.max()) for law in laws), np.bool_)
    for law in laws:
        known[law.ids] = True
    return np.flatnonzero(known)


def _dense(laws: Sequence[Law], ids: Ids) -> Floats:
    """The laws as rows [n, m] over the tokens `ids` [m]."""
    rows = np.zeros((len(laws), len(ids)))
    for row, law in zip(rows, laws, strict=True):
        row[np.searchsorted(ids, law.ids)] = law.chances
    return rows
