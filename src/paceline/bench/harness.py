"""Takes the measurements: brings up the arm of each step, keeps requests in flight, and times them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from paceline.bench.arms import Answer, Arm, ArmError, Ask, Clock, Drafting, Facts
from paceline.bench.measurement import OFF, ON, ON_AGAIN, Failure, Measurement, StepRecord
from paceline.bench.plan import ArmKey, BenchOptions, Cell, Step, derive_seed
from paceline.errors import UsageError

T = TypeVar("T")
PATIENCE = 3  # texts long enough to draft in that may pass without a draft, and requests in a row that may fail


@dataclass(frozen=True, slots=True)
class Contest:
    """The arms: one that does not draft, and one for each draft length (None where not known).

    alone: only one may be up at a time. trusted: the user vouches for arms that do not tell whether they draft.
    """

    off: Arm
    on: Mapping[int | None, Arm]
    alone: bool = False
    trusted: bool = False

    def arm(self, key: ArmKey) -> Arm:
        """The arm of that name."""
        return self.on[key.k] if key.drafts else self.off


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step brought."""

    record: StepRecord
    rows: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Stage:
    """Who is up. Arms are opened, looked at and warmed up when first needed.

    facts: what is known of each arm that was up. tell: hears what goes on.
    """

    def __init__(
        self, contest: Contest, options: BenchOptions, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.contest, self.options, self.tell = contest, options, tell
        self.up: dict[int, Arm] = {}
        self.warm = set[tuple[int, int]]()
        self.facts: dict[ArmKey, Facts] = {}

    async def take(self, step: Step) -> Arm:
        """The arm of a step, ready. Raises UsageError for an arm that is not what it is to be."""
        arm = await self.bring_up(step.arm)
        if (id(arm), step.concurrency) not in self.warm:
            self.warm.add((id(arm), step.concurrency))
            self.tell(f"warming up {name_of(step.arm)}")
            await self._warm_up(arm, step)
        self.tell(f"measuring {name_of(step.arm)}")
        return arm

    async def bring_up(self, key: ArmKey) -> Arm:
        """Opens an arm, and refuses it where it does not draft as its name says."""
        arm = self.contest.arm(key)
        if id(arm) not in self.up:
            if self.contest.alone:
                await self.close()
            self.tell(f"starting {name_of(key)}")
            self.up[id(arm)] = arm  # before it is open: one that fails half-way must be closed too
            await arm.open()
            own = ArmKey(ON if key.drafts else OFF, key.k)  # whichever of its names came first
            self.facts[own] = await arm.check()
            admit(own, self.facts, self.contest.trusted)
        return arm

    async def _warm_up(self, arm: Arm, step: Step) -> None:
        """Runs a few texts at this concurrency, so that compiling and first touches are not timed."""
        if not self.options.warmup:
            return
        count = max(self.options.warmup, step.concurrency if step.concurrency > 1 else 0)
        cells = list(itertools.islice(itertools.cycle(step.cells), count))
        asks = [
            Ask(cell.prompt.prompt, self.options.params(temperature, self.options.seed))
            for cell, temperature in itertools.product(cells, self.options.temperatures)
        ]
        await _in_flight(step.concurrency, [partial(arm.answer, ask) for ask in asks])

    async def close(self) -> None:
        """Closes every arm that is up, those after one that fails to close too."""
        failed: Exception | None = None
        while self.up:
            _, arm = self.up.popitem()
            self.warm = {(at, c) for at, c in self.warm if at != id(arm)}
            try:
                await arm.close()
            except Exception as error:
                failed = failed or error
        if failed:
            raise failed


async def measure(stage: Stage, steps: Sequence[Step], watch: Clock) -> AsyncGenerator[Outcome, None]:
    """Yields what each step brought as soon as it is over, so that an interrupted run keeps what it has.

    watch: seconds since the run began. Raises ArmError when an arm does not come up, or fails in `PATIENCE` requests in
    a row.
    """
    failed = Counter[int]()
    try:
        if not stage.contest.alone:  # else each is looked at when its turn comes
            for key in dict.fromkeys(step.arm for step in steps):
                await stage.bring_up(key)
        for step in steps:
            arm = await stage.take(step)
            outcome = await run_step(arm, step, stage.options, watch)
            yield outcome
            failed[id(arm)] = _in_a_row(outcome, failed[id(arm)])
            if failed[id(arm)] >= PATIENCE:
                raise ArmError(
                    f"{failed[id(arm)]} requests in a row failed in the arm {name_of(step.arm)}; the last:"
                    f" {outcome.failures[-1].why}"
                )
    finally:
        await stage.close()


def _in_a_row(outcome: Outcome, before: int) -> int:
    """How many requests of an arm have failed since the last one that was answered began."""
    if not outcome.rows:
        return before + len(outcome.failures)
    last = max(row.started_s for row in outcome.rows)
    return sum(failure.started_s > last for failure in outcome.failures)


def admit(key: ArmKey, facts: Mapping[ArmKey, Facts], trusted: bool) -> None:
    """Refuses an arm that is not what its name says, or is the same server as the other. Raises UsageError."""
    own = facts[key]
    if own.drafts is None and key.drafts and not trusted:
        raise UsageError(
            f"nothing tells whether {own.engine} at {own.identity or 'hand'} drafts ({own.why});"
            " add --trust-arms to measure it all the same"
        )
    if own.drafts is not None and own.drafts != key.drafts:
        does, wanted = ("drafts", "must not") if own.drafts else ("does not draft", "must")
        raise UsageError(f"the arm {name_of(key)} {wanted} draft, but {own.engine} {does}: {own.why}")
    same = next(
        (other for other in facts if other.drafts != key.drafts and own.identity == facts[other].identity), None
    )
    if own.identity and same is not None:
        raise UsageError(f"both arms are the same server, {own.identity}; give one that drafts and one that does not")


async def run_step(arm: Arm, step: Step, options: BenchOptions, watch: Clock) -> Outcome:
    """Asks the arm for every text of the step, with so many requests in flight."""
    jobs = [partial(_ask, arm, step, cell, options, watch) for cell in step.cells]
    before, begin = await _counters(arm), watch()
    results = await _in_flight(step.concurrency, jobs)
    wall_s, after = watch() - begin, await _counters(arm)
    rows = [r for r in results if isinstance(r, Measurement)]
    spent = after - before if before and after else None
    if spent and len(step.cells) == 1 and rows and rows[0].drafted_tokens is None:
        rows, spent = [with_drafting(rows[0], spent)], None
    failures = [r for r in results if isinstance(r, Failure)]
    return Outcome(_step_record(step, rows, len(failures), (wall_s, spent)), rows, failures)


async def _counters(arm: Arm) -> Drafting | None:
    """An engine that died during a step must not take the answers before it along: its next requests tell."""
    try:
        return await arm.counters()
    except ArmError:
        return None


async def _in_flight(count: int, jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Runs all jobs, `count` at a time; results in the order they came."""
    queue, results = iter(jobs), list[T]()

    async def work() -> None:
        for job in queue:
            results.append(await job())

    workers = [asyncio.create_task(work()) for _ in range(min(count, len(jobs)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        # An arm is closed after this: no request may still be on its way then.
        await asyncio.gather(*workers, return_exceptions=True)
    return results


async def _ask(arm: Arm, step: Step, cell: Cell, options: BenchOptions, watch: Clock) -> Measurement | Failure:
    params = options.params(cell.temperature, derive_seed(options.seed, cell.prompt.id, cell.repeat))
    started = watch()
    try:
        answer = await arm.answer(Ask(cell.prompt.prompt, params))
    except ArmError as error:
        return Failure(
            prompt_id=cell.prompt.id, arm=step.arm.name, k=step.arm.k, temperature=cell.temperature,
            repeat=cell.repeat, concurrency=step.concurrency, started_s=started, why=str(error),
        )  # fmt: skip
    return row_of(answer, step, cell, params.seed, (started, watch() - started))


def row_of(answer: Answer, step: Step, cell: Cell, seed: int, times_s: tuple[float, float]) -> Measurement:
    """An answer as a row of the raw record. times_s: when it was asked for, and how long it took."""
    row = Measurement(
        order=0, prompt_id=cell.prompt.id, category=cell.prompt.category, arm=step.arm.name, k=step.arm.k,
        temperature=cell.temperature, repeat=cell.repeat, concurrency=step.concurrency, seed=seed,
        started_s=round(times_s[0], 6), seconds=times_s[1],
        ttft_s=answer.event_times_s[0] if answer.event_times_s else times_s[1], tpot_s=tpot_s(answer),
        prompt_tokens=answer.prompt_tokens or 0, tokens=answer.tokens, rounds=0, drafted=[], accepted=[],
        token_times_s=[round(moment, 6) for moment in answer.event_times_s], event_tokens=list(answer.event_tokens),
        token_sha256=digest(answer), finish_reason=answer.finish_reason, cached_tokens=answer.cached_tokens,
        method=answer.method, text=answer.text,
    )  # fmt: skip
    return with_drafting(row, answer.drafting) if answer.drafting else row


def with_drafting(row: Measurement, drafting: Drafting) -> Measurement:
    """The row with what drafting did in it."""
    return replace(
        row, rounds=drafting.rounds or 0, drafted_tokens=drafting.drafted, accepted_tokens=drafting.accepted,
        drafted=list(drafting.drafted_by_position), accepted=list(drafting.accepted_by_position),
        judged=list(drafting.judged_by_position),
    )  # fmt: skip


def tpot_s(answer: Answer) -> float:
    """Mean seconds per output token after the first event's (TPOT); 0 where nothing came after it."""
    if len(answer.event_times_s) < 2:
        return 0.0
    later = answer.tokens - (answer.event_tokens[0] if answer.event_tokens else 1)
    return (answer.event_times_s[-1] - answer.event_times_s[0]) / later if later > 0 else 0.0


def digest(answer: Answer) -> str:
    """SHA-256 of the token ids, or of the text where there are none."""
    what = answer.text if answer.token_ids is None else ",".join(map(str, answer.token_ids))
    return hashlib.sha256(what.encode()).hexdigest()


def _step_record(step: Step, rows: list[Measurement], failed: int, cost: tuple[float, Drafting | None]) -> StepRecord:
    wall_s, spent = cost
    record = StepRecord(
        arm=step.arm.name, k=step.arm.k, concurrency=step.concurrency, texts=len(rows), failed=failed,
        tokens=sum(row.tokens for row in rows), wall_s=wall_s, temperature=step.cells[0].temperature,
    )  # fmt: skip
    if spent is None:
        return record
    return replace(
        record, drafted=spent.drafted, accepted=spent.accepted, rounds=spent.rounds,
        drafted_by_position=spent.drafted_by_position, accepted_by_position=spent.accepted_by_position,
    )  # fmt: skip


def check_arms(rows: Sequence[Measurement], finished: bool) -> None:
    """Raises UsageError when an arm is seen not to be what it is called: on never drafted, or off did."""
    told = [row for row in rows if row.drafted_tokens is not None]
    if any(row.drafted_tokens for row in told if row.arm not in (ON, ON_AGAIN)):
        raise UsageError("the off arm drafted tokens, so nothing was compared; the engine must not draft when k is 0")
    own = [row for row in told if row.arm in (ON, ON_AGAIN)]
    long_enough = sum(row.tokens > 2 for row in own)
    if own and not any(row.drafted_tokens for row in own) and (finished or long_enough >= PATIENCE):
        raise UsageError(
            f"the on arm never drafted in {len(own)} texts, so nothing was compared;"
            " load a drafter, and let texts be longer than 2 tokens"
        )


def name_of(arm: ArmKey) -> str:
    """How progress calls an arm."""
    return f"{arm.name} (k = {arm.k})" if arm.drafts and arm.k is not None else arm.name
