"""Replays policies on a trace. A policy sees what a served round would have told it, when it would have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from paceline.control.auto import Auto
from paceline.control.cost import CostTable
from paceline.control.kinds import Kinds
from paceline.control.logistic import Floats
from paceline.control.policy import Confidence, Constant, Heuristic, Policy, Served, State, Turns, parse_number
from paceline.control.predict import expected_tokens
from paceline.control.stop import Stop
from paceline.control.trace import Row, Trace
from paceline.errors import UsageError

Chooser = Callable[[Row], int]


@dataclass(slots=True)
class Result:
    """What a policy did, round by round: k, tokens emitted, milliseconds, and the kind of text."""

    name: str
    ks: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per millisecond."""
        return sum(self.tokens) / sum(self.ms)

    @property
    def mean_k(self) -> float:
        """Mean draft length."""
        return float(np.mean(self.ks))


class Workbench:
    """A trace with its round times: plays policies, constants and bounds on it."""

    def __init__(self, trace: Trace, table: CostTable) -> None:
        self.trace, self.table = trace, table
        self.k_max = min(trace.k_max, table.k_max)
        self.requests = trace.requests()
        self.jumps = trace.every_position
        self._times: dict[tuple[int, int], list[float]] = {}

    def ms(self, row: Row, k: int) -> float:
        """Milliseconds of k drafts in this round: as recorded, else by the table."""
        if k in row.round_ms:
            return row.round_ms[k]
        key = row.batch, row.context
        if key not in self._times:
            self._times[key] = self.table.times(*key)
        return self._times[key][k]

    def play(self, policy: Policy, name: str, explain: bool = False) -> Result:
        """Every request with one policy, in order."""
        result = Result(name)
        for rows in self.requests:
            turns = Turns(policy)
            for row, left in self._rounds(rows, result):
                if not turns.left:
                    turns.choose(State(row.request, row.batch, row.context, kind=f"{row.temperature:g}"))
                if not 0 <= turns.k <= self.k_max:
                    raise UsageError(
                        f"policy {name} chose {turns.k} drafts; a round of this trace has 0 to {self.k_max}"
                    )
                served = self._serve(row, turns.k, policy.stop)
                _note(result, row, served.k, min(served.accepted + 1, left), served.ms)
                if explain:
                    result.reasons.append(policy.reason)
                if turns.over(served.k, served.accepted):
                    policy.observe(served._replace(tries=turns.tries, hits=turns.hits))
        return result

    def _rounds(self, rows: list[Row], result: Result) -> Iterator[tuple[Row, int]]:
        """The rounds of a request: by what the last one emitted, or row by row; and the tokens left."""
        at = 0
        while at < len(rows):
            yield rows[at], len(rows) - at if self.jumps else self.k_max + 1
            at += result.tokens[-1] if self.jumps else 1

    def _serve(self, row: Row, k: int, stop: Stop | None) -> Served:
        k = steps = min(k, row.drafted)
        if stop and row.confidences:
            k, steps = stop.length(row.confidences, k)
        ms = self.ms(row, k) + (steps - k) * self.table.step_ms
        unmade = row.confidences[k] if steps > k else None
        return Served(row.request, k, min(k, row.accepted), ms, row.batch, row.context, row.margins[:k],
                      row.confidences[:k], unmade, f"{row.temperature:g}")  # fmt: skip

    def fixed(self, chooser: Chooser, name: str) -> Result:
        """Every request with a rule that may look at the whole row: bounds, not policies."""
        result = Result(name)
        for rows in self.requests:
            for row, left in self._rounds(rows, result):
                k = min(chooser(row), row.drafted)
                _note(result, row, k, min(k, row.accepted, left - 1) + 1, self.ms(row, k))
        return result

    def statics(self) -> list[Result]:
        """Every constant k."""
        return [self.fixed(lambda row, k=k: k, f"k={k}") for k in range(self.k_max + 1)]  # type: ignore[misc]

    def clairvoyant(self) -> Result:
        """The least time any choice of k could need: it knows how many drafts each round will keep."""
        if self.jumps:
            plan = {id(row): k for rows in self.requests for row, k in zip(rows, self._shortest(rows), strict=True)}
            return self.fixed(lambda row: plan[id(row)], "clairvoyant")
        return self._at_best_pace(lambda row: [1.0 + min(k, row.accepted) for k in self._ks(row)], "clairvoyant")

    def informed(self) -> Result | None:
        """The best without peeking: knows the true law of each round but not what comes of it. None where unknown."""
        if not all(row.law for row in self.trace.rows):
            return None
        tokens = {id(row): expected_tokens(row.law) for row in self.trace.rows}
        return self._at_best_pace(lambda row: tokens[id(row)], "informed")

    def _ks(self, row: Row) -> range:
        return range(min(self.k_max, row.drafted) + 1)

    def _shortest(self, rows: list[Row]) -> list[int]:
        """Dynamic programming from the end: the k of each position on the fastest way through the text."""
        ahead, ks = [0.0] * (len(rows) + 1), [0] * len(rows)
        for at in range(len(rows) - 1, -1, -1):
            row = rows[at]
            options = [
                self.ms(row, k) + ahead[min(at + min(k, row.accepted) + 1, len(rows))]
                for k in self._ks(row) if k <= max(row.accepted, 0)
            ]  # fmt: skip
            ks[at] = int(np.argmin(options))
            ahead[at] = options[ks[at]]
        return ks

    def _at_best_pace(self, tokens: Callable[[Row], list[float]], name: str) -> Result:
        """Dinkelbach: the k of most tokens less their price, at the pace that this itself reaches."""
        pace, result = 0.0, self.fixed(lambda row: 0, name)
        for _ in range(12):
            if result.rate <= pace * (1 + 1e-9):
                break
            pace = result.rate
            result = max(result, self.fixed(self._priced(tokens, pace), name), key=lambda r: r.rate)
        return result

    def _priced(self, tokens: Callable[[Row], list[float]], pace: float) -> Chooser:
        def choose(row: Row) -> int:
            values = tokens(row)
            return max(self._ks(row), key=lambda k: values[k] - pace * self.ms(row, k))

        return choose


