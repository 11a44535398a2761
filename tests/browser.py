"""Chromium without a window, driven over a pipe by its DevTools protocol: what a page does when a reader opens it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-extensions", "--hide-scrollbars",
         "--remote-debugging-pipe")  # fmt: skip
TROUBLE = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
TIMEOUT_S = 30
Message = dict[str, Any]


def find() -> str | None:
    """The path of a browser on this machine."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One browser with one page. trouble: console messages and errors; requests: every address asked for."""

    def __init__(self, program: str, folder: Path) -> None:
        to, back = folder / "to", folder / "back"
        os.mkfifo(to)
        os.mkfifo(back)
        # The protocol wants file descriptors 3 and 4, and the shell can give it those.
        command = ["sh", "-c", 'exec "$0" "$@" 3<to 4>back', program, *FLAGS, f"--user-data-dir={folder / 'profile'}",
                   "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.to: IO[bytes] = open(to, "wb", buffering=0)  # noqa: SIM115
        self.back: IO[bytes] = open(back, "rb", buffering=0)  # noqa: SIM115
        self.rest, self.count, self.session = b"", 0, ""
        self.events: list[Message] = []
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attach = {"targetId": target["targetId"], "flatten": True}
        self.session = self.ask("Target.attachToTarget", attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.to.close()
        self.back.close()
        self.process.terminate()
        self.process.wait(TIMEOUT_S)

    def ask(self, method: str, params: Message | None = None) -> Message:
        """The result of a command; events that come before it are kept."""
        self.count += 1
        own = {"id": self.count, "method": method, "params": params or {}}
        self.to.write(json.dumps(own | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (message := self._next()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        result: Message = message["result"]
        return result

    def _next(self) -> Message:
        while b"\0" not in self.rest:
            assert select.select([self.back], [], [], TIMEOUT_S)[0], "the browser does not answer"
            part = self.back.read(1 << 20)
            assert part, "the browser went away"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)  # type: ignore[no-any-return]

    def open(self, page: Path, width: int, height: int, dark: bool = False) -> None:
        """Shows a file in a window of that many CSS pixels, and waits until it has loaded."""
        self.events.clear()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", {"features": scheme})
        self.ask("Page.navigate", {"url": page.as_uri()})
        until = time.monotonic() + TIMEOUT_S
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < until, "the page did not load"
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        # Evaluated from outside, so the page's own policy against scripts does not matter.
        done = self.ask("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    @property
    def trouble(self) -> list[Message]:
        return [event for event in self.events if event["method"] in TROUBLE]

    @property
    def requests(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot as PNG."""
        shot = self.ask("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(shot["data"]))
