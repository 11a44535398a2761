"""The whole benchmark: measure, summarise, write, show."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from paceline.bench import record as files
from paceline.bench.arms import Clock, wall_clock
from paceline.bench.divergence import asks_of, examine, settings_of
from paceline.bench.harness import Contest, Stage, check_arms, measure
from paceline.bench.health import gates
from paceline.bench.judge import Judge
from paceline.bench.plan import BenchOptions, Step, plan
from paceline.bench.plots import require_matplotlib
from paceline.bench.prompts import BenchPrompt
from paceline.bench.report import console_report, html_report, markdown_report
from paceline.bench.resume import Run, remaining, resume
from paceline.bench.summary import Prices, Terms, summarise
from paceline.errors import PacelineError

NO_PRICES = Prices()


@dataclass(frozen=True, slots=True)
class Output:
    """Where results go: JSON with every raw timing, and a page and Markdown if named.

    again: go on from what `out` holds.
    """

    out: Path
    html: Path | None = None
    again: bool = False
    markdown: Path | None = None

    def check(self) -> None:
        """Raises UsageError now for what could not be written after an hour of measuring."""
        files.check_writable(self.out)
        if self.markdown is not None:
            files.check_writable(self.markdown)
        if self.html is not None:
            files.check_writable(self.html)
            require_matplotlib()


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run works with: the clock, what the machine costs, and who judges texts that differ.

    source: the prompts' file or set. limit_nats: see `divergence.Settings`; None: what the engine promises.
    """

    clock: Clock = wall_clock
    prices: Prices = NO_PRICES
    judge: Judge | None = None
    limit_nats: float | None = None
    source: str = ""


def run_bench(
    contest: Contest, prompts: Sequence[BenchPrompt], options: BenchOptions, output: Output, tools: Tools = Tools()
) -> dict[str, Any]:
    """Measures, writes `out` (JSON), `html` and `markdown` if named, shows tables on stderr, and returns the record.

    Whatever ends it early, Ctrl-C included, is raised again after what was measured is reported and kept as incomplete.
    Input that is refused before the first measurement leaves no file.
    Raises UsageError before measuring when a file could not be written or matplotlib is missing for `html`.
    """
    output.check()
    steps = plan(prompts, options, list(contest.on))
    head = _head(prompts, options, list(contest.on), tools)
    run = resume(output.out, head["plan"], steps) if output.again else Run()
    console = Console(stderr=True)
    try:
        _collect(contest, remaining(steps, run.rows), options, run, (console, tools.clock))
        # What is measured must not be lost to a question about it.
        files.write_record(output.out, _finished(head, run, tools))
        head["divergences"] = _examined(contest, prompts, options, run, tools)
        head["complete"] = True
    except BaseException as error:
        if not run.rows and isinstance(error, PacelineError):  # refused, not failed: leave no file behind
            raise
        head["failure"] = f"{type(error).__name__}: {error}".rstrip(": ")
        _report(_finished(head, run, tools), output, console)
        console.print(f"Stopped early; {output.out} keeps {len(run.rows)} measurements; --resume goes on.",
                      markup=False, style="yellow")  # fmt: skip
        raise
    done = _finished(head, run, tools)
    _report(done, output, console)
    return done


def _report(record: dict[str, Any], output: Output, console: Console) -> None:
    """Writes and shows a record, without this machine's folders."""
    record = files.portable(record)
    files.write_record(output.out, record)
    if output.html is not None:
        files.write_text(output.html, html_report(record))
    if output.markdown is not None:
        files.write_text(output.markdown, markdown_report(record))
    console.print(console_report(record))


def _examined(
    contest: Contest, prompts: Sequence[BenchPrompt], options: BenchOptions, run: Run, tools: Tools
) -> dict[str, Any]:
    """Where texts differ, and why; the plain arm is asked again where that helps."""
    off = next(facts for key, facts in run.facts.items() if not key.drafts)
    settings = settings_of(off)
    if tools.limit_nats is not None:
        settings = replace(settings, limit_nats=tools.limit_nats)
    return asyncio.run(examine(run.rows, contest.off, asks_of(prompts, options), tools.judge, settings))


def _head(prompts: Sequence[BenchPrompt], options: BenchOptions, ks: list[int | None], tools: Tools) -> dict[str, Any]:
    """What is known before anything ran. `plan` is what a run that goes on must share."""
    content = json.dumps([[prompt.id, prompt.category, prompt.prompt] for prompt in prompts])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {
        "schema": files.SCHEMA,
        "complete": False,
        "failure": None,
        "plan": {"options": asdict(options), "ks": ks, "prompts": {"count": len(prompts), "sha256": digest}},
        "prompts_from": tools.source,
        "prices": asdict(tools.prices),
        "provenance": {**files.provenance(), "load_before": files.load_average()},
    }


def _collect(
    contest: Contest, steps: list[Step], options: BenchOptions, run: Run, tools: tuple[Console, Clock]
) -> None:
    console, clock = tools
    # A thread redrawing the bar would take time from what is being measured; without a terminal it leaves a blank line.
    bar = Progress(console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
    with bar as progress:
        task = progress.add_task("starting", total=len(steps))
        stage = Stage(contest, options, lambda text: progress.update(task, description=text, refresh=True))
        begin = clock() - run.seconds

        async def collect() -> None:
            async with aclosing(measure(stage, steps, lambda: clock() - begin)) as outcomes:
                async for outcome in outcomes:
                    run.take(outcome)
                    check_arms(run.rows, finished=False)
                    progress.update(task, advance=1, refresh=True)

        try:
            asyncio.run(collect())
        finally:
            run.facts |= stage.facts
    check_arms(run.rows, finished=True)


def _finished(head: dict[str, Any], run: Run, tools: Tools) -> dict[str, Any]:
    """The record of a run, finished or not."""
    arms = [{"arm": key.name, "k": key.k, **asdict(facts)} for key, facts in run.facts.items()]
    head["provenance"]["load_after"] = files.load_average()
    return head | {
        "labels": list(dict.fromkeys(label for arm in arms for label in arm["details"].get("labels", []))),
        "arms": arms,
        "summary": summarise(run.rows, run.steps, Terms(head["plan"]["options"]["max_tokens"], tools.prices)),
        "health": gates(run.rows, run.steps, run.facts),
        "failures": [asdict(failure) for failure in run.failures],
        "steps": [asdict(step) for step in run.steps],
        "measurements": files.rows_as_data(run.rows),
    }
