"""Servers come up or say why not, and never stay behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from paceline.bench.adapters.http import HttpArm
from paceline.bench.arms import ArmError
from paceline.bench.profiles import Order, Profile
from paceline.bench.servers import ServedArm, Server, free_port

FAKE = str(Path(__file__).with_name("fake_engine.py"))


def order(mode: str, *more: str, wait_s: float = 20.0, k: int = 0) -> Order:
    """A fake engine in one of its moods."""
    command = (sys.executable, FAKE, mode, "{port}", *more)
    profile = Profile("fake", "openai", command, on=("--k", "{k}", "--block", "{block}"), health="/v1/models",
                      wait_s=wait_s, env={"FAKE_OWNER": "port {port}"})  # fmt: skip
    return Order(profile, target="T", drafter="D", k=k)


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def wait_for(true: Callable[[], bool]) -> bool:
    """Whether it comes true within some seconds."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@pytest.mark.parametrize("mode", ["ready", "slow"])
def test_a_server_comes_up_with_its_arguments_and_goes(mode: str) -> None:
    server = Server(order(mode, k=3))
    asyncio.run(server.start())
    try:
        told = httpx2.get(f"{server.url}/v1/models").json()
        assert told["arguments"] == [mode, str(server.port), "--k", "3", "--block", "4"]
        assert told["data"][0]["owned_by"] == f"port {server.port}"
    finally:
        server.stop()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/v1/models")


def test_a_server_that_dies_is_quoted() -> None:
    with pytest.raises(ArmError, match=r"ended with exit code 3 before it was up; it said: loading weights"):
        asyncio.run(Server(order("dies")).start())


def test_a_server_that_never_answers_is_stopped_and_quoted() -> None:
    server = Server(order("silent", wait_s=1.5))
    begin = time.monotonic()
    with pytest.raises(
        ArmError, match=r"did not answer at http://127.0.0.1:\d+/v1/models within 1.5 s; it said: still"
    ):
        asyncio.run(server.start())
    assert time.monotonic() - begin < 15
    assert server._process is None


def test_a_command_that_does_not_exist_is_named() -> None:
    missing = Order(Profile("x", "openai", ("/no/such/engine",)), "T", None, 0)
    with pytest.raises(ArmError, match="cannot start /no/such/engine: No such file or directory; install it"):
        asyncio.run(Server(missing).start())


def test_a_server_that_ignores_sigterm_is_killed() -> None:
    server = Server(order("stubborn"), grace_s=0.3)
    asyncio.run(server.start())
    process = server._process
    assert process is not None
    server.stop()
    assert process.returncode == -signal.SIGKILL
    server.stop()  # twice does no harm


def test_children_that_outlive_their_server_are_killed_too(tmp_path: Path) -> None:
    server = Server(order("parent", str(tmp_path)), grace_s=5)
    asyncio.run(server.start())
    parent, child = map(int, (tmp_path / "pids").read_text().split())
    assert alive(child)
    server.stop()
    assert not alive(parent)
    assert wait_for(lambda: not alive(child))


SCRIPT = """
import asyncio, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_servers import order
from paceline.bench.servers import ServedArm, Server

async def main():
    server = Server(order("parent", sys.argv[1]), grace_s=2)
    try:
        await server.start()
        Path(sys.argv[1], "up").touch()
        await asyncio.sleep(60)
    finally:
        if sys.argv[2] == "careful":
            server.stop()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "manner"),
    [
        (signal.SIGINT, "careful"),
        (signal.SIGTERM, "careful"),
        (signal.SIGINT, "careless"),
        (signal.SIGTERM, "careless"),
    ],
)
def test_ctrl_c_and_sigterm_leave_no_orphans(tmp_path: Path, how: signal.Signals, manner: str) -> None:
    source = SCRIPT.format(path=[str(Path(__file__).parent), *sys.path])
    runner = subprocess.Popen([sys.executable, "-c", source, str(tmp_path), manner], stderr=subprocess.DEVNULL)
    try:
        assert wait_for((tmp_path / "up").exists)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(map(alive, pids))
        runner.send_signal(how)
        runner.wait(15)
        assert wait_for(lambda: not any(map(alive, pids)))
    finally:
        runner.kill()
        runner.wait()


def test_an_arm_is_the_server_while_it_is_open() -> None:
    arm = ServedArm(order("ready"))

    async def run() -> str:
        await arm.open()
        try:
            assert isinstance(arm.arm, HttpArm)
            return arm.arm.wire.url
        finally:
            await arm.close()

    url = asyncio.run(run())
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


def test_a_server_that_dies_under_an_arm_is_quoted() -> None:
    from test_adapters import GREEDY

    arm = ServedArm(order("ready"))

    async def run() -> None:
        await arm.open()
        try:
            assert arm._server is not None
            assert arm._server._process is not None
            arm._server._process.kill()
            arm._server._process.wait()
            await arm.answer(GREEDY)
        finally:
            await arm.close()

    with pytest.raises(ArmError, match=r"the server has ended with exit code -9; it said nothing"):
        asyncio.run(run())


def test_ports_are_free_and_differ() -> None:
    assert len({free_port() for _ in range(20)}) > 1
