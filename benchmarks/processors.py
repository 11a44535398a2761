"""What choosing tokens costs: the share of a CPU round that rules, cuts and grammars take, each beside plain greedy.

Every way of choosing writes the same prompts with the embedded pair, with drafts, in one process. The time inside the
sampler is taken by a clock around its methods, whose own time counts as theirs; each part is clocked in a run of its
own, so that no clock runs inside another's. Other processes make small steps dearer
than large ones, so the quickest round is told too, of those with all their drafts: what a way adds to it over greedy.

Then the same steps over random logits of E2B's size, beside the least time that E2B's round could take on this machine:
its bytes over the bandwidth of a copy. That part is synthetic; a share of a least time is the most that it can be.

    python benchmarks/processors.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import common
import numpy as np
from rows import Copy

from paceline import engine
from paceline.bench.prompts import BenchPrompt, load_prompts, sample
from paceline.bench.stats import ratio_interval
from paceline.kernels import get_ops
from paceline.llm import LLM
from paceline.roofline import Round, traffic
from paceline.sampling import Sampler
from paceline.shapes import drafter_config, target_config
from paceline.structure import Constraint
from paceline.types import SamplingParams

K = 3  # drafts of every round, however unsure the drafter is
CUTS = SamplingParams(temperature=1.0, top_k=64, top_p=0.95)
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 300}}, "required": ["answer"],
          "additionalProperties": False}  # fmt: skip
WAYS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(),
    "top-k, top-p": CUTS,
    "temperature alone": replace(CUTS, top_k=0, top_p=1.0),
    "min-p": replace(CUTS, top_k=0, top_p=1.0, min_p=0.05),
    "repetition, presence, frequency": replace(
        CUTS, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2
    ),
    "logit bias, least length": replace(CUTS, logit_bias={500: -5.0, 600: 2.0}, min_tokens=8),
    "rejection": replace(CUTS, accept="rejection"),
    "block": replace(CUTS, accept="block"),
    "regular expression": replace(CUTS, regex="[a-zA-Z ,.]{20,400}"),
    "JSON schema": replace(CUTS, json_schema=SCHEMA),
    "JSON schema, greedy": SamplingParams(json_schema=SCHEMA),
}
PARTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "rules": (Sampler, ("_ruled", "_masked")),  # penalties, biases and grammar
    "choosing": (Sampler, ("verify", "guess", "legal", "extend")),  # all of it, the rules included
    "llguidance": (Constraint, ("_read", "_compute")),  # the grammar library's own work, a part of the rules
}


class Clock:
    """CPU seconds inside some methods, what one of them calls counted once; seconds of rounds of `drafts`."""

    def __init__(self, drafts: int) -> None:
        self.spent, self.depth = 0.0, 0
        self.drafts, self.rounds, self.honest = drafts, list[float](), engine.speculate

    def speculate(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        done = self.honest(*arguments)
        if done.drafted == self.drafts:
            self.rounds.append(time.perf_counter() - start)
        return done

    def wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self.depth += 1
            start = time.process_time()
            try:
                return method(*arguments)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.spent += time.process_time() - start

        return timed


@contextmanager
def clocked(part: str, drafts: int = 0) -> Iterator[Clock]:
    """A part of the sampler or the grammar, and the engine's rounds, under a clock."""
    clock, (owner, names) = Clock(drafts), PARTS[part]
    kept = [(name, getattr(owner, name)) for name in names]
    for name, method in kept:
        setattr(owner, name, clock.wrap(method))
    engine.speculate = clock.speculate
    try:
        yield clock
    finally:
        engine.speculate = clock.honest
        for name, method in kept:
            setattr(owner, name, method)


def measure(llm: LLM, prompts: list[BenchPrompt], max_tokens: int) -> dict[str, list[dict[str, Any]]]:
    """For each way and prompt the CPU seconds of each part and of the text around it, and those of whole rounds."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for prompt in prompts:
        for name, params in WAYS.items():
            asked = replace(params, max_tokens=max_tokens)
            found[name].append({part: clock_text(llm, prompt, asked, part) for part in PARTS})
    return found


def clock_text(llm: LLM, prompt: BenchPrompt, params: SamplingParams, part: str) -> dict[str, Any]:
    """CPU seconds of the part and of the whole text, and the seconds of its rounds, of one run."""
    with clocked(part, K) as clock:
        start = time.process_time()
        llm.generate([prompt.prompt], params, k=K)
        seconds = time.process_time() - start
    return {"own_s": clock.spent, "text_s": seconds, "round_s": clock.rounds}


def summarise(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Shares of the CPU time, with intervals over prompts; the quickest round, and what it takes over greedy's."""
    plain = quickest_ms(found["greedy"])
    return {name: {**{part: share(rows, part) for part in PARTS}, "quickest_round_ms": quickest_ms(rows),
                   "over_greedy": quickest_ms(rows) / plain - 1}
            for name, rows in found.items()}  # fmt: skip


