"""Rules that reshape a row of logits before its token is chosen, as pure functions.

All rules of a request work in the order of Transformers' logits processors: logit bias, repetition penalty, presence
and frequency penalty (which Transformers lacks; after the repetition penalty, as in vLLM), end tokens masked up to
`min_tokens`, suppressed tokens; then, unless greedy, temperature, top-k, top-p, min-p (`paceline.sampling`). The
model's soft cap comes before all of them.

Rows are float32 over the whole vocabulary. A row of a verification is processed after the drafts before it, so it
becomes what plain decoding would make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.types import SamplingParams

Row = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Context:
    """The tokens before a row: `seen` bool [vocab] in prompt or text, `written` int64 [vocab] how often in the text."""

    seen: npt.NDArray[np.bool_]
    written: npt.NDArray[np.int64]
    length: int = 0

    @classmethod
    def of_prompt(cls, prompt: Sequence[int], vocab: int) -> Context:
        """Where a text begins."""
        seen = np.zeros(vocab, np.bool_)
        seen[list(prompt)] = True
        return cls(seen, np.zeros(vocab, np.int64))

    def after(self, tokens: Sequence[int]) -> Context:
        """The context once these tokens are written too."""
        if not tokens:
            return self
        seen, written = self.seen.copy(), self.written.copy()
        seen[list(tokens)] = True
        np.add.at(written, list(tokens), 1)
        return Context(seen, written, self.length + len(tokens))


def reshapes(params: SamplingParams) -> bool:
    """Whether any rule before the temperature is on."""
    penalties = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return bool(penalties or params.biases or params.min_tokens)


def process(row: Row, context: Context, params: SamplingParams, end_ids: Sequence[int]) -> Row:
    """A new row [vocab] with every rule before the temperature applied; `row` is not touched."""
    row = add_bias(row.copy(), params.biases)
    row = penalise_repetition(row, context.seen, params.repetition_penalty)
    row = penalise_counts(row, context.written, params)
    if context.length < params.min_tokens:
        row[[token for token in end_ids if token < len(row)]] = -np.inf
    return row


def add_bias(row: Row, biases: Sequence[tuple[int, float]]) -> Row:
    """Adds each id's bias, in place."""
    if biases:
        row[[token for token, _ in biases]] += np.array([bias for _, bias in biases], np.float32)
    return row


def penalise_repetition(row: Row, seen: npt.NDArray[np.bool_], penalty: float) -> Row:
    """Divides positive logits of seen tokens by the penalty and multiplies the others, in place.

    Keskar et al. 2019 (arXiv 1909.05858), with the sign handled as in Transformers.
    """
    if penalty != 1.0:
        at = np.flatnonzero(seen)
        values, factor = row[at], np.float32(penalty)
        row[at] = np.where(values < 0, values * factor, values / factor)
    return row


def penalise_counts(row: Row, written: npt.NDArray[np.int64], params: SamplingParams) -> Row:
    """Takes presence_penalty off every written token, and frequency_penalty for each time it was, in place."""
    if params.presence_penalty or params.frequency_penalty:
        at = np.flatnonzero(written)
        row[at] -= (params.presence_penalty + params.frequency_penalty * written[at]).astype(np.float32)
    return row


def min_p_mask(scores: npt.NDArray[np.float64], min_p: float) -> npt.NDArray[np.bool_]:
    """Which log-scores lie at or above min_p times the greatest probability (Nguyen et al. 2024, arXiv 2407.01082)."""
    mask: npt.NDArray[np.bool_] = scores >= scores.max() + np.log(min_p)
    return mask


def log_softmax(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural log-probabilities [m] of a row of logits, in float64."""
    wide = row.astype(np.float64)
    wide -= wide.max()
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return result
