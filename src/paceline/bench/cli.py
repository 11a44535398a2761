"""`paceline bench`: its flags, and which of them go together."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline import flags
from paceline.errors import PacelineError, UsageError

if TYPE_CHECKING:
    from paceline.bench.contests import Wanted
    from paceline.bench.harness import Contest
    from paceline.bench.judge import Judge
    from paceline.bench.prompts import BenchPrompt
    from paceline.bench.tracing import Tracer

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
DraftLengthList = Annotated[
    str | None,
    typer.Option("--k", help='Draft lengths, 1 to 15 or "auto", commas between; default: auto, or the engine\'s own.'),
]
Concurrency = Annotated[str, typer.Option(help="Requests in flight at once, with commas between.")]
OnUrl = Annotated[str | None, typer.Option("--on", help="A server that drafts, as http://127.0.0.1:8000.")]
OffUrl = Annotated[str | None, typer.Option("--off", help="The same engine and model without its drafter.")]
Engine = Annotated[
    str | None,
    typer.Option(help="Start this engine: transformers, or a profile; with --on and --off: what runs there."),
]
EngineArgs = Annotated[str, typer.Option(help="Added to the command lines of --engine.")]
Profile = Annotated[Path | None, typer.Option("--engine-profile", help="TOML that changes how engines are started.")]
Model = Annotated[str | None, typer.Option(help="The model's name at the servers; default: the only one there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the command lines of --engine, and stop.")]
Trust = Annotated[bool, typer.Option("--trust-arms", help="Measure servers that do not tell whether they draft.")]
Stall = Annotated[float, typer.Option(min=0.1, help="Seconds of a server's silence after which a request is given up.")]
Modes = Annotated[list[str] | None, typer.Option("--accept", help="With --temperatures, may be repeated: one mode.")]
Temperatures = Annotated[
    str | None, typer.Option(help="Acceptance and speed in every --accept mode, as 0,0.3,0.7,1.0,1.3.")
]
Price = Annotated[float | None, typer.Option(help="What an hour of the machine costs: gives the cost of tokens.")]
Watts = Annotated[float | None, typer.Option(help="What the machine draws: gives tokens per joule.")]
JudgeBy = Annotated[
    str | None, typer.Option(help="Checkpoint of the target, to judge texts that differ where the engine cannot tell.")
]
Limit = Annotated[float | None, typer.Option(help="Nats between two tokens that rounding may still swap.")]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", help="JSONL of every draft of the run's texts, for `paceline simulate`.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what --out holds of an interrupted run.")]


def bench(
    ctx: typer.Context,
    target: flags.Target = "embedded", drafter: flags.Drafter = "auto", k: DraftLengthList = None,
    prompts: Annotated[Path | None, typer.Option(help="A file, or a set of `paceline prompts list`.")] = None,
    sample: Annotated[int | None, typer.Option(help="Use only so many prompts, balanced over categories.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="May be repeated; default 0 and 1.")] = None,
    top_k: flags.TopK = 64, top_p: flags.TopP = 0.95,
    repeats: Annotated[int, typer.Option(help="Runs of each pair.")] = 1,
    max_tokens: flags.MaxTokens = 256, seed: flags.Seed = 0, concurrency: Concurrency = "1",
    draft_position: flags.Position = "n",
    min_confidence: flags.Confidence = None, backend: flags.Backend = "auto",
    device: flags.Device = "auto", context: flags.Context = None, sequences: flags.Sequences = None,
    draft_weights: flags.DraftWeights = "auto",
    out: Annotated[Path, typer.Option(help="JSON file with all raw timings.")] = Path("report.json"),
    html: Annotated[Path | None, typer.Option(help="Self-contained page with plots.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Verdict and tables, for an issue or a pull request.")] = None,
    resume: Resume = False, trace: TraceFile = None,
    on: OnUrl = None, off: OffUrl = None, engine: Engine = None, engine_args: EngineArgs = "",
    engine_profile: Profile = None, model: Model = None, dry_run: DryRun = False, trust_arms: Trust = False,
    stall: Stall = 120.0, price_per_hour: Price = None, watts: Watts = None, judge: JudgeBy = None,
    limit_nats: Limit = None, temperatures: Temperatures = None, accept: Modes = None,
    shape: Shape = None, batch: Batch = None, draft_lengths: DraftLengths = "0,4", at_context: AtContext = "170",
    acceptance: Acceptance = "speed-bench", tokens: Tokens = 200, profile: Kernels = False, skew: Skew = 0.0,
) -> None:  # fmt: skip
    """Measure what drafting is worth on real prompts, or with --shape the rounds of a published size on a GPU.

    The last line of stdout is one JSON object. Exit code 1: drafting changed a text, and rounding does not explain it.
    """
    from paceline.bench.contests import dry_run_of, in_process, one_at_a_time, served, wanted_servers
    from paceline.bench.divergence import exit_code
    from paceline.bench.plan import BenchOptions
    from paceline.bench.prompts import load_prompts
    from paceline.bench.prompts import sample as choose
    from paceline.bench.run import Output, Tools, run_bench
    from paceline.bench.shape_options import from_flags
    from paceline.bench.shape_report import bench_shape
    from paceline.bench.summary import Prices

    _refuse_foreign(ctx, shape)
    if shape is not None:
        print(json.dumps(bench_shape(from_flags(ctx.params), out)))
        return
    if temperatures is not None or accept:
        print(json.dumps(_by_temperature(ctx, load_prompts(prompts))))
        return
    ks, wanted = None if k is None else draft_lengths_of(k), wanted_servers(ctx)
    if dry_run:
        print(dry_run_of(wanted, ks))
        return
    options = BenchOptions(
        repeats=repeats, max_tokens=max_tokens, seed=seed, temperatures=tuple(temperature or (0.0, 1.0)), top_k=top_k,
        top_p=top_p, concurrencies=whole_numbers("--concurrency", concurrency), alternate=one_at_a_time(wanted),
    )  # fmt: skip
    chosen = load_prompts(prompts)
    chosen = chosen if sample is None else choose(chosen, sample, seed)
    contest = served(wanted, ks) if wanted else in_process(ctx, ks, options.concurrencies)
    tracer = tracer_for(contest, trace)
    tools = Tools(
        prices=Prices(price_per_hour, watts), judge=judge_for(wanted, judge, target),
        limit_nats=limit_nats, source=str(prompts or "embedded"),
    )  # fmt: skip
    done = run_bench(contest, chosen, options, Output(out, html, resume, markdown), tools)
    if tracer:
        tracer.write(chosen, options)
    print(json.dumps(done["summary"]))
    raise typer.Exit(exit_code(done["divergences"]))


def _by_temperature(ctx: typer.Context, prompts: list[BenchPrompt]) -> dict[str, Any]:
    """`--temperatures`: every accept mode of the engine in this process."""
    from paceline.bench.prompts import sample as choose
    from paceline.bench.temperatures import bench_temperatures, settings_from_flags
    from paceline.terminal import load

    given = ctx.params
    ks = None if given["k"] is None else whole_numbers("--k", given["k"])
    if given["temperatures"] is None:
        raise UsageError(
            "--accept goes with --temperatures: bench compares texts token by token, and other modes differ"
        )
    if given["trace"]:
        raise UsageError("--trace does not go with --temperatures; leave one of them out")
    if given["temperature"]:
        raise UsageError("--temperature does not go with --temperatures; name them all in the latter")
    if ks is not None and len(ks) > 1:
        raise UsageError("--temperatures measures one draft length; give one --k")
    chosen = prompts if given["sample"] is None else choose(prompts, given["sample"], given["seed"])
    llm = load(flags.options_of(ctx), ks[0] if ks else None)
    settings = settings_from_flags({**given, "k": ks[0] if ks else None}, llm.resolved.k)
    return bench_temperatures(llm, chosen, settings, given["out"], given["html"])


def tracer_for(contest: Contest, trace: Path | None) -> Tracer | None:
    """Who records the run's texts, where a file is named. Raises UsageError for arms that cannot be traced."""
    if trace is None:
        return None
    from paceline.bench.tracing import Tracer

    return Tracer(contest, trace)


def judge_for(wanted: Wanted | None, named: str | None, target: str) -> Judge | None:
    """Who judges texts that differ: the checkpoint named, else the target of an engine in this process."""
    from paceline.bench.judge import Judge

    if named is not None:
        return Judge.from_pretrained(named)
    with suppress(PacelineError):  # nobody asked for a judge: loading the target says what is wrong with it
        return Judge.from_pretrained(target) if wanted is None else None
    return None


def draft_lengths_of(text: str) -> tuple[int | None, ...]:
    """The draft lengths of "2,4,auto"; None stands for "auto". Raises UsageError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(None if part == "auto" else whole_numbers("--k", part)[0] for part in parts)


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """The numbers of "1,4,8". Raises UsageError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} must be whole numbers with commas between, not {text!r}") from None


SHAPE_ONLY = {"batch", "draft_lengths", "at_context", "acceptance", "tokens", "profile", "skew"}
EITHER = {"shape", "out", "device", "draft_weights"}


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
