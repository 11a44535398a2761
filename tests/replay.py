"""Plays recorded answers of an engine's server on the loopback address, so that adapters are tested over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"
Exchange = dict[str, Any]
Spoil = Callable[[list[str]], list[str]]
STALL = "(stall)"  # as a streamed line: the server falls silent


def recording(engine: str, arm: str) -> dict[str, Any]:
    """One file of recorded exchanges."""
    data: dict[str, Any] = json.loads((RECORDED / engine / f"{arm}.json").read_text("utf-8"))
    return data


class Replay(ThreadingHTTPServer):
    """Answers each request with the recorded one that is most like it. spoil: changes the lines of streams."""

    daemon_threads = True

    def __init__(self, record: dict[str, Any], spoil: Spoil = list, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.exchanges: list[Exchange] = record["exchanges"]
        self.spoil = spoil
        self.bodies: list[dict[str, Any]] = []
        self.silence = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find(self, method: str, path: str, body: dict[str, Any] | None) -> Exchange | None:
        """The best match; a page asked for after a generation is the one recorded afterwards."""
        own = [e for e in self.exchanges if e["method"] == method and e["path"] == path]
        if method == "GET":
            own = [e for e in own if bool(e.get("after")) == bool(self.bodies)] or own
        return max(own, key=lambda e: likeness(e["request"] or {}, body or {}), default=None)


def likeness(recorded: dict[str, Any], asked: dict[str, Any]) -> float:
    """How alike two requests are: in kind first, then in the fields they share."""
    kind = sum(
        bool(recorded.get(key)) == bool(asked.get(key)) for key in ("stream", "logprobs", "temperature", "prompt")
    )
    same = sum(recorded.get(key) == value for key, value in asked.items())
    return kind + same / 100


class Handler(BaseHTTPRequestHandler):
    server: Replay

    def do_GET(self) -> None:
        self.reply(self.server.find("GET", self.path, None))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = self.server.find("POST", self.path, body)
        self.server.bodies.append(body)
        self.reply(found)

    def reply(self, found: Exchange | None) -> None:
        lines = found.get("lines") if found else None
        self.send_response_only(found["status"] if found else 404)  # without a Server header of its own
        for name in ("content-type", "server"):
            if found and name in found["headers"]:
                self.send_header(name, found["headers"][name])
        self.send_header("connection", "close")
        self.end_headers()
        if lines is None:
            self.wfile.write((found["body"] if found else '{"detail": "Not Found"}').encode())
            return
        for line in self.server.spoil(lines):
            if line == STALL:
                self.server.silence.wait(5)
                return
            with suppress(ConnectionError):  # a client that has heard enough hangs up
                self.wfile.write(f"{line}\n".encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def replaying(record: dict[str, Any], spoil: Spoil = list) -> Iterator[Replay]:
    """A replay server for the length of a test."""
    with Replay(record, spoil) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.silence.set()
            server.shutdown()
            thread.join()
