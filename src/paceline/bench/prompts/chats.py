"""Chat exports: ChatGPT, Claude, Open WebUI, LM Studio, and lists of from and value (ShareGPT).

The shapes are those of exports of 2023 to 2025 as they are described in public; other versions may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from paceline.bench.prompts.messages import Said, flatten, prompts_of, said
from paceline.bench.prompts.rows import Candidate, Options, Row, Skipped, fields
from paceline.errors import PromptError


def read_chat(row: Row, chat: Iterable[Said], options: Options) -> Iterator[Candidate | Skipped]:
    """The prompts of one chat; its id comes from the row, numbered where there are several."""
    identity = next((str(row.value[key]) for key in ("id", "uuid", "conversation_id") if row.value.get(key)), None)
    for number, prompt in enumerate(prompts_of(chat, options.turns), start=1):
        if isinstance(prompt, Skipped):
            yield prompt
        else:
            name = f"{identity}#{number}" if identity and options.turns == "all" else identity
            yield Candidate(prompt, name, _category(row.value))


def _category(value: dict[str, Any]) -> str | None:
    return value["category"] if isinstance(value.get("category"), str) else None


def chatgpt(row: Row, options: Options) -> Iterable[Candidate | Skipped]:
    """A conversation of ChatGPT's conversations.json: the branch that was last looked at."""
    branch = _branch(row.value["mapping"], row.value.get("current_node"), "parent", row.where)
    messages: list[Any] = [node.get("message") for node in branch]
    return read_chat(row, [_chatgpt(message, row.where) for message in messages if _shown(message)], options)


def _shown(message: Any) -> bool:
    """Whether a node is part of the talk: not a hidden one, nor the model's thoughts."""
    if not isinstance(message, dict):
        return False
    hidden = fields(message.get("metadata")).get("is_visually_hidden_from_conversation")
    kind = fields(message.get("content")).get("content_type")
    return not hidden and kind not in ("thoughts", "reasoning_recap", "model_editable_context", "user_editable_context")


def _chatgpt(message: dict[str, Any], where: str) -> Said:
    content = fields(message.get("content"))
    kind, parts = content.get("content_type"), content.get("parts")
    role = fields(message.get("author")).get("role")
    if kind == "text" and role != "tool":
        return said({"role": role, "content": parts or []}, where)
    if kind == "multimodal_text":
        return Said("user" if role == "user" else "assistant", "", "an image or a file")
    return Said("assistant", "", "tool calls")


def _branch(nodes: Any, leaf: Any, parent: str, where: str) -> list[dict[str, Any]]:
    """From the root to `leaf`, along the nodes' parents; a loop or a missing node is a PromptError."""
    path: list[dict[str, Any]] = []
    if not isinstance(nodes, dict) or not isinstance(leaf, str) or leaf not in nodes:
        raise PromptError(f"{where}: the conversation does not say which of its messages is the last; export it again")
    while leaf is not None:
        node = nodes.get(leaf) if isinstance(leaf, str) else None
        if not isinstance(node, dict) or len(path) > len(nodes):
            raise PromptError(f"{where}: the conversation's messages do not lead back to a first one; export it again")
        path.append(node)
        leaf = node.get(parent)
    return path[::-1]


def claude(row: Row, options: Options) -> Iterable[Candidate | Skipped]:
    """A conversation of Claude's conversations.json."""
    return read_chat(row, [_claude(message, row.where) for message in _list(row, "chat_messages")], options)


def _claude(message: Any, where: str) -> Said:
    if not isinstance(message, dict):
        raise PromptError(f"{where}: each of chat_messages must be an object with sender and text")
    text = message.get("text") or flatten(message.get("content"), where)[0]
    attached = bool(message.get("attachments") or message.get("files"))
    plain = said({"role": message.get("sender"), "content": text}, where)
    return Said(plain.role, plain.text, "a file" if attached else plain.problem)


def open_webui(row: Row, options: Options) -> Iterable[Candidate | Skipped]:
    """A chat of Open WebUI's export: the branch that was last looked at."""
    chat = row.value["chat"]
    history = fields(chat.get("history"))
    messages = chat.get("messages")
    if history.get("currentId"):
        messages = _branch(history.get("messages"), history["currentId"], "parentId", row.where)
    if not isinstance(messages, list):
        raise PromptError(f"{row.where}: the chat holds neither history nor messages")
    return read_chat(row, [_with_files(message, row.where) for message in messages], options)


def _with_files(message: Any, where: str) -> Said:
    plain = said(message, where)
    return Said(plain.role, plain.text, "a file" if message.get("files") else plain.problem)


def lm_studio(row: Row, options: Options) -> Iterable[Candidate | Skipped]:
    """A conversation file of LM Studio: of each message the version that was last looked at."""
    return read_chat(row, [_lm_studio(message, row.where) for message in _list(row, "messages")], options)


def _lm_studio(message: Any, where: str) -> Said:
    try:
        version = message["versions"][message.get("currentlySelected", 0)]
        steps = version.get("steps", [version])
        content = [part for step in steps for part in step.get("content") or []]
        return said({"role": version["role"], "content": content}, where)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise PromptError(f"{where}: a message has no version with role and content; save the chat again") from None


def sharegpt(row: Row, options: Options) -> Iterable[Candidate | Skipped]:
    """A row with `conversations`, a list of from and value (or role and content)."""
    key = "conversations" if "conversations" in row.value else "conversation"
    return read_chat(row, [said(message, row.where) for message in _list(row, key)], options)


def _list(row: Row, key: str) -> list[Any]:
    value = row.value[key]
    if not isinstance(value, list):
        raise PromptError(f'{row.where}: "{key}" must be a list of messages, not {type(value).__name__}')
    return value
