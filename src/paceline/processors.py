"""Rules that reshape a row of logits before its token is chosen, and the tokens of a text that they look at.

All rules of a request work in the order of Transformers' logits processors: logit bias, repetition penalty, presence
and frequency penalty (which Transformers lacks; after the repetition penalty, as in vLLM), end tokens masked up to
`min_tokens`, suppressed tokens; then, unless greedy, temperature, top-k, top-p, min-p (`paceline.sampling`). The
model's soft cap comes before all of them.

Rows are float32 over the whole vocabulary. A row of a verification is processed after the drafts before it, so it
becomes what plain decoding would make of it (`Ops.reshape`). Only the tokens that a text holds are touched: beyond its
copy a row costs what the text is long, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.kernels import Rules
from paceline.types import SamplingParams

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Context:
    """The rules of one text and the tokens that they look at: each token once, and how often the text holds it."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], end_ids: Sequence[int], vocab: int) -> None:
        self.params, self.vocab, self.length = params, vocab, 0
        self.ends = np.array(sorted(token for token in end_ids if token < vocab), np.int64)
        ids, values = zip(*params.biases, strict=True) if params.biases else ((), ())
        self.bias = np.array(ids, np.int64), np.array(values, np.float32)
        penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        self.penalties = float(penalties[0]), float(penalties[1]), float(penalties[2])
        # Tokens of the prompt count for the repetition penalty only: they were written 0 times.
        self.places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self.seen = np.array(list(self.places), np.int64)
        self.times = np.zeros_like(self.seen)
        self.rules = self._rules()

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens are written too."""
        self.length += len(tokens)
        for token in tokens:
            place = self.places.setdefault(token, len(self.places))
            if place == len(self.seen):
                self.seen, self.times = (
                    np.append(kept, np.zeros(64 + place, np.int64)) for kept in (self.seen, self.times)
                )
            self.seen[place] = token
            self.times[place] += 1
        self.rules = self._rules()

    def _rules(self) -> Rules:
        """Those that hold after the tokens so far; the arrays have room for more."""
        count, missing = len(self.places), self.params.min_tokens - self.length
        return Rules(self.vocab, self.bias, self.ends, self.seen[:count], self.times[:count], missing, self.penalties)


def reshapes(params: SamplingParams) -> bool:
    """Whether any rule before the temperature is on."""
    penalised = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return bool(penalised or params.biases or params.min_tokens)


def log_softmax(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural log-probabilities [m] of a row of logits, in float64."""
    wide = row.astype(np.float64)
    wide -= wide.max()
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return result
