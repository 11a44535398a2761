"""Texts whose tokens the host chooses, on a GPU: the same texts as the batch's rounds write, and what a round takes.

    python benchmarks/gpu/hosted.py --out benchmarks/results/gpu_hosted.json [--sizes e2b,12b] [--layers 6] [--new 64]

Full width and a few layers of random bf16 weights, captured graphs, then the embedded pair. Drafts come from the MTP
drafter, and from the known text with some guesses spoiled. Exit code 1 where a check fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from paceline.bench import record as files
from paceline.bench.prompts import load_prompts, sample
from paceline.device.build import Room, device_model, random_pair
from paceline.device.drafters import MtpDraft
from paceline.device.engine import DeviceEngine
from paceline.device.request import Request
from paceline.kernels.cuda import CudaOps
from paceline.kernels.gpu.accept import Ending
from paceline.llm import LLM
from paceline.shapes import drafter_config, shorten, target_config
from paceline.structure import Constraint, Ids, packed
from paceline.types import SamplingParams

GREEDY = SamplingParams(ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.0, top_k=64, top_p=0.95, seed=7, ignore_eos=True)
LAWS = {"greedy": GREEDY, "sampled": SAMPLED}
K, WARM_ROUNDS = 4, 8
SUSPICIOUS, CAUGHT = 1e-4, 1e-6  # p-values: at least the one for equal laws, at most the other for the control


class Known:
    """Guesses from a text, of which some are spoiled."""

    def __init__(self, text: list[int], every: int, vocab: int) -> None:
        self.text = [token if i % every else (token + 7) % vocab for i, token in enumerate(text)]

    def begin(self, prompt: Sequence[int], cache: Any, sampler: Any) -> None:
        self.at = 0

    def observe(self, hidden: Any, chosen: Sequence[int]) -> None:
        self.at += len(chosen)

    def propose(self, k: int) -> list[int]:
        return self.text[self.at : self.at + k]


class Turns(Constraint):
    """Ids whose remainder by 3 goes round 0, 1, 2: a grammar that needs no library."""

    def __init__(self, vocab: int) -> None:
        super().__init__(None, "turns", Ids(vocab, frozenset()))
        self.at, self.turns = 0, [packed(np.arange(vocab) % 3 == turn) for turn in range(3)]

    def allowed(self, draft: Sequence[int] = ()) -> Any:
        return self.turns[(self.at + len(draft)) % 3]

    def legal(self, draft: Sequence[int]) -> int:
        return next((i for i, token in enumerate(draft) if token % 3 != (self.at + i) % 3), len(draft))

    def extend(self, tokens: Sequence[int]) -> None:
        self.at += len(tokens)


class Overlooking(Turns):
    """Negative control: every row gets the mask of the emitted tokens only."""

    def allowed(self, draft: Sequence[int] = ()) -> Any:
        return super().allowed()


@dataclass
class Report:
    """What was checked, and how long rounds took."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)

    def check(self, model: str, what: str, passed: bool, found: str) -> None:
        self.checks.append({"model": model, "check": what, "passed": bool(passed), "found": found})
        print(f"{'ok  ' if passed else 'FAIL'} {model}: {what}: {found}", flush=True)

    def same(self, model: str, what: str, found: Sequence[Any], expected: Sequence[Any]) -> None:
        different = sum(a != b for a, b in zip(found, expected, strict=True))
        self.check(model, what, different == 0, f"{different} of {len(found)} differ")


