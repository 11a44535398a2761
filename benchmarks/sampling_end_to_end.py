"""Whether drafting changes sampled texts of the embedded pair: 20,000 continuations with drafts and without.

Coupled: token for token, with equal seeds. Rejection and block: two-sample tests of the joint law of the first three
tokens, over other seeds for every arm, with broken engines that the same tests must catch. What was drawn is kept in
the result file after every chunk, and a run that was stopped goes on from there.

    python benchmarks/sampling_end_to_end.py
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from paceline.drafters import MtpDraft
from paceline.llm import LLM
from paceline.rejection import Law, Rejection
from paceline.types import SamplingParams

SCHEMA = "paceline-sampling-end-to-end/1"
PROMPTS = (
    "The capital of",
    "def add(a, b):\n    return",
    "Once upon a time there was a",
    "The answer is that the",
)
TOKENS, K, CHUNK = 3, 2, 250
LEAST = 10  # cells with fewer texts in both arms count as one
SHUFFLES = 2_000
FINE, CAUGHT = 1e-3, 1e-6
Counts = dict[str, int]


# ---- arms -----------------------------------------------------------------------------------------------------------

# Name of an arm: accept mode, draft length, and what is broken in it.
HONEST: dict[str, tuple[Any, int, str]] = {
    "plain": ("rejection", 0, ""),
    "rejection": ("rejection", K, ""),
    "block": ("block", K, ""),
}
BROKEN: dict[str, tuple[Any, int, str]] = {
    "argmax drafts verified as if sampled": ("rejection", K, "argmax"),
    "unlikely drafts dropped once drawn": ("rejection", K, "peek"),
}


def argmax(self: Rejection, law: Law, first: int, step: int) -> int:
    token = int(law.ids[law.chances.argmax()])
    self.drawn[step:] = [(token, law)]
    return token


def peek(self: MtpDraft, k: int) -> list[int]:
    draft, rejection = HONEST_PROPOSE(self, k), self.sampler.rejection
    assert rejection is not None
    likely = [float(law.chances[law.ids == token].sum()) > 0.3 for token, law in rejection.drawn]
    rejection.cut([*likely, False].index(False))
    return draft[: len(rejection.drawn)]


HONEST_PROPOSE = MtpDraft.propose
FAULTS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "argmax": (Rejection, "draw", argmax),
    "peek": (MtpDraft, "propose", peek),
}


@contextmanager
def broken(fault: str) -> Iterator[None]:
    """The engine with this fault, or as it is for none."""
    if not fault:
        yield
        return
    owner, name, wrong = FAULTS[fault]
    right = getattr(owner, name)
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)


# ---- drawing --------------------------------------------------------------------------------------------------------


def first_tokens(llm: Any, prompt: str, params: SamplingParams, k: int) -> str:
    """The first three tokens of a text, as a key of the counts; the rest of it is not written."""
    stream, ids = llm.stream(prompt, params, k=k), list[int]()
    for event in stream:
        ids.append(event.token_id)
        if len(ids) == TOKENS:
            break
    return " ".join(map(str, ids))


def seed_of(arm: int, prompt: int, number: int) -> int:
    """Another for every text of every arm."""
    return (arm << 48) + (prompt << 40) + number


def draw_chunk(llm: Any, prompt: int, arm: tuple[int, tuple[Any, int, str]], start: int, stop: int) -> Counter[str]:
    """Counts of texts start .. stop - 1 of one arm and prompt."""
    (number, (accept, k, fault)), found = arm, Counter[str]()
    with broken(fault):
        for i in range(start, stop):
            params = SAMPLED | {"seed": seed_of(number, prompt, i), "accept": accept}
            found[first_tokens(llm, PROMPTS[prompt], SamplingParams(**params), k)] += 1
    return found


def equal_chunk(llm: Any, prompt: int, start: int, stop: int) -> int:
    """How many texts start .. stop - 1 are equal, token for token, with drafts and without: coupled."""
    same = 0
    for i in range(start, stop):
        params = SamplingParams(**SAMPLED | {"seed": seed_of(0, prompt, i)})
        same += first_tokens(llm, PROMPTS[prompt], params, 0) == first_tokens(llm, PROMPTS[prompt], params, K)
    return same


SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_k": 8, "top_p": 0.95, "max_tokens": 16, "ignore_eos": True}


class Run:
    """What was drawn so far, in the result file."""

    def __init__(self, record: dict[str, Any], out: Path) -> None:
        self.record, self.out, self.start = record, out, time.perf_counter()

    def keep(self) -> None:
        """Writes what there is, with what it says so far."""
        now = time.perf_counter()
        self.record["seconds"] += now - self.start
        self.start = now
        self.record["summary"] = summarise(self.record)
        common.files.write_record(self.out, self.record)

    def draw(self, llm: Any, each: int) -> None:
        """Every arm in turn, a chunk at a time, until each has `each` texts of every prompt."""
        arms = list((HONEST | BROKEN).items())
        for start in range(0, each, CHUNK):
            stop = min(start + CHUNK, each)
            for prompt in range(len(PROMPTS)):
                if start < each // 2:  # two texts each
                    self._coupled(llm, prompt, start, stop)
                for number, (name, arm) in enumerate(arms, 1):
                    if name in HONEST or start < each // 4:  # a control needs fewer
                        self._arm(llm, prompt, (name, (number, arm)), (start, stop))
            self.keep()

    def _coupled(self, llm: Any, prompt: int, start: int, stop: int) -> None:
        part = self.record["coupled"].setdefault(str(prompt), {"texts": 0, "equal": 0})
        if part["texts"] <= start:
            part["equal"] += equal_chunk(llm, prompt, start, stop)
            part["texts"] = stop

    def _arm(self, llm: Any, prompt: int, arm: tuple[str, Any], span: tuple[int, int]) -> None:
        part = self.record["arms"].setdefault(arm[0], {}).setdefault(str(prompt), {"texts": 0, "counts": {}})
        if part["texts"] <= span[0]:
            part["counts"] = dict(Counter(part["counts"]) + draw_chunk(llm, prompt, arm[1], *span))
            part["texts"] = span[1]


# ---- what it says ---------------------------------------------------------------------------------------------------


def table_of(first: Counts, second: Counts) -> NDArray[np.int64]:
    """Counts [2, cells] of the same texts in two arms."""
    names = sorted(first.keys() | second.keys())
    return np.array([[counts.get(name, 0) for name in names] for counts in (first, second)])


def g_test(table: NDArray[np.int64]) -> float:
    """p-value of both rows coming from one law; rare cells are pooled."""
    common_cells = table.sum(0) >= LEAST
    pooled = np.column_stack([table[:, common_cells], table[:, ~common_cells].sum(1)])
    pooled = pooled[:, pooled.sum(0) > 0]
    return float(chi2_contingency(pooled, lambda_="log-likelihood").pvalue) if pooled.shape[1] > 1 else 1.0


def permutation(table: NDArray[np.int64], seed: int = 0) -> float:
    """The same by shuffling which arm a text belongs to: no cell is too rare for it."""
    table = table[:, table.sum(0) > 0]
    total, first = table.sum(0), int(table[0].sum())
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(total, first, SHUFFLES, method="marginals")
    own = _distance(table[:1], total, first)[0]
    return float((1 + (_distance(drawn, total, first) >= own).sum()) / (1 + SHUFFLES))


def _distance(first: NDArray[np.int64], total: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Pearson's statistic of rows [n, cells] drawn without replacement from `total` [cells]."""
    expected = total * (size / total.sum())
    return np.asarray(((first - expected) ** 2 / expected).sum(1), dtype=np.float64)


