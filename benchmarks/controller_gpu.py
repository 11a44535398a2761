"""The draft-length controller on a GPU: against every fixed draft length. Random weights, synthetic acceptance.

Nothing here says anything about text: drafts are kept with the stated probabilities (`paceline.acceptance`), which may
change from text to text, or within one. For each text all arms run in random order; the controller keeps what it learns
from one text of a workload to the next, and starts each workload anew, from a table of round times that is predicted
and not measured. A time is that of the served engine, host included, from the first token of each text to the last.
Rounds that take five times the median of their text are left out, in all arms: the machine was busy with other things.

Since the probabilities are known, so is how many tokens a round of k drafts comes to in the mean: `expected` rates
count those instead of the tokens that chance gave, over the times that were measured.

    python benchmarks/controller_gpu.py --out benchmarks/results/controller_gpu.json    (2.5 minutes; needs a GPU)
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from paceline import acceptance, roofline
from paceline.acceptance import PROFILES
from paceline.bench import record as files
from paceline.bench.stats import ratio_interval
from paceline.control.auto import Auto
from paceline.control.cost import CostTable
from paceline.control.policy import Heuristic, Policy, Served, State
from paceline.control.view import Plan
from paceline.device.build import random_model
from paceline.device.engine import DeviceEngine
from paceline.device.memory import Need, choose_room
from paceline.device.pilot import DRAFTS, Pilot, Seat, prior_table
from paceline.device.request import Request
from paceline.shapes import drafter_config, target_config
from paceline.steering import LONGEST
from paceline.types import AUTO, SamplingParams

SCHEMA = "paceline-controller-gpu/1"
ARMS: tuple[str, ...] = (*(f"k={k}" for k in DRAFTS), AUTO)
HEURISTIC = "heuristic"  # the schedule of Transformers, which knows no batches
SIZES = {"26b-a4b": 1.0, "31b": 2.0}  # and which share of the time each gets: a round of the second takes longer
PROMPT, CONTEXT = 128, 2048  # tokens
LEAST_TEXTS, FIXED_SHARE = 3, 0.25  # a fixed length learns nothing, and may write less of a text that is all alike
STATIONARY = ("chat", "code", "hopeless", "perfect")


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts in turn, each of which passes through its profiles in equal parts; `batch` of them at once."""

    name: str
    batch: int
    turns: tuple[tuple[str, ...], ...]


def workloads(batched: int) -> list[Workload]:
    """What is measured of one size; the most telling first, since time may run out."""
    return [
        Workload("hopeless", 1, (("hopeless",),)),
        Workload("chat", 1, (("chat",),)),
        Workload("mixed", 1, (("code",), ("hopeless",), ("chat",))),
        Workload(f"hopeless, batch {batched}", batched, (("hopeless",),)),
        Workload(f"chat, batch {batched}", batched, (("chat",),)),
        Workload("code", 1, (("code",),)),
        Workload("changing", 1, (("code", "hopeless", "code"),)),
        Workload("perfect", 1, (("perfect",),)),
    ]


@dataclass(frozen=True, slots=True)
class Row:
    """One text (or a batch of them) by one arm; expected: tokens that its rounds come to in the mean.

    thinking_s: what the host took to choose, within `seconds`; ks: rounds by draft length; stalled_s: seconds of rounds
    that the machine kept waiting (`common.without_stalls`), which are left out.
    """

    workload: str
    text: int
    arm: str
    order: int
    seconds: float
    thinking_s: float
    tokens: int
    expected: float
    rounds: int
    ks: dict[int, int]
    stalled_s: float = 0.0


@dataclass
class Timed(Pilot):
    """A pilot, and how long it thought."""

    seconds: float = field(default=0.0)

    def choose(self, seats: Iterable[Seat], size: int) -> tuple[int, Plan]:
        begun = time.perf_counter()
        chosen = super().choose(seats, size)
        self.seconds += time.perf_counter() - begun
        return chosen

    def observe(self, plan: Plan, served: Sequence[Served]) -> None:
        begun = time.perf_counter()
        super().observe(plan, served)
        self.seconds += time.perf_counter() - begun