class Trial:
    """A pair of models, the prompts, and how engines over them are made."""

    def __init__(self, name: str, pair: tuple[Any, Any], new: int, graphs: bool = True, prompts: int = 6) -> None:
        self.name, (self.target, self.small), self.new, self.graphs = name, pair, new, graphs
        self.vocab, made = self.target.config.vocab, torch.Generator().manual_seed(1)
        lengths = [5, 90, 17, 200, 40, 130][:prompts]
        self.prompts = [torch.randint(0, self.vocab, (n,), generator=made).tolist() for n in lengths]
        self.context = max(lengths) + new + 64
        self.own = self.engine()  # keeps its graphs from check to check

    def engine(self, places: int = 4) -> DeviceEngine:
        ends = torch.zeros(0, dtype=torch.int64, device=self.target.ops.device)
        draft = MtpDraft(self.small, self.target, self.context + 16)
        model = device_model(self.target, draft, Room(places=places, context=self.context), Ending(ends))
        return DeviceEngine(model, self.graphs)

    def ask(self, i: int, params: SamplingParams, k: int, limits: Constraint | None = None) -> Request:
        return Request(self.prompts[i], replace(params, max_tokens=self.new), k, False, limits)

    def write(self, requests: Sequence[Request], drafters: Sequence[Any] = ()) -> list[list[int]]:
        """The texts, all at once; drafters: those of the host's texts, in their order, instead of the pair's own."""
        host = self.own.host
        if drafters:
            given = iter(drafters)
            host.drafter = lambda: next(given)  # type: ignore[method-assign]
        for request in requests:
            self.own.submit(request)
        while self.own.busy:
            self.own.step()
        vars(host).pop("drafter", None)
        assert not self.own.model.cache.held
        return [[token for done in request.rounds for token in done.tokens] for request in requests]

    def every(self, make: Callable[[int], Request], spoil: Sequence[list[int]] = ()) -> tuple[Any, list[Request]]:
        """A text of each prompt, and the requests; spoil: texts to guess from, every third token wrongly."""
        requests = [make(i) for i in range(len(self.prompts))]
        return self.write(requests, [Known(text, 3, self.vocab) for text in spoil]), requests


# ---- checks on random weights ---------------------------------------------------------------------------------------


def check_texts(trial: Trial, report: Report) -> None:
    """Log-probabilities, asked for or not, leave the text; they have the same bits for every draft."""
    for law, params in LAWS.items():
        asked = replace(params, logprobs=3)
        plain, _ = trial.every(lambda i, p=params: trial.ask(i, p, 0))
        drafted, _ = trial.every(lambda i, p=params: trial.ask(i, p, K))
        report.same(trial.name, f"{law}, in graphs, k = {K} against 0", drafted, plain)
        text, alone = trial.every(lambda i, p=asked: trial.ask(i, p, 0))
        for k in (0, K):
            chosen = replace(params, logprobs=0)
            told, reports = trial.every(lambda i, p=chosen, k=k: trial.ask(i, p, k))
            report.same(trial.name, f"{law}, log-probabilities in graphs, k = {k}", told, plain)
            off = max(apart for a, b in zip(reports, alone, strict=True) for apart in differences(a, b))
            report.check(trial.name, f"{law}, graphs' and host's, k = {k}", off < 1e-9, f"at most {off:.1e} apart")
        report.same(trial.name, f"{law}, log-probabilities, k = 0 against in graphs", text, plain)
        for what, spoil in (("its own drafts", ()), ("known drafts", plain)):
            text, requests = trial.every(lambda i, p=asked: trial.ask(i, p, K), spoil)
            report.same(trial.name, f"{law}, log-probabilities, k = {K}, {what}", text, plain)
            bits = [request.logprobs[: trial.new] for request in requests]
            report.same(trial.name, f"{law}, their bits, k = {K}, {what}", bits, [r.logprobs for r in alone])
            if spoil:
                kept = statistics.mean(done.accepted for r in requests for done in list(r.rounds)[1:])
                report.check(trial.name, f"{law}, known drafts are kept", kept > 0.5, f"{kept:.2f} a round")


