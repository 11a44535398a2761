"""Gemma 4 with its multi-token-prediction drafters: the same text, faster, and an honest number for how much."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from paceline.errors import PacelineError, PromptError, UsageError
from paceline.train.cli import app as train_app
from paceline.types import ChatMessage, SamplingParams

if TYPE_CHECKING:
    from paceline.resolve import Options

# Imports that take a second (torch, numba) wait inside the commands, so that --help answers at once.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(train_app, name="train")

Target = Annotated[str, typer.Option(help='Checkpoint folder, hub name, or "embedded" (a miniature that ships).')]
Drafter = Annotated[str, typer.Option(help='"auto" finds the -assistant checkpoint; "none", "ngram", or a checkpoint.')]


def _k(text: str) -> int | str:
    """A draft length from the command line; the engine refuses numbers that it does not serve."""
    return text if text == "auto" else int(text)


K_HELP = 'Draft length, 0 to 15, or "auto": chosen round by round; 0 decodes plainly.'
DraftLength = Annotated[Any, typer.Option("--k", parser=_k, metavar="K", help=K_HELP)]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Sample among so many tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Sample among the tokens that hold this share of the probability.")]
MinP = Annotated[float, typer.Option(help="Sample among tokens at least this share as likely as the best; 0 is off.")]
Repetition = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: tokens of prompt and text get less likely.")
]
Presence = Annotated[float, typer.Option("--presence-penalty", help="Taken off tokens that the text holds; 0 is off.")]
Frequency = Annotated[float, typer.Option("--frequency-penalty", help="The same, for each time they came; 0 is off.")]
MinTokens = Annotated[int, typer.Option(help="No end token before so many tokens.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal texts.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this string; may be repeated.")]
Position = Annotated[str, typer.Option(help='Where the drafter stands: "n" (bonus token) or "n-1".')]
Backend = Annotated[str, typer.Option(help='"auto", "cpu" (Numba), "reference" (PyTorch), "cuda" (Triton).')]
Confidence = Annotated[float | None, typer.Option(help="Draft only while the drafter is at least so sure, in [0, 1).")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")]
Colour = Annotated[bool, typer.Option("--show-drafts", help="Colour the tokens that the drafter guessed.")]
Device = Annotated[str, typer.Option(help='"auto" takes a GPU where one serves; "cpu" or "cuda".')]
Context = Annotated[int | None, typer.Option(help="Tokens set aside for each text (GPU); default: what fits, or 8192.")]
Sequences = Annotated[int | None, typer.Option(help="Texts side by side (GPU); default: what fits, or 16.")]
DraftHead = Annotated[str, typer.Option(help='"stored", or "int8": halves what the drafter\'s head reads (GPU).')]
Shape = Annotated[
    str | None, typer.Option(help="Time this size, random weights, on a GPU: e2b, e4b, 12b, 26b-a4b, 31b.")
]
Batch = Annotated[
    list[str] | None, typer.Option(help="Sequences of a round; commas, or repeated; default 1. (--shape)")
]
DraftLengths = Annotated[str, typer.Option(help="Drafts of a round, with commas between. (--shape)")]
AtContext = Annotated[str, typer.Option(help="Tokens a sequence holds already, with commas between. (--shape)")]
Acceptance = Annotated[str, typer.Option(help="How often drafts are kept: a profile, or probabilities. (--shape)")]
Tokens = Annotated[int, typer.Option(help="Of each text, for tokens/s; 0 times rounds only. (--shape)")]
Kernels = Annotated[bool, typer.Option("--profile", help="Where a round's time goes, by class of kernel. (--shape)")]
Skew = Annotated[float, typer.Option(help="Makes some experts likelier than others, in [0, 1). (--shape)")]


@app.command("generate")
def generate(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help='The prompt; "-" reads it from standard input.')],
    target: Target = "embedded", drafter: Drafter = "auto", k: DraftLength = None, max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0, seed: Seed = 0,
    repetition_penalty: Repetition = 1.0, presence_penalty: Presence = 0.0, frequency_penalty: Frequency = 0.0,
    min_tokens: MinTokens = 0, stop: Stop = None,
    raw: Raw = False,
    show_drafts: Colour = False, draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
    device: Device = "auto", context: Context = None, sequences: Sequences = None, draft_head: DraftHead = "auto",
) -> None:  # fmt: skip
    """Answer one prompt: text to stdout as it comes, speed to stderr."""
    from paceline.terminal import answer, load

    params = _params(ctx)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise PromptError("the prompt is empty; give some text")
    llm = load(_options(ctx), k)
    turn: ChatMessage = {"role": "user", "content": text}
    answer(llm, text if raw else [turn], params, k, show_drafts)


@app.command("chat")
def chat(
    ctx: typer.Context,
    target: Target = "embedded", drafter: Drafter = "auto", k: DraftLength = None, max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0, seed: Seed = 0,
    repetition_penalty: Repetition = 1.0, presence_penalty: Presence = 0.0, frequency_penalty: Frequency = 0.0,
    min_tokens: MinTokens = 0, stop: Stop = None,
    show_drafts: Colour = False, draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
    device: Device = "auto", context: Context = None, sequences: Sequences = None, draft_head: DraftHead = "auto",
) -> None:  # fmt: skip
    """Talk with the model; an empty line or Ctrl-D ends it, /new starts over."""
    from paceline.terminal import converse, load

    params = _params(ctx)
    converse(load(_options(ctx), k), params, k, show_drafts)


@app.command("bench")
def bench(
    ctx: typer.Context,
    target: Target = "embedded", drafter: Drafter = "auto", k: DraftLength = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL: id, category, and messages or prompt.")] = None,
    sample: Annotated[int | None, typer.Option(help="Use only so many prompts, balanced over categories.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="May be repeated; default 0 and 1.")] = None,
    top_k: TopK = 64, top_p: TopP = 0.95, repeats: Annotated[int, typer.Option(help="Runs of each pair.")] = 1,
    max_tokens: MaxTokens = 256, seed: Seed = 0, draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
    device: Device = "auto", context: Context = None, sequences: Sequences = None, draft_head: DraftHead = "auto",
    out: Annotated[Path, typer.Option(help="JSON file with all raw timings.")] = Path("report.json"),
    html: Annotated[Path | None, typer.Option(help="Self-contained page with plots.")] = None,
    shape: Shape = None, batch: Batch = None, draft_lengths: DraftLengths = "0,4", at_context: AtContext = "170",
    acceptance: Acceptance = "speed-bench", tokens: Tokens = 200, profile: Kernels = False, skew: Skew = 0.0,
) -> None:  # fmt: skip
    """Measure what drafting is worth on real prompts, or with --shape the rounds of a published size on a GPU.

    The last line of stdout is one JSON object.
    """
    from paceline.bench.harness import BenchOptions
    from paceline.bench.prompts import load_prompts
    from paceline.bench.prompts import sample as choose
    from paceline.bench.run import run_bench
    from paceline.bench.shape_options import from_flags
    from paceline.bench.shape_report import bench_shape
    from paceline.terminal import load

    _refuse_foreign(ctx, shape)
    if shape is not None:
        print(json.dumps(bench_shape(from_flags(ctx.params), out)))
        return
    chosen = load_prompts(prompts)
    chosen = chosen if sample is None else choose(chosen, sample, seed)
    if k == "auto":
        raise UsageError("bench compares a fixed draft length with none; name one with --k, or leave it out")
    llm = load(_options(ctx), k)
    options = BenchOptions(
        k=llm.resolved.k if k is None else k, repeats=repeats, max_tokens=max_tokens, seed=seed,
        temperatures=tuple(temperature or (0.0, 1.0)), top_k=top_k, top_p=top_p,
    )  # fmt: skip
    print(json.dumps(run_bench(llm, chosen, options, out, html)))


@app.command("advise")
def advise(
    gpu: Annotated[str | None, typer.Option(help='A machine, as "RTX 4090"; default: the one at hand.')] = None,
    memory: Annotated[str | None, typer.Option(help="Instead of the machine's own, as 24GB.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Instead of the machine's own, as 1008GB/s.")] = None,
    target: Annotated[str, typer.Option(help="any, e2b, e4b, 12b, 26b-a4b or 31b.")] = "any",
    batch: Annotated[int, typer.Option(help="Texts side by side.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens of each text, prompt and answer.")] = 8192,
    output: Annotated[int, typer.Option(help="Those of them that are the answer.")] = 512,
    category: Annotated[str, typer.Option(help="What is written: mixed, chat, code, math, prose, json.")] = "mixed",
    temperature: Temperature = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Memory by class, every reason, and all sources.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Say what fits a machine, which size, drafter and draft length to take, and what to expect: predicted."""
    from paceline.advisor.advise import Wish
    from paceline.advisor.advise import advise as judge
    from paceline.advisor.machines import choose
    from paceline.advisor.report import record, show

    wish = Wish(target=target.lower(), batch=batch, context=context, output=output, category=category,
                temperature=temperature)  # fmt: skip
    advice = judge(choose(gpu, memory, bandwidth), wish)
    show(advice, Console(stderr=as_json), explain)
    if as_json:
        print(json.dumps(record(advice), allow_nan=False))


