"""Structured output: which tokens a JSON schema, a regular expression or a Lark grammar allows next.

llguidance compiles grammars and computes masks; it is imported when the first request asks for one. A mask belongs to
a position, not to a round: a verified row gets the mask that holds after the drafts before it, so the text is the same
with and without drafts. Drafts that a grammar forbids are cut before the target sees them. Whether a single token may
come is cheaper to know than which may: the matcher just reads it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from paceline.errors import UsageError
from paceline.types import SamplingParams

Bits = npt.NDArray[np.uint32]
WORD = np.dtype("<u4")
# Any space that JSON allows, but not without end: models like to go on with it for ever.
SPACE = {"whitespace_pattern": r"[ \n\t]{1,20}"}
# Tokens that llguidance knows beforehand to match these: where one holds, a mask takes them all at once, and only the
# others are walked through. Its own slices are those of JSON strings; words are what regular expressions ask for.
WORDS = "[a-zA-Z ]{1,16}"


@dataclass(frozen=True)
class Ids:
    """What the model has of tokens: so many, those that end a text, and those that never come out."""

    vocab: int
    ends: frozenset[int]
    suppress: tuple[int, ...] = ()


class Constraint:
    """The grammar of one text; it stands after the tokens emitted so far.

    Masks are kept until more is emitted: a verified row wants the one that its draft was guessed under.
    """

    def __init__(self, matcher: Any, name: str, ids: Ids) -> None:
        self.matcher, self.name, self.ids, self.end_ids = matcher, name, ids, ids.ends
        self.masks: dict[tuple[int, ...], Bits] = {}
        self.ahead: tuple[int, ...] = ()  # drafts that the matcher has read
        self.every = _bits(ids.vocab, ids.suppress)
        self.nothing = bytes(self.every.nbytes)
        self.apart = ids.ends.union(ids.suppress)  # tokens that the matcher never reads

    def legal(self, draft: Sequence[int]) -> int:
        """How many of the drafts the grammar allows, one after the other; nothing follows an end token."""
        until = min(self._end(draft) + 1, len(draft))
        return next((j for j in range(self._same(draft), until) if not self.allows(draft[:j], draft[j])), until)

    def allows(self, draft: Sequence[int], token: int) -> bool:
        """Whether the token may come after the drafts: without their mask, where that is not known yet."""
        before = tuple(draft)
        mask = self.masks.get(before)
        if mask is None and self._plain(before, token):
            self._read((*before, token))
            return len(self.ahead) > len(before)
        if mask is None:
            mask = self.allowed(before)
        return bool(mask.item(token >> 5) >> (token & 31) & 1)

    def knows(self, draft: Sequence[int]) -> bool:
        """Whether the mask that holds after the drafts is computed."""
        return tuple(draft) in self.masks

    def allowed(self, draft: Sequence[int] = ()) -> Bits:
        """Which tokens may come after the drafts: all of them where the text has ended before."""
        before = tuple(draft)
        mask = self.masks.get(before)
        if mask is None:
            mask = self.masks[before] = self._mask(before) if self.end_ids.isdisjoint(before) else self.every
        return mask

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens were emitted; what stands after an end token is not part of the text."""
        self._read(tuple(tokens))
        self.ahead = ()
        self.masks.clear()

    def _plain(self, before: tuple[int, ...], token: int) -> bool:
        """Whether there is a matcher that can be asked by letting it read the token."""
        return self.matcher is not None and token not in self.apart and self.end_ids.isdisjoint(before)

    def _mask(self, draft: tuple[int, ...]) -> Bits:
        self._read(draft)
        computed = self._compute()
        mask: Bits = np.frombuffer(computed, WORD, len(self.every))
        if self.ids.suppress:
            mask = mask & self.every
        if computed.startswith(self.nothing) or (self.ids.suppress and not mask.any()):
            raise UsageError(f"{self.name} leaves no token to go on with: {_first_line(self.matcher.get_error())}")
        return mask

    def _compute(self) -> bytes:
        """The mask where the matcher stands; apart from the rest because it can be the dearest step of a round."""
        mask: bytes = self.matcher.compute_bitmask()
        return mask

    def _read(self, tokens: tuple[int, ...]) -> None:
        """Puts the matcher behind these tokens, or behind those of them that may follow one another."""
        tokens = tokens[: self._end(tokens)]
        same = self._same(tokens)
        if same < len(self.ahead):
            self.matcher.rollback(len(self.ahead) - same)
        if same < len(tokens):
            same += self.matcher.try_consume_tokens(list(tokens[same:]))
        self.ahead = tokens[:same]

    def _same(self, tokens: Sequence[int]) -> int:
        """How many of the tokens the matcher has read, and so allowed."""
        same = 0
        while same < min(len(self.ahead), len(tokens)) and self.ahead[same] == tokens[same]:
            same += 1
        return same

    def _end(self, tokens: Sequence[int]) -> int:
        """Where the first token stands that no other follows; the length without one."""
        if self.apart.isdisjoint(tokens):
            return len(tokens)
        return next(i for i, token in enumerate(tokens) if token in self.apart)


