"""The wire to a server that closes connections under a request, or hands over keys."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from paceline.bench.adapters.wire import KEY_VARIABLE, Wire, is_loopback, message_of, payload, quote
from paceline.bench.arms import ArmError

PAGE = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{"n": 1}'


class Moody(socketserver.ThreadingTCPServer):
    """Answers so many requests on a connection, and closes it without a word when the next one comes."""

    daemon_threads = True

    def __init__(self, patience: int) -> None:
        self.patience, self.heads = patience, list[str]()
        super().__init__(("127.0.0.1", 0), Connection)


class Connection(socketserver.StreamRequestHandler):
    server: Moody

    def handle(self) -> None:
        for turn in range(self.server.patience + 1):
            head = b"".join(iter(self.rfile.readline, b"\r\n"))
            self.server.heads.append(head.decode())
            if not head or turn == self.server.patience:
                return
            self.wfile.write(PAGE)


@contextmanager
def moody(patience: int) -> Iterator[Moody]:
    with Moody(patience) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: Moody, times: int) -> list[object]:
    async def run() -> list[object]:
        wire = Wire(f"http://127.0.0.1:{server.server_address[1]}")
        await wire.open()
        try:
            return [await wire.json_page("/page") for _ in range(times)]
        finally:
            await wire.close()

    return asyncio.run(run())


def test_a_connection_that_was_closed_while_idle_costs_no_request() -> None:
    with moody(1) as server:
        assert ask(server, 3) == [{"n": 1}] * 3
    assert len(server.heads) > 3  # requests were sent again


def test_a_server_that_closes_every_connection_is_named() -> None:
    with moody(0) as server, pytest.raises(ArmError, match=r"cannot reach http://127.0.0.1:\d+: Server disconnected"):
        ask(server, 1)


def test_a_key_goes_along_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with moody(9) as server:
        ask(server, 1)
    assert "authorization: bearer secret" in server.heads[0].lower()


def test_no_proxy_comes_between_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with moody(9) as server:
        assert ask(server, 1) == [{"n": 1}]
    assert [is_loopback(f"http://{host}:1") for host in ("localhost", "127.0.0.2", "[::1]", "10.0.0.1", "gpu")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_lines_of_streams() -> None:
    assert payload('data: {"a": 1}', "sse") == payload('data:{"a": 1}', "sse") == '{"a": 1}'
    assert [payload(line, "sse") for line in (": ping", "event: x", "", "id: 3")] == [None] * 4
    assert payload('{"a": 1}\n', "lines") == '{"a": 1}'
    assert payload("\n", "lines") is None


def test_errors_in_every_usual_shape() -> None:
    assert message_of({"error": {"message": "too long", "code": 400}}) == "too long"
    assert message_of({"detail": "Not Found"}) == message_of("Not Found") == "Not Found"
    assert message_of({"error": "busy"}) == "busy"
    assert message_of({"odd": 1}) == '{"odd": 1}'
    assert quote("a\n b" + "c" * 500).startswith("a bc")
    assert len(quote("c" * 500)) < 210
