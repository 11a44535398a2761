"""The draft-length controller on the CPU, on the embedded pair: against every fixed draft length, and other rules.

For each prompt all arms run in random order, so that whatever else the machine does meets them alike; a policy keeps
what it learns from one prompt of a workload to the next, and starts each workload anew. A time is that of decoding,
from the first token to the last, the controller's own thinking included. The best fixed length is the best in
hindsight, on the same timings.

Ratios are also given with calm rounds (see `calm_rounds.py`), which say more on a machine that is shared.

    python benchmarks/controller_cpu.py
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import common
import numpy as np
from calm_rounds import Timed as TimedRound
from calm_rounds import Watch, calm_seconds

from paceline.bench.prompts import BenchPrompt, load_prompts, sample
from paceline.bench.record import check_writable
from paceline.bench.stats import ratio_interval
from paceline.calibration import calibrate
from paceline.control.auto import Auto
from paceline.control.cost import CostTable
from paceline.control.kinds import Kinds
from paceline.control.policy import Constant, Heuristic, Policy, Served, State
from paceline.control.stop import Stop
from paceline.drafters import MtpDraft, NoDrafter
from paceline.engine import Engine
from paceline.errors import PacelineError
from paceline.llm import LLM
from paceline.steering import LONGEST
from paceline.types import AUTO, DraftLength, SamplingParams

STATIC = (0, 1, 2, 3, 4, 5, 6, 8)
RULES = ("auto", "heuristic", "threshold")
ARMS = (*(f"k={k}" for k in STATIC), *RULES)
ADVISED, THRESHOLD = 5, 0.4  # what the embedded drafter's own configuration says
KINDS = ("chat", "code", "maths")
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
Clock = Callable[[], float]
SAMPLED = {"top_k": 64, "top_p": 0.95}


@dataclass(frozen=True, slots=True)
class Task:
    """One text to write."""

    prompt: BenchPrompt
    temperature: float
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One text by one arm; thinking_s is what its policy took of decode_s, stalled_s what was left out of that.

    calm_s: with calm rounds, and thinking_s; 0 where rounds were not watched.
    """

    workload: str
    prompt_id: str
    temperature: float
    arm: str
    order: int
    decode_s: float
    thinking_s: float
    tokens: int
    rounds: int
    drafted: int
    accepted: int
    text: int
    stalled_s: float = 0.0
    calm_s: float = 0.0


class Wrong(MtpDraft):
    """Drafts as ever, and then hands out other tokens: all cost, no gain, and as sure of itself as before."""

    def __init__(self, drafter: MtpDraft) -> None:
        super().__init__(drafter.model, drafter.target, "n-1" if drafter.back else "n")

    def propose(self, k: int) -> list[int]:
        return [(token + 1) % self.target.config.vocab for token in super().propose(k)]


class Timed:
    """A policy, and how long it thought."""

    def __init__(self, policy: Policy, clock: Clock = time.perf_counter) -> None:
        self.policy, self.clock, self.seconds = policy, clock, 0.0

    @property
    def stop(self) -> Stop | None:
        return self.policy.stop

    @property
    def reason(self) -> str:
        return self.policy.reason

    @property
    def patience(self) -> int:
        return self.policy.patience

    def choose(self, state: State) -> int:
        begun = self.clock()
        k = self.policy.choose(state)
        self.seconds += self.clock() - begun
        return k

    def observe(self, served: Served) -> None:
        begun = self.clock()
        self.policy.observe(served)
        self.seconds += self.clock() - begun


def workloads(prompts: Sequence[BenchPrompt], count: int, seed: int) -> dict[str, list[Task]]:
    """Texts to write, in order, `count` for each workload."""
    of = {kind: sample([p for p in prompts if p.category == kind], count, seed) for kind in KINDS}
    every = [p for group in zip(*of.values(), strict=True) for p in group]
    temperatures = itertools.cycle((0.0, 0.0, 1.0, 0.0, 1.5))
    third = count // 3
    return {
        **{kind: [Task(p, 0.0) for p in of[kind]] for kind in KINDS},
        "temperature 1": [Task(p, 1.0) for p in every[:count]],
        "temperature 1.5": [Task(p, 1.5) for p in every[:count]],
        "mixed": [Task(p, next(temperatures)) for p in every],  # long enough for each kind to be met
        "changing": [Task(p, 0.0) for p in (*of["chat"][:third], *of["code"][:third], *of["chat"][third : 2 * third])],
        "hopeless": [Task(p, 0.0, hopeless=True) for p in of["chat"]],
    }


