"""Command line flags that several commands share, and the options that they make."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.types import SamplingParams

if TYPE_CHECKING:
    from paceline.resolve import Options

Target = Annotated[str, typer.Option(help='Checkpoint folder, hub name, or "embedded" (a miniature that ships).')]
Drafter = Annotated[str, typer.Option(help='"auto" finds the -assistant checkpoint; "none", "ngram", or a checkpoint.')]
DraftLength = Annotated[int | None, typer.Option("--k", help="Draft length, 0 to 15; 0 decodes plainly.")]
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


def options_of(ctx: typer.Context) -> Options:
    """The flags that `resolve` settles, which commands name as Options does."""
    from paceline.resolve import Options

    given = {field.name: ctx.params[field.name] for field in fields(Options) if field.name in ctx.params}
    return Options(**given | {"drafter": None if given["drafter"] == "none" else given["drafter"]})


def params_of(ctx: typer.Context) -> SamplingParams:
    """The flags that decide the text, which commands name as SamplingParams does."""
    given = {field.name: ctx.params[field.name] for field in fields(SamplingParams) if field.name in ctx.params}
    return SamplingParams(**given | {"stop": tuple(given["stop"] or ())})
