"""Servers that the benchmark starts itself, one process group each, and always stops again."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx2

from paceline.bench.adapters.dialect import Wish
from paceline.bench.adapters.http import HttpArm
from paceline.bench.adapters.wire import STALL_S
from paceline.bench.arms import Answer, ArmError, Ask, Candidate, Drafting, Facts
from paceline.bench.profiles import Order

GRACE_S = 15.0  # between SIGTERM and SIGKILL
POLL_S = 0.2
LAST_LINES = 12
LAST_BYTES = 8192


class Server:
    """One started process with everything it starts. grace_s: what it has to end by itself when told to."""

    def __init__(self, order: Order, grace_s: float = GRACE_S) -> None:
        self.order, self.grace_s = order, grace_s
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Starts it and waits until its health page answers. Raises ArmError with its own last words otherwise."""
        try:
            self._launch()
            await self._wait()
        except BaseException:
            self.stop()
            raise

    def _launch(self) -> None:
        stop_on_sigterm()
        self._folder = tempfile.TemporaryDirectory(prefix="paceline-server-")
        options = Path(self._folder.name) / "options.yaml"
        options.write_text(self.order.fill(self.order.options, self.port), encoding="utf-8")
        command = self.order.arguments(self.port, str(options))
        atexit.register(self.stop)
        try:
            with self._log.open("ab") as log:
                # A session of its own: Ctrl-C reaches it through `stop` alone, together with all it started.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    env=os.environ | self.order.environment(self.port),
                )  # fmt: skip
        except OSError as error:
            raise ArmError(
                f"cannot start {command[0]}: {error.strerror}; install it, or name it in a --profile"
            ) from None

    async def _wait(self) -> None:
        end = time.monotonic() + self.order.profile.wait_s
        async with httpx2.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while True:
                healthy = await _answers(client, self.order.profile.health)
                if self._code() is not None:
                    raise ArmError(f"the server ended with exit code {self._code()} before it was up; {self._words()}")
                if healthy:
                    return
                if time.monotonic() > end:
                    raise ArmError(
                        f"the server did not answer at {self.url}{self.order.profile.health} within"
                        f" {self.order.profile.wait_s:g} s; {self._words()}"
                    )
                await asyncio.sleep(POLL_S)

    def died(self) -> str:
        """That it has ended by itself, with its last words; "" while it runs."""
        code = self._code()
        return "" if code is None else f"the server has ended with exit code {code}; {self._words()}"

    def _code(self) -> int | None:
        return self._process.poll() if self._process else None

    def stop(self) -> None:
        """Ends the whole process group: asked first, then killed. Safe to call again."""
        process, self._process = self._process, None
        atexit.unregister(self.stop)
        try:
            if process is not None:
                _end(process, self.grace_s)
        finally:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    @property
    def _log(self) -> Path:
        assert self._folder is not None, "start() comes first"
        return Path(self._folder.name) / "log"

    def _words(self) -> str:
        """The last lines it wrote."""
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = log.read().decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()][-LAST_LINES:]
        return "it said: " + " | ".join(said) if said else "it said nothing"


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    try:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    finally:  # also after a second Ctrl-C, and for children that outlive the process
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signum)


async def _answers(client: httpx2.AsyncClient, page: str) -> bool:
    with suppress(httpx2.HTTPError):
        return (await client.get(page)).is_success
    return False


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_on_sigterm() -> None:
    """Lets SIGTERM end this process in order, so that what it started is stopped; an own handler stays."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class ServedArm:
    """A server of a profile, started when the arm is opened and stopped when it is closed."""

    def __init__(self, order: Order, model: str | None = None, stall_s: float = STALL_S) -> None:
        self.order, self.model, self.stall_s = order, model, stall_s
        self._server: Server | None = None
        self._arm: HttpArm | None = None

    @property
    def arm(self) -> HttpArm:
        """The server as an arm, while it is up."""
        assert self._arm is not None, "open() comes first"
        return self._arm

    async def open(self) -> None:
        """Starts the server. Raises ArmError with its own last words when it does not come up."""
        self._server = Server(self.order)
        await self._server.start()
        k, model = self.order.k, self.model or self.order.fill(self.order.profile.model, self._server.port)
        self._arm = HttpArm(self._server.url, Wish(model or None, k or None, k > 0), self.order.dialect, self.stall_s)
        await self._arm.open()

    async def close(self) -> None:
        """Stops the server."""
        arm, self._arm = self._arm, None
        server, self._server = self._server, None
        try:
            if arm is not None:
                await arm.close()
        finally:
            if server is not None:
                server.stop()

    async def check(self) -> Facts:
        """What the server says it is, and the command that started it."""
        facts = await self.arm.check()
        command = self.order.shown(self._server.port if self._server else 0)
        # Ports may come again: two servers of one run must not look like one.
        identity = f"{facts.identity}, k = {self.order.k}"
        return replace(facts, identity=identity, details={**facts.details, "command": command})

    async def answer(self, ask: Ask) -> Answer:
        """One request; a server that has died says so with its last words."""
        try:
            return await self.arm.answer(ask)
        except ArmError as error:
            died = self._server.died() if self._server else ""
            raise ArmError(f"{error}; {died}" if died else str(error)) from None

    async def counters(self) -> Drafting | None:
        """Totals of the server, where single answers do not tell."""
        return await self.arm.counters()

    async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
        """The likeliest tokens after prompt and text."""
        return await self.arm.next_tokens(ask, so_far, n)