STATIONARY = (*KINDS, "temperature 1", "temperature 1.5", "hopeless")


class Stage:
    """The engine, and its arms on one workload."""

    arms: tuple[str, ...] = ARMS
    watch: Watch | None = None
    rounds: Sequence[TimedRound] = ()  # of the last text, where they are watched

    def __init__(self, llm: LLM, engine: Engine, table: CostTable, max_tokens: int) -> None:
        self.llm, self.engine, self.clock, self.max_tokens = llm, engine, engine.clock, max_tokens
        assert isinstance(engine.drafter, MtpDraft)
        self.watch, self.rounds = Watch(engine.clock), list[TimedRound]()
        wrong = self.watch.over(Wrong(engine.drafter))
        self.drafters = {False: self.watch.over(engine.drafter), True: wrong}
        NoDrafter.propose = staticmethod(self.watch.over(NoDrafter()).propose)  # type: ignore[method-assign]
        self.table = table

    def policies(self) -> Mapping[str, Any]:
        """New ones, which know nothing of a workload before."""
        made: dict[str, Policy] = {
            "auto": Kinds(Auto(self.table.copy(), LONGEST, listens=True)),
            "heuristic": Heuristic(LONGEST),
            "threshold": Constant(ADVISED, Stop(THRESHOLD, THRESHOLD)),
        }
        return {name: Timed(policy, self.clock) for name, policy in made.items()}

    def seat(self, policy: Any, task: Task) -> None:
        """Makes the engine ready for a text whose lengths `policy` chooses, if it is open."""
        self.engine.policy, self.engine.drafter = policy, self.drafters[task.hopeless]

    def write(self, task: Task, arm: str, policies: Mapping[str, Any], workload: str, order: int) -> Row:
        """One text by one arm."""
        k: DraftLength = AUTO if arm in policies else int(arm.removeprefix("k="))
        policy = policies.get(arm) or Timed(Constant(0))
        self.seat(policy, task)
        before = policy.seconds
        cut: dict[str, Any] = SAMPLED if task.temperature else {}
        params = SamplingParams(temperature=task.temperature, max_tokens=self.max_tokens, seed=1, **cut)
        stream = self.llm.stream(task.prompt.prompt, params, k)
        next(stream)
        ids, at = list[int](), [self.clock()]
        for event in stream:
            ids.append(event.token_id)
            at.append(self.clock())
        (taken, stalled), s = self.sum_up(at), stream.completion().stats
        if self.watch:
            self.rounds = self.watch.rounds(at[-1])
        return Row(workload, task.prompt.id, task.temperature, arm, order, taken, policy.seconds - before,
                   len(ids) + 1, s.rounds, sum(s.drafted), sum(s.accepted), hash(tuple(ids)), stalled)  # fmt: skip

    def sum_up(self, at: Sequence[float]) -> tuple[float, float]:
        """(Seconds from the first of these moments to the last, seconds of stalls that do not count): one a token."""
        return at[-1] - at[0], 0.0


def measure(stage: Stage, tasks: dict[str, list[Task]], seed: int) -> Iterator[Row]:
    """Every task by every arm, each task's arms in an order of its own. The first task of a workload comes twice."""
    chance, numbers = random.Random(f"orders {seed}"), itertools.count()
    for workload, own in tasks.items():
        policies = stage.policies()
        for arm in stage.arms:
            stage.write(own[0], arm, stage.policies(), workload, -1)  # first touches are not timed
        rows, rounds = list[Row](), list[tuple[str, Sequence[TimedRound]]]()
        for task in own:
            for arm in chance.sample(stage.arms, len(stage.arms)):
                rows.append(stage.write(task, arm, policies, workload, next(numbers)))
                rounds.append((arm, stage.rounds))
        for row, calm_s in zip(rows, calm_seconds(rounds), strict=True):
            yield replace(row, calm_s=calm_s + row.thinking_s) if calm_s else row