def share(rows: list[dict[str, Any]], part: str) -> dict[str, Any]:
    own, whole = (np.array([row[part][name] for row in rows]) for name in ("own_s", "text_s"))
    interval = ratio_interval(own, whole)
    return {"share": float(own.sum() / whole.sum()), "ci95": None if interval is None else interval.tolist()}


def quickest_ms(rows: list[dict[str, Any]]) -> float:
    """The least of the rounds' times, the choosing under a clock: other processes can only add to it."""
    return 1e3 * min(seconds for row in rows for seconds in row["choosing"]["round_s"])


class Large:
    """Logits of E2B's size, random, and a drafter that scores as many tokens as its centroids leave; float32."""

    def __init__(self) -> None:
        self.config, drafter, rng = target_config("e2b"), drafter_config("e2b"), np.random.default_rng(0)
        assert drafter.centroids is not None
        self.vocab, heads = self.config.vocab, drafter.centroids
        self.ids = rng.permutation(self.vocab)[None, : heads.active * (self.vocab // heads.count)]
        self.rows = rng.normal(0, 3, (K + 1, self.vocab)).astype(np.float32)
        self.parts = [np.ascontiguousarray(row[self.ids]) for row in self.rows[:K]]
        self.prompt, self.bytes = (
            self.ids[0, :200].tolist(),
            traffic(self.config, drafter, Round(k=K, context=200)).total,
        )

    def seconds(self, params: SamplingParams, repeats: int = 15) -> float:
        """The median time of a round's choices, every row verified."""
        sampler = Sampler(get_ops("cpu"), params, end_ids=frozenset((1, 106)))
        taken = []
        for _ in range(repeats):
            sampler.begin(self.prompt, self.vocab)
            kept = sampler.choose(self.rows, len(self.prompt))[:K]  # every draft stays: the dearest round
            start, draft = time.perf_counter(), list[int]()
            for part in self.parts:
                draft.append(sampler.guess(part, self.ids, len(self.prompt) + len(draft), draft))
            sampler.extend(sampler.verify(self.rows, len(self.prompt), draft if sampler.rejection else kept), self.rows)
            taken.append(time.perf_counter() - start)
        return float(np.median(taken))


def at_large() -> dict[str, Any]:
    """Milliseconds of each way but the grammars, and the least that E2B's round takes at this machine's bandwidth."""
    large, bandwidth = Large(), Copy().bytes_per_s(threaded=False)
    ways = {name: params for name, params in WAYS.items() if params.structure is None}
    least = large.bytes / bandwidth
    return {"labels": ["random logits", "the round's time is predicted"], "round_bytes": large.bytes,
            "copy_bytes_per_s": bandwidth, "least_round_ms": 1e3 * least,
            "ways": {name: {"choosing_ms": 1e3 * spent, "share_at_most": spent / (spent + least)}
                     for name, params in ways.items() for spent in [large.seconds(params)]}}  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__, "processors.json")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    common.set_threads(options.threads)
    told = {"prompts": options.prompts, "max_tokens": options.max_tokens, "k": K}
    record = common.head("paceline-processors/2", ["CPU", "embedded miniature, trained for tests"], told)
    llm, prompts = LLM.from_pretrained("embedded", min_confidence=0.0), sample(load_prompts(None), options.prompts, 0)
    llm.warm_up()
    measure(llm, prompts[:1], 16)  # compiles grammars and what else is first used here
    found = measure(llm, prompts, options.max_tokens)
    record |= {"measurements": found, "summary": summarise(found), "at_e2b_size": at_large()}
    large = record["at_e2b_size"]["ways"]
    rows = [(name, *(f"{part[key]['share']:.1%}" for key in PARTS), f"{part['quickest_round_ms']:.2f}",
             f"{part['over_greedy']:+.1%}", f"{large[name]['choosing_ms']:.2f}" if name in large else "")
            for name, part in record["summary"].items()]  # fmt: skip
    common.show("choosing tokens", ("way", *PARTS, "quickest round, ms", "over greedy", "E2B's size, ms"), rows)
    common.write(options.out, record)


if __name__ == "__main__":
    main()
