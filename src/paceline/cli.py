"""Gemma 4 with its multi-token-prediction drafters: the same text, faster, and an honest number for how much."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from paceline.errors import PacelineError, PromptError
from paceline.train.cli import app as train_app
from paceline.types import ChatMessage, SamplingParams

if TYPE_CHECKING:
    from paceline.resolve import Options

# Imports that take a second (torch, numba) wait inside the commands, so that --help answers at once.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(train_app, name="train")

Target = Annotated[str, typer.Option(help='Checkpoint folder, hub name, or "embedded" (a miniature that ships).')]
Drafter = Annotated[str, typer.Option(help='"auto" finds the -assistant checkpoint; "none", "ngram", or a checkpoint.')]
DraftLength = Annotated[int | None, typer.Option("--k", help="Draft length, 0 to 15; 0 decodes plainly.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Sample among so many tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Sample among the tokens that hold this share of the probability.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal texts.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this string; may be repeated.")]
Position = Annotated[str, typer.Option(help='Where the drafter stands: "n" (bonus token) or "n-1".')]
Backend = Annotated[str, typer.Option(help='"auto", "cpu" (Numba) or "reference" (PyTorch).')]
Confidence = Annotated[float | None, typer.Option(help="Draft only while the drafter is at least so sure, in [0, 1).")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")]
Colour = Annotated[bool, typer.Option("--show-drafts", help="Colour the tokens that the drafter guessed.")]


@app.command("generate")
def generate(
    prompt: Annotated[str, typer.Argument(help='The prompt; "-" reads it from standard input.')],
    target: Target = "embedded", drafter: Drafter = "auto", k: DraftLength = None, max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, seed: Seed = 0, stop: Stop = None,
    raw: Raw = False,
    show_drafts: Colour = False, draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
) -> None:  # fmt: skip
    """Answer one prompt: text to stdout as it comes, speed to stderr."""
    from paceline.terminal import answer, load

    params = _params(temperature, top_k, top_p, seed, max_tokens, stop)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise PromptError("the prompt is empty; give some text")
    llm = load(_options(target, drafter, draft_position, min_confidence, backend), k)
    turn: ChatMessage = {"role": "user", "content": text}
    answer(llm, text if raw else [turn], params, k, show_drafts)


@app.command("chat")
def chat(
    target: Target = "embedded", drafter: Drafter = "auto", k: DraftLength = None, max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, seed: Seed = 0, stop: Stop = None,
    show_drafts: Colour = False, draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
) -> None:  # fmt: skip
    """Talk with the model; an empty line or Ctrl-D ends it, /new starts over."""
    from paceline.terminal import converse, load

    params = _params(temperature, top_k, top_p, seed, max_tokens, stop)
    converse(load(_options(target, drafter, draft_position, min_confidence, backend), k), params, k, show_drafts)


@app.command("bench")
def bench(
    target: Target = "embedded", drafter: Drafter = "auto", k: DraftLength = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL: id, category, and messages or prompt.")] = None,
    sample: Annotated[int | None, typer.Option(help="Use only so many prompts, balanced over categories.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="May be repeated; default 0 and 1.")] = None,
    top_k: TopK = 64, top_p: TopP = 0.95, repeats: Annotated[int, typer.Option(help="Runs of each pair.")] = 1,
    max_tokens: MaxTokens = 256, seed: Seed = 0, draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
    out: Annotated[Path, typer.Option(help="JSON file with all raw timings.")] = Path("report.json"),
    html: Annotated[Path | None, typer.Option(help="Self-contained page with plots.")] = None,
) -> None:  # fmt: skip
    """Measure what drafting is worth on real prompts; the last line of stdout is one JSON object."""
    from paceline.bench.harness import BenchOptions
    from paceline.bench.prompts import load_prompts
    from paceline.bench.prompts import sample as choose
    from paceline.bench.run import run_bench
    from paceline.terminal import load

    chosen = load_prompts(prompts)
    chosen = chosen if sample is None else choose(chosen, sample, seed)
    llm = load(_options(target, drafter, draft_position, min_confidence, backend), k)
    options = BenchOptions(
        k=llm.resolved.k if k is None else k, repeats=repeats, max_tokens=max_tokens, seed=seed,
        temperatures=tuple(temperature or (0.0, 1.0)), top_k=top_k, top_p=top_p,
    )  # fmt: skip
    print(json.dumps(run_bench(llm, chosen, options, out, html)))


@app.command("explain")
def explain(
    target: Target = "embedded", drafter: Drafter = "auto",
    draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
) -> None:  # fmt: skip
    """Show what would run and why, without loading weights."""
    from rich.table import Table

    from paceline.resolve import resolve

    resolved = resolve(_options(target, drafter, draft_position, min_confidence, backend))
    table = Table("what", "choice", "why")
    for decision in resolved.decisions:
        table.add_row(decision.what, decision.value, decision.why)
    Console().print(table)


def _options(target: str, drafter: str, draft_position: str, min_confidence: float | None, backend: str) -> Options:
    from paceline.resolve import Options

    return Options(
        target=target, drafter=None if drafter == "none" else drafter, draft_position=draft_position,
        min_confidence=min_confidence, backend=backend,
    )  # fmt: skip


def _params(
    temperature: float, top_k: int, top_p: float, seed: int, max_tokens: int, stop: list[str] | None
) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_tokens=max_tokens, stop=tuple(stop or ())
    )


def main() -> None:
    """Runs a command; input errors become one sentence on stderr and exit code 2."""
    try:
        app()
    except PacelineError as error:
        Console(stderr=True).print(f"paceline: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