@app.command("explain")
def explain(
    ctx: typer.Context,
    target: Target = "embedded", drafter: Drafter = "auto",
    draft_position: Position = "n",
    min_confidence: Confidence = None, backend: Backend = "auto",
    device: Device = "auto", context: Context = None, sequences: Sequences = None, draft_head: DraftHead = "auto",
) -> None:  # fmt: skip
    """Show what would run and why, without loading weights."""
    from rich.table import Table

    from paceline.calibration import cost_decisions
    from paceline.resolve import resolve

    table = Table("what", "choice", "why")
    resolved = resolve(_options(ctx))
    for decision in (*resolved.decisions, *cost_decisions(resolved)):
        table.add_row(decision.what, decision.value, decision.why)
    Console().print(table)


@app.command("calibrate")
def calibrate(
    ctx: typer.Context,
    target: Target = "embedded", drafter: Drafter = "auto", draft_position: Position = "n",
    contexts: Annotated[str, typer.Option(help="Tokens of the texts behind which rounds are timed.")] = "64,512",
    backend: Backend = "auto", device: Device = "auto",
) -> None:  # fmt: skip
    """Time rounds of every draft length anew, and keep the table for the controller; seconds for each context.

    The last line of stdout is one JSON object.
    """
    from paceline.terminal import calibrate as run

    print(json.dumps(run(_options(ctx), contexts)))


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


