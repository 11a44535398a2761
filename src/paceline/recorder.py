"""Records traces: what drafts of full depth would have come to at every position of a text that is decoded plainly.

With the truth of every position, any policy can be replayed on the very text (`paceline.control.replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.cache import KVCache
from paceline.control.stop import Stop
from paceline.control.trace import Row
from paceline.drafters import MtpDraft
from paceline.kernels import Array
from paceline.sampling import Sampler, count_agreeing


@dataclass(frozen=True, slots=True)
class Heard:
    """A draft of full depth, and what the drafter's laws were like: margins in logits, confidences in [0, 1]."""

    draft: list[int]
    margins: tuple[float, ...]
    confidences: tuple[float, ...]


class Recorder(MtpDraft):
    """Drafts `depth` tokens at every position and hands out none: an engine asked for k = 1 then decodes plainly.

    `rows` is the text's part of a trace, once it is written.
    """

    def __init__(self, drafter: MtpDraft, depth: int) -> None:
        super().__init__(drafter.model, drafter.target, "n-1" if drafter.back else "n")
        self.stop, self.depth = Stop(), depth  # never stops, but listens

    def begin(self, tokens: Sequence[int], cache: KVCache, sampler: Sampler) -> None:
        super().begin(tokens, cache, sampler)
        self.prompt, self.text, self.heard = len(tokens), list[int](), list[Heard]()

    def observe(self, hidden: Array, tokens: Sequence[int]) -> None:
        super().observe(hidden, tokens)
        self.text += tokens

    def propose(self, k: int) -> list[int]:
        self.margins: list[float] = []
        draft = super().propose(self.depth)
        margins, confidences = tuple(round(m, 1) for m in self.margins), tuple(round(c, 3) for c in self.confidences)
        self.heard.append(Heard(draft, margins, confidences))
        return []

    def rows(self, request: str, category: str, temperature: float) -> list[Row]:
        """A row for each position whose `depth` following tokens are known."""
        return [
            Row(
                request=request, category=category, temperature=temperature, context=self.prompt + at, position=at,
                drafted=self.depth, accepted=count_agreeing(one.draft, self.text[at + 1 :]),
                margins=one.margins, confidences=one.confidences,
            )
            for at, one in enumerate(self.heard[: max(0, len(self.text) - self.depth)])
        ]  # fmt: skip

    def _hear(self, logits: Array) -> float:
        best = self.model.ops.host(self.model.ops.top(logits, 2)[1])[0]
        self.margins.append(float(best[0] - best[1]))
        return super()._hear(logits)
