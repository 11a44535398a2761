"""Command line flags that several commands share, and the options that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.errors import UsageError
from paceline.types import SamplingParams

if TYPE_CHECKING:
    from paceline.resolve import Options

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
Sampling = Annotated[str, typer.Option(help='"model" takes what generation_config.json advises and no flag names.')]
Accept = Annotated[
    str, typer.Option(help='"coupled": equal seeds, equal texts. "rejection", "block": equal in law, more drafts kept.')
]
Schema = Annotated[Path | None, typer.Option("--json-schema", help="File: the text is JSON that fits this schema.")]
Regex = Annotated[str | None, typer.Option(help="The text matches this regular expression.")]
Grammar = Annotated[Path | None, typer.Option(help="File: the text is a sentence of this Lark grammar.")]
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
DraftWeights = Annotated[
    str, typer.Option(help='"stored", "int8" (halves what the drafter reads), "int8-head" (its LM head only); GPU.')
]


def options_of(ctx: typer.Context) -> Options:
    """The flags that `resolve` settles, which commands name as Options does."""
    from paceline.resolve import Options

    given = {field.name: ctx.params[field.name] for field in fields(Options) if field.name in ctx.params}
    return Options(**given | {"drafter": None if given["drafter"] == "none" else given["drafter"]})


def params_of(ctx: typer.Context) -> SamplingParams:
    """The flags that decide the text, which commands name as SamplingParams does."""
    from paceline.structure import check_structure

    if ctx.params["sampling"] not in ("flags", "model"):
        raise UsageError(f"--sampling is 'flags' or 'model', not {ctx.params['sampling']!r}")
    given = {field.name: ctx.params[field.name] for field in fields(SamplingParams) if field.name in ctx.params}
    texts = {name: _read(name, given[name]) for name in ("json_schema", "grammar") if given[name] is not None}
    params = SamplingParams(**given | texts | {"stop": tuple(given["stop"] or ())})
    check_structure(params)
    return params


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{name}: cannot read {path}: {reason}") from None


def advised(ctx: typer.Context, params: SamplingParams, advice: Mapping[str, Any]) -> SamplingParams:
    """With --sampling model, what the checkpoint advises in place of flags that were not given."""
    if ctx.params["sampling"] == "flags":
        return params
    if not advice:
        raise UsageError("generation_config.json of this checkpoint advises no sampling; leave --sampling out")
    sources = {name: ctx.get_parameter_source(name) for name in advice}
    return replace(params, **{n: v for n, v in advice.items() if (s := sources[n]) is None or s.name == "DEFAULT"})