def _bits(vocab: int, missing: Sequence[int]) -> Bits:
    """A bit for each token, from the lowest on, but for those that are missing."""
    present = np.arange(vocab) < vocab
    present[list(missing)] = False
    return packed(present)


def packed(present: npt.NDArray[np.bool_]) -> Bits:
    """Bits of 32 tokens in a word, from the lowest on, of flags for each token."""
    whole = np.zeros(-(-len(present) // 32) * 32, np.bool_)
    whole[: len(present)] = present
    return np.packbits(whole, bitorder="little").view(np.uint32)


class Structure:
    """Compiles what requests ask for, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, ids: Ids) -> None:
        self.tokenizer, self.ids = tokenizer, ids
        self._table: Any = None
        self._last: tuple[tuple[str, str], Any] | None = None

    def constraint(self, params: SamplingParams) -> Constraint | None:
        """What the request's text must be, ready for its first token; None without such a wish.

        Raises UsageError that names the field, also where llguidance, a tokenizer or an end token is missing.
        """
        wish = params.structure
        if wish is None:
            return None
        if self._last is None or self._last[0] != wish:
            self._last = (wish, self._compile(*wish))
        return Constraint(self._last[1].deep_copy(), wish[0], self.ids)

    def _compile(self, name: str, text: str) -> Any:
        grammar = compile_grammar(name, text)
        if self.tokenizer is None:
            raise UsageError(f"{name} needs a tokenizer; this checkpoint has none")
        if not self.ids.ends:
            raise UsageError(f"{name} needs an end token; this checkpoint names none")
        library = require_llguidance(name)
        if self._table is None:
            ends = sorted(self.ids.ends)
            slices = [WORDS, *library.LLTokenizer.general_slices()]
            self._table = library.LLTokenizer(
                self.tokenizer.to_str(), n_vocab=self.ids.vocab, eos_token=ends, slices=slices
            )
        matcher = library.LLMatcher(self._table, grammar, log_level=0)
        if matcher.is_error():
            raise UsageError(f"{name} cannot be used: {_first_line(matcher.get_error())}")
        return matcher


def compile_grammar(name: str, text: str) -> str:
    """The field `name` as llguidance's grammar; UsageError where it is none, or holds what cannot be enforced."""
    matcher = require_llguidance(name).LLMatcher
    grammar: str
    if name == "json_schema":
        _check_json(text)
        grammar = matcher.grammar_from_json_schema(text, SPACE)
    else:
        grammar = matcher.grammar_from_regex(text) if name == "regex" else matcher.grammar_from_lark(text)
    fault = matcher.validate_grammar(grammar)
    if fault:
        raise UsageError(f"{name} cannot be used: {_first_line(fault)}")
    return grammar


def _check_json(text: str) -> None:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(f"json_schema is not valid JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"json_schema must be a JSON object, not {text.strip()}")


def check_structure(params: SamplingParams) -> None:
    """Refuses a grammar that does not compile, before any model is loaded."""
    if params.structure is not None:
        compile_grammar(*params.structure)


def require_llguidance(name: str) -> Any:
    """The library, or a UsageError that names the mend."""
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise UsageError(f"{name} needs llguidance: pip install 'paceline[structured]'") from None


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0].rstrip(":")