def check_masks(trial: Trial, report: Report) -> None:
    """A stand-in for grammars: the same text with drafts that are right, wrong and forbidden; a control is caught."""

    def written(kind: type[Turns], k: int, spoil: Sequence[list[int]] = ()) -> list[list[int]]:
        found: list[list[int]] = trial.every(lambda i: trial.ask(i, SAMPLED, k, kind(trial.vocab)), spoil)[0]
        return found

    plain = written(Turns, 0)
    fits = all(token % 3 == i % 3 for text in plain for i, token in enumerate(text))
    report.check(trial.name, "masked texts fit", fits, f"{len(plain)} texts")
    report.same(trial.name, f"masked, its own drafts, k = {K}", written(Turns, K), plain)
    report.same(trial.name, f"masked, known drafts, k = {K}", written(Turns, K, plain), plain)
    control = sum(a != b for a, b in zip(written(Overlooking, K, plain), plain, strict=True))
    report.check(trial.name, "control: masks that overlook drafts are caught", control > 0, f"{control} differ")


def check_drawn(trial: Trial, report: Report) -> None:
    """Drawn drafts: reproducible, and plain decoding's text at temperature 0."""
    for accept in ("rejection", "block"):
        params = replace(SAMPLED, accept=accept)
        first, requests = trial.every(lambda i, p=params: trial.ask(i, p, 3))
        report.same(trial.name, f"{accept}, twice", trial.every(lambda i, p=params: trial.ask(i, p, 3))[0], first)
        drafted = sum(done.drafted for r in requests for done in r.rounds)
        report.check(trial.name, f"{accept} drafts", drafted > 0, f"{drafted} drafts")
    greedy, _ = trial.every(lambda i: trial.ask(i, replace(GREEDY, accept="block", logprobs=1), K))
    report.same(trial.name, "block, greedy", greedy, trial.every(lambda i: trial.ask(i, GREEDY, 0))[0])


def check_company(trial: Trial, report: Report) -> None:
    """Side by side with the batch's rounds; then one that is cancelled in the middle gives everything back."""
    hosted = replace(SAMPLED, logprobs=1)
    asked = [trial.ask(i, (GREEDY, SAMPLED, SAMPLED, hosted)[i % 4], K) for i in range(len(trial.prompts))]
    alone = [trial.write([replace_request(each)])[0] for each in asked]
    report.same(trial.name, "beside others, in graphs and not", trial.write(asked), alone)
    engine, cache = trial.own, trial.own.model.cache
    free, rings, leaving = len(cache.storage.free_pages), cache.rings.clone(), trial.ask(0, hosted, K)
    engine.submit(leaving)
    for _ in range(3):
        engine.step()
    held = len(cache.storage.free_pages) < free
    engine.cancel(leaving)
    back = len(cache.storage.free_pages) == free and torch.equal(cache.rings, rings)
    report.check(trial.name, "a cancelled text gives all back", held and back, f"{free} pages free")


def replace_request(request: Request) -> Request:
    """The same request, not served yet."""
    return Request(request.prompt, request.params, request.k, request.stop_ids)


# ---- times ----------------------------------------------------------------------------------------------------------


def time_rounds(trial: Trial, report: Report) -> None:
    """Milliseconds of a round of one text, by the clock of the host, drafts of its own drafter."""
    turns = Turns(trial.vocab)
    kinds: dict[str, tuple[SamplingParams, Any]] = {
        "in graphs, greedy": (GREEDY, None), "in graphs, sampled": (SAMPLED, None),
        "in graphs, log-probabilities": (replace(SAMPLED, logprobs=0), None),
        "likeliest tokens, greedy": (replace(GREEDY, logprobs=1), None),
        "likeliest tokens, sampled": (replace(SAMPLED, logprobs=1), None),
        "rejection": (replace(SAMPLED, accept="rejection"), None), "block": (replace(SAMPLED, accept="block"), None),
        "masked, greedy": (GREEDY, turns),
    }  # fmt: skip
    for name, (params, limits) in kinds.items():
        for k in (0, 2, K):
            turns.at = 0
            request, times = trial.ask(2, params, k, limits), list[float]()
            trial.own.submit(request)
            while trial.own.busy:
                begin = time.perf_counter()
                trial.own.step()
                times.append(1e3 * (time.perf_counter() - begin))
            median = statistics.median(times[WARM_ROUNDS:])
            row = {"model": trial.name, "kind": name, "k": k, "ms": median, "rounds": len(times), "all_ms": times}
            report.times.append(row)
            print(f"     {trial.name}: {name}, k = {k}: {median:.3f} ms a round", flush=True)


