"""A round on the device: draft, verify, accept, advance, with no word to the host. Plain decoding is k = 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from paceline.cache import MAX_TENTATIVE
from paceline.config import FULL, SLIDING
from paceline.device.cache import BatchCache, PassCache
from paceline.device.drafters import DeviceDrafter
from paceline.device.sampling import Choice
from paceline.kernels import Reach
from paceline.kernels.gpu.accept import COLUMNS, MARGINS, Ending, Rows, Sequences, accept, verify_rows
from paceline.kernels.gpu.fused import chunk_ranges
from paceline.kernels.gpu.rows import Rows as Params
from paceline.kernels.gpu.rows import rows_of
from paceline.kernels.gpu.rules import Rules, Ruling, neutral_rules, remember
from paceline.models.gemma4 import Target
from paceline.types import SamplingParams


class How(NamedTuple):
    """How tokens are chosen: `mode` as in `rows.mode_of`.

    rules: whether any sequence has penalties, biases or a least length; report: whether log-probabilities are wanted.
    """

    mode: str
    rules: bool = False
    report: bool = False


class Shape(NamedTuple):
    """What one captured round serves: its first `batch` places, k drafts each, no position at or beyond `span`.

    rules and report are those of `How`.
    """

    batch: int
    k: int
    mode: str
    span: int
    rules: bool = False
    report: bool = False

    @property
    def how(self) -> How:
        """How its tokens are chosen."""
        return How(self.mode, self.rules, self.report)


SPANS = (1024, 4096, 16384, 65536, 262144)


def span_of(reach: int, context: int) -> int:
    """The least span that is captured for positions below `reach`, of which a sequence has `context`."""
    return min(context, next((span for span in SPANS if span >= reach), reach))


@dataclass
class Places:
    """Everything the device knows of every place of a batch; the host writes it only between rounds.

    reports float64 [count, 16]: log-probabilities of what the last round chose, where any are wanted.
    history int32 [count, vocab]: what each sequence has read and written (`rules`), once any has rules.
    """

    sequences: Sequences
    params: Params
    rules: Rules
    outcome: Tensor
    reports: Tensor
    history: Tensor | None = None

    @classmethod
    def create(cls, count: int, hidden: int, dtype: torch.dtype, device: torch.device | str) -> Places:
        """`count` idle places."""

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(count, *shape, dtype=dtype, device=device)

        i32, i64, f64 = torch.int32, torch.int64, torch.float64
        sequences = Sequences(
            length=zeros(i32), last=zeros(i64), hidden=zeros(dtype, hidden), remaining=zeros(i32), limit=zeros(i32),
            stops=zeros(i32),
        )  # fmt: skip
        params = rows_of([SamplingParams()] * count, device)
        return cls(sequences, params, neutral_rules(count, device), zeros(i64, COLUMNS), zeros(f64, MAX_TENTATIVE))

    def part(self, start: int, stop: int) -> Places:
        """The places start .. stop - 1, as views."""
        cut = slice(start, stop)
        return Places(
            Sequences(*(t[cut] for t in self.sequences)), Params(*(t[cut] for t in self.params)),
            Rules(*(t[cut] for t in self.rules)), self.outcome[cut], self.reports[cut],
            None if self.history is None else self.history[cut],
        )  # fmt: skip

    def tensors(self) -> list[Tensor]:
        """All state that belongs to a sequence."""
        return [*self.sequences, *self.params, *self.rules, *([] if self.history is None else [self.history])]


@dataclass
class DeviceModel:
    """The target, its drafter and the state of all sequences: what a round works on."""

    target: Target
    drafter: DeviceDrafter | None
    cache: BatchCache
    places: Places
    ending: Ending
    suppressed: Tensor | None = None
    window: int = field(init=False)

    def __post_init__(self) -> None:
        kinds = self.target.kinds
        self.window = (kinds[SLIDING].window if SLIDING in kinds else None) or self.cache.context
        # Room for the drafts of a round that begins at the last position.
        self.ropes = {kind: self.target.ropes.get(layer, self.cache.context + MAX_TENTATIVE)
                      for kind, layer in kinds.items()}  # fmt: skip

    def round(self, shape: Shape, rehearsal: bool = False) -> None:
        """Drafts k tokens for each sequence, verifies them in one pass and emits what the target itself chose.

        The target chooses at every position, given the drafts before it; the matching prefix and the first choice that
        differs are what plain decoding would have emitted (see `paceline.speculate`). A rehearsal works on idle places.
        """
        places, cache = self._idle(shape) if rehearsal else self._live(shape)
        sequences, choice = places.sequences, self.choice(places, shape.how)
        drafts = self.drafter.propose(sequences, cache, choice, shape.k) if self.drafter and shape.k else None
        rows, hidden = self.verify(sequences, drafts, cache)
        chosen = choice.choose(self.target, hidden, rows.chosen_at, drafts)
        accept(sequences, drafts, chosen, hidden, self.ending, places.outcome)
        if choice.ruling is not None:
            remember(choice.ruling.history, places.outcome)

    def choice(self, places: Places, how: How) -> Choice:
        """How the sequences of these places choose."""
        report = places.reports if how.report else None
        # Where drafts are kept by chance, how sure the drafter is of them says nothing.
        margins = places.outcome[:, MARGINS:] if self.ending.survival is None else None
        return Choice(how.mode, places.params, self.suppressed, self._ruling(places) if how.rules else None, report,
                      margins)  # fmt: skip

    def _ruling(self, places: Places) -> Ruling:
        assert places.history is not None
        s = places.sequences
        return Ruling(places.rules, places.history, s.remaining, s.stops, self.ending.end_ids)

    def keep_histories(self) -> Tensor:
        """The history of every place; made when the first text with rules comes, since it takes 4 bytes an id each."""
        if self.places.history is None:
            count, like = len(self.places.outcome), self.places.outcome
            self.places.history = torch.zeros(count, self.target.config.vocab, dtype=torch.int32, device=like.device)
        return self.places.history

    def verify(self, sequences: Sequences, drafts: Tensor | None, cache: PassCache) -> tuple[Rows, Tensor]:
        """Rows of each sequence's last token and its drafts [k, B], and their hidden states [n, D].

        Their keys and values go into the cache.
        """
        rows = verify_rows(sequences, drafts, self.window)
        firsts = {SLIDING: rows.first, FULL: rows.zero}
        reach = {kind: Reach(rows.positions, firsts[kind], rows.positions, rope) for kind, rope in self.ropes.items()}
        return rows, self._run(rows.ids, reach, cache, len(rows.ids))

    def _run(self, ids: Tensor, reach: dict[str, Reach], cache: PassCache, wanted: int) -> Tensor:
        h = self.target.embed(ids)
        hidden: Tensor = self.target.run(h, self.target.per_layer_inputs(ids, h), reach, cache, wanted)  # type: ignore[arg-type]
        return hidden

    def chunk(self, chunk: Chunk, wanted: int) -> Tensor:
        """Reads a part of one sequence's prompt: hidden states [wanted, D] of its last `wanted` (0 or 1) tokens."""
        n = len(chunk.ids)
        positions, first, zero, last = chunk_ranges(chunk.start, n, chunk.pad, self.window)
        firsts = {SLIDING: first, FULL: zero}
        reach = {kind: Reach(positions, firsts[kind], last, rope) for kind, rope in self.ropes.items()}
        cache = PassCache(self.cache, chunk.table, chunk.ring, self.cache.context, chunk=n)
        with self.target.ops.reading_prompt():  # type: ignore[attr-defined]
            return self._run(chunk.ids, reach, cache, wanted)

    def first_token(self, hidden: Tensor, own: Places, how: How) -> Tensor:
        """The token int64 [1] that a prompt's last state [1, D] chooses for a text that is in a place of its own."""
        return self.choice(own, how).choose(self.target, hidden, own.sequences.length.long())

    def _live(self, shape: Shape) -> tuple[Places, PassCache]:
        tables, rings = self.cache.tables[: shape.batch], self.cache.rings[: shape.batch]
        return self.places.part(0, shape.batch), PassCache(self.cache, tables, rings, shape.span)

    def _idle(self, shape: Shape) -> tuple[Places, PassCache]:
        """Places without sequences, whose keys go where nobody reads them."""
        like = self.places.sequences.hidden
        tables = self.cache.tables[-1:].repeat(shape.batch, 1)
        rings = self.cache.rings[-1:].repeat(shape.batch, 1)
        places = Places.create(shape.batch, like.shape[1], like.dtype, like.device)
        if self.places.history is not None:
            places.history = self.places.history[: shape.batch]  # only read: idle places write nothing
        return places, PassCache(self.cache, tables, rings, shape.span)


@dataclass
class Chunk:
    """A part of a prompt: ids int64 [n], of which the first pad [1] are padding; start int32 [1] tokens precede it.

    table int32 [1, pages] and ring int32 [1, 1] of the sequence it belongs to.
    """

    ids: Tensor
    start: Tensor
    pad: Tensor
    table: Tensor
    ring: Tensor
