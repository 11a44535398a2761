"""Cost tables that were measured, kept in the user's cache folder: one file a machine, model, drafter and backend.

A file of another version of Paceline or of its libraries, or one that cannot be read, counts as not there for whoever
measures it anew; whoever only looks what is kept (`entries`) is told of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from paceline.control.cost import CostTable, Timing, parse_table
from paceline.errors import UsageError

SCHEMA = "paceline-costs/1"
PACKAGES = ("paceline", "torch", "numba")


@dataclass(frozen=True, slots=True)
class Stored:
    """A table and where it comes from, in words; None where there is none, and then why."""

    table: CostTable | None
    origin: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a table holds for: the machine's processor, its threads, the checkpoints, and who computes."""

    machine: str
    threads: int
    target: str
    drafter: str
    backend: str

    @property
    def path(self) -> Path:
        """The file of its table."""
        name = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]
        return folder() / "costs" / f"{name}.json"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a target is to those who do not have it: its published size, None for another, and bytes of a weight."""

    size: str | None = None
    weight_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table that is kept. versions: those it was measured with; date: its day, UTC."""

    path: Path
    subject: Subject
    model: Model
    versions: dict[str, Any]
    date: str
    table: CostTable


def folder() -> Path:
    """The cache folder: $PACELINE_CACHE, else paceline in $XDG_CACHE_HOME, else ~/.cache/paceline."""
    if own := os.environ.get("PACELINE_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    # The specification says that a relative path is to be ignored.
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "paceline"


def subject(target: Path, drafter: Path | str | None, backend: str, threads: int) -> Subject:
    """What a table of this pair on this machine holds for."""
    own = f"{drafter}" if drafter is None or isinstance(drafter, str) else fingerprint(drafter)
    return Subject(machine=machine(), threads=threads, target=fingerprint(target), drafter=own,
                   backend=backend)  # fmt: skip


def machine() -> str:
    """This machine, as tables name it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} cores"


def processor() -> str:
    """The name of the CPU, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fingerprint(checkpoint: Path) -> str:
    """Changes with a checkpoint's config and with names and sizes of its weight files; reads no weights."""
    made = hashlib.sha256((checkpoint / "config.json").read_bytes())
    for file in sorted(checkpoint.glob("*.safetensors")):
        made.update(f"{file.name} {file.stat().st_size}\n".encode())
    return made.hexdigest()[:16]


def versions() -> dict[str, str | None]:
    """What else a table depends on: a new release may be faster."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def load(of: Subject) -> Stored:
    """The table of a subject, or why there is none. Never raises for what the file holds."""
    try:
        data = json.loads(of.path.read_text("utf-8"))
    except FileNotFoundError:
        return Stored(None, "not measured on this machine before")
    except (OSError, ValueError):
        return Stored(None, f"unreadable: {of.path}")
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("subject") != asdict(of):
        return Stored(None, f"about another pair: {of.path}")
    if data.get("versions") != versions():
        return Stored(None, f"measured with other versions: {of.path}")
    try:
        return Stored(parse_table(data, str(of.path)), f"measured on this machine on {str(data.get('date_utc'))[:10]}")
    except UsageError as error:
        return Stored(None, f"unusable: {error}")


def entries() -> list[Entry]:
    """Every table that is kept, the newest first. Raises UsageError for a file that is none."""
    found = [_entry(path) for path in sorted((folder() / "costs").glob("*.json"))]
    return sorted(found, key=lambda entry: entry.date, reverse=True)


def _entry(path: Path) -> Entry:
    try:
        data = json.loads(path.read_text("utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError("another schema")
        return Entry(
            path=path, subject=Subject(**data["subject"]), model=Model(**data.get("model", {})),
            versions=dict(data["versions"]), date=str(data["date_utc"])[:10], table=parse_table(data, str(path)),
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, UsageError):
        raise UsageError(f"{path} holds no round times; delete it, `paceline calibrate` measures them anew") from None


def save(of: Subject, timings: list[Timing], step_ms: float, model: Model | None = None) -> str:
    """Keeps a table; returns where, or why it could not be kept: a full or read-only disk must not stop a run."""
    rows = [{name: value for name, value in asdict(t).items() if value is not None} for t in timings]
    data: dict[str, Any] = {
        "schema": SCHEMA, "subject": asdict(of), "model": asdict(model or Model()), "versions": versions(),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"), "step_ms": step_ms, "rows": rows,
    }  # fmt: skip
    try:
        of.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=of.path.parent, delete=False, encoding="utf-8") as made:
            made.write(json.dumps(data, indent=1) + "\n")
        Path(made.name).replace(of.path)  # whole or not at all, whoever else writes it
    except OSError as error:
        return f"not kept: {error.strerror or error}"
    return f"kept in {of.path}"
