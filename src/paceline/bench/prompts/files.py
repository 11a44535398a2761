"""Opens prompt files: says what a file is by its bytes, and reads it as lines or whole, within limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paceline.errors import PromptError

MIB = 1 << 20
LINE_MIB, DOCUMENT_MIB, FILE_MIB = 32, 512, 4096
HEAD = 65536
UNPACK = "unpack it and give the file inside"
SAVE_AS = "save it as UTF-8"
DECRYPT = "decrypt it first"
SIGNATURES = (
    (b"PK\x03\x04", f"is a zip archive; {UNPACK} (of a chat export, conversations.json)"),
    (b"\x1f\x8b", f"is compressed with gzip; {UNPACK}"),
    (b"\xfd7zXZ\x00", f"is compressed with xz; {UNPACK}"),
    (b"BZh", f"is compressed with bzip2; {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"is compressed with zstd; {UNPACK}"),
    (b"SQLite format 3\x00", "is a database; export the chats as JSON and give that file"),
    (b"PAR1", "is a Parquet table; write it as JSON Lines and give that file"),
    (b"%PDF", "is a PDF; give text in JSON Lines or CSV"),
    (b"Salted__", f"is encrypted; {DECRYPT}"),
    (b"age-encryption.org", f"is encrypted; {DECRYPT}"),
    (b"-----BEGIN PGP MESSAGE", f"is encrypted; {DECRYPT}"),
    (b"\xff\xfe", f"is UTF-16 text; {SAVE_AS}"),
    (b"\xfe\xff", f"is UTF-16 text; {SAVE_AS}"),
)


def kind_of(path: Path) -> str:
    """ "lines" (a JSON object on each), "document" (one JSON value) or "table" (CSV), by what the file begins with."""
    start = _head(path)
    if start.startswith(b"["):
        return "document"
    if not start.startswith(b"{"):
        return "table"
    line = start.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip()
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        # A value that stops where the line stops goes on below it; what breaks earlier is a broken line.
        return "document" if error.pos >= len(line) and len(start) > len(line) else "lines"
    except (RecursionError, ValueError):
        return "lines"
    return "lines"


def _head(path: Path) -> bytes:
    """The first bytes that say something; refuses what is no text, with the mend."""
    try:
        with path.open("rb") as file:
            start = file.read(HEAD)
        size = path.stat().st_size
    except OSError as error:
        raise PromptError(f"cannot read the prompt file {path}: {error.strerror or error}") from None
    if size > FILE_MIB * MIB:
        raise PromptError(f"{path} has {size // MIB} MiB, more than {FILE_MIB}; take a part of it")
    for signature, fault in SIGNATURES:
        if start.startswith(signature):
            raise PromptError(f"{path} {fault}")
    if b"\x00" in start:
        raise PromptError(f"{path} is a binary file, not UTF-8 text; give JSON Lines, JSON or CSV")
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise PromptError(f"{path} holds no prompts; write one JSON object with id, category and messages on each line")
    return start


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, one at a time; PromptError for what is not UTF-8."""
    with path.open("rb") as file:
        # Split at \n alone: JSON strings may hold U+2028 and the like.
        for number, data in enumerate(iter(lambda: file.readline(LINE_MIB * MIB + 1), b""), start=1):
            if len(data) > LINE_MIB * MIB:
                raise PromptError(f"{path}:{number}: the line is longer than {LINE_MIB} MiB; split it")
            text = _decode(data, f"{path}:{number}")
            text = text.removeprefix("\ufeff") if number == 1 else text
            if text.strip():
                yield number, text


def document(path: Path) -> Any:
    """The one JSON value of a file; where it breaks off, the PromptError names the line."""
    if path.stat().st_size > DOCUMENT_MIB * MIB:
        raise PromptError(f"{path} is one JSON value of more than {DOCUMENT_MIB} MiB; split it, or write JSON Lines")
    try:
        return json.loads(_decode(path.read_bytes(), str(path)).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise PromptError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError):
        raise PromptError(f"{path}: not usable JSON (nested too deeply or a number too long)") from None


def whole_text(path: Path) -> str:
    """All of a table's text."""
    if path.stat().st_size > DOCUMENT_MIB * MIB:
        raise PromptError(f"{path} is a table of more than {DOCUMENT_MIB} MiB; take a part of it")
    return _decode(path.read_bytes(), str(path)).removeprefix("\ufeff")


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{where} is not UTF-8 text (byte {error.start}); {SAVE_AS}") from None
