"""How engines are started, as data: `assets/engines.toml`, and what a file of the user's own changes in it."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from paceline.bench.adapters.dialect import Dialect
from paceline.bench.adapters.engines import named
from paceline.errors import UsageError

PLACE = re.compile(r"\{(target|drafter|k|block|port|options)\}")
LISTS = ("command", "on", "off")


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine's table; `assets/engines.toml` says what the keys mean."""

    name: str
    dialect: str
    command: tuple[str, ...]
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"
    wait_s: float = 900.0
    options_on: str = ""
    options_off: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: a profile with these checkpoints, and arguments of the user's own for both arms.

    k: the draft length, 0 for the server that does not draft.
    """

    profile: Profile
    target: str
    drafter: str | None
    k: int
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.k and not self.drafter and any("{drafter}" in part for part in self.parts):
            raise UsageError(f"--engine {self.profile.name} needs --drafter: the checkpoint that drafts")

    @property
    def parts(self) -> tuple[str, ...]:
        """The command line before anything is filled in."""
        profile = self.profile
        return (*profile.command, *(profile.on if self.k else profile.off), *self.extra)

    @property
    def options(self) -> str:
        """What its options file holds, before anything is filled in; "" for none."""
        return self.profile.options_on if self.k else self.profile.options_off

    @property
    def dialect(self) -> Dialect:
        """How the server is talked to."""
        return named(self.profile.dialect)

    def fill(self, text: str, port: int, options: str = "options.yaml") -> str:
        """A text with its places filled in."""
        values = {
            "target": self.target, "drafter": self.drafter or "", "k": str(self.k), "block": str(self.k + 1),
            "port": str(port), "options": options,
        }  # fmt: skip
        return PLACE.sub(lambda place: values[place[1]], text)

    def arguments(self, port: int, options: str = "options.yaml") -> list[str]:
        """The command line."""
        return [self.fill(part, port, options) for part in self.parts]

    def environment(self, port: int) -> dict[str, str]:
        """What the profile sets beside this process's own environment."""
        return {name: self.fill(value, port) for name, value in self.profile.env.items()}

    def shown(self, port: int) -> str:
        """The command as a shell would take it, for --dry-run."""
        env = [f"{name}={shlex.quote(value)}" for name, value in self.environment(port).items()]
        line = " ".join([*env, shlex.join(self.arguments(port))])
        return f"{line}\n# options.yaml: {self.fill(self.options, port).strip()!r}" if self.options else line


def load_profile(name: str, own: Path | None = None) -> Profile:
    """The profile of an engine, with what the user's own file changes. Raises UsageError."""
    tables = parse(files("paceline").joinpath("assets/engines.toml").read_text("utf-8"), "engines.toml")
    if own is not None:
        for engine, table in parse(_read(own), str(own)).items():
            tables[engine] = {**tables.get(engine, {}), **table}
    if name not in tables:
        hint = "; start it yourself and name it with --on and --off" if name in ("lmstudio", "openai") else ""
        raise UsageError(f"no profile for the engine {name!r}{hint}; there are: {', '.join(tables)}")
    return _profile(name, tables[name])


def parse(text: str, where: str) -> dict[str, dict[str, Any]]:
    """The tables of a profile file. Raises UsageError that names the file and the key at fault."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is no TOML: {error}") from None
    known = {f.name for f in fields(Profile)} - {"name"}
    for engine, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{where}: {engine} must be a table, as [{engine}]")
        if unknown := sorted(table.keys() - known):
            raise UsageError(f"{where}: [{engine}] has no key {unknown[0]!r}; keys: {', '.join(sorted(known))}")
        for key, value in table.items():
            _check_kind(key, value, f"{where}: [{engine}]")
    return tables


def _check_kind(key: str, value: Any, where: str) -> None:
    if key in LISTS:
        good, kind = isinstance(value, list) and all(isinstance(part, str) for part in value), "a list of strings"
    elif key == "env":
        good = isinstance(value, dict) and all(isinstance(part, str) for part in value.values())
        kind = "a table of strings"
    elif key == "wait_s":
        good, kind = isinstance(value, int | float) and value > 0, "a number of seconds"
    else:
        good, kind = isinstance(value, str), "a string"
    if not good:
        raise UsageError(f"{where} {key} must be {kind}, not {value!r}")


def _profile(name: str, table: dict[str, Any]) -> Profile:
    for key in ("dialect", "command"):
        if not table.get(key):
            raise UsageError(f"the profile [{name}] has no {key}; add it")
    named(table["dialect"])
    given: dict[str, Any] = {key: tuple(value) if key in LISTS else value for key, value in table.items()}
    return Profile(name=name, **given)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is not UTF-8"
        raise UsageError(f"cannot read the profile {path}: {reason}") from None
