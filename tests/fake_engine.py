"""A server that behaves badly on request, run as a process by the tests of `paceline.bench.servers`.

    python fake_engine.py MODE PORT [FOLDER]

ready: serves at once, and says what it was started with. slow: after a second. dies: writes to stderr and exits with
code 3. silent: never listens. stubborn: ignores SIGTERM. parent: has a child that ignores SIGTERM, and writes both
process ids to FOLDER/pids.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = {"data": [{"id": "m", "owned_by": os.environ.get("FAKE_OWNER", "")}], "arguments": sys.argv[1:]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    mode, port = sys.argv[1], int(sys.argv[2])
    if mode == "dies":
        print("loading weights", file=sys.stderr)
        sys.exit(3)
    if mode in ("stubborn", "parent", "child"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN if mode != "parent" else signal.SIG_DFL)
    if mode == "parent":
        child = subprocess.Popen([sys.executable, __file__, "child", "0"])
        with open(os.path.join(sys.argv[3], "pids"), "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
    if mode == "slow":
        time.sleep(1.0)
    if mode in ("silent", "child"):
        print("still compiling", flush=True)
        time.sleep(60)
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
