"""Messages as other programs write them, and the prompts that a recorded chat holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from paceline.bench.prompts.rows import Skipped
from paceline.errors import PromptError
from paceline.types import ChatMessage

ROLE = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
TEXT_PARTS = {"text", "input_text", "output_text"}
OTHER_PARTS = {"image": "an image", "audio": "audio", "file": "a file", "video": "a video", "tool": "tool calls"}


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a chat; `problem` says what in it no text prompt can hold, as "an image"."""

    role: str
    text: str
    problem: str = ""


def said(message: object, where: str) -> Said:
    """A message in OpenAI's manner, or with from and value; one without a role or content is a PromptError."""
    if not isinstance(message, dict):
        raise PromptError(f"{where}: each message must be an object with role and content")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or (content is None and role != "assistant"):
        raise PromptError(f"{where}: a message needs a role and content (or from and value); this one has"
                          f" {', '.join(map(str, message)) or 'nothing'}")  # fmt: skip
    known = ROLE.get(role.lower())
    text, problem = flatten(content, where)
    if message.get("tool_calls") or message.get("function_call") or role in ("tool", "function"):
        problem = "tool calls"
    return Said(known or role, text, problem or ("" if known else f"a message of the role {role[:20]!r}"))


def flatten(content: object, where: str) -> tuple[str, str]:
    """Text of a message's content, a string or a list of parts, and what of it is no text."""
    if content is None or isinstance(content, str):
        return clean(content or "", where), ""
    if not isinstance(content, list):
        raise PromptError(f"{where}: a message's content must be text or a list of parts, not {type(content).__name__}")
    parts = [_part(part) for part in content]
    problem = next((problem for _, problem in parts if problem), "")
    return clean("\n".join(text for text, _ in parts if text), where), problem


def _part(part: Any) -> tuple[str, str]:
    if isinstance(part, str):
        return part, ""
    if not isinstance(part, dict):
        return "", "a part of unknown kind"
    kind = str(part.get("type"))
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"], ""
    return "", next((name for word, name in OTHER_PARTS.items() if word in kind), f"a part of the kind {kind[:20]!r}")


def clean(text: object, where: str) -> str:
    """`text` itself; what is no string, or holds half a surrogate pair, is a PromptError."""
    if not isinstance(text, str):
        raise PromptError(f"{where}: text was expected, not {type(text).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptError(f"{where}: the text holds half a surrogate pair, which is no character")
    return text


def prompts_of(chat: Iterable[Said], turns: str) -> Iterator[list[ChatMessage] | Skipped]:
    """What the user said in a chat, with all that came before it: its first, last, or each turn."""
    merged = list(_merge(chat))
    ends = [i for i, message in enumerate(merged) if message.role == "user"]
    if not ends:
        yield Skipped("no message of the user")
    for end in {"first": ends[:1], "last": ends[-1:], "all": ends}[turns]:
        yield as_prompt(merged[: end + 1])


def as_prompt(messages: list[Said]) -> list[ChatMessage] | Skipped:
    """Messages as they are; Skipped where one of them cannot be text."""
    problem = next((message.problem for message in messages if message.problem), "")
    if problem or not any(message.text.strip() for message in messages if message.role == "user"):
        return Skipped(problem or "no text of the user")
    return [ChatMessage(role=message.role, content=message.text) for message in messages if message.text.strip()]


def _merge(chat: Iterable[Said]) -> Iterator[Said]:
    """Joins neighbours of one role: exports cut an answer into pieces, and templates want roles to alternate."""
    last: Said | None = None
    for message in chat:
        if not message.text.strip() and not message.problem:
            continue
        if last is not None and last.role == message.role:
            problem = last.problem or message.problem
            last = replace(last, text=f"{last.text}\n\n{message.text}".strip(), problem=problem)
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last
