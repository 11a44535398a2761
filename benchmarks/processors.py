"""What choosing tokens costs: the share of a CPU round that rules, cuts and grammars take, each beside plain greedy.

Every way of choosing writes the same prompts with the embedded pair, with drafts, in one process; the time inside the
sampler is taken by a clock around its methods, so shares hold on a loaded machine too, and seconds do not.

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

from paceline.bench.prompts import BenchPrompt, load_prompts, sample
from paceline.bench.stats import ratio_interval
from paceline.llm import LLM
from paceline.sampling import Sampler
from paceline.types import SamplingParams

CUTS = SamplingParams(temperature=1.0, top_k=64, top_p=0.95)
WAYS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(),
    "top-k, top-p": CUTS,
    "min-p": replace(CUTS, top_k=0, top_p=1.0, min_p=0.05),
    "repetition, presence, frequency": replace(
        CUTS, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2
    ),
    "logit bias, least length": replace(CUTS, logit_bias={500: -5.0, 600: 2.0}, min_tokens=8),
    "rejection": replace(CUTS, accept="rejection"),
    "block": replace(CUTS, accept="block"),
    "regular expression": replace(CUTS, regex="[a-zA-Z ,.]{20,400}"),
}
PARTS: dict[str, tuple[str, ...]] = {
    "rules": ("_rows", "_reshape_part"),  # penalties, biases, grammar and suppression
    "choosing": ("verify", "guess", "legal", "extend"),  # all of it, the rules included
}


class Clock:
    """CPU seconds inside the sampler's methods since `reset`; what a method calls counts once."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.depth: dict[str, int] = dict.fromkeys(PARTS, 0)

    def wrap(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self.depth[part] += 1
            start = time.process_time()
            try:
                return method(*arguments)
            finally:
                self.depth[part] -= 1
                if not self.depth[part]:
                    self.spent[part] += time.process_time() - start

        return timed


@contextmanager
def clocked() -> Iterator[Clock]:
    """The sampler under a clock."""
    clock, kept = Clock(), {name: getattr(Sampler, name) for names in PARTS.values() for name in names}
    for part, names in PARTS.items():
        for name in names:
            setattr(Sampler, name, clock.wrap(part, kept[name]))
    try:
        yield clock
    finally:
        for name, method in kept.items():
            setattr(Sampler, name, method)


def measure(llm: LLM, prompts: list[BenchPrompt], max_tokens: int) -> dict[str, list[dict[str, float]]]:
    """For each way and prompt the CPU seconds of the text and of both parts, and its rounds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for prompt in prompts:
        for name, params in WAYS.items():
            with clocked() as clock:
                start = time.process_time()
                [done] = llm.generate([prompt.prompt], replace(params, max_tokens=max_tokens))
                seconds = time.process_time() - start
            found[name].append({"seconds": seconds, "rounds": done.stats.rounds, **clock.spent})
    return found


def summarise(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Shares of the time, with intervals over prompts, and milliseconds a round on this machine under its load."""
    return {name: {**{part: share(rows, part) for part in PARTS}, "round_ms": round_ms(rows)}
            for name, rows in found.items()}  # fmt: skip


def share(rows: list[dict[str, float]], part: str) -> dict[str, Any]:
    own, whole = (np.array([row[name] for row in rows]) for name in (part, "seconds"))
    interval = ratio_interval(own, whole)
    return {"share": float(own.sum() / whole.sum()), "ci95": None if interval is None else interval.tolist()}


def round_ms(rows: list[dict[str, float]]) -> float:
    return 1e3 * sum(row["seconds"] for row in rows) / max(1.0, sum(row["rounds"] for row in rows))


def main() -> None:
    parser = common.parser(__doc__, "processors.json")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    common.set_threads(options.threads)
    told = {"prompts": options.prompts, "max_tokens": options.max_tokens, "clock": "CPU seconds of this process"}
    record = common.head("paceline-processors/1", ["CPU", "embedded miniature, trained for tests"], told)
    llm, prompts = LLM.from_pretrained("embedded"), sample(load_prompts(None), options.prompts, 0)
    llm.warm_up()
    measure(llm, prompts[:1], 16)  # compiles grammars and what else is first used here
    found = measure(llm, prompts, options.max_tokens)
    record |= {"measurements": found, "summary": summarise(found)}
    rows = [(name, f"{part['rules']['share']:.1%}", f"{part['choosing']['share']:.1%}", f"{part['round_ms']:.2f}")
            for name, part in record["summary"].items()]  # fmt: skip
    common.show("choosing tokens, share of the time", ("way", "rules", "all of it", "CPU ms a round"), rows)
    common.write(options.out, record)


if __name__ == "__main__":
    main()