# ---- what the timings say -------------------------------------------------------------------------------------------


def seconds(rows: list[Row], arm: str, what: str = "decode_s") -> dict[str, float]:
    """Decoding seconds of an arm by prompt, as they were or with calm rounds."""
    total: dict[str, float] = {}
    for row in rows:
        if row.arm == arm:
            total[row.prompt_id] = total.get(row.prompt_id, 0.0) + getattr(row, what)
    return total


def speed(rows: list[Row], arm: str, over: str, what: str = "decode_s") -> dict[str, Any]:
    """Speed of one arm over that of another, with a 95% interval clustered by prompt."""
    own, other = seconds(rows, arm, what), seconds(rows, over, what)
    slow, fast = (np.array([side[name] for name in own]) for side in (other, own))
    interval = ratio_interval(slow, fast)
    return {"ratio": float(slow.sum() / fast.sum()), "ci95": None if interval is None else interval.tolist()}


def of_each(rows: list[Row], fixed: Sequence[str], best: str) -> float:
    """What the best fixed length of each prompt, in hindsight and chance included, brings over the best one of all."""
    taken = [seconds(rows, arm) for arm in fixed]
    own = seconds(rows, best)
    return sum(own.values()) / sum(min(arm[name] for arm in taken if name in arm) for name in own)


def of_kinds(rows: list[Row], fixed: Sequence[str], best: str) -> float:
    """As `of_each`, of the best fixed length of each category and temperature: what a perfect rule for each brings."""
    taken: dict[tuple[str, float], dict[str, float]] = {}
    for row in rows:
        own = taken.setdefault((categories().get(row.prompt_id, ""), row.temperature), dict.fromkeys(fixed, 0.0))
        if row.arm in own:
            own[row.arm] += row.decode_s
    return sum(own[best] for own in taken.values()) / sum(min(own.values()) for own in taken.values())


@cache
def categories() -> dict[str, str]:
    """Those of the prompts that come with the package, by id."""
    return {prompt.id: prompt.category for prompt in load_prompts(None)}


def stalled_share(rows: list[Row]) -> float:
    """Of the whole time, what was left out."""
    stalled = sum(row.stalled_s for row in rows)
    return stalled / (stalled + sum(row.decode_s for row in rows))


def summarise(rows: list[Row]) -> dict[str, Any]:
    """By workload: every arm over k = 0, and the rules over the best fixed length."""
    found = {}
    for workload in dict.fromkeys(row.workload for row in rows):
        own = [row for row in rows if row.workload == workload]
        arms = list(dict.fromkeys(row.arm for row in own))
        fixed, rules = ([arm for arm in arms if arm.startswith("k=") is kept] for kept in (True, False))
        best = max(fixed, key=lambda arm: speed(own, arm, "k=0")["ratio"])
        auto = [row for row in own if row.arm == "auto"]
        found[workload] = {
            "prompts": len({row.prompt_id for row in own}),
            "same_text": len({(r.prompt_id, r.temperature, r.text) for r in own})
            == len({(r.prompt_id, r.temperature) for r in own}),
            "best": best,
            "over_plain": {arm: speed(own, arm, "k=0") for arm in arms},
            "over_best": {arm: speed(own, arm, best) for arm in rules},
            "best_of_each": of_each(own, fixed, best),
            "best_of_kinds": of_kinds(own, fixed, best),
            "drafts_a_round": sum(r.drafted for r in auto) / sum(r.rounds for r in auto),
            "tokens_a_round": 1 + sum(r.accepted for r in auto) / sum(r.rounds for r in auto),
            "thinking_share": sum(r.thinking_s for r in auto) / sum(r.decode_s for r in auto),
            "thinking_us_a_round": 1e6 * sum(r.thinking_s for r in auto) / sum(r.rounds for r in auto),
            "stalled_share": stalled_share(own),
            "stalled_share_auto": stalled_share(auto),
            "calm": calm(own, fixed, rules) if all(row.calm_s for row in own) else None,
        }
    return {"workloads": found, "aims": judge(found), "aims_calm": judge(calm_only(found))}


