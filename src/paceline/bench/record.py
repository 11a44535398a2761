"""Where a result comes from, and the one file that holds it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from paceline.bench.measurement import Measurement
from paceline.errors import UsageError

SCHEMA = "paceline-bench/2"
PACKAGES = ("paceline", "torch", "triton", "numba", "numpy")


def provenance() -> dict[str, Any]:
    """Command, versions, machine and time of this process; null for what this system does not tell."""
    return {
        "command": list(sys.argv),
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": git_commit(),
        "machine": machine(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, and whether files differ from it; None when installed."""
    here = Path(__file__)
    # An installed copy may lie inside some other project's checkout: its commit would be a false witness.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(here.parent, "rev-parse", "HEAD"), "changed": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def machine() -> dict[str, Any]:
    """CPU, memory (bytes), threads and accelerator. Libraries are asked only if they are loaded already."""
    return {
        "system": platform.platform(),
        "cpu": _proc_field("/proc/cpuinfo", "model name") or platform.processor() or None,
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {"torch": _ask("torch", "get_num_threads"), "numba": _ask("numba", "get_num_threads")},
        "memory_bytes": _memory_bytes(),
        "gpu": _gpu(),
    }


def _ask(module: str, function: str) -> int | None:
    loaded = sys.modules.get(module)
    return int(getattr(loaded, function)()) if loaded is not None else None


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_available() else None


def _proc_field(path: str, name: str) -> str | None:
    with suppress(OSError):
        for line in Path(path).read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


def _memory_bytes() -> int | None:
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def load_average() -> list[float] | None:
    """Mean number of runnable processes over 1, 5 and 15 minutes, this one included; None where unknown."""
    with suppress(OSError, AttributeError):
        return [round(value, 2) for value in os.getloadavg()]
    return None


def rows_as_data(rows: list[Measurement]) -> list[dict[str, Any]]:
    """The raw rows as JSON data."""
    return [asdict(row) for row in rows]


def rows_from_data(data: list[dict[str, Any]]) -> list[Measurement]:
    """The raw rows of a record again; keys of later versions are left out, what earlier ones lacked is unknown."""
    names = [field.name for field in fields(Measurement)]
    return [Measurement(**{name: row[name] for name in names if name in row}) for row in data]


def check_writable(path: Path) -> None:
    """Raises UsageError now for a path that could not be written after an hour of measuring."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    try:
        with _temporary(path) as temporary:
            temporary.write_text("")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; name a file you may write") from None


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all. Raises UsageError when it cannot be written."""
    try:
        with _temporary(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def portable(value: Any) -> Any:
    """JSON data with the folders of this machine replaced by what they are: a record may be published."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, str):
        for place, meaning in _places():
            value = value.replace(place, meaning)
    return value


def _places() -> list[tuple[str, str]]:
    """Folders and what to call them, the longest first, since one may lie inside another."""
    places = {
        str(Path.home()): "~",
        tempfile.gettempdir(): "<tmp>",
        str(Path.cwd()): ".",
        sys.prefix: "<venv>",
        str(Path(__file__).parent.parent): "<paceline>",
    }
    return sorted(((place, places[place]) for place in places if len(place) > 1), key=lambda p: -len(p[0]))


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes the record as JSON, without this machine's folders; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(portable(record), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")
