"""`paceline train ...`: the commands that made the embedded pair, and make others like it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, a miniature target, or an MTP drafter for it.")

Out = Annotated[Path, typer.Option(help="Folder to write.")]
Corpus = Annotated[Path, typer.Option(help="Folder made by `paceline train corpus`.")]
Tokenizer = Annotated[Path, typer.Option(help="Folder made by `paceline train tokenizer`.")]
Sources = Annotated[list[Path], typer.Argument(help="JSONL files (also .xz) with `messages` or `text`, and `license`.")]
Minutes = Annotated[float, typer.Option(help="How long to train; the learning rate follows this clock.")]
Batch = Annotated[int, typer.Option(help="Sequences per step.")]
Length = Annotated[int, typer.Option(help="Tokens per sequence.")]
Rate = Annotated[float, typer.Option("--lr", help="Highest learning rate.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Seed = Annotated[int, typer.Option(help="Chooses initial weights and the order of the data.")]


@app.command("tokenizer")
def tokenizer(
    sources: Sources, out: Out, vocab: Annotated[int, typer.Option(help="Pieces, special ones included.")] = 4096
) -> None:
    """Train a small tokenizer in Gemma 4's layout on a balanced sample of text files."""
    from paceline.train.documents import balanced_sample
    from paceline.train.tokenizer import save, train_tokenizer

    save(train_tokenizer(balanced_sample(sources), vocab), out)


@app.command("corpus")
def corpus(sources: Sources, tokenizer: Tokenizer, out: Out) -> None:
    """Clean and encode text files into a corpus folder."""
    from paceline.train.data import encode_corpus

    encode_corpus(sources, tokenizer, out)


@app.command("target")
def target(
    corpus: Corpus, tokenizer: Tokenizer, out: Out, minutes: Minutes = 8.0, batch: Batch = 64, length: Length = 512,
    lr: Rate = 4e-3, device: Device = "cpu", seed: Seed = 0,
) -> None:  # fmt: skip
    """Train a miniature Gemma 4 (E2B's features, 6.8 M parameters) on a corpus."""
    from paceline.train.loop import Recipe
    from paceline.train.target import train_target

    recipe = Recipe(minutes=minutes, batch=batch, length=length, lr=lr, device=device, seed=seed)
    train_target(corpus, tokenizer, out, recipe)


@app.command("continuations")
def continuations(
    target: Annotated[Path, typer.Option(help="Checkpoint folder of the target.")], corpus: Corpus, out: Out,
    minutes: Minutes = 1.0, batch: Batch = 64, length: Length = 384, device: Device = "cpu", seed: Seed = 0,
    only: Annotated[str | None, typer.Option(help="Continue prompts of this category alone.")] = None,
) -> None:  # fmt: skip
    """Let a target continue prompts from a corpus: the text its drafter should learn on."""
    from paceline.train.continuations import write_continuations
    from paceline.train.loop import Recipe

    recipe = Recipe(minutes=minutes, batch=batch, length=length, device=device, seed=seed)
    write_continuations(target, corpus, out, recipe, only)


@app.command("drafter")
def drafter(
    target: Annotated[Path, typer.Option(help="Checkpoint folder of the target.")], corpus: Corpus, out: Out,
    minutes: Minutes = 8.0, batch: Batch = 32, length: Length = 512, lr: Rate = 3e-3, device: Device = "cpu",
    seed: Seed = 0, start: Annotated[Path | None, typer.Option(help="A drafter to go on from.")] = None,
) -> None:  # fmt: skip
    """Distil an MTP drafter (4 layers, centroid head) from a target."""
    from paceline.train.drafter import train_drafter
    from paceline.train.loop import Recipe

    recipe = Recipe(minutes=minutes, batch=batch, length=length, lr=lr, device=device, seed=seed)
    train_drafter(target, corpus, out, recipe, start)
