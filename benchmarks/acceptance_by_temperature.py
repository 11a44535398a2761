"""How many drafts stay at which temperature, for each way of accepting them: the embedded pair on its own prompts.

Two parts. Whole texts, as `paceline bench --temperatures` measures them: tokens a round and speed-up. And the same
rounds judged by all three modes: the drafts that a mode would keep are added up over its noise, so no luck of the draw
stands between the modes.

    python benchmarks/acceptance_by_temperature.py
"""

from __future__ import annotations

import json
from typing import Any

import common
import numpy as np

from paceline import verification
from paceline.bench.prompts import BenchPrompt, load_prompts, sample
from paceline.bench.stats import ratio_interval
from paceline.bench.temperatures import Settings, bench_temperatures
from paceline.kernels import noise
from paceline.llm import LLM
from paceline.types import ACCEPT_MODES, SamplingParams

SCHEMA = "paceline-acceptance-by-temperature/1"
WHOLE, SURE = 0.0, None  # lowest confidence to draft at: drafts of k always, and what the drafter's checkpoint advises


class Judge:
    """Stands in front of `verification.verify` and notes what every mode would keep of the round's drafts.

    The compiled twin, which would pass it by, is off meanwhile.
    """

    def __init__(self) -> None:
        self.honest, self.kept = verification.verify, dict.fromkeys(ACCEPT_MODES, 0.0)
        self.rounds = -1  # the first token of a text is no round

    def verify(self, mode: Any, draft: Any, q: Any, p: Any, noise: Any) -> Any:
        self.rounds += 1
        for each in ACCEPT_MODES:
            chances = verification.odds(each, draft, q, p).accept
            self.kept[each] += float(verification.kept_law(each, chances) @ np.arange(len(draft) + 1))
        return self.honest(mode, draft, q, p, noise)

    def __enter__(self) -> Judge:
        self.compiled, noise.COMPILED = noise.COMPILED, False
        verification.verify = self.verify
        return self

    def __exit__(self, *_: object) -> None:
        verification.verify, noise.COMPILED = self.honest, self.compiled


def same_rounds(llm: LLM, prompts: list[BenchPrompt], settings: Settings, temperature: float) -> dict[str, Any]:
    """Expected tokens a round of each mode over the rounds of one set of texts, with intervals over prompts."""
    kept: dict[str, list[float]] = {mode: [] for mode in ACCEPT_MODES}
    rounds: list[float] = []
    for number, prompt in enumerate(prompts):
        params = settings.params(temperature, "rejection", settings.seed + number)
        with Judge() as judge:
            llm.generate([prompt.prompt], params, k=settings.k)
        rounds.append(judge.rounds)
        for mode, total in judge.kept.items():
            kept[mode].append(total)
    lengths = {mode: np.array(values) + np.array(rounds) for mode, values in kept.items()}
    found: dict[str, Any] = {mode: told(length, np.array(rounds)) for mode, length in lengths.items()}
    for first, second in (("block", "rejection"), ("rejection", "coupled"), ("coupled", "rejection")):
        found[f"{first} over {second}"] = told(lengths[first], lengths[second])
    return found | {"rounds": int(sum(rounds))}


def told(numerator: Any, denominator: Any) -> dict[str, Any]:
    interval = ratio_interval(numerator, denominator)
    return {
        "value": float(numerator.sum() / denominator.sum()),
        "ci95": None if interval is None else interval.tolist(),
    }


def judged(options: Any, prompts: list[BenchPrompt], settings: Settings) -> dict[str, Any]:
    """`same_rounds` by temperature, with the drafter's own stop and with drafts of k always."""
    found = {}
    for name, confidence in (("as served", SURE), ("k drafts always", WHOLE)):
        llm = LLM.from_pretrained(options.target, min_confidence=confidence)
        sampled = [t for t in settings.temperatures if t]
        found[name] = {str(t): same_rounds(llm, prompts, settings, t) for t in sampled}
    return found


def summarise(record: dict[str, Any]) -> dict[str, Any]:
    """The figures at temperature 1, and whether the modes stand in the order that is promised."""
    here = {name: part.get("1.0") for name, part in record["same_rounds"].items()}
    whole = record["whole_texts"]["by_temperature"].get("1.0")
    return {"same_rounds_at_1": here, "whole_texts_at_1": whole and {**whole["modes"], "compared": whole["compared"]}}


def main() -> None:
    parser = common.parser(__doc__, "acceptance_by_temperature.json")
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--prompts", type=int, default=60, help="so many of the embedded prompts")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    common.set_threads(options.threads)
    llm = LLM.from_pretrained(options.target)
    llm.warm_up()
    prompts = sample(load_prompts(None), options.prompts, 0)
    settings = Settings(k=llm.resolved.k, max_tokens=options.max_tokens, repeats=options.repeats)
    llm.generate([prompts[0].prompt], SamplingParams(temperature=1.0, max_tokens=16, accept="block"))
    head = common.head(SCHEMA, ["CPU"], {"prompts": options.prompts})
    html = options.out.with_suffix(".html")
    bench_temperatures(llm, prompts, settings, options.out, html)
    found = json.loads(options.out.read_text(encoding="utf-8"))
    record = head | {"options": head["options"] | found["options"], "engine": found["engine"]}
    record |= {"whole_texts": found["summary"], "same_rounds": judged(options, prompts, settings)}
    record |= {"measurements": found["measurements"], "plots": html.name}
    record["summary"] = summarise(record)
    common.write(options.out, record)


if __name__ == "__main__":
    main()
