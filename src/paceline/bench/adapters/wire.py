"""HTTP to one server: whatever goes wrong becomes an ArmError that says which server did what."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2

from paceline.bench.arms import ArmError
from paceline.errors import UsageError

STALL_S = 120.0  # silence after which an answer is given up
CONNECT_S = 10.0
KEY_VARIABLE = "PACELINE_API_KEY"
LONGEST_QUOTE = 200
Framing = Literal["sse", "lines"]


class Wire:
    """A server's address, to be asked between `open` and `close`. stall_s: seconds of silence to wait for."""

    def __init__(self, url: str, stall_s: float = STALL_S) -> None:
        self.url, self.stall_s = root_of(url), stall_s
        self._client: httpx2.AsyncClient | None = None

    async def open(self) -> None:
        """Nothing is sent yet."""
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx2.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(self.stall_s, connect=CONNECT_S, pool=None),
            limits=httpx2.Limits(max_connections=None), trust_env=not is_loopback(self.url),
        )  # fmt: skip

    async def close(self) -> None:
        """Drops the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    @property
    def client(self) -> httpx2.AsyncClient:
        """The open client."""
        assert self._client is not None, "open() comes first"
        return self._client

    async def page(self, path: str) -> httpx2.Response | None:
        """The answer to GET; None for a page that the server does not have. Raises ArmError if it is out of reach."""
        try:
            answer, _ = await self._send("GET", path, None)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ArmError(f"cannot reach {self.url}: {_cause(error)}; is the server up, and the URL right?") from None
        return answer if answer.is_success else None

    async def json_page(self, path: str) -> Any:
        """GET, as JSON data; None for a page that is not there or not JSON."""
        answer = await self.page(path)
        with suppress(ValueError):
            return None if answer is None else answer.json()
        return None

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to POST. Raises ArmError for any other."""
        try:
            answer, _ = await self._send("POST", path, body)
        except httpx2.HTTPError as error:
            raise self._broken(path, error) from None
        if not answer.is_success:
            raise self._refused(path, answer.status_code, answer.text)
        with suppress(ValueError):
            return answer.json()
        raise ArmError(f"{self.url}{path} sent what is not JSON: {quote(answer.text)}")

    async def events(self, path: str, body: dict[str, Any], framing: Framing) -> AsyncIterator[tuple[float, Any]]:
        """Streamed events with seconds since the request was sent, as JSON data. Raises ArmError.

        framing: "sse" (lines "data: ...", ended by [DONE]) or "lines" (one JSON object a line).
        """
        try:
            answer, begin = await self._send("POST", path, body, stream=True)
            try:
                async for moment, data in self._payloads(path, answer, framing):
                    yield moment - begin, self._parse(path, data)
            finally:
                await answer.aclose()
        except httpx2.HTTPError as error:
            raise self._broken(path, error) from None

    async def _payloads(self, path: str, answer: httpx2.Response, framing: Framing) -> AsyncIterator[tuple[float, str]]:
        if not answer.is_success:
            raise self._refused(path, answer.status_code, (await answer.aread()).decode("utf-8", "replace"))
        async for line in answer.aiter_lines():
            data = payload(line, framing)
            if data == "[DONE]":
                return
            if data is not None:
                yield time.perf_counter(), data

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None, stream: bool = False
    ) -> tuple[httpx2.Response, float]:
        """The answer's head and when it was asked for; asks again where the server had closed the idle connection."""
        try:
            return await self._send_once(method, path, body, stream)
        except (httpx2.RemoteProtocolError, httpx2.WriteError, httpx2.ReadError):  # llama.cpp closes after a stream
            return await self._send_once(method, path, body, stream)

    async def _send_once(
        self, method: str, path: str, body: dict[str, Any] | None, stream: bool
    ) -> tuple[httpx2.Response, float]:
        request, begin = self.client.build_request(method, path, json=body), time.perf_counter()
        return await self.client.send(request, stream=stream), begin

    def _parse(self, path: str, data: str) -> Any:
        try:
            event = json.loads(data)
        except ValueError:
            raise ArmError(f"{self.url}{path} streamed an event that is not JSON: {quote(data)}") from None
        if not isinstance(event, dict):
            raise ArmError(f"{self.url}{path} streamed an event that is no object: {quote(data)}")
        if event.get("error"):
            raise ArmError(f"{self.url}{path} failed while streaming: {quote(message_of(event['error']))}")
        return event

    def _refused(self, path: str, status: int, text: str) -> ArmError:
        with suppress(ValueError):
            text = message_of(json.loads(text))
        return ArmError(f"{self.url}{path} answered {status}: {quote(text)}")

    def _broken(self, path: str, error: Exception) -> ArmError:
        if isinstance(error, httpx2.ReadTimeout):
            return ArmError(f"{self.url}{path} sent nothing for {self.stall_s:g} s, so the request was given up")
        return ArmError(f"the connection to {self.url}{path} broke: {_cause(error)}")


def root_of(url: str) -> str:
    """The server's root of a URL, with or without /v1 behind it. Raises UsageError for what is no http URL."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no server's address; write it as http://127.0.0.1:8000")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


def identity_of(url: str) -> str:
    """Address and port behind a URL: "localhost" and "127.0.0.1" are one server."""
    parts = urlsplit(root_of(url))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = str(parts.hostname)
    with suppress(OSError):
        host = str(min(info[4][0] for info in socket.getaddrinfo(host, port, socket.AF_INET)))
    return f"{host}:{port}{parts.path}"


def is_loopback(url: str) -> bool:
    """Whether a server is on this machine, where no proxy of the environment may come between."""
    host = str(urlsplit(url).hostname)
    return host in ("localhost", "::1") or host.startswith("127.")


def payload(line: str, framing: Framing) -> str | None:
    """The data of a streamed line; None for comments, other fields and empty lines."""
    if framing == "lines":
        return line.strip() or None
    return line[5:].strip() if line.startswith("data:") else None


def message_of(error: Any) -> str:
    """What an error object says, in whichever of the usual shapes."""
    while isinstance(error, dict):
        inner = error.get("error") or error.get("message") or error.get("detail")
        if inner is None:
            return json.dumps(error)
        error = inner
    return str(error)


def quote(text: str) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + " ..."


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