def holm(p_values: list[float]) -> float:
    """The least, corrected for how many there are."""
    return min(1.0, min(p_values) * len(p_values))


def compare(arms: dict[str, Any]) -> dict[str, Any]:
    """p-values of every arm against plain decoding, a prompt each."""
    found: dict[str, Any] = {}
    for name, parts in arms.items():
        if name != "plain":
            tables = [table_of(arms["plain"][prompt]["counts"], part["counts"]) for prompt, part in parts.items()]
            found[name] = {"g_test": [g_test(t) for t in tables], "permutation": [permutation(t) for t in tables]}
    return found


def summarise(record: dict[str, Any]) -> dict[str, Any]:
    tests = record["tests"] = compare(record["arms"])
    coupled = record["coupled"].values()
    honest = {name: tests[name] for name in HONEST if name in tests}
    found = {
        "coupled_texts": 2 * sum(part["texts"] for part in coupled),
        "coupled_equal": sum(part["equal"] for part in coupled) / sum(part["texts"] for part in coupled),
        "texts_an_arm": sum(part["texts"] for part in record["arms"]["plain"].values()),
        "least_p_holm": {name: holm([p for kind in part.values() for p in kind]) for name, part in honest.items()},
        "controls_least_p": {name: min(tests[name]["g_test"]) for name in BROKEN if name in tests},
        "seconds": round(record["seconds"], 1),
    }
    return found | {"pass": verdict(found)}


def verdict(summary: dict[str, Any]) -> bool:
    """Whether the honest arms pass and every control fails."""
    return bool(
        summary["coupled_equal"] == 1.0
        and min(summary["least_p_holm"].values()) > FINE
        and max(summary["controls_least_p"].values()) < CAUGHT
    )


def opening(out: Path, told: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that was stopped, if it asked for the same; else a new one."""
    if out.is_file():
        found = json.loads(out.read_text(encoding="utf-8"))
        if found.get("schema") == SCHEMA and found.get("options") == told and not found.get("complete"):
            return dict(found)
    labels = ["CPU", "embedded miniature, trained for tests"]
    return common.head(SCHEMA, labels, told) | {"complete": False, "seconds": 0.0, "arms": {}, "coupled": {}}


def main() -> None:
    parser = common.parser(__doc__, "sampling_end_to_end.json")
    parser.add_argument("--texts", type=int, default=20_000, help="continuations of each arm; of a control a quarter")
    parser.add_argument("--min-confidence", type=float, default=0.1, help="the drafter stops below it")
    options = parser.parse_args()
    common.set_threads(options.threads)
    told = {
        "texts": options.texts, "min_confidence": options.min_confidence, "prompts": list(PROMPTS), "tokens": TOKENS,
        "k": K, "sampling": SAMPLED, "seeds": "arm << 48 | prompt << 40 | number; coupled is arm 0",
        "rare_cells": LEAST, "shuffles": SHUFFLES,
    }  # fmt: skip
    record = opening(options.out, told)
    llm = LLM.from_pretrained("embedded", min_confidence=options.min_confidence)
    Run(record, options.out).draw(llm, options.texts // len(PROMPTS))
    record["complete"] = True
    common.show("sampling end to end", ("what", "found"), [(k, str(v)) for k, v in record["summary"].items()])
    common.write(options.out, record)


if __name__ == "__main__":
    main()
