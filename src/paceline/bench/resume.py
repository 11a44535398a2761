"""A run so far, and how one that was interrupted goes on from its own JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from paceline.bench.arms import Facts
from paceline.bench.harness import Outcome
from paceline.bench.measurement import Failure, Measurement, StepRecord
from paceline.bench.plan import ArmKey, Cell, Step
from paceline.bench.record import SCHEMA, rows_from_data
from paceline.errors import UsageError

Key = tuple[str, int | None, str, float, int, int]


@dataclass
class Run:
    """Raw rows, steps and failures so far, and what the arms turned out to be."""

    rows: list[Measurement] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    facts: dict[ArmKey, Facts] = field(default_factory=dict)

    def take(self, outcome: Outcome) -> None:
        """Adds what a step brought."""
        self.rows += [replace(row, order=len(self.rows) + i) for i, row in enumerate(outcome.rows)]
        self.steps.append(outcome.record)
        self.failures += outcome.failures

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return max((row.started_s + row.seconds for row in self.rows), default=0.0)


def resume(path: Path, plan: dict[str, Any], steps: Sequence[Step]) -> Run:
    """The run that `path` holds, whole steps only: one with a failure in it is done again.

    Raises UsageError where there is no such run, or one of another plan.
    """
    data = _read(path)
    theirs = data.get("plan")
    if data.get("schema") != SCHEMA or not isinstance(theirs, dict):
        raise UsageError(f"{path} holds no run of this version that could go on; name another file with --out")
    if (other := _difference(theirs, json.loads(json.dumps(plan)))) is not None:
        raise UsageError(f"{path} was measured with other {other}; repeat that, or name another file with --out")
    try:
        if data["complete"] and not any(step["failed"] for step in data["steps"]):
            raise UsageError(f"{path} is complete; name another file with --out, or leave out --resume")
        return _restored(data, steps)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot go on from {path}: it is damaged ({error}); name another file with --out") from None


def _restored(data: dict[str, Any], steps: Sequence[Step]) -> Run:
    rows = rows_from_data(data["measurements"])
    kept = {key for step in steps if _keys(step) <= {_key(row) for row in rows} for key in _keys(step)}
    names = [f.name for f in fields(StepRecord)]
    done = [StepRecord(**{name: step[name] for name in names if name in step}) for step in data["steps"]]
    whole = [step for step in done if not step.failed]
    return Run([row for row in rows if _key(row) in kept], whole, facts=_facts(data["arms"]))


def _facts(arms: list[dict[str, Any]]) -> dict[ArmKey, Facts]:
    """What the arms were found to be: those that are not needed again are not looked at again."""
    names = [f.name for f in fields(Facts)]
    return {ArmKey(arm["arm"], arm["k"]): Facts(**{name: arm[name] for name in names if name in arm}) for arm in arms}


def remaining(steps: Sequence[Step], rows: Sequence[Measurement]) -> list[Step]:
    """The steps that these rows do not cover yet."""
    done = {_key(row) for row in rows}
    return [step for step in steps if not _keys(step) <= done]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot go on from {path}: {error.strerror or error}; leave out --resume to start") from None
    except ValueError:
        raise UsageError(f"cannot go on from {path}: it is not JSON; name another file with --out") from None
    return data if isinstance(data, dict) else {}


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The first thing that two plans differ in, by name."""
    if theirs.get("prompts") != ours["prompts"]:
        return "prompts"
    if theirs.get("ks") != ours["ks"]:
        return "draft lengths"
    options = theirs.get("options", {})
    return next((name for name, value in ours["options"].items() if options.get(name) != value), None)


def _key(row: Measurement) -> Key:
    return row.arm, row.k, row.prompt_id, row.temperature, row.repeat, row.concurrency


def _keys(step: Step) -> set[Key]:
    return {_cell_key(step, cell) for cell in step.cells}


def _cell_key(step: Step, cell: Cell) -> Key:
    return step.arm.name, step.arm.k, cell.prompt.id, cell.temperature, cell.repeat, step.concurrency
