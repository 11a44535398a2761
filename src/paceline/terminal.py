"""What the command line shows: loading, an answer as it streams, a conversation."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console

from paceline.control.outlook import outlook
from paceline.engine import check_draft_length
from paceline.errors import PromptError, UsageError
from paceline.llm import LLM, NO_ROUNDS
from paceline.resolve import Options, resolve
from paceline.steering import LONGEST
from paceline.types import AUTO, ChatMessage, DraftLength, Prompt, SamplingParams

DRAFTED, PLAIN = "\x1b[32m", "\x1b[0m"
LEGEND = "green: guessed by the drafter and confirmed by the target"


def load(options: Options, k: DraftLength | None) -> LLM:
    """Loads a model and says so on stderr. Refuses an impossible draft length first."""
    check_draft_length(k or 0)
    console = Console(stderr=True)
    with console.status(f"loading {options.target}"):
        started = time.perf_counter()
        llm = LLM.load(resolve(options))
    found = next(d for d in llm.resolved.decisions if d.what == "drafter")
    aside = llm.describe()
    if "places" in aside:
        console.print(f"{aside['gpu']}: room for {aside['places']} texts of {aside['context']} tokens", highlight=False)
    console.print(
        f"loaded {options.target} in {time.perf_counter() - started:.1f} s; drafter: {found.value} ({found.why})"
    )
    with console.status("compiling kernels (once a machine, about half a minute)"):
        llm.warm_up()
    if k == AUTO or (k is None and llm.resolved.auto):
        with console.status("timing rounds (once a machine and model, seconds)"):
            llm.prepare_auto()
    return llm


def calibrate(options: Options, contexts: str) -> dict[str, Any]:
    """Times a pair's rounds behind texts of so many tokens (commas between), keeps the table, and returns it."""
    lengths = [int(text) if text.strip().isdecimal() else 0 for text in contexts.split(",")]
    if not all(lengths):
        raise UsageError(f"--contexts takes whole numbers from 1 up with commas between, not {contexts!r}")
    resolved = resolve(options)
    if resolved.drafter is None or resolved.backend == "cuda":
        raise UsageError(NO_ROUNDS)  # before anything is loaded
    llm = load(options, 0)
    console = Console(stderr=True)
    with console.status(f"timing rounds behind {contexts} tokens"):
        found = llm.time_rounds(lengths)
    assert found.table is not None
    console.print(f"{found.origin}: {outlook(found.table, LONGEST)}", highlight=False, soft_wrap=True)
    return {"origin": found.origin, "step_ms": found.table.step_ms,
            "ms": {str(length): found.table.times(context=length) for length in lengths}}  # fmt: skip


def answer(llm: LLM, prompt: Prompt, params: SamplingParams, k: DraftLength | None, show_drafts: bool) -> str:
    """Streams one answer to stdout, its speed to stderr; returns the text."""
    colour = show_drafts and sys.stdout.isatty()
    stream = llm.stream(prompt, params, k)
    for event in stream:
        shown = f"{DRAFTED}{event.text}{PLAIN}" if colour and event.from_draft else event.text
        print(shown, end="", flush=True)
    print()
    done = stream.completion()
    s = done.stats
    speed = f"{1 / s.tpot_s:.0f} tokens/s" if s.tpot_s else "one token"
    note = f"; {LEGEND}" if colour else ""
    Console(stderr=True).print(
        f"{len(done.token_ids)} tokens, first after {1e3 * s.ttft_s:.0f} ms, then {speed},"
        f" {s.acceptance_length:.2f} tokens a round{note}",
        style="dim",
    )
    if s.draft_choice:
        Console(stderr=True).print(s.draft_choice, style="dim", markup=False, highlight=False)
    return done.text


def converse(llm: LLM, params: SamplingParams, k: DraftLength | None, show_drafts: bool) -> None:
    """Reads questions until an empty line or the end of input; an unusable one is refused and the talk goes on."""
    messages: list[ChatMessage] = []
    console = Console(stderr=True)
    while question := _ask():
        if question == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": question})
        try:
            text = answer(llm, messages, params, k, show_drafts)
        except PromptError as error:
            messages.pop()
            console.print(f"{error}; /new starts over", markup=False)
            continue
        messages.append({"role": "assistant", "content": text})


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