# ---- the embedded pair ----------------------------------------------------------------------------------------------


def check_embedded(report: Report, count: int, seeds: int) -> None:
    """Real text: unchanged by log-probabilities, and the laws of all accept modes."""
    llm, cpu = (LLM.from_pretrained("embedded", device=device) for device in ("cuda", "cpu"))
    prompts = [prompt.prompt for prompt in sample(load_prompts(None), count, 0)]
    k = llm.resolved.k
    for law, params in {"greedy": SamplingParams(), "sampled": replace(SAMPLED, ignore_eos=False)}.items():
        plain = llm.generate(prompts, params, 0)
        asked = replace(params, logprobs=2)
        hosted = llm.generate(prompts, asked, k)
        report.same("embedded", f"{law}, log-probabilities, k = {k}", ids(hosted), ids(plain))
        length = statistics.mean(done.stats.acceptance_length for done in hosted)
        report.check("embedded", f"{law}, drafts are kept", length > 1.2, f"{length:.2f} tokens a round")
        pairs = zip(hosted, cpu.generate(prompts[:8], asked, 0), strict=False)
        off = [apart for a, b in pairs for apart in differences(*same_so_far(a, b))]
        report.check("embedded", f"{law}, log-probabilities against the CPU's", statistics.mean(off) < 0.05,
                     f"{statistics.mean(off):.4f} apart, at most {max(off):.4f}, {len(off)} tokens")  # fmt: skip
        best = replace(params, max_tokens=24, n=2, best_of=4)
        report.same("embedded", f"{law}, best of 4, k = {k} against 0", ids(llm.generate(prompts[:4], best, k)),
                    ids(llm.generate(prompts[:4], best, 0)))  # fmt: skip
    check_laws(llm, report, prompts[0], seeds)
    check_regex(llm, report, prompts[:4], k)


def ids(done: Sequence[Any]) -> list[list[int]]:
    return [each.token_ids for each in done]


def differences(a: Any, b: Any) -> list[float]:
    """Differences of the log-probabilities of two texts or requests that are the same so far."""
    return [abs(x.chosen - y.chosen) for x, y in zip(a.logprobs, b.logprobs, strict=False)]


def same_so_far(a: Any, b: Any) -> tuple[Any, Any]:
    """Two completions, cut where their texts part."""
    pairs = zip(a.token_ids, b.token_ids, strict=False)
    count = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return tuple(replace(done, logprobs=done.logprobs[:count]) for done in (a, b))  # type: ignore[return-value]


def check_laws(llm: LLM, report: Report, prompt: Any, seeds: int) -> None:
    """Tokens 2 and 3 of many texts follow plain decoding's law in every mode; another temperature's is told apart."""
    base = SamplingParams(temperature=1.0, top_k=6, max_tokens=6, ignore_eos=True)

    def drawn(params: SamplingParams, k: int, first: int) -> list[tuple[int, ...]]:
        asked = [llm.stream(prompt, replace(params, seed=first + i), k) for i in range(seeds)]
        llm.engine.run_all([one.job for one in asked])  # type: ignore[union-attr]
        return [tuple(one.completion().token_ids[1:3]) for one in asked]

    plain = drawn(base, 0, 0)
    for accept in ("rejection", "block"):
        p = same_law(plain, drawn(replace(base, accept=accept), 3, 1 << 20))
        report.check("embedded", f"{accept} has plain decoding's law", p > SUSPICIOUS, f"p = {p:.2g}, {seeds} texts")
    p = same_law(plain, drawn(replace(base, temperature=4.0, accept="block"), 3, 1 << 20))
    report.check("embedded", "control: another temperature is told apart", p < CAUGHT, f"p = {p:.2g}")


