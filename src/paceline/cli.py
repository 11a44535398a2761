"""The command line: each command is a thin, lazily imported call."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from paceline.errors import PacelineError
from paceline.train.cli import app as train_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(train_app, name="train")


def main() -> None:
    """Runs a command; input errors become one sentence on stderr and exit code 2."""
    try:
        app()
    except PacelineError as error:
        Console(stderr=True).print(f"paceline: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
