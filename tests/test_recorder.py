"""A recorded trace tells what rounds would have done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from families import PROMPT
from zoo import Model

from paceline.control.trace import Trace, read_trace, write_trace
from paceline.drafters import MtpDraft
from paceline.engine import Engine, Writer
from paceline.recorder import Recorder
from paceline.types import SamplingParams

pytestmark = pytest.mark.usefixtures("quiet_torch")
DEPTH = 4


@pytest.fixture
def model(models: Callable[[str, int], Model]) -> Model:
    return models("e2b", 8)


@pytest.mark.parametrize(
    "params", [SamplingParams(max_tokens=40), SamplingParams(max_tokens=40, temperature=0.3, seed=3)]
)
def test_every_row_is_what_a_round_at_its_place_accepts(model: Model, params: SamplingParams, tmp_path: Path) -> None:
    drafter = MtpDraft(model.mtp, model.target)
    recorder = Recorder(drafter, DEPTH)
    engine = Engine(model.target, recorder)
    writer = Writer(engine.end_ids, params, None, len(PROMPT))
    events = list(engine.run(PROMPT, params, 1, writer))
    ids = [event.token_id for event in events]
    assert ids == model.plain(PROMPT, params, 40)[len(PROMPT) :][:40]
    assert writer.stats.drafted == []
    rows = recorder.rows("a", "made up", params.temperature)
    assert [row.position for row in rows] == list(range(40 - DEPTH))

    _, accepted = model.write(drafter, PROMPT, params, DEPTH, 40)
    at, seen = 0, []
    while at < len(rows):
        seen.append(rows[at].accepted)
        at += rows[at].accepted + 1
    assert seen == accepted[: len(seen)]
    assert sum(seen) > 0  # else nothing was tested

    path = tmp_path / "t.jsonl"
    write_trace(path, Trace(rows, False, "a test", 0.25))
    back = read_trace(path)
    assert (back.rows, back.step_ms) == (rows, 0.25)
    assert back.every_position
    assert all(len(row.margins) == len(row.confidences) == DEPTH for row in back.rows)