def _options(ctx: typer.Context) -> Options:
    """The flags that `resolve` settles, which commands name as Options does."""
    from paceline.resolve import Options

    given = {field.name: ctx.params[field.name] for field in fields(Options) if field.name in ctx.params}
    return Options(**given | {"drafter": None if given["drafter"] == "none" else given["drafter"]})


SHAPE_ONLY = {"batch", "draft_lengths", "at_context", "acceptance", "tokens", "profile", "skew"}
EITHER = {"shape", "out", "device", "draft_head"}


def _refuse_foreign(ctx: typer.Context, shape: str | None) -> None:
    """Refuses flags of the other kind of benchmark, which would do nothing."""
    for option in ctx.command.params:
        name = option.name or ""
        source = ctx.get_parameter_source(name)
        if name in EITHER or source is None or source.name != "COMMANDLINE" or (name in SHAPE_ONLY) != (shape is None):
            continue
        if shape is None:
            raise UsageError(f"{option.opts[0]} goes with --shape; name a size with it, or leave it out")
        raise UsageError(
            f"{option.opts[0]} does not go with --shape, which times random weights; leave one of them out"
        )


def _params(ctx: typer.Context) -> SamplingParams:
    """The flags that decide the text, which commands name as SamplingParams does."""
    given = {field.name: ctx.params[field.name] for field in fields(SamplingParams) if field.name in ctx.params}
    return SamplingParams(**given | {"stop": tuple(given["stop"] or ())})


def main() -> None:
    """Runs a command; input errors become one sentence on stderr and exit code 2."""
    try:
        app()
    except PacelineError as error:
        Console(stderr=True).print(f"paceline: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
