"""What measuring costs: CPU time and delay of each streamed event, with 32 requests in flight. No model runs.

A server in a process of its own streams events that say when they were sent. `paceline bench`'s plan, harness and HTTP
arm read them, as in any run; beside that, a bare socket reader that does nothing but look at the clock. The difference
of the two delays is what the instrument adds; both wait for the same machine, so how busy it was is in the record.

    python benchmarks/instrument_overhead.py

On a machine that others use too, delays are theirs unless this runs before them: `nice -n -15`, and where Linux groups
processes by session, `echo -19 > /proc/self/autogroup` first. The record has both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import common
import numpy as np

from paceline.bench.adapters.dialect import Reply, Wish
from paceline.bench.adapters.engines import Vllm
from paceline.bench.adapters.http import HttpArm
from paceline.bench.harness import Contest, Stage, measure
from paceline.bench.plan import BenchOptions, plan
from paceline.bench.prompts import BenchPrompt

SERVER = common.REPOSITORY / "tests" / "mock_server.py"
STAMP = re.compile(rb'"sent_s": ([\d.]+)')
GOAL_S = 1e-3


class Stamped(Vllm):
    """vLLM's dialect, noting how old each event is when it is read. delays_s: of all events so far."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []

    def read(self, reply: Reply, event: dict[str, Any], at_s: float) -> None:
        if "sent_s" in event:
            self.delays_s.append(time.perf_counter() - event["sent_s"])
        super().read(reply, event, at_s)


@contextmanager
def server(**plan: Any) -> Iterator[str]:
    """The URL of a mock server in another process."""
    command = [sys.executable, str(SERVER), json.dumps(plan | {"stamp": True})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def instrument(urls: tuple[str, str], prompts: Sequence[BenchPrompt], concurrency: int) -> dict[str, Any]:
    """A run of the benchmark against two servers."""
    dialect = Stamped()
    off, on = (HttpArm(url, Wish(k=4 * i or None, drafts=bool(i)), dialect) for i, url in enumerate(urls))
    options = BenchOptions(temperatures=(0.0,), max_tokens=1000, concurrencies=(concurrency,))
    stage = Stage(Contest(off, {4: on}), options)
    begin, cpu = time.perf_counter(), time.process_time()
    steps = plan(prompts, options, [4])
    outcomes = [outcome async for outcome in measure(stage, steps, time.perf_counter)]
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - begin}
    assert not any(outcome.failures for outcome in outcomes)
    return told(dialect.delays_s, spent)


async def bare(url: str, count: int, concurrency: int, max_tokens: int) -> dict[str, Any]:
    """As many texts read off sockets, and nothing done with them."""
    delays_s: list[float] = []
    queue = iter(range(count))

    async def work() -> None:
        for i in queue:
            await _read_text(url, f"prompt {i}", max_tokens, delays_s)

    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return told(delays_s, {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - begin})


async def _read_text(url: str, prompt: str, max_tokens: int, delays_s: list[float]) -> None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps({"model": "mock-model", "prompt": prompt, "temperature": 0.0, "max_tokens": max_tokens})
    writer.write(f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    while b"[DONE]" not in (line := await reader.readline()):
        if found := STAMP.search(line):
            delays_s.append(time.perf_counter() - float(found[1]))
    writer.close()
    await writer.wait_closed()


def told(delays_s: list[float], spent: dict[str, float]) -> dict[str, Any]:
    """Figures of one way to read. cpu_s_per_event: of this process, everything it did counted."""
    quantiles = np.quantile(delays_s, [0.5, 0.9, 0.99]).tolist()
    return {
        "events": len(delays_s), "events_per_s": len(delays_s) / spent["wall_s"], **spent,
        "cpu_s_per_event": spent["cpu_s"] / len(delays_s),
        "delay_s": dict(zip(("median", "p90", "p99"), quantiles, strict=True)),
    }  # fmt: skip


def judge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, in milliseconds."""

    def middle(*path: str) -> float:
        values = []
        for each in rounds:
            for key in path:
                each = each[key]
            values.append(each)
        return float(np.median(values)) * 1e3

    cpu, delay = middle("instrument", "cpu_s_per_event"), middle("instrument", "delay_s", "median")
    plain = middle("bare", "delay_s", "median")
    return {
        "cpu_ms_per_event": cpu, "bare_cpu_ms_per_event": middle("bare", "cpu_s_per_event"),
        "delay_ms": {name: middle("instrument", "delay_s", name) for name in ("median", "p90", "p99")},
        "bare_delay_ms": {name: middle("bare", "delay_s", name) for name in ("median", "p90", "p99")},
        "added_delay_ms_median": delay - plain, "below_a_millisecond": max(cpu, delay - plain) < GOAL_S * 1e3,
    }  # fmt: skip


def show(rounds: list[dict[str, Any]]) -> None:
    """A table on stderr."""
    rows = [_row(name, each[name]) for each in rounds for name in ("instrument", "bare")]
    common.show("each event, ms", ["", "events", "events/s", "CPU", "delay", "p90", "p99"], rows)


def _row(name: str, found: dict[str, Any]) -> list[str]:
    delays = [f"{seconds * 1e3:.2f}" for seconds in found["delay_s"].values()]
    return [
        name,
        f"{found['events']}",
        f"{found['events_per_s']:.0f}",
        f"{found['cpu_s_per_event'] * 1e3:.3f}",
        *delays,
    ]


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=common.RESULTS / "instrument_overhead.json")
    made.add_argument("--concurrency", type=int, default=32)
    made.add_argument("--prompts", type=int, default=64)
    made.add_argument("--tokens", type=int, default=100, help="of each text, one an event")
    made.add_argument("--tpot-ms", type=float, default=20.0)
    made.add_argument("--rounds", type=int, default=3)
    options = made.parse_args()
    settings = {name: getattr(options, name) for name in ("concurrency", "prompts", "tokens", "tpot_ms", "rounds")}
    group = Path("/proc/self/autogroup")
    settings["priority"] = {"nice": os.nice(0), "autogroup": group.read_text().strip() if group.exists() else None}
    record = common.head("paceline-instrument-overhead/1", ["CPU", "mock server", "no model"], settings)
    plan_of = {"tokens": options.tokens, "ttft_s": 0.05, "tpot_s": options.tpot_ms / 1e3, "speedup": 1.0}
    prompts = [BenchPrompt(f"p{i}", "c", f"prompt {i}") for i in range(options.prompts)]
    with ExitStack() as stack:
        urls = (stack.enter_context(server(**plan_of)), stack.enter_context(server(**plan_of, drafts=True)))
        rounds = [
            {
                "instrument": asyncio.run(instrument(urls, prompts, options.concurrency)),
                "bare": asyncio.run(bare(urls[0], 2 * options.prompts, options.concurrency, 1000)),
            }
            for _ in range(options.rounds)
        ]
    show(rounds)
    common.write(options.out, {**record, "rounds": rounds, "summary": judge(rounds)})


if __name__ == "__main__":
    main()
