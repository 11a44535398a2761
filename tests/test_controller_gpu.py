"""The controller's benchmark on a GPU, on a tiny model: every arm runs, and what is summed up is what was served."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from device_models import CONTEXT, PAIRS, Both, make, quick_interpreter
from gpu import DEVICE

from paceline import acceptance
from paceline.control.cost import CostTable, Timing
from paceline.device.build import Room, device_model
from paceline.device.engine import DeviceEngine
from paceline.kernels.gpu.accept import Ending
from paceline.types import AUTO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import controller_gpu as gpu

STEEP = CostTable([Timing(b, k, 0, 2.0 + 3.0 * k) for b in (1, 2) for k in (0, 8)])
HOPELESS = gpu.Workload("hopeless", 1, (("hopeless",),))


@pytest.fixture(scope="module")
def both() -> Both:
    torch.set_num_threads(1)
    with torch.no_grad():
        return make(PAIRS["experts"])


@pytest.fixture
def stage(both: Both, monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> Iterator[gpu.Stage]:
    """Few arms, short texts and, under the interpreter, few programs."""
    monkeypatch.setattr(gpu, "PROMPT", 3)
    monkeypatch.setattr(gpu, "ARMS", ("k=0", AUTO))
    monkeypatch.setattr(gpu, "LEAST_TEXTS", 2)
    ending = Ending(torch.zeros(0, dtype=torch.int64, device=DEVICE),
                    torch.zeros(acceptance.POSITIONS, device=DEVICE))  # fmt: skip
    with torch.no_grad(), quick_interpreter(monkeypatch):
        model = device_model(both.device.target, both.mtp(), Room(places=2, context=CONTEXT), ending)
        yield gpu.Stage(DeviceEngine(model, graphs=False), STEEP, 6)


def test_every_arm_writes_every_text_and_auto_takes_what_it_chooses(stage: gpu.Stage) -> None:
    rows = list(gpu.measure(stage, HOPELESS, 0.0, lambda: 1.0))
    assert [(row.text, row.arm) for row in sorted(rows, key=lambda r: (r.text, r.arm))] == [
        (text, arm) for text in range(gpu.LEAST_TEXTS) for arm in sorted((*gpu.ARMS, gpu.HEURISTIC))
    ]
    for row in rows:
        assert set(row.ks) <= ({0} if row.arm == "k=0" else {1, 2, 3, 4} if row.arm == gpu.HEURISTIC else {0, 1, 2})
        assert sum(row.ks.values()) == row.rounds > 0
        assert row.expected == pytest.approx(row.rounds, rel=0.1)  # hopeless drafts: hardly more than one token each
    assert stage.pilot.seconds > 0
    found = gpu.summarise(rows)["hopeless"]
    assert found["texts"] == gpu.LEAST_TEXTS
    assert json.loads(json.dumps(found)) is not None
    assert found["best"] == "k=0"
    assert found["heuristic"] is not None


def test_a_text_may_change_midway(stage: gpu.Stage) -> None:
    changing = gpu.Workload("changing", 1, (("perfect", "hopeless"),))
    row = stage.write(changing, 0, "k=2", 12)
    assert row.tokens >= 11 - 2
    perfect, hopeless = (acceptance.expected_tokens(acceptance.PROFILES[name], 2) for name in ("perfect", "hopeless"))
    # Rounds of the first 6 tokens, and the one under way when they were there; all others are hopeless.
    assert row.expected in [pytest.approx(n * perfect + (row.rounds - n) * hopeless) for n in (2, 3, 4)]
    # 6 tokens in rounds of three, 6 hardly ever in more than one: all alike, it would be 4 or 12 rounds
    assert 5 <= row.rounds <= 10
    assert torch.equal(stage.kept, stage.profiles["hopeless"])


def test_batches_are_served_together(stage: gpu.Stage) -> None:
    row = stage.write(gpu.Workload("hopeless, batch 2", 2, (("hopeless",),)), 0, AUTO, 5)
    assert row.tokens >= 2 * row.rounds
    assert not stage.engine.busy


def test_when_time_runs_out_the_rest_is_left_out_and_what_is_there_is_kept(stage: gpu.Stage) -> None:
    kept: list[list[gpu.Row]] = []
    gpu.run_size(stage, [HOPELESS, HOPELESS], 1e-2, lambda rows: kept.append(list(rows)))
    assert [len(rows) for rows in kept] == [3 * gpu.LEAST_TEXTS]
    gpu.run_size(stage, [HOPELESS], 0.0, lambda rows: kept.append(list(rows)))
    assert len(kept) == 1


def row(arm: str, text: int, seconds: float, expected: float, **more: Any) -> gpu.Row:
    return gpu.Row(more.get("workload", "mixed"), text, arm, 0, seconds, 0.0, int(expected), expected, 4, {1: 4})


def test_rates_are_over_all_texts_and_aims_name_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ARMS", ("k=0", "k=2", AUTO))
    rows = [row(arm, text, seconds, 10.0) for text in range(3)
            for arm, seconds in (("k=0", 2.0), ("k=2", 1.0 + text), (AUTO, 1.25))]  # fmt: skip
    found = gpu.summarise(rows)
    assert found["mixed"]["best"] in ("k=0", "k=2")
    assert found["mixed"]["over_plain"]["ratio"] == pytest.approx(1.6)
    assert found["mixed"]["best_of_each"] == pytest.approx((30 / 5.0) / (30 / 6.0))
    assert found["mixed"]["heuristic"] is None
    aims = gpu.judge(found)
    assert aims["mixed, over the best k"]["reached"]
    assert "stationary, over the best k" not in aims  # nothing stationary was measured
    slow = [row(arm, 0, seconds, 10.0, workload="hopeless, batch 2")
            for arm, seconds in (("k=0", 1.0), ("k=2", 2.0), (AUTO, 1.1))]  # fmt: skip
    aims = gpu.judge(gpu.summarise([*rows, *slow]))
    assert not aims["anywhere, over k = 0"]["reached"]
    assert aims["anywhere, over k = 0"]["workload"] == "hopeless, batch 2"


@pytest.mark.parametrize("wrong", ["7b", "31b,", "31b,e9"])
def test_unknown_sizes_are_refused(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["controller_gpu.py", "--out", str(tmp_path / "x.json"), "--sizes", wrong])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
