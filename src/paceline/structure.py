"""Structured output: which tokens a JSON schema, a regular expression or a Lark grammar allows next.

llguidance compiles grammars and computes masks; it is imported when the first request asks for one. A mask belongs to
a position, not to a round: a verified row gets the mask that holds after the drafts before it, so the text is the same
with and without drafts. Drafts that a grammar forbids are cut before the target sees them.
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

Mask = npt.NDArray[np.bool_]
# Any space that JSON allows, but not without end: models like to go on with it for ever.
SPACE = {"whitespace_pattern": r"[ \n\t]{1,20}"}


@dataclass(frozen=True)
class Ids:
    """What the model has of tokens: so many, those that end a text, and those that never come out."""

    vocab: int
    ends: frozenset[int]
    suppress: tuple[int, ...] = ()


class Constraint:
    """The grammar of one text; it stands after the tokens emitted so far."""

    def __init__(self, matcher: Any, name: str, ids: Ids) -> None:
        self.matcher, self.name, self.ids, self.end_ids = matcher, name, ids, ids.ends

    def legal(self, draft: Sequence[int]) -> int:
        """How many of the drafts the grammar allows, one after the other; nothing follows an end token."""
        until = self._end(draft)
        count: int = self.matcher.validate_tokens(list(draft[: until + 1]))
        return count

    def allowed(self, draft: Sequence[int] = ()) -> Mask:
        """Which tokens [vocab] may come after the drafts: all of them where the text has ended before."""
        if self._end(draft) < len(draft):
            return np.ones(self.ids.vocab, np.bool_)
        count = self.matcher.try_consume_tokens(list(draft))
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        self.matcher.rollback(count)
        mask = np.unpackbits(bits, count=self.ids.vocab, bitorder="little").astype(np.bool_)
        mask[list(self.ids.suppress)] = False
        if not mask.any():
            raise UsageError(f"{self.name} leaves no token to go on with: {_first_line(self.matcher.get_error())}")
        return mask

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens were emitted; what stands after an end token is not part of the text."""
        self.matcher.consume_tokens(list(tokens[: self._end(tokens)]))

    def _end(self, tokens: Sequence[int]) -> int:
        """Where the first end token stands; the length without one."""
        return next((i for i, token in enumerate(tokens) if token in self.end_ids), len(tokens))


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
            self._table = library.LLTokenizer(self.tokenizer.to_str(), n_vocab=self.ids.vocab, eos_token=ends)
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
