"""The draft-length controller on a GPU, on the embedded pair and its real prompts: against every fixed draft length.

As `controller_cpu.py`, whose workloads and sums these are; other rules choose by the rounds before, as the controller
does. The miniature's rounds take a fraction of a millisecond, so
this is the hardest case for a controller's own time, and says nothing of larger models' speed. Rounds that take five
times the median of their text are left out, in all arms: the machine was busy with something else.

    python benchmarks/controller_gpu_embedded.py    (needs a GPU)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import common
import numpy as np
import torch
from controller_cpu import STATIONARY, Stage, Task, measure, summarise, workloads
from controller_gpu import HEURISTIC, Ruled, Timed

from paceline.bench.prompts import load_prompts
from paceline.bench.record import check_writable
from paceline.control.auto import Auto
from paceline.control.policy import Confidence
from paceline.device.pilot import DRAFTS
from paceline.device.serve import DeviceServer
from paceline.llm import LLM
from paceline.steering import LONGEST
from paceline.types import AUTO

THRESHOLD = "threshold"  # of confidence, by the rounds before: a round on a GPU cannot end early
SAME = 1e-4  # seconds from one round's tokens to another's, at least
WORKLOADS = (*(name for name in STATIONARY if name != "hopeless"), "mixed", "changing")


class DeviceStage(Stage):
    """The engine on the GPU; its controller starts from the predicted times that the engine came with."""

    arms = (*(f"k={k}" for k in DRAFTS), AUTO, HEURISTIC, THRESHOLD)

    def __init__(self, llm: LLM, max_tokens: int) -> None:
        assert isinstance(llm.engine, DeviceServer)
        assert llm.engine.engine.pilot
        self.llm, self.max_tokens, self.clock = llm, max_tokens, time.perf_counter
        self.device = llm.engine.engine
        self.table = self.device.pilot.policy.table.copy()

    def sum_up(self, at: Sequence[float]) -> tuple[float, float]:
        gaps = np.diff(at)
        return common.without_stalls(gaps[gaps > SAME])

    def policies(self) -> Mapping[str, Any]:
        auto = Auto(self.table.copy(), LONGEST)
        return {AUTO: Timed(auto), HEURISTIC: Ruled(auto), THRESHOLD: Ruled(auto, rule=Confidence(LONGEST))}

    def seat(self, policy: Any, task: Task) -> None:
        if isinstance(policy, Timed):
            self.device.pilot = policy


def main() -> None:
    parser = common.parser(__doc__, "controller_gpu_embedded.json")
    parser.add_argument("--prompts", type=int, default=24, help="for each workload")
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    check_writable(flags.out)
    options = {name: value for name, value in vars(flags).items() if name != "out"}
    record = common.head("paceline-controller-gpu-embedded/1", ["embedded miniature; real prompts"], options)
    llm = LLM.from_pretrained("embedded", device="cuda")
    llm.warm_up()
    stage = DeviceStage(llm, flags.max_tokens)
    tasks = workloads(load_prompts(None), flags.prompts, flags.seed)
    rows = list(measure(stage, {name: tasks[name] for name in WORKLOADS}, flags.seed))
    summary = summarise(rows)
    for name, found in summary["workloads"].items():
        print(name, found["best"], found["over_best"], found["over_plain"][AUTO], found["thinking_share"], flush=True)
    common.write(flags.out, {**record, "summary": summary, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    with torch.no_grad():
        main()
