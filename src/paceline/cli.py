"""Gemma 4 with its multi-token-prediction drafters: the same text, faster, and an honest number for how much."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from paceline import flags
from paceline.bench.cli import bench
from paceline.bench.prompts.cli import app as prompts_app
from paceline.bench.report_cli import compare, report
from paceline.errors import PacelineError, PromptError
from paceline.flags import advised, options_of, params_of
from paceline.train.cli import app as train_app
from paceline.types import ChatMessage

# Imports that take a second (torch, numba) wait inside the commands, so that --help answers at once.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(train_app, name="train")
app.add_typer(prompts_app, name="prompts")
app.command("bench")(bench)
app.command("report")(report)
app.command("compare")(compare)


@app.command("generate")
def generate(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help='The prompt; "-" reads it from standard input.')],
    target: flags.Target = "embedded", drafter: flags.Drafter = "auto", k: flags.DraftLength = None,
    max_tokens: flags.MaxTokens = 256,
    temperature: flags.Temperature = 0.0, top_k: flags.TopK = 0, top_p: flags.TopP = 1.0, min_p: flags.MinP = 0.0,
    seed: flags.Seed = 0,
    repetition_penalty: flags.Repetition = 1.0, presence_penalty: flags.Presence = 0.0,
    frequency_penalty: flags.Frequency = 0.0,
    min_tokens: flags.MinTokens = 0, stop: flags.Stop = None, sampling: flags.Sampling = "flags",
    accept: flags.Accept = "coupled",
    json_schema: flags.Schema = None, regex: flags.Regex = None, grammar: flags.Grammar = None,
    raw: flags.Raw = False,
    show_drafts: flags.Colour = False, draft_position: flags.Position = "n",
    min_confidence: flags.Confidence = None, backend: flags.Backend = "auto",
    device: flags.Device = "auto", context: flags.Context = None, sequences: flags.Sequences = None,
    draft_weights: flags.DraftWeights = "auto",
) -> None:  # fmt: skip
    """Answer one prompt: text to stdout as it comes, speed to stderr."""
    from paceline.terminal import answer, load

    params = params_of(ctx)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise PromptError("the prompt is empty; give some text")
    llm = load(options_of(ctx), k)
    turn: ChatMessage = {"role": "user", "content": text}
    answer(llm, text if raw else [turn], advised(ctx, params, llm.sampling), k, show_drafts)


@app.command("chat")
def chat(
    ctx: typer.Context,
    target: flags.Target = "embedded", drafter: flags.Drafter = "auto", k: flags.DraftLength = None,
    max_tokens: flags.MaxTokens = 256,
    temperature: flags.Temperature = 0.0, top_k: flags.TopK = 0, top_p: flags.TopP = 1.0, min_p: flags.MinP = 0.0,
    seed: flags.Seed = 0,
    repetition_penalty: flags.Repetition = 1.0, presence_penalty: flags.Presence = 0.0,
    frequency_penalty: flags.Frequency = 0.0,
    min_tokens: flags.MinTokens = 0, stop: flags.Stop = None, sampling: flags.Sampling = "flags",
    accept: flags.Accept = "coupled",
    json_schema: flags.Schema = None, regex: flags.Regex = None, grammar: flags.Grammar = None,
    show_drafts: flags.Colour = False, draft_position: flags.Position = "n",
    min_confidence: flags.Confidence = None, backend: flags.Backend = "auto",
    device: flags.Device = "auto", context: flags.Context = None, sequences: flags.Sequences = None,
    draft_weights: flags.DraftWeights = "auto",
) -> None:  # fmt: skip
    """Talk with the model; an empty line or Ctrl-D ends it, /new starts over."""
    from paceline.terminal import converse, load

    params = params_of(ctx)
    llm = load(options_of(ctx), k)
    converse(llm, advised(ctx, params, llm.sampling), k, show_drafts)


@app.command("advise")
def advise(
    gpu: Annotated[str | None, typer.Option(help='A machine, as "RTX 4090"; default: the one at hand.')] = None,
    memory: Annotated[str | None, typer.Option(help="Instead of the machine's own, as 24GB.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Instead of the machine's own, as 1008GB/s.")] = None,
    target: Annotated[str, typer.Option(help="any, e2b, e4b, 12b, 26b-a4b or 31b.")] = "any",
    batch: Annotated[int, typer.Option(help="Texts side by side.")] = 1,
    context: Annotated[int | None, typer.Option(help="Tokens of each text, prompt and answer; default 8192.")] = None,
    output: Annotated[int, typer.Option(help="Those of them that are the answer.")] = 512,
    category: Annotated[str | None, typer.Option(help="mixed (default), chat, code, math, prose, json, any.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Lengths and category of your own prompts, JSON Lines.")] = None,
    cost: Annotated[Path | None, typer.Option(help="Measured rounds of --target, JSON: taken for its bf16.")] = None,
    temperature: flags.Temperature = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Memory by class, every reason, and all sources.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="The same as one page with sliders, which works offline.")] = None,
) -> None:
    """Say what fits a machine, which size, drafter and draft length to take, and what to expect: predicted."""
    from paceline.advisor.advise import Wish
    from paceline.advisor.advise import advise as judge
    from paceline.advisor.machines import choose
    from paceline.advisor.measured import kept_here, of_file
    from paceline.advisor.page import write
    from paceline.advisor.report import record, show
    from paceline.advisor.workload import from_prompts

    asked: dict[str, Any] = {"context": 8192 if context is None else context, "category": category or "mixed"}
    if prompts:
        asked = from_prompts(prompts, output, context, category)
    wish = Wish(target=target.lower(), batch=batch, output=output, temperature=temperature, **asked)
    machine = choose(gpu, memory, bandwidth)
    wanted = () if html else wish.sizes  # a page computes everything itself
    advice = judge(machine, wish, of_file(cost, wish.target, batch) if cost else kept_here(machine, wanted, batch))
    if html:
        write(advice, html)
    show(advice, Console(stderr=as_json), explain)
    if as_json:
        print(json.dumps(record(advice), allow_nan=False))


@app.command("explain")
def explain(
    ctx: typer.Context,
    target: flags.Target = "embedded", drafter: flags.Drafter = "auto",
    draft_position: flags.Position = "n",
    min_confidence: flags.Confidence = None, backend: flags.Backend = "auto",
    device: flags.Device = "auto", context: flags.Context = None, sequences: flags.Sequences = None,
    draft_weights: flags.DraftWeights = "auto",
) -> None:  # fmt: skip
    """Show what would run and why, without loading weights."""
    from rich.table import Table

    from paceline.calibration import cost_decisions
    from paceline.resolve import resolve

    table = Table("what", "choice", "why")
    resolved = resolve(options_of(ctx))
    for decision in (*resolved.decisions, *cost_decisions(resolved)):
        table.add_row(decision.what, decision.value, decision.why)
    Console().print(table)


@app.command("calibrate")
def calibrate(
    ctx: typer.Context,
    target: flags.Target = "embedded", drafter: flags.Drafter = "auto", draft_position: flags.Position = "n",
    contexts: Annotated[str, typer.Option(help="Tokens of the texts behind which rounds are timed.")] = "64,512",
    backend: flags.Backend = "auto", device: flags.Device = "auto",
) -> None:  # fmt: skip
    """Time rounds of every draft length anew, and keep the table for the controller; seconds for each context.

    The last line of stdout is one JSON object.
    """
    from paceline.terminal import calibrate as run

    print(json.dumps(run(options_of(ctx), contexts)))


@app.command("simulate")
def simulate(
    trace: Annotated[str, typer.Argument(help='JSONL trace, or made up: "synthetic:mixed", chat, code, changing, ...')],
    policies: Annotated[str, typer.Option(help="auto, auto+stop, heuristic, stop=0.4, k=4; commas between.")] = (
        "auto,heuristic,confidence"
    ),
    cost: Annotated[Path | None, typer.Option(help='JSON with "rows" of batch, k, context, ms: round times.')] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the time lost, by tokens: .png, .svg or .pdf.")] = None,
) -> None:
    """Replay draft-length policies on a trace, without a model; the last line of stdout is one JSON object."""
    from paceline.control.simulate import simulate as replay

    print(json.dumps(replay(trace, policies, cost, plot)))


def main() -> None:
    """Runs a command; input errors become one sentence on stderr and exit code 2."""
    try:
        app()
    except PacelineError as error:
        Console(stderr=True).print(f"paceline: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
