"""Rules that reshape a row of logits before its token is chosen, as pure functions.

All rules of a request work in the order of Transformers' logits processors: logit bias, repetition penalty, presence
and frequency penalty (which Transformers lacks; after the repetition penalty, as in vLLM), end tokens masked up to
`min_tokens`, suppressed tokens; then, unless greedy, temperature, top-k, top-p, min-p (`paceline.sampling`). The
model's soft cap comes before all of them.

Rows are float32 over the whole vocabulary. A row of a verification is processed after the drafts before it, so it
becomes what plain decoding would make of it. Only the tokens that a text holds are touched: a row costs what the text
is long, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.types import SamplingParams

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Context:
    """The rules of one text and the tokens that they look at: each token once, and how often the text holds it."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], end_ids: Sequence[int] = ()) -> None:
        self.params, self.end_ids, self.length = params, np.array(sorted(end_ids), np.int64), 0
        self.bias_ids = np.array([token for token, _ in params.biases], np.int64)
        self.biases = np.array([bias for _, bias in params.biases], np.float32)
        # Tokens of the prompt count for the repetition penalty only: they were written 0 times.
        self.times = dict.fromkeys(prompt, 0)
        self.extend([])

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens are written too."""
        for token in tokens:
            self.times[token] = self.times.get(token, 0) + 1
        self.length += len(tokens)
        self.at = np.fromiter(self.times, np.int64, len(self.times))
        self.counts = np.fromiter(self.times.values(), np.int64, len(self.times))

    def process(self, rows: Row, drafts: Sequence[Sequence[int]]) -> Row:
        """New rows [n, vocab] with every rule before the temperature applied; the r-th follows drafts[r]."""
        rows = rows.copy()
        if self.params.biases:
            rows[:, self.bias_ids] += self.biases
        if penalises(self.params):
            drafted = [self._drafted(row, draft) for row, draft in zip(rows, drafts, strict=True)]
            rows[:, self.at] = penalised(rows[:, self.at], self.counts, self.params)
            for row, (ids, values) in zip(rows, drafted, strict=True):
                row[ids] = values
        for row, draft in zip(rows, drafts, strict=True):
            if self.length + len(draft) < self.params.min_tokens:
                row[self.end_ids[self.end_ids < len(row)]] = -np.inf
        return rows

    def _drafted(self, row: Row, draft: Sequence[int]) -> tuple[list[int], Row]:
        """The tokens of the drafts, and their logits of the row under the penalties that hold after all of them."""
        own = list(dict.fromkeys(draft))
        if not own:
            return own, row[:0]
        times = np.array([self.times.get(token, 0) + list(draft).count(token) for token in own], np.int64)
        return own, penalised(row[own], times, self.params)


def reshapes(params: SamplingParams) -> bool:
    """Whether any rule before the temperature is on."""
    return bool(penalises(params) or params.biases or params.min_tokens)


def penalises(params: SamplingParams) -> bool:
    """Whether any rule looks at which tokens came before."""
    return bool(params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty)


def penalised(logits: Row, times: Ids, params: SamplingParams) -> Row:
    """Logits [..., m] of tokens seen before, written so many times [m], under all penalties.

    Repetition divides positive logits by the penalty and multiplies the others: Keskar et al. 2019 (arXiv 1909.05858),
    with the sign handled as in Transformers. Presence is taken off every written token, frequency for each time.
    """
    if params.repetition_penalty != 1.0:
        factor = np.float32(params.repetition_penalty)
        logits = np.where(logits < 0, logits * factor, logits / factor)
    if params.presence_penalty or params.frequency_penalty:
        taken = params.presence_penalty * (times > 0) + params.frequency_penalty * times
        logits = logits - taken.astype(np.float32)
    return logits


def log_softmax(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural log-probabilities [m] of a row of logits, in float64."""
    wide = row.astype(np.float64)
    wide -= wide.max()
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return result