def calm(rows: list[Row], fixed: Sequence[str], rules: Sequence[str]) -> dict[str, Any]:
    """Speeds with calm rounds: of every arm over k = 0, and of the rules over the best fixed length."""
    plain = {arm: speed(rows, arm, "k=0", "calm_s") for arm in (*fixed, *rules)}
    best = max(fixed, key=lambda arm: plain[arm]["ratio"])
    return {"best": best, "over_plain": plain, "over_best": {arm: speed(rows, arm, best, "calm_s") for arm in rules}}


def calm_only(found: dict[str, Any]) -> dict[str, Any]:
    """A summary's workloads with calm rounds, where these were watched."""
    return {name: {**w, **w["calm"]} for name, w in found.items() if w["calm"]}


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """What of the aims is reached, by the worst ratio; an aim whose workloads were left out is not judged."""

    def worst(names: Sequence[str], what: str, aim: float) -> dict[str, Any] | None:
        ratios = {name: found[name][what]["auto"] for name in names if name in found}
        if not ratios:
            return None
        name = min(ratios, key=lambda n: ratios[n]["ratio"])
        return {"workload": name, **ratios[name], "aim": aim, "reached": ratios[name]["ratio"] >= aim}

    share = max((found[name]["thinking_share"] for name in found), default=0.0)
    aims = {
        "stationary, over the best k": worst(STATIONARY, "over_best", 0.98),
        "mixed, over the best k": worst(("mixed",), "over_best", 1.05),
        "anywhere, over k = 0": worst(tuple(found), "over_plain", 0.98),
        "thinking, share of decoding": {"figure": share, "aim": 0.01, "reached": share < 0.01},
    }
    return {name: aim for name, aim in aims.items() if aim is not None}


def show(summary: dict[str, Any]) -> None:
    """A table on stderr."""

    def text(speed: dict[str, Any]) -> str:
        return common.ratio_text(speed["ratio"], speed["ci95"])

    for what, found in (("", summary["workloads"]), ("calm ", calm_only(summary["workloads"]))):
        lines = [
            [name, w["best"], *(text(w["over_best"][arm]) for arm in RULES), text(w["over_plain"]["auto"]),
             f"{w['drafts_a_round']:.1f}", f"{w['thinking_share']:.1%} ({w['thinking_us_a_round']:.0f} us)"]
            for name, w in found.items()
        ]  # fmt: skip
        columns = ["workload", "best", *RULES, "auto over k = 0", "drafts", "thinking"]
        common.show(f"{what}speed over the best fixed k", columns, lines)


def main() -> None:
    parser = common.parser(__doc__, "controller_cpu.json")
    parser.set_defaults(threads=1)
    parser.add_argument("--prompts", type=int, default=36, help="for each workload")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="workloads, with commas between")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this thread, for a busy machine")
    flags = parser.parse_args()
    check_writable(flags.out)
    common.set_threads(flags.threads)
    options = {name: value for name, value in vars(flags).items() if name != "out"}
    label = ["CPU"] if flags.clock == "wall" else ["CPU", "seconds of processor time: the machine was busy"]
    record = common.head("paceline-controller-cpu/1", label, options)
    llm = LLM.from_pretrained("embedded", device="cpu", min_confidence=0.0)
    llm.warm_up()
    assert isinstance(llm.engine, Engine)
    llm.engine.clock = CLOCKS[flags.clock]
    timings, step_ms = calibrate(llm.engine, (64, 256), clock=llm.engine.clock)
    tasks = workloads(load_prompts(None), flags.prompts, flags.seed)
    chosen = {name: own for name, own in tasks.items() if not flags.only or name in flags.only.split(",")}
    stage = Stage(llm, llm.engine, CostTable(timings, step_ms=step_ms), flags.max_tokens)
    rows = list(measure(stage, chosen, flags.seed))
    summary = summarise(rows)
    show(summary)
    table = {"step_ms": step_ms, "rows": [asdict(timing) for timing in timings]}
    common.write(flags.out, {**record, "engine": dict(llm.describe()), "cost_table": table, "summary": summary,
                             "rows": [asdict(row) for row in rows]})  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except PacelineError as error:
        raise SystemExit(f"controller_cpu: {error}") from None
