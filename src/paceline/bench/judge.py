"""Paceline's own model as a judge: what the target holds likely after a prompt and part of an answer.

It reads the same weights with sums in fp32, so its gaps are those that the engine under test would have without
rounding. Each question is one pass over prompt and text, on the CPU; nothing is generated.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paceline.bench.arms import Ask
from paceline.bench.trail import Likely, after, common_length, spell
from paceline.cache import KVCache, Storage
from paceline.engine import Engine
from paceline.errors import CheckpointError, PromptError, UsageError
from paceline.hub import resolve_checkpoint
from paceline.llm import LLM
from paceline.processors import log_softmax
from paceline.text import BYTE_PIECE


class Judge:
    """Knows the target's log-probabilities. The model is loaded when it is first needed."""

    def __init__(self, make: Callable[[], LLM], name: str) -> None:
        self._make, self.name = make, name

    @classmethod
    def from_pretrained(cls, target: str) -> Judge:
        """A judge of that checkpoint (folder, hub name or "embedded"), without its drafter, on the CPU.

        Found, or downloaded, now; read when it is needed. Raises PacelineError for what is not there, or no tokenizer.
        """
        folder = resolve_checkpoint(target)
        if not (folder / "tokenizer.json").is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json, so it cannot judge texts; name a target that has")
        return cls(lambda: LLM.from_pretrained(str(folder), drafter=None, device="cpu"), target)

    @classmethod
    def of(cls, llm: LLM) -> Judge:
        """A judge of a model that is loaded already. Raises UsageError for one on a GPU, or without a tokenizer."""
        if not isinstance(llm.engine, Engine) or llm.text is None:
            raise UsageError("the judge needs a model on the CPU, with its tokenizer; name the target's checkpoint")
        return cls(lambda: llm, str(llm.resolved.target))

    def load(self) -> None:
        """Loads the model, where it is not. Raises PacelineError for one that cannot be loaded."""
        _ = self.llm

    @cached_property
    def llm(self) -> LLM:
        """The model."""
        return self._make()

    def encode(self, text: str) -> list[int]:
        """Token ids of part of an answer: no bos, names of special tokens become those tokens."""
        assert self.llm.text is not None
        ids: list[int] = self.llm.text.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def spells(self, token: int) -> bytes:
        """The bytes that a token adds to the text."""
        assert self.llm.text is not None
        tokenizer = self.llm.text.tokenizer
        piece = tokenizer.id_to_token(token) or ""
        if BYTE_PIECE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        # Decoded after another token: a decoder may treat the first piece of a text differently.
        before = tokenizer.decode([self._letter], skip_special_tokens=True)
        return spell(tokenizer.decode([self._letter, token], skip_special_tokens=True)[len(before) :])

    @cached_property
    def _letter(self) -> int:
        return self.encode("a")[0]

    def row(self, ids: list[int]) -> NDArray[np.float64]:
        """Log-probabilities [vocab] of the token after `ids`; -inf for what never comes out. Raises PromptError."""
        engine = self.llm.engine
        assert isinstance(engine, Engine)
        target = engine.target
        if len(ids) > target.config.max_positions:
            raise PromptError(f"{len(ids)} tokens exceed the context of {target.config.max_positions}")
        # Of its own, and gone afterwards: what an engine keeps between requests must not grow by a question.
        cache = KVCache(Storage(target.config, target.ops, len(ids)))
        logits = np.array(target.ops.host(target.logits(target.prefill(ids, cache)))[0])
        logits[list(engine.suppress)] = -np.inf
        return np.asarray(log_softmax(logits), np.float64)


class JudgeTrail:
    """Two texts by token ids, from the last token that their usual tokenisations share."""

    def __init__(self, judge: Judge, ask: Ask, texts: tuple[str, str]) -> None:
        first, second = (judge.encode(text) for text in texts)
        shared = common_length(first, second)
        # Whatever bytes made a replacement character, they were not those of that character.
        limit = min(len(spell(text.partition("\ufffd")[0])) for text in texts)
        while len(read := b"".join(map(judge.spells, first[:shared]))) > limit:
            shared -= 1
        self.rests = spell(texts[0]).removeprefix(read), spell(texts[1]).removeprefix(read)
        self.judge = judge
        self.ids = judge.llm.encode(ask.prompt) + first[:shared]
        self.usual = {ids[shared] for ids in (first, second) if len(ids) > shared}

    async def likeliest(self, n: int) -> list[Likely] | None:
        """The n likeliest tokens, the ends of a text, and how the texts are usually cut there; best first."""
        row = self.judge.row(self.ids)
        ends = self.judge.llm.engine.end_ids
        named = {*np.argsort(-row, kind="stable")[:n].tolist(), *ends, *self.usual}
        ranked = sorted(named, key=lambda token: -row[token])
        return [Likely(b"" if i in ends else self.judge.spells(i), float(row[i]), i in ends, i) for i in ranked]

    def step(self, token: Likely) -> None:
        """Goes past a token that both texts, or the second, begin with."""
        assert token.token_id is not None
        self.ids = [*self.ids, token.token_id]
        self.rests = after(self.rests[0], token), after(self.rests[1], token)
        self.usual = set()

    def fork(self) -> JudgeTrail:
        """A second trail from here, to look ahead on."""
        return copy(self)