@dataclass
class Ruled(Timed):
    """Another rule in the controller's place, for one sequence at a time: of lengths on offer, the next shorter one."""

    rule: Policy = field(default_factory=lambda: Heuristic(LONGEST))

    def choose(self, seats: Iterable[Seat], size: int) -> tuple[int, Plan]:
        plan = Plan(k=self.rule.choose(State(next(iter(seats)).name)))
        return self._offer(plan.k, plan), plan

    def observe(self, plan: Plan, served: Sequence[Served]) -> None:
        for one in served:
            self.rule.observe(one)


class Stage:
    """An engine whose drafts are kept by chance, and the arms on it. `prior` is the controller's first cost table."""

    def __init__(self, engine: DeviceEngine, prior: CostTable, tokens: int) -> None:
        self.engine, self.prior, self.tokens = engine, prior, tokens
        kept = engine.model.ending.survival
        assert kept is not None
        self.kept = kept
        self.profiles = {name: kept.new_tensor(acceptance.survival(profile)) for name, profile in PROFILES.items()}
        self.numbers, self.vocab = itertools.count(), engine.model.target.config.vocab
        self.afresh()

    def afresh(self) -> None:
        """A controller that knows of no workload before."""
        self.pilot = Timed(Auto(self.prior.copy(), LONGEST))
        self.pilots = {AUTO: self.pilot, HEURISTIC: Ruled(self.pilot.policy)}

    def write(self, workload: Workload, text: int, arm: str, tokens: int) -> Row:
        """One text, or a batch of them, by one arm."""
        parts = workload.turns[text % len(workload.turns)]
        generator = torch.Generator().manual_seed(text)
        prompts = torch.randint(0, self.vocab, (workload.batch, PROMPT), generator=generator).tolist()
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        k = AUTO if arm in self.pilots else int(arm.removeprefix("k="))
        requests = [Request(prompt, params, k, False) for prompt in prompts]
        self.engine.pilot, self.engine.least_batch = self.pilots.get(arm, self.pilot), workload.batch
        self.kept.copy_(self.profiles[parts[0]])
        for request in requests:
            self.engine.submit(request)
        while not all(request.rounds for request in requests):
            self.engine.step()
        return Row(workload.name, text, arm, next(self.numbers), *self._timed(requests, parts, tokens))

    def _timed(self, requests: list[Request], parts: tuple[str, ...], tokens: int) -> tuple[Any, ...]:
        """All of a row that was measured, until a first text has ended."""
        synchronise()
        before, seen = sum(r.emitted for r in requests), [len(r.rounds) for r in requests]
        thought, moments, now = self.pilot.seconds, [time.perf_counter()], 0
        of_round = list[str]()  # the profile of each
        while self.engine.busy and not any(r.finished for r in requests):
            at = min(requests[0].emitted * len(parts) // tokens, len(parts) - 1)
            if at != now:
                now = at
                self.kept.copy_(self.profiles[parts[now]])  # behind the rounds that are under way
            ahead = len(requests[0].rounds) - seen[0] + len(self.engine.pending) + 1 - len(of_round)
            of_round += [parts[now]] * ahead
            self.engine.step()
            moments.append(time.perf_counter())
        (seconds, stalled), thought = common.without_stalls(np.diff(moments)), self.pilot.seconds - thought
        written = sum(r.emitted for r in requests) - before
        done = [list(r.rounds)[start:] for r, start in zip(requests, seen, strict=True)]
        while self.engine.busy:
            self.engine.step()
        expected = sum(
            acceptance.expected_tokens(PROFILES[name], each.drafted)
            for rounds in done for name, each in zip(of_round, rounds, strict=False)
        )  # fmt: skip
        ks = Counter(each.drafted for each in done[0])
        return seconds, thought, written, float(expected), len(done[0]), dict(ks), stalled

    def prepare(self, workload: Workload) -> None:
        """Compiles and captures what the arms will need: first uses are not timed."""
        for arm in arms_of(workload):
            self.write(workload, 0, arm, 4)
        self.afresh()


def arms_of(workload: Workload) -> tuple[str, ...]:
    """What its texts are written by."""
    return ARMS if workload.batch > 1 else (*ARMS, HEURISTIC)


def measure(stage: Stage, workload: Workload, until: float, clock: Callable[[], float]) -> Iterator[Row]:
    """Every text by every arm, each in an order of its own, until the time is over: but all turns equally often."""
    chance = random.Random(workload.name)
    stage.prepare(workload)
    for text in itertools.count():
        if text >= LEAST_TEXTS and text % len(workload.turns) == 0 and clock() > until:
            return
        alike = workload.batch == 1 and len(workload.turns[text % len(workload.turns)]) == 1
        for arm in chance.sample(arms_of(workload), len(arms_of(workload))):
            share = FIXED_SHARE if alike and arm.startswith("k=") else 1.0
            yield stage.write(workload, text, arm, max(4, int(share * stage.tokens)))


# ---- what the timings say -------------------------------------------------------------------------------------------


def rate(rows: list[Row], arm: str, what: str = "expected") -> float:
    """Tokens a second of one arm."""
    own = [row for row in rows if row.arm == arm]
    return float(sum(getattr(row, what) for row in own) / sum(row.seconds for row in own))


def over(rows: list[Row], arm: str, other: str) -> dict[str, Any]:
    """Expected speed of one arm over that of another, with a 95% interval over texts."""
    slow, fast = (
        np.array([row.seconds / row.expected for row in sorted(rows, key=lambda r: r.text) if row.arm == one])
        for one in (other, arm)
    )
    interval = ratio_interval(slow, fast)
    return {"ratio": rate(rows, arm) / rate(rows, other), "ci95": None if interval is None else interval.tolist()}


def stalled_share(rows: list[Row]) -> float:
    """Of the whole time, what was left out."""
    stalled = sum(row.stalled_s for row in rows)
    return stalled / (stalled + sum(row.seconds for row in rows))


def of_each(rows: list[Row], fixed: Sequence[str]) -> float:
    """Tokens a second where each text, all of equal length, has the fixed draft length that serves it best."""
    served = [row for row in rows if row.arm in fixed]
    rates = [max(row.expected / row.seconds for row in served if row.text == text) for text in {r.text for r in served}]
    return len(rates) / sum(1 / rate for rate in rates)


def summarise(rows: list[Row]) -> dict[str, Any]:
    """By workload: tokens a second of every arm, and the controller over no drafts and over the best fixed length."""
    found = {}
    for workload in dict.fromkeys(row.workload for row in rows):
        own = [row for row in rows if row.workload == workload]
        arms = list(dict.fromkeys(row.arm for row in own))
        fixed = [arm for arm in arms if arm.startswith("k=")]
        best = max(fixed, key=lambda arm: rate(own, arm))
        auto = [row for row in own if row.arm == AUTO]
        found[workload] = {
            "texts": len(auto), "best": best,
            "tokens_per_s": {arm: rate(own, arm, "tokens") for arm in arms},
            "expected_per_s": {arm: rate(own, arm) for arm in arms},
            "over_plain": over(own, AUTO, "k=0"), "over_best": over(own, AUTO, best),
            "heuristic": over(own, HEURISTIC, best) if HEURISTIC in arms else None,
            "best_of_each": of_each(own, fixed) / rate(own, best),
            "best_over_plain": over(own, best, "k=0"),
            "drafts_a_round": sum(k * n for r in auto for k, n in r.ks.items()) / sum(r.rounds for r in auto),
            "thinking_share": sum(r.thinking_s for r in auto) / sum(r.seconds for r in auto),
            "stalled_share": stalled_share(own), "stalled_share_auto": stalled_share(auto),
        }  # fmt: skip
    return found


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """What of the aims is reached in the workloads that were measured, by the worst."""

    def worst(names: Sequence[str], what: str, aim: float) -> dict[str, Any] | None:
        ratios = {name: found[name][what]["ratio"] for name in found if name.split(",")[0] in names}
        if not ratios:
            return None
        name = min(ratios, key=lambda n: ratios[n])
        return {"workload": name, "figure": ratios[name], "aim": aim, "reached": ratios[name] >= aim}

    aims = {
        "stationary, over the best k": worst(STATIONARY, "over_best", 0.98),
        "mixed, over the best k": worst(("mixed",), "over_best", 1.05),
        "anywhere, over k = 0": worst((*STATIONARY, "mixed", "changing"), "over_plain", 0.98),
    }
    return {name: aim for name, aim in aims.items() if aim is not None}


# ---- the sizes ------------------------------------------------------------------------------------------------------


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def stage_of(size: str, places: int, tokens: int) -> Stage:
    """A model of this size with random weights on the GPU."""
    config, drafter = target_config(size), drafter_config(size)
    weights = 2 * (roofline.parameters(config).total + roofline.drafter_parameters(drafter))
    need = Need(config=config, weights=weights, places=places, context=CONTEXT)
    room = choose_room(need, torch.cuda.mem_get_info()[0])
    model = random_model(config, drafter, room, (0.0,) * acceptance.POSITIONS)
    return Stage(DeviceEngine(model), prior_table(config, drafter), tokens)


def run_size(stage: Stage, plans: list[Workload], limit_s: float, keep: Callable[[list[Row]], None]) -> None:
    """All workloads of one size; `keep` gets the rows so far after each, and what is left of the time is shared out."""
    until, rows = time.perf_counter() + limit_s, list[Row]()
    for i, workload in enumerate(plans):
        left = until - time.perf_counter()
        if left <= 0:
            print(f"   no time for {workload.name}", flush=True)
            continue
        rows += measure(stage, workload, time.perf_counter() + left / (len(plans) - i), time.perf_counter)
        keep(rows)


def show(workload: str, found: dict[str, Any]) -> None:
    print(f"   {workload}: auto {found['expected_per_s'][AUTO]:.0f} tok/s, {found['over_best']['ratio']:.3f} of the"
          f" best ({found['best']}), {found['over_plain']['ratio']:.3f} of k=0; {found['drafts_a_round']:.1f} drafts a"
          f" round, thinking {found['thinking_share']:.1%}, {found['texts']} texts", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--only", default="", help="workloads, with semicolons between; by default all")
    parser.add_argument("--tokens", type=int, default=96, help="of a text of the controller's")
    parser.add_argument("--limit-s", type=float, default=140.0, help="for all sizes, loading and compiling included")
    options = parser.parse_args()
    files.check_writable(options.out)
    sizes = options.sizes.split(",")
    if not set(sizes) <= set(SIZES):
        parser.error(f"--sizes knows {', '.join(SIZES)}, not {options.sizes}")
    record: dict[str, Any] = {
        "schema": SCHEMA, "labels": ["random weights", "synthetic acceptance"],
        "options": {"tokens": options.tokens, "limit_s": options.limit_s, "prompt": PROMPT},
        "provenance": {**files.provenance(), "command": ["benchmarks/controller_gpu.py"]},
        "profiles": {name: asdict(PROFILES[name]) for name in STATIONARY}, "sizes": {},
    }  # fmt: skip
    for size in sizes:
        print(size, flush=True)
        begun, batched = time.perf_counter(), 32 if size == "26b-a4b" else 8
        share = options.limit_s * SIZES[size] / sum(SIZES[name] for name in sizes)
        stage = stage_of(size, batched, options.tokens)
        gc.freeze()  # a walk through all that is there by now would take as long as a hundred rounds

        def keep(rows: list[Row], size: str = size) -> None:
            found = summarise(rows)
            show(rows[-1].workload, found[rows[-1].workload])
            record["sizes"][size] = {"summary": found, "aims": judge(found), "rows": [asdict(row) for row in rows]}
            files.write_record(options.out, record)

        plans = [plan for plan in workloads(batched) if not options.only or plan.name in options.only.split(";")]
        run_size(stage, plans, share - (time.perf_counter() - begun), keep)
        del stage, keep
        gc.unfreeze()
        gc.collect()
        torch.cuda.empty_cache()
    print(json.dumps({size: found["aims"] for size, found in record["sizes"].items()}))


if __name__ == "__main__":
    with torch.no_grad():
        main()
