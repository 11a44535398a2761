"""OpenAI-style request logs: bodies, lines of the batch API, pairs of request and response, the Responses API."""

from __future__ import annotations

from typing import Any

from paceline.bench.prompts.messages import ROLE, Said, as_prompt, clean, said
from paceline.bench.prompts.rows import Candidate, Options, Row, Skipped, settings_of
from paceline.errors import PromptError

INPUTS = ("messages", "input", "prompt")


def body_of(value: dict[str, Any]) -> dict[str, Any] | None:
    """The request's body within a line of a log; None where the line is no request."""
    for key in ("request", "body"):
        if isinstance(value.get(key), dict):
            return body_of(value[key]) or value[key]
    return value if "model" in value and any(key in value for key in INPUTS) else None


def request(row: Row, options: Options) -> list[Candidate | Skipped]:
    """The prompt of one request, exactly as it was sent; its sampling parameters are kept as notes only."""
    body = body_of(row.value) or {}
    if not any(key in body for key in INPUTS):
        return [Skipped("a request without messages, input or prompt")]
    if body.get("tools") or body.get("functions"):
        return [Skipped("offers tools")]
    if body.get("previous_response_id") or body.get("conversation"):
        return [Skipped("goes on from an answer that the log does not hold")]
    prompt = _prompt(body, row.where)
    if isinstance(prompt, Skipped):
        return [prompt]
    identity = row.value.get("custom_id") or row.value.get("id")
    return [Candidate(prompt, str(identity) if identity else None, None, settings_of(body))]


def _prompt(body: dict[str, Any], where: str) -> Any:
    if "messages" not in body and "input" not in body:
        text = body["prompt"]
        text = text[0] if isinstance(text, list) and len(text) == 1 else text
        if not isinstance(text, str):
            return Skipped("a prompt of token ids, or several prompts in one request")
        return clean(text, where) if text.strip() else Skipped("an empty prompt")
    messages = _messages(body, where)
    if not messages or messages[-1].role != "user":
        problem = next((message.problem for message in messages if message.problem), "")
        return Skipped(problem or "does not end with a message of the user")
    return as_prompt(messages)


def _messages(body: dict[str, Any], where: str) -> list[Said]:
    given = body["messages"] if "messages" in body else body["input"]
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        key = "messages" if "messages" in body else "input"
        raise PromptError(f'{where}: "{key}" must be a list of messages, not {type(given).__name__}')
    first = [Said(ROLE["system"], clean(body["instructions"], where))] if body.get("instructions") else []
    return first + [_item(item, where) for item in given]


def _item(item: Any, where: str) -> Said:
    """A message, or an item of the Responses API that is something else (a call, its result, a reasoning)."""
    if isinstance(item, dict) and "role" not in item and item.get("type"):
        return Said("assistant", "", "tool calls")
    return said(item, where)
