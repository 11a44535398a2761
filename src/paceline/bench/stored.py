"""Records as they were written, by this version and by earlier ones, in one shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline.bench.measurement import ON
from paceline.bench.record import SCHEMA, rows_from_data
from paceline.bench.wording import name
from paceline.errors import UsageError

FIRST_SCHEMA = "paceline-bench/1"
BLOCK: dict[str, Any] = {
    "speedup": None, "speedup_ci95": None, "equal_outputs": None, "acceptance_length": None, "prompts": 0, "pairs": 0,
}  # fmt: skip
UNKNOWN_PAIR = {"off": None, "on": None}
UNKNOWN_SPREAD = {"median": None, "p90": None}
SUMMARY: dict[str, Any] = {
    **BLOCK, "timed_pairs": 0, "temperature": None, "concurrency": 1, "k": None, "ks": [], "k_chosen_here": False,
    "acceptance_by_position": [], "survival_by_position": [], "off_vs_off": None, "off_vs_off_ci95": None,
    "off_vs_off_equal_outputs": None, "on_vs_on_equal_outputs": None, "ended_naturally": None, "over_long": 0,
    "tokens_per_s": UNKNOWN_PAIR, "ttft_s": {"off": UNKNOWN_SPREAD, "on": UNKNOWN_SPREAD},
    "tpot_s": {"off": UNKNOWN_SPREAD, "on": UNKNOWN_SPREAD}, "by_category": {}, "by_temperature": {}, "by_k": {},
    "by_concurrency": {}, "grid": [], "advice": {}, "drift": {}, "counting": None, "cost_per_million_tokens": None,
    "tokens_per_joule": None,
}  # fmt: skip
DIVERGENCES: dict[str, Any] = {
    "compared": 0, "differ": 0, "near_ties": 0, "defects": 0, "unexplained": 0, "limit_nats": None, "found": [],
    "blamed": 0, "not_compared": {}, "noise": [],
}  # fmt: skip
ORIGIN: dict[str, Any] = {
    "command": [], "date_utc": "", "python": "", "versions": {}, "git": None, "machine": {}, "load_before": None,
    "load_after": None,
}  # fmt: skip
PARTS: dict[str, Any] = {
    "complete": False, "failure": None, "labels": [], "arms": [], "failures": [], "steps": [], "health": [],
    "prices": {}, "measurements": [], "plan": {}, "provenance": {}, "divergences": {}, "summary": {},
}  # fmt: skip
PLAN: dict[str, Any] = {"options": {}, "ks": [], "prompts": {}}
EMBEDDED = "embedded miniature"


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file. Raises UsageError, naming the file, for one that `paceline bench` did not write."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; name a record of paceline bench") from None
    except ValueError:
        raise UsageError(f"{path} is not JSON; name the file that paceline bench wrote with --out") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in (SCHEMA, FIRST_SCHEMA):
        raise UsageError(f"{path} has the schema {schema!r}, which is not a run of paceline bench; leave it out")
    try:
        record = tidy(data)
        rows_from_data(record["measurements"])
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({error}); measure again, or name another file") from None
    return record


def tidy(record: dict[str, Any]) -> dict[str, Any]:
    """The record in this version's shape: what earlier ones put elsewhere is moved, what is missing is unknown.

    Raises ValueError where a part is not of its kind.
    """
    if record.get("schema") == FIRST_SCHEMA:
        record = _from_first(record)
    record = _over(PARTS, record)
    summary = _over(SUMMARY, record["summary"])
    for group in ("by_category", "by_temperature", "by_k", "by_concurrency"):
        summary[group] = {key: _over(BLOCK, block) for key, block in summary[group].items()}
    return record | {
        "summary": summary,
        "plan": _over(PLAN, record["plan"]),
        "provenance": _over(ORIGIN, record["provenance"]),
        "divergences": _over(DIVERGENCES, record["divergences"]),
    }


def labels_of(record: dict[str, Any]) -> list[str]:
    """What is special about where the numbers come from; stands wherever they do."""
    text = json.dumps(record["arms"])
    found = [EMBEDDED] if "asked for as 'embedded'" in text or "assets/pair/target" in text else []
    return list(dict.fromkeys([*found, *map(name, record["labels"])]))


def _over(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The defaults, and over them what is given and known; parts must be objects or lists where the defaults are."""
    known = {key: value for key, value in given.items() if value is not None}
    for key, value in known.items():
        kind = type(defaults.get(key))
        if kind in (dict, list) and not isinstance(value, kind):
            raise ValueError(f"{key} is not {'an object' if kind is dict else 'a list'}")
    return {**defaults, **known}


def _from_first(record: dict[str, Any]) -> dict[str, Any]:
    """A record of the first version: one engine, one draft length, one text at a time."""
    options, engine = record.get("options", {}), record.get("engine", {})
    k = options.get("k", record.get("summary", {}).get("k"))
    rows = [{"k": k if row.get("arm") == ON else 0, **row} for row in record.get("measurements", [])]
    arm = {"arm": "on", "k": k, "engine": engine.get("name", ""), "details": engine}
    plan = {"options": options, "ks": [k], "prompts": {"count": record.get("summary", {}).get("prompts", 0)}}
    return {**record, "schema": SCHEMA, "plan": plan, "arms": [arm], "measurements": rows}
