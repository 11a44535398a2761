"""`paceline prompts ...`: which prompts to measure on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from paceline.bench.prompts.describe import Description, Lengths, describe, text_of, token_counter
from paceline.bench.prompts.fetch import cache_path, fetch, named
from paceline.bench.prompts.load import read
from paceline.bench.prompts.prompt import BenchPrompt
from paceline.bench.prompts.prompt import sample as choose
from paceline.bench.prompts.redact import CAUTION, Redactor, read_words, redact_all, summary
from paceline.bench.prompts.rows import Options, Reading
from paceline.bench.prompts.sets import SETS, PromptSet
from paceline.bench.prompts.strict import write_prompts
from paceline.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="List, describe, sample, redact and fetch prompts to measure on.")

Spec = Annotated[str, typer.Argument(help="A set, as mt-bench or mt-bench:coding, or a file: JSONL, JSON, CSV.")]
Column = Annotated[str | None, typer.Option(help="The column or key of a file that holds the prompt.")]
Turns = Annotated[str, typer.Option(help="Of recorded chats: the first, last or all turns of the user.")]
Redact = Annotated[bool, typer.Option("--redact", help="Take out addresses, numbers and secrets.")]
Words = Annotated[Path | None, typer.Option(help="Also take out the names in this file, one on each line.")]
Counted = Annotated[str, typer.Option(help="Whose tokens to count: a checkpoint's folder, tokenizer.json, or none.")]
Given = Annotated[Path | None, typer.Option("--from", help="A copy of the set's file, instead of the network.")]
AsJson = Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")]
SHOWN = 300  # characters of a sample


@app.command("list")
def list_sets(as_json: AsJson = False) -> None:
    """Name the sets: how many prompts, whose, under which licence, shipped or to be fetched."""
    table = Table("set", "prompts", "what", "source", "licence", "where")
    for prompt_set in SETS.values():
        where = _where(prompt_set)
        table.add_row(
            prompt_set.name, str(prompt_set.prompts), prompt_set.about, prompt_set.source, prompt_set.licence, where
        )
    Console(stderr=as_json).print(table)
    if as_json:
        print(json.dumps({s.name: {"prompts": s.prompts, "source": s.source, "licence": s.licence, "where": _where(s)}
                          for s in SETS.values()}))  # fmt: skip


def _where(prompt_set: PromptSet) -> str:
    if prompt_set.file:
        return "shipped"
    return "fetched" if cache_path(prompt_set).exists() else "to be fetched"


@app.command("show")
def show(
    spec: Spec, n: Annotated[int, typer.Option(help="So many samples; 0 for none.")] = 5, column: Column = None,
    turns: Turns = "last", seed: Annotated[int, typer.Option(help="Chooses the samples.")] = 0,
    tokenizer: Counted = "embedded",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Describe a set or a file: categories, lengths, scripts, what was left out, and some samples."""
    if n < 0:
        raise UsageError(f"--n must be 0 or more, not {n}")
    reading = read(spec, Options(column, turns))
    count = None if tokenizer == "none" else token_counter(_tokenizer(tokenizer))
    found = describe(reading.prompts, count)
    console = Console(stderr=as_json)
    _print_reading(reading, console)
    _print_description(found, console, tokenizer)
    _print_samples(choose(reading.prompts, min(n, len(reading.prompts)), seed) if n else [], console)
    if as_json:
        print(json.dumps({"kind": reading.kind, "notes": reading.notes, **found.record()}))


def _tokenizer(name: str) -> Path:
    from paceline.hub import EMBEDDED, EMBEDDED_PAIR

    return EMBEDDED_PAIR / "target" if name == EMBEDDED else Path(name).expanduser()


def _print_reading(reading: Reading, console: Console) -> None:
    console.print(f"read from {reading.kind}: {len(reading.prompts)} prompts", markup=False, highlight=False)
    for note in reading.notes:
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)


def _print_description(found: Description, console: Console, tokenizer: str) -> None:
    table = Table("", "least", "median", "90%", "greatest", "all")
    for name, lengths in (("characters", found.characters), (f"tokens ({tokenizer})", found.tokens)):
        if isinstance(lengths, Lengths):
            numbers = (lengths.least, lengths.median, lengths.p90, lengths.greatest, lengths.total)
            table.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(table)
    for name, counts in (("categories", found.categories), ("scripts", found.scripts)):
        console.print(f"{name}: {_counts(counts)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"with earlier answers: {found.with_history}; beginning as another does: {found.shared_beginning}"
                  + (" (a prefix cache would serve them: turn it off, or say so)" if found.shared_beginning else ""),
                  markup=False, highlight=False, soft_wrap=True)  # fmt: skip


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:12]]
    return ", ".join(shown) + (f" and {len(counts) - 12} more" if len(counts) > 12 else "")


def _print_samples(prompts: Iterable[BenchPrompt], console: Console) -> None:
    for prompt in prompts:
        text = text_of(prompt)
        short = text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
        console.print(f"\n{prompt.id} ({prompt.category})", style="bold", markup=False, highlight=False)
        console.print(short, markup=False, highlight=False, soft_wrap=True)


@app.command("sample")
def sample(
    spec: Spec, out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    n: Annotated[int | None, typer.Option(help="So many, balanced over categories; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses them.")] = 0, column: Column = None, turns: Turns = "last",
    redact: Redact = False, redact_words: Words = None,
) -> None:  # fmt: skip
    """Write some prompts, or all, as a file for `paceline bench --prompts`."""
    reading = read(spec, Options(column, turns))
    chosen = reading.prompts if n is None else choose(reading.prompts, n, seed)
    _write(chosen, out, spec, _redactor(redact or redact_words is not None, redact_words))
    _print_reading(reading, Console(stderr=True))


@app.command("redact")
def redact(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file of prompts, or a set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="JSONL file to write.")],
    redact_words: Words = None, column: Column = None, turns: Turns = "last",
) -> None:  # fmt: skip
    """Write prompts without addresses, numbers, secrets and given names."""
    redactor = _redactor(True, redact_words)
    reading = read(source, Options(column, turns))
    _write(reading.prompts, out, "redacted", redactor)
    _print_reading(reading, Console(stderr=True))


def _redactor(wanted: bool, words: Path | None) -> Redactor | None:
    return Redactor(read_words(words) if words else None) if wanted else None


def _write(prompts: list[BenchPrompt], out: Path, source: str, redactor: Redactor | None) -> None:
    console = Console(stderr=True)
    if redactor is not None:
        prompts = redact_all(prompts, redactor)
    # A path may hold a name, so a redacted file says nothing of where it came from.
    write_prompts(prompts, out, "redacted" if redactor else source)
    if redactor is not None:
        console.print(f"{summary(redactor)}\n{CAUTION}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(prompts)} prompts in {out}", markup=False, highlight=False, soft_wrap=True)


@app.command("fetch")
def fetch_set(
    name: Annotated[str, typer.Argument(help="A set that `paceline prompts list` shows as to be fetched.")],
    given: Given = None,
) -> None:  # fmt: skip
    """Get a set that does not ship because of its licence, and keep it in the user's cache."""
    prompt_set = named(name)
    console = Console(stderr=True)
    if prompt_set.recipe is not None:
        where = given or prompt_set.recipe.url
        console.print(
            f"{name}: {prompt_set.source}, licence {prompt_set.licence}\nfrom {where}", markup=False, soft_wrap=True
        )
    path = fetch(prompt_set, given)
    console.print(f"{prompt_set.prompts} prompts in {path}", markup=False, highlight=False, soft_wrap=True)