def _note(result: Result, row: Row, k: int, tokens: int, ms: float) -> None:
    result.ks.append(k)
    result.tokens.append(tokens)
    result.ms.append(ms)
    result.categories.append(row.category)


def make(name: str, table: CostTable, k_max: int) -> Policy:
    """A policy by name: auto, auto+stop, heuristic, confidence, confidence=0.5, stop=0.4, k=4.

    "auto" decides before a round, as on a GPU; "auto+stop" also ends drafts early, as on a CPU; "stop" ends those of
    full length at a threshold of confidence, within the round. Raises UsageError for any other name.
    """
    kind, _, value = name.partition("=")
    if kind == "k" and value.isdecimal():
        return Constant(int(parse_number(value, 0, k_max, "a constant k of this trace and cost table")))
    if kind == "confidence":
        return Confidence(k_max, parse_number(value or "0.4", 0.0, 1.0, "a confidence threshold"))
    if kind == "stop":
        threshold = parse_number(value or "0.4", 0.0, 1.0, "a confidence threshold")
        return Constant(k_max, Stop(threshold, threshold))
    if name == "heuristic":
        return Heuristic(k_max)
    if name in ("auto", "auto+stop"):
        return Kinds(Auto(table.copy(), k_max, listens=name != "auto"))
    raise UsageError(f"there is no policy {name!r}; choose {NAMES}, or k=4")


NAMES = "auto, auto+stop, heuristic, confidence, confidence=0.5, stop=0.4"


def regret(result: Result, bound: Result) -> tuple[Floats, Floats]:
    """(tokens emitted, milliseconds lost against the bound by then) after each round."""
    tokens, ms = np.cumsum(result.tokens).astype(float), np.cumsum(result.ms)
    reached, taken = np.cumsum([0, *bound.tokens]).astype(float), np.cumsum([0.0, *bound.ms])
    # Row by row, policies emit different numbers of tokens: behind its end the bound goes on at its mean pace.
    beyond = np.maximum(tokens - reached[-1], 0.0) / bound.rate
    return tokens, ms - np.interp(tokens, reached, taken) - beyond
