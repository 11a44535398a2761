"""Training text: rows of JSON lines in, cleaned documents out."""

import hashlib
import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment

from paceline.errors import PromptError
from paceline.train.tokenizer import CHAT_TEMPLATE, control_tokens

__all__ = ["CATEGORIES", "Document", "balanced_sample", "clean", "read_documents"]

CATEGORIES = ("chat", "code", "prose")

# tldr pages are tables of commands, not language: enough to learn their form, not so many as to shape the style.
MAX_TLDR = 2000
# A longer conversation is a pasted page: it would be cut off by the training window anyway.
MAX_CHAT_CHARS = 6000
# Hand-written code stays under this; a longer line marks a data table or generated text.
MAX_CODE_LINE = 400
# Running text has 0.75..0.85 of its characters in words; signatures, tables and symbol lists fall below this.
MIN_PROSE_LETTERS = 0.68
MIN_PROSE_CHARS = 200
# English running text has 0.25..0.45 of its words among these; translated pages and parameter lists have fewer.
COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a all an and are as at be but by can for from has have if in is it not of on one or "
        "that the this to use used was we when which will with you",
    )
)
MIN_PROSE_COMMON = 0.22

_CONTROLS = re.compile("|".join(re.escape(token) for token in control_tokens()))
_ANSWER_MARK = re.compile(r"\n(?:####|The answer:) ([^\n]*?)\.?\s*\Z")
_TEMPLATE_MARKS = re.compile(r"<bos>|<\|turn>(?:user|model|system)\n|<turn\|>")
_WORD = re.compile(r"\b[A-Za-z]{2,}\b|\b[aAI]\b")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*){2,}(?=\n)")


@dataclass(frozen=True, slots=True)
class Document:
    """One row: `text` is what gets encoded, between <bos> and <eos> unless it is a chat, which has its own marks."""

    category: str
    source: str
    license: str
    text: str
    marks: int = 0  # control tokens that the chat template put into `text`

    @property
    def digest(self) -> bytes:
        """16 bytes that depend on the category and text alone: identity, order and hold-out all come from it."""
        return hashlib.blake2b(f"{self.category}\0{self.text}".encode(), digest_size=16).digest()


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the rows of a .jsonl or .jsonl.xz file, chats already rendered with the template.

    Raises PromptError, naming file and line, for a missing file or a row that is not
    `{"messages": [{"role", "content"}, ...] | "text": str, "source": str, "license": str}`.
    """
    category = "code" if "code" in path.name else "prose"
    for number, line in enumerate(_lines(path), start=1):
        try:
            yield _document(json.loads(line), category)
        except (ValueError, KeyError, TypeError) as error:
            raise PromptError(f"{path}:{number} is no training row ({_why(error)}); mend or remove it") from error


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise PromptError(f"{path} does not exist; name a .jsonl or .jsonl.xz file")
    with lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb") as lines:
        try:
            yield from lines
        except (EOFError, lzma.LZMAError) as error:
            raise PromptError(f"{path} is damaged ({error}); fetch it again") from error


def _why(error: Exception) -> str:
    return f"no key {error}" if isinstance(error, KeyError) else str(error)


def _document(row: Any, category: str) -> Document:
    if not isinstance(row, dict):
        raise TypeError("not a JSON object")
    if "messages" in row:
        text = _render(row["messages"])
        return Document("chat", _string(row, "source"), _string(row, "license"), text, 1 + 2 * len(row["messages"]))
    return Document(category, _string(row, "source"), _string(row, "license"), _string(row, "text"))


def _string(row: Any, key: str) -> str:
    if not isinstance(row, dict):
        raise TypeError("a turn is not a JSON object")
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is not a string")
    return value


_TEMPLATE = Environment(keep_trailing_newline=False).from_string(CHAT_TEMPLATE)


def _render(messages: Any) -> str:
    """The conversation as the template shows it, ending at the last <turn|>: where a model must stop."""
    if not isinstance(messages, list) or not messages:
        raise TypeError("messages is not a list of turns")
    turns = [{"role": _string(m, "role"), "content": _plain_ending(_string(m, "content"))} for m in messages]
    return _TEMPLATE.render(messages=turns, bos_token="<bos>").rstrip("\n")


def _plain_ending(content: str) -> str:
    """A sentence in place of the data sets' answer marks, `#### 50` and `The answer: 50`."""
    return _ANSWER_MARK.sub(r"\nThe answer is \1.", content)


def clean(documents: Iterable[Document]) -> Iterator[Document]:
    """Drop exact duplicates and what `_keep` refuses; shorten long runs of blank lines in prose."""
    seen: set[bytes] = set()
    per_source: Counter[str] = Counter()
    for document in documents:
        if document.category == "prose":
            document = replace(document, text=_BLANK_LINES.sub("\n\n", document.text).strip())
        digest = document.digest
        if digest in seen or not _keep(document):
            continue
        seen.add(digest)
        per_source[document.source] += 1
        if document.source != "tldr" or per_source["tldr"] <= MAX_TLDR:
            yield document


def _keep(document: Document) -> bool:
    text = document.text
    # A control token spelled out (tokenizer sources quote them) would be encoded as the real one.
    if not text.strip() or len(_CONTROLS.findall(text)) != document.marks:
        return False
    if document.category == "chat":
        return len(text) <= MAX_CHAT_CHARS and "[asy]" not in text  # MATH's figures, drawn in Asymptote code
    if document.category == "code":
        return max(map(len, text.splitlines())) <= MAX_CODE_LINE
    return len(text) >= MIN_PROSE_CHARS and _letters(text) >= MIN_PROSE_LETTERS and _common(text) >= MIN_PROSE_COMMON


def _letters(text: str) -> float:
    """Share of the visible characters that belong to plain words."""
    visible = sum(map(len, text.split()))
    return sum(map(len, _WORD.findall(text))) / max(visible, 1)


def _common(text: str) -> float:
    """Share of the words that are among the commonest of English."""
    words = re.findall(r"\w+", text.lower())
    return sum(word in COMMON_WORDS for word in words) / max(len(words), 1)


def balanced_sample(sources: list[Path], chars: int = 12_000_000) -> Iterator[str]:
    """About `chars` characters of each category, without the template's marks: what a tokenizer is trained on.

    Which documents is decided by their content alone, so equal sources give equal tokenizers.
    """
    left = dict.fromkeys(CATEGORIES, chars)
    for path in sources:
        for document in sorted(clean(read_documents(path)), key=lambda document: document.digest):
            if left[document.category] > 0:
                left[document.category] -= len(document.text)
                yield _TEMPLATE_MARKS.sub("", document.text)