def same_law(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The p-value of one law for two samples of equal size: chi-square, what is rare put together."""
    counts = {value: (a.count(value), b.count(value)) for value in {*a, *b}}
    common = [pair for pair in counts.values() if sum(pair) >= 10]
    rare = [pair for pair in counts.values() if sum(pair) < 10]
    cells = common + ([(sum(x for x, _ in rare), sum(y for _, y in rare))] if rare else [])
    statistic = sum((x - y) ** 2 / (x + y) for x, y in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


def check_regex(llm: LLM, report: Report, prompts: list[Any], k: int) -> None:
    """What a real grammar asks for, and the same with drafts."""
    if importlib.util.find_spec("llguidance") is None:
        report.check(
            "embedded", "regex", True, "skipped: llguidance is not installed; masks were checked by a stand-in"
        )
        return
    wanted = r"(Yes|No), because [a-z ]{10,40}\."
    params = SamplingParams(regex=wanted, max_tokens=60, temperature=1.0, seed=3)
    drafted, plain = llm.generate(prompts, params, k), llm.generate(prompts, params, 0)
    report.same("embedded", f"regex, k = {k}", ids(drafted), ids(plain))
    fits = sum(re.fullmatch(wanted, done.text) is not None or done.finish_reason == "length" for done in plain)
    report.check("embedded", "regex, the text fits", fits == len(plain), f"{fits} of {len(plain)}")


# ---- all of it ------------------------------------------------------------------------------------------------------


def show(report: Report) -> None:
    """A row for each kind of round."""
    table = Table("model", "round", "k = 0, ms", "k = 2, ms", f"k = {K}, ms", title="Rounds of one text")
    rows: dict[tuple[str, str], list[str]] = {}
    for row in report.times:
        rows.setdefault((row["model"], row["kind"]), []).append(f"{row['ms']:.3f}")
    for (model, kind), times in rows.items():
        table.add_row(model, kind, *times)
    Console().print(table)


def run_trial(trial: Trial, report: Report) -> None:
    for part in (check_texts, check_masks, check_drawn, check_company, time_rounds):
        part(trial, report)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file with every check and every timing")
    parser.add_argument("--sizes", default="e2b,12b", help="a centroid head and a dense one by default")
    parser.add_argument("--layers", type=int, default=6, help="of each model; more than it has means all")
    parser.add_argument("--new", type=int, default=64, help="tokens of each text")
    parser.add_argument("--prompts", type=int, default=16, help="of the embedded pair")
    parser.add_argument("--seeds", type=int, default=600, help="texts of each law")
    options = parser.parse_args()
    report, provenance = Report(), files.provenance()
    for name in filter(None, options.sizes.split(",")):
        pair = random_pair(shorten(target_config(name), options.layers), drafter_config(name), CudaOps())
        run_trial(Trial(name, pair, options.new), report)
        torch.cuda.empty_cache()
    if options.prompts:
        check_embedded(report, options.prompts, options.seeds)
    show(report)
    failed = [check for check in report.checks if not check["passed"]]
    files.write_record(options.out, {
        "schema": "paceline-gpu-hosted/1", "labels": ["random weights, except the embedded miniature"],
        "options": {key: str(value) for key, value in vars(options).items()}, "provenance": provenance,
        "gpu": torch.cuda.get_device_name(), "checks": report.checks, "times": report.times, "failed": len(failed),
    })  # fmt: skip
    print(f"{len(report.checks) - len(failed)} of {len(report.checks)} checks passed")
    return int(bool(failed))


if __name__ == "__main__":
    with torch.no_grad():
        raise SystemExit(main())
