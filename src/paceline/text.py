"""Text in, text out: chat templates, token ids, and text that appears while it is being generated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from paceline.errors import CheckpointError, ConfigError, PromptError
from paceline.types import ChatMessage

ROLES = ("system", "user", "assistant")
END_TOKENS = ("<eos>", "<turn|>")
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
REMEMBERED = 1 << 14  # ids, whose pieces need not be looked up again
Kind = Literal["hidden", "byte", "word"]


class Text:
    """A checkpoint's tokenizer and chat template."""

    def __init__(self, tokenizer: Tokenizer, options: Mapping[str, Any], template: Template | None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.special_names = _special_names(options)
        self.bos_id: int | None = tokenizer.token_to_id(self.special_names["bos_token"])
        self.pieces = Pieces(tokenizer)

    @classmethod
    def from_folder(cls, folder: Path) -> Text | None:
        """Reads tokenizer.json, tokenizer_config.json and chat_template.jinja; None without a tokenizer.json.

        Raises CheckpointError when one of them is there but cannot be read.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        options = _read_options(folder / "tokenizer_config.json")
        return cls(_read_tokenizer(path), options, _read_template(folder, options))

    def encode(self, prompt: str | Sequence[ChatMessage]) -> list[int]:
        """Token ids of a raw string or a conversation, with exactly one bos in front.

        Names of special tokens inside the text become those tokens. Raises PromptError.
        """
        if not prompt:
            raise PromptError("the prompt is empty; give at least one character or one message")
        text = prompt if isinstance(prompt, str) else self.render(prompt)
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise PromptError("the prompt holds half a surrogate pair, which is no character; remove it") from error
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as the model reads it, up to where its answer begins. Raises PromptError."""
        if self.template is None:
            raise PromptError("this checkpoint has no chat template; pass a raw string, or add chat_template.jinja")
        for number, message in enumerate(messages, 1):
            _check_message(message, number)
        # The same names that Transformers passes; templates test `tools` and `documents` without `is defined`.
        names = dict(self.special_names, messages=messages, tools=None, documents=None, add_generation_prompt=True)
        try:
            return self.template.render(names)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise PromptError(f"the chat template refused these messages: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """The visible text of `ids`: special tokens add nothing."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder for one completion."""
        return Detokenizer(self.pieces)


class Pieces:
    """What each id is to a `Detokenizer`. kind: shown nowhere, a byte, or else; length: of its text where it is alone.

    Both are asked for every token of every text, so answers are kept.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}

        def kind(token_id: int) -> Kind:
            piece = tokenizer.id_to_token(token_id)
            if piece is None or piece in special:
                return "hidden"
            return "byte" if BYTE_PIECE.fullmatch(piece) else "word"

        self.kind = lru_cache(REMEMBERED)(kind)
        self.length = lru_cache(REMEMBERED)(lambda token_id: len(tokenizer.decode([token_id])))


class Detokenizer:
    """Turns ids into text one by one: all pushes and the flush, joined, equal `Text.decode` of all ids.

    A run of byte pieces is held until it ends. Its last byte decides over all of it (one bad byte turns the
    whole run into replacement characters), so anything shown earlier might have to be taken back.
    Each id is decoded at most twice, whatever the length of the text.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._shown: list[int] = []  # the last id shown; a decoder may treat the first piece of a text differently
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that `token_id` makes visible: often a word, often nothing."""
        kind = self._pieces.kind(token_id)
        if kind == "hidden":
            return ""
        self._held.append(token_id)
        return "" if kind == "byte" else self.flush()

    def flush(self) -> str:
        """The text still held back; call it once, when no more ids will come."""
        if not self._held:
            return ""
        before = sum(map(self._pieces.length, self._shown))
        text: str = self._pieces.tokenizer.decode(self._shown + self._held)
        self._shown, self._held = self._held[-1:], []
        return text[before:]


class StopStrings:
    """Lets text through up to the first stop string that becomes complete, and not a character of it.

    Where several become complete with the same character, the longest counts. The result does not depend on
    how the text was cut into pushes.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string ended it (then push nothing more)."""
        if not self._stops:
            return text, False
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if starts:
            self._held = ""
            _, start = min((start + len(stop), start) for start, stop in starts)
            return text[:start], True
        keep = len(text) - self._open_length(text)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """The text held back as a possible start of a stop string; call it when generation ends otherwise."""
        text, self._held = self._held, ""
        return text

    def _open_length(self, text: str) -> int:
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


def stop_token_ids(generation_config: Mapping[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    """Ids that end a completion: eos_token_id of generation_config.json, else the tokenizer's <eos> and <turn|>.

    Raises ConfigError when eos_token_id is neither an integer nor a list of integers.
    """
    value = generation_config.get("eos_token_id")
    if value is None:
        found = [tokenizer.token_to_id(name) for name in END_TOKENS] if tokenizer else []
        return frozenset(token_id for token_id in found if token_id is not None)
    ids = value if isinstance(value, list) else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise ConfigError(f"generation_config.json: eos_token_id must be an integer or a list of them, not {value!r}")
    return frozenset(ids)


def _check_message(message: object, number: int) -> None:
    if not isinstance(message, Mapping):
        raise PromptError(f"message {number} is a {type(message).__name__}; give an object with role and content")
    # Refused rather than ignored: tool calls or reasoning left out would change what the model is asked.
    unknown = sorted(map(str, set(message) - {"role", "content"}))
    if unknown:
        raise PromptError(f"message {number} has the key {unknown[0]!r}; only role and content are supported")
    if message.get("role") not in ROLES:
        raise PromptError(f"message {number} has the role {message.get('role')!r}; use one of {', '.join(ROLES)}")
    if not isinstance(message.get("content"), str):
        kind = type(message.get("content")).__name__
        raise PromptError(f"message {number} has content of type {kind}; give a string (text is all that is read)")


def _special_names(options: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... as strings; older files write each as an object with a `content`."""
    names = {"bos_token": "<bos>"}
    for key, value in options.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            names[key] = text
    return names


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise CheckpointError(f"{path} cannot be read ({error}); download the checkpoint again") from error


def _read_options(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download the checkpoint again") from error
    if not isinstance(options, dict):
        raise CheckpointError(f"{path} must hold a JSON object; download the checkpoint again")
    return options


def _read_template(folder: Path, options: Mapping[str, Any]) -> Template | None:
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else _template_option(options.get("chat_template"))
    if source is None:
        return None
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise CheckpointError(f"the chat template in {folder} is not valid jinja ({error}); mend that file") from error


def _template_option(value: object) -> str | None:
    """A template kept in tokenizer_config.json: a string, or a list of named ones of which "default" is taken."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Transformers sets it up. Templates come with downloaded checkpoints, hence the sandbox."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    # Jinja's own filter escapes for HTML, which no model was trained on.
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
