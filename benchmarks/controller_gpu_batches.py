"""The draft-length controller on a GPU in batches: the embedded pair, real prompts, sixteen texts side by side.

As `controller_gpu_embedded.py`, whose workloads these are; but a whole workload is written at once, and timed from its
first prompt to its last token: prompts, and texts that end and make room, included. With many texts of so small a model
the device waits for the host, which makes this the hardest case for a controller that thinks there. Passes of all arms
run in random order; the controller starts each workload anew, from predicted times, and keeps what it learns from pass
to pass.

    python benchmarks/controller_gpu_batches.py    (3.5 minutes; needs a GPU)
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import common
import numpy as np
import torch
from controller_cpu import SAMPLED, Row, Task, summarise, workloads
from controller_gpu import Timed

from paceline.bench.prompts import load_prompts
from paceline.bench.record import check_writable
from paceline.control.auto import Auto
from paceline.device.pilot import DRAFTS
from paceline.device.serve import DeviceServer
from paceline.llm import LLM
from paceline.steering import LONGEST
from paceline.types import AUTO, DraftLength, SamplingParams

ARMS = (*(f"k={k}" for k in DRAFTS), AUTO)
WORKLOADS = ("chat", "temperature 1", "temperature 1.5", "mixed")


class Batches:
    """The engine with room for so many texts; its controller starts from the predicted times that it came with."""

    def __init__(self, llm: LLM, max_tokens: int) -> None:
        assert isinstance(llm.engine, DeviceServer)
        assert llm.engine.engine.pilot
        self.llm, self.server, self.max_tokens = llm, llm.engine, max_tokens
        self.table = llm.engine.engine.pilot.policy.table.copy()

    def pilot(self) -> Timed:
        """One that knows nothing of a workload before."""
        return Timed(Auto(self.table.copy(), LONGEST))

    def write(self, tasks: Sequence[Task], arm: str, pilot: Timed, row: tuple[str, int, int]) -> Row:
        """All texts by one arm. row: the workload, the number of the pass, and its place in the order of all."""
        self.server.engine.pilot, before = pilot, pilot.seconds
        k: DraftLength = AUTO if arm == AUTO else int(arm.removeprefix("k="))
        torch.cuda.synchronize()
        begun = time.perf_counter()
        streams = [self.llm.stream(task.prompt.prompt, self.params(task), k) for task in tasks]
        self.server.run_all([stream.job for stream in streams])
        taken, done = time.perf_counter() - begun, [stream.completion() for stream in streams]
        workload, number, order = row
        return Row(
            workload, f"pass {number}", tasks[0].temperature, arm, order, taken, pilot.seconds - before,
            sum(len(text.token_ids) for text in done), sum(text.stats.rounds for text in done),
            sum(sum(text.stats.drafted) for text in done), sum(sum(text.stats.accepted) for text in done),
            hash(tuple(tuple(text.token_ids) for text in done)),
        )  # fmt: skip

    def warm_up(self, tasks: Sequence[Task], arm: str, row: tuple[str, int, int]) -> None:
        """Compiles and captures the rounds of an arm, of all numbers of texts that are left at the end."""
        sizes = [2**i for i in range(len(self.server.engine.model.places.outcome).bit_length())]
        for count in (*sizes, len(tasks)):
            self.write(tasks[:count], arm, self.pilot(), row)

    def params(self, task: Task) -> SamplingParams:
        """As for texts that are written alone."""
        cut = SAMPLED if task.temperature else {}
        return SamplingParams(temperature=task.temperature, max_tokens=self.max_tokens, seed=1, **cut)  # type: ignore[arg-type]


def measure(stage: Batches, tasks: dict[str, list[Task]], passes: int, seed: int) -> Iterator[Row]:
    """Passes of each workload by every arm; before the first, every arm compiles and captures its rounds."""
    chance, numbers = random.Random(f"orders {seed}"), itertools.count()
    for workload, own in tasks.items():
        for arm in ARMS:
            stage.warm_up(own, arm, (workload, -1, -1))
        pilot = stage.pilot()
        for number in range(passes):
            for arm in chance.sample(ARMS, len(ARMS)):
                yield stage.write(own, arm, pilot, (workload, number, next(numbers)))


def undisturbed(rows: Sequence[Row]) -> dict[str, dict[str, float | str]]:
    """By workload: the controller over the best fixed length and over none, by the lower quartiles of their passes.

    What a host brings that is slow for seconds at a time, and what is learnt and captured in first passes, is left out.
    """
    found = {}
    for workload in dict.fromkeys(row.workload for row in rows):
        taken = {
            arm: float(np.quantile([r.decode_s for r in rows if (r.workload, r.arm) == (workload, arm)], 0.25))
            for arm in ARMS
        }
        best = min((arm for arm in ARMS if arm != AUTO), key=taken.__getitem__)
        found[workload] = {
            "best": best, "over_best": taken[best] / taken[AUTO], "over_plain": taken["k=0"] / taken[AUTO],
        }  # fmt: skip
    return found


def main() -> None:
    parser = common.parser(__doc__, "controller_gpu_batches.json")
    parser.add_argument("--prompts", type=int, default=48, help="for each workload")
    parser.add_argument("--batch", type=int, default=16, help="texts side by side")
    parser.add_argument("--passes", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    check_writable(flags.out)
    options = {name: value for name, value in vars(flags).items() if name != "out"}
    label = f"embedded miniature; real prompts; {flags.batch} texts side by side, prompts included"
    record = common.head("paceline-controller-gpu-batches/1", [label], options)
    llm = LLM.from_pretrained("embedded", device="cuda", sequences=flags.batch)
    llm.warm_up()
    found = workloads(load_prompts(None), flags.prompts, flags.seed)
    tasks = {name: found[name][: flags.prompts] for name in WORKLOADS}  # of mixed ones there are as many of each kind
    rows = list(measure(Batches(llm, flags.max_tokens), tasks, flags.passes, flags.seed))
    summary = {**summarise(rows), "undisturbed": undisturbed(rows)}
    for name, w in summary["workloads"].items():
        print(name, w["best"], w["over_best"][AUTO], w["over_plain"][AUTO], f"{w['thinking_share']:.1%}", flush=True)
    common.write(flags.out, {**record, "summary": summary, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    with torch.no_grad():
        main()
