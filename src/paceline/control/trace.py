"""Traces: what every draft of a run's rounds came to, so that any policy can be replayed on them without a model.

JSONL. The first line may be a header, {"schema": "paceline-trace/1", "synthetic": false, "source": "...", "step_ms": 0}
with the time of a draft step whose guess is dropped. Every other line is one round, always drafted to the full depth:

    {"request": "q7", "category": "chat", "temperature": 0.0, "drafted": 4, "accepted": 2, "context": 512, "batch": 1,
     "margins": [3.1, 2.0, 0.4, 1.9], "confidences": [0.9, 0.8, 0.4, 0.7], "position": 96, "round_ms": {"0": 2.6}}

`margins`, `confidences`, `position`, `round_ms` (times by k, where known) and `law` (true acceptance by position, made
up traces only) may be left out. With one line for every token of a request (`position` rises by one), a replay moves
on by what a policy emits, and every policy writes the same text. Without, each line is one round of every policy,
which favours no k on a uniform text but counts hard places too little for long drafts on a changing one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from paceline.control.cost import K_MOST, Timing
from paceline.errors import UsageError

SCHEMA = "paceline-trace/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One round drafted to full depth: `accepted` of `drafted` were kept; see the module for the rest."""

    request: str
    drafted: int
    accepted: int
    category: str = ""
    temperature: float = 0.0
    context: int = 0
    batch: int = 1
    margins: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    position: int | None = None
    round_ms: dict[int, float] = field(default_factory=dict)
    law: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Rows by request in the order the requests began; `synthetic` ones are made up, and say so wherever they show.

    step_ms: a draft step whose guess is dropped; 0 where it is not known.
    """

    rows: list[Row]
    synthetic: bool = False
    source: str = ""
    step_ms: float = 0.0

    @property
    def k_max(self) -> int:
        """The deepest draft."""
        return max(row.drafted for row in self.rows)

    def requests(self) -> list[list[Row]]:
        """Rows of each request."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.request, []).append(row)
        return list(found.values())

    @property
    def every_position(self) -> bool:
        """Whether each request has a row for each of its tokens, so that a replay can move on by what is emitted."""
        return all(
            row.position is not None and row.position == (rows[0].position or 0) + i
            for rows in self.requests()
            for i, row in enumerate(rows)
        )

    def timings(self) -> list[Timing]:
        """The round times that the rows hold, contexts rounded down to powers of two, averaged by kind."""
        found: dict[tuple[int, int, int], list[float]] = {}
        for row in self.rows:
            bucket = 1 << row.context.bit_length() - 1 if row.context else 0
            for k, ms in row.round_ms.items():
                found.setdefault((row.batch, k, bucket), []).append(ms)
        return [Timing(b, k, c, sorted(times)[len(times) // 2]) for (b, k, c), times in found.items()]


def write_trace(path: Path, trace: Trace) -> None:
    """Writes a trace; UsageError where the file cannot be written."""
    header = {"schema": SCHEMA, "synthetic": trace.synthetic, "source": trace.source,
              "step_ms": round(trace.step_ms, 4)}  # fmt: skip
    lines = [header, *({key: value for key, value in asdict(row).items() if key in NEEDED or value != DEFAULTS[key]}
                       for row in trace.rows)]  # fmt: skip
    try:
        path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def read_trace(path: Path) -> Trace:
    """A trace from JSONL. Raises UsageError, one sentence with the line at fault."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file; give a trace in JSONL") from None
    return parse(lines, str(path))


def parse(lines: Iterable[str], where: str) -> Trace:
    """As `read_trace`, from lines; `where` names them in errors."""
    header: dict[str, Any] = {}
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        data = _object(line, f"{where}, line {number}")
        if "schema" in data and not rows and not header:
            header = data
            if data["schema"] != SCHEMA:
                raise UsageError(f"{where}, line {number}: schema must be {SCHEMA!r}, not {data['schema']!r}")
        else:
            rows.append(_row(data, f"{where}, line {number}"))
    if not rows:
        raise UsageError(f"{where} holds no rounds; give a trace with one round a line")
    step_ms = header.get("step_ms", 0.0)
    if not _number(step_ms):
        raise UsageError(f"{where}: step_ms of the header must be a number from 0 up, not {json.dumps(step_ms)[:60]}")
    return Trace(rows, header.get("synthetic") is True, str(header.get("source", "")), float(step_ms))


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        raise UsageError(f"{where} is not JSON; a trace holds one object a line") from None
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected an object, not {line.strip()[:40]}")
    return data


NAMES = {f.name for f in fields(Row)}
NEEDED = ("request", "drafted", "accepted")
DEFAULTS = asdict(Row(request="", drafted=1, accepted=0))  # not written: a trace has thousands of rows


def _row(data: dict[str, Any], where: str) -> Row:
    missing = [name for name in NEEDED if name not in data]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing; a round has {', '.join(NEEDED)}")
    for name, (good, rule) in CHECKS.items():
        if name in data and not good(data[name]):
            raise UsageError(f"{where}: {name} must be {rule}, not {json.dumps(data[name])[:60]}")
    if data["accepted"] > data["drafted"]:
        raise UsageError(f"{where}: accepted {data['accepted']} of {data['drafted']} drafts; at most all can be")
    for name in LISTS:
        if data.get(name) and len(data[name]) != data["drafted"]:
            raise UsageError(
                f"{where}: {name} has {len(data[name])} numbers for {data['drafted']} drafts; give one for each"
            )
    kept = {name: value for name, value in data.items() if name in NAMES}
    kept |= {name: tuple(data[name]) for name in LISTS if name in data}
    if "round_ms" in data:
        kept["round_ms"] = {int(k): float(ms) for k, ms in data["round_ms"].items()}
    return Row(**kept)


Check = tuple[Callable[[Any], bool], str]
LISTS = ("margins", "confidences", "law")


def _whole(low: int, high: int) -> Check:
    return lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"


def _number(value: Any, low: float = 0.0, high: float = math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def _numbers(low: float, high: float, rule: str) -> Check:
    return lambda v: isinstance(v, list) and all(_number(x, low, high) for x in v), rule


def _good_times(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(k.isdecimal() and int(k) <= K_MOST and _number(ms) and ms > 0 for k, ms in value.items())


CHECKS: dict[str, Check] = {
    "request": (lambda v: isinstance(v, str), "a string"),
    "category": (lambda v: isinstance(v, str), "a string"),
    "drafted": _whole(1, K_MOST),
    "accepted": _whole(0, K_MOST),
    "temperature": (_number, "a number from 0 up"),
    "context": _whole(0, 1 << 24),
    "batch": _whole(1, 1 << 16),
    "margins": _numbers(0.0, math.inf, "a list of numbers from 0 up"),
    "confidences": _numbers(0.0, 1.0, "a list of numbers in [0, 1]"),
    "law": _numbers(0.0, 1.0, "a list of numbers in [0, 1]"),
    "position": _whole(0, 1 << 24),
    "round_ms": (_good_times, f"an object of milliseconds by k from 0 to {K_MOST}"),
}
