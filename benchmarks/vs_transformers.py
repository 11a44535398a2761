"""Paceline beside Transformers: the same checkpoints, prompts and tokens, each plainly and with the MTP drafter.

Four arms in random order for each prompt, in one process. A time is the wall time of one whole generate call, prompt
processing included, for both engines. Transformers runs in float32, since that is the arithmetic Paceline computes in
(its weights stay bf16), and with 1 or 2 threads, whichever was faster in the warm-up.

    python benchmarks/vs_transformers.py
"""

from __future__ import annotations

import itertools
import logging
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import common
import numpy as np
import torch

from paceline.bench.prompts import BenchPrompt, load_prompts, sample
from paceline.bench.record import check_writable
from paceline.bench.stats import ratio_interval
from paceline.errors import PacelineError, UsageError
from paceline.llm import LLM
from paceline.types import SamplingParams

PLAIN, MTP, HF_PLAIN, HF_MTP = "paceline", "paceline_mtp", "transformers", "transformers_mtp"
ARMS = (PLAIN, MTP, HF_PLAIN, HF_MTP)
DRAFTING = (MTP, HF_MTP)
# (slower, faster) as one would guess; a ratio below 1 says that the guess was wrong.
COMPARISONS = ((PLAIN, MTP), (HF_PLAIN, HF_MTP), (HF_PLAIN, PLAIN), (HF_MTP, MTP), (HF_PLAIN, MTP))
SMALL_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured. `k` None means what the drafter advises."""

    target: str = "embedded"
    drafter: str = "auto"
    prompts: int = 24
    k: int | None = None
    max_tokens: int = 64
    repeats: int = 1
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """The new tokens of one call, and the passes of the target after the first that it took."""

    token_ids: list[int]
    rounds: int
    drafted: int


@dataclass(frozen=True, slots=True)
class Row:
    """One call: `seconds` is its wall time, `order` counts calls since the start."""

    order: int
    prompt_id: str
    category: str
    arm: str
    repeat: int
    seconds: float
    prompt_tokens: int
    rounds: int
    drafted: int
    token_ids: list[int]


class Engine(Protocol):
    """What is measured: answers prompts of token ids greedily, with or without drafting."""

    def answer(self, ids: list[int], draft: bool) -> Answer: ...


class Paceline:
    """Paceline, loaded and compiled."""

    def __init__(self, options: Options) -> None:
        self.llm = LLM.from_pretrained(options.target, options.drafter)
        if not isinstance(self.llm.resolved.drafter, Path):
            raise UsageError("this comparison needs an MTP drafter; name its checkpoint with --drafter")
        self.k = self.llm.resolved.k if options.k is None else options.k
        self.params = SamplingParams(max_tokens=options.max_tokens)
        self.threads = options.threads
        self.llm.warm_up()

    def answer(self, ids: list[int], draft: bool) -> Answer:
        common.set_threads(self.threads)
        [done] = self.llm.generate([ids], self.params, k=self.k if draft else 0)
        return Answer(done.token_ids, done.stats.rounds, sum(done.stats.drafted))


class Transformers:
    """The same pair of checkpoints in Transformers, float32."""

    def __init__(self, target: Path, drafter: Path, options: Options, k: int) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(target, dtype=torch.float32).eval()
        self.assistant = load(drafter, dtype=torch.float32).eval()
        _round_embedding_scales(self.model, target)
        defaults = self.model.generation_config
        defaults.do_sample, defaults.temperature, defaults.top_k, defaults.top_p = False, None, None, None
        # The only place that 5.22 reads it from: generate(num_assistant_tokens=...) has no effect.
        self.assistant.generation_config.num_assistant_tokens = k
        self.max_tokens, self.threads = options.max_tokens, options.threads
        self.drafted: list[int] = []
        _count_drafts(self.drafted)

    @torch.inference_mode()
    def answer(self, ids: list[int], draft: bool) -> Answer:
        torch.set_num_threads(self.threads)
        self.drafted.clear()
        prompt = torch.tensor([ids])
        more: dict[str, Any] = {"assistant_model": self.assistant} if draft else {}
        mask = torch.ones_like(prompt)
        out = self.model.generate(prompt, attention_mask=mask, max_new_tokens=self.max_tokens, **more)
        tokens = out[0, len(ids) :].tolist()
        # The first pass, which processes the prompt, asks for drafts too and gets none.
        return Answer(tokens, len(self.drafted) - 1 if draft else len(tokens) - 1, sum(self.drafted))

    @torch.inference_mode()
    def logits_after(self, ids: list[int]) -> torch.Tensor:
        """Logits [vocab] of the token after `ids`."""
        logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0, -1]
        return logits


def _round_embedding_scales(model: torch.nn.Module, target: Path) -> None:
    """Rounds the embeddings' scales as they are in the checkpoint's own dtype, where float32 would sharpen them."""
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(target).dtype or torch.float32
    for module in model.modules():
        scale = getattr(module, "embed_scale", None)
        if isinstance(scale, torch.Tensor):
            scale.copy_(scale.to(stored))


def _count_drafts(counts: list[int]) -> None:
    """Appends the number of drafts of every round to `counts`: Transformers itself keeps no such statistics."""
    from transformers.generation.candidate_generator import SinglePositionMultiTokenCandidateGenerator as Generator

    original = Generator.get_candidates

    def counted(self: Any, input_ids: torch.Tensor, *args: Any, **more: Any) -> Any:
        result = original(self, input_ids, *args, **more)
        counts.append(result[0].shape[1] - input_ids.shape[1])
        return result

    Generator.get_candidates = counted


def choose_threads(engine: Transformers, ids: list[int], most: int) -> dict[int, float]:
    """Seconds with 1 and with `most` threads, best of two after a first; leaves the faster one set."""
    seconds: dict[int, float] = {}
    for count in sorted({1, most}):
        engine.threads = count
        times = [sum(_timed(engine, ids, draft)[1] for draft in (False, True)) for _ in range(3)]
        seconds[count] = min(times[1:])
    engine.threads = min(seconds, key=lambda count: seconds[count])
    return seconds


def _timed(engine: Engine, ids: list[int], draft: bool) -> tuple[Answer, float]:
    begin = time.perf_counter()
    answer = engine.answer(ids, draft)
    return answer, time.perf_counter() - begin


def arm_orders(seed: int) -> Iterator[tuple[str, ...]]:
    """Orders of the arms without end: each block of 24 holds every order once, so luck favours no arm."""
    rng = random.Random(f"arm order {seed}")
    while True:
        block = list(itertools.permutations(ARMS))
        rng.shuffle(block)
        yield from block


def measure(
    engines: dict[str, Engine], prompts: list[tuple[BenchPrompt, list[int]]], options: Options
) -> Iterator[Row]:
    """Every arm on every prompt (with its token ids), one row as each call ends."""
    orders, numbers = arm_orders(options.seed), itertools.count()
    for repeat, (prompt, ids) in itertools.product(range(options.repeats), prompts):
        for arm in next(orders):
            answer, seconds = _timed(engines[arm], ids, arm in DRAFTING)
            yield Row(
                order=next(numbers), prompt_id=prompt.id, category=prompt.category, arm=arm, repeat=repeat,
                seconds=seconds, prompt_tokens=len(ids), rounds=answer.rounds, drafted=answer.drafted,
                token_ids=answer.token_ids,
            )  # fmt: skip


def texts(rows: list[Row]) -> dict[str, dict[str, list[int]]]:
    """{prompt: {arm: token ids}} of the first repeat."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        if row.repeat == 0:
            found.setdefault(row.prompt_id, {})[row.arm] = row.token_ids
    return found


def equal_fraction(rows: list[Row], first: str, second: str) -> float:
    """The share of prompts on which two arms wrote the same tokens."""
    pairs = [(arms[first], arms[second]) for arms in texts(rows).values()]
    return sum(a == b for a, b in pairs) / len(pairs)


def first_difference(a: list[int], b: list[int]) -> int:
    """The index of the first token that differs, or where the shorter text ends."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def speedup(rows: list[Row], first: str, second: str, same: set[str]) -> dict[str, Any]:
    """Ratio of sums over the prompts in `same`, with its 95% interval clustered by prompt."""
    sums = {arm: dict.fromkeys(sorted(same), 0.0) for arm in (first, second)}
    for row in rows:
        if row.prompt_id in same and row.arm in sums:
            sums[row.arm][row.prompt_id] += row.seconds
    slow, fast = (np.array(list(sums[arm].values())) for arm in (first, second))
    if not len(slow):
        return {"ratio": None, "ci95": None}
    interval = ratio_interval(slow, fast)
    return {"ratio": float(slow.sum() / fast.sum()), "ci95": None if interval is None else interval.tolist()}


def arm_summary(rows: list[Row], arm: str) -> dict[str, float]:
    """Tokens a second over whole calls, and tokens a round: passes of the target after the one over the prompt."""
    own = [row for row in rows if row.arm == arm]
    tokens, rounds = sum(len(row.token_ids) for row in own), sum(row.rounds for row in own)
    return {
        "tokens_per_s": tokens / sum(row.seconds for row in own),
        "tokens_per_round": (tokens - len(own)) / rounds if rounds else 1.0,
        "tokens": tokens,
        "seconds": sum(row.seconds for row in own),
    }


def summarise(rows: list[Row], k: int) -> dict[str, Any]:
    """The figures of the comparison; speed-ups are taken on the prompts that all four arms answered alike."""
    answers = texts(rows)
    same = {name for name, arms in answers.items() if all(ids == arms[PLAIN] for ids in arms.values())}
    return {
        "k": k,
        "prompts": len(answers),
        "prompts_with_equal_texts": len(same),
        "equal_texts": {
            "paceline_vs_transformers": equal_fraction(rows, PLAIN, HF_PLAIN),
            "paceline_mtp_vs_plain": equal_fraction(rows, PLAIN, MTP),
            "transformers_mtp_vs_plain": equal_fraction(rows, HF_PLAIN, HF_MTP),
        },
        "arms": {arm: arm_summary(rows, arm) for arm in ARMS},
        "speedups": {f"{fast}_over_{slow}": speedup(rows, slow, fast, same) for slow, fast in COMPARISONS},
    }


def divergences(rows: list[Row], prompts: dict[str, list[int]], engine: Transformers) -> list[dict[str, Any]]:
    """Where the plain texts of the two engines part, and how near to a tie Transformers' two best tokens are there."""
    found = []
    for name, arms in texts(rows).items():
        ours, theirs = arms[PLAIN], arms[HF_PLAIN]
        if ours == theirs:
            continue
        at = first_difference(ours, theirs)
        logits = engine.logits_after(prompts[name] + theirs[:at])
        best = torch.topk(logits, 2)
        chosen = [ids[at] if at < len(ids) else None for ids in (ours, theirs)]
        found.append(
            {"prompt_id": name, "token": at, "paceline": chosen[0], "transformers": chosen[1],
             "top2": best.indices.tolist(), "top2_logit_gap": float(best.values[0] - best.values[1])}
        )  # fmt: skip
    return found


def chosen_prompts(llm: LLM, options: Options) -> list[tuple[BenchPrompt, list[int]]]:
    """A balanced sample of the embedded prompts with their token ids, those that fit the context."""
    room = llm.engine.target.config.max_positions - options.max_tokens
    encoded = [(prompt, llm.encode(prompt.prompt)) for prompt in load_prompts(None)]
    fitting = {prompt.id: ids for prompt, ids in encoded if len(ids) <= room}
    pool = [prompt for prompt, ids in encoded if len(ids) <= room]
    return [(prompt, fitting[prompt.id]) for prompt in sample(pool, options.prompts, options.seed)]


def run(options: Options, out: Path) -> None:
    """Measures, writes the record, shows the table."""
    common.set_threads(options.threads)
    ours = Paceline(options)
    prompts = chosen_prompts(ours.llm, options)
    assert isinstance(ours.llm.resolved.drafter, Path)
    theirs = Transformers(ours.llm.resolved.target, ours.llm.resolved.drafter, options, ours.k)
    record = common.head(
        "paceline-vs-transformers/1", ["CPU", _label(options.target, ours.llm.resolved.target)], asdict(options)
    )
    record["threads_tried"] = choose_threads(theirs, prompts[0][1], options.threads)
    record["engines"] = {
        "paceline": {**ours.llm.describe(), "weights": "as stored", "arithmetic": "float32"},
        "transformers": {"dtype": "float32", "threads": theirs.threads, "embedding_scales": "as stored"},
    }
    engines: dict[str, Engine] = {PLAIN: ours, MTP: ours, HF_PLAIN: theirs, HF_MTP: theirs}
    for draft in (False, True):
        ours.answer(prompts[0][1], draft)
    rows = list(_watched(measure(engines, prompts, options), len(prompts) * options.repeats))
    record["summary"] = {**summarise(rows, ours.k), "transformers_threads": theirs.threads}
    record["divergences"] = divergences(rows, {prompt.id: ids for prompt, ids in prompts}, theirs)
    record["summary"]["largest_gap_at_a_divergence"] = max(
        (d["top2_logit_gap"] for d in record["divergences"]), default=None
    )
    record["measurements"] = [asdict(row) for row in rows]
    show(record["summary"])
    common.write(out, record)


def _label(name: str, folder: Path) -> str:
    """What was run, with its size, since a small model tells little about large ones."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    name = name if name == "embedded" else folder.name
    if size > SMALL_BYTES:
        return f"{name}, {size / 1e9:.1f} GB"
    return f"{name}, {size / 1e6:.0f} MB: at this size a call's overhead counts most, which large models hardly notice"


def _watched(rows: Iterator[Row], prompts: int) -> Iterator[Row]:
    """The rows, with a line on stderr after every prompt."""
    for number, row in enumerate(rows, start=1):
        if number % len(ARMS) == 0:
            print(f"\r{number // len(ARMS)}/{prompts} prompts", end="", file=sys.stderr, flush=True)
        yield row
    print(file=sys.stderr)


def show(summary: dict[str, Any]) -> None:
    """The summary as tables on stderr."""
    arms = [
        (arm, f"{own['tokens_per_s']:.1f}", f"{own['tokens_per_round']:.2f}") for arm, own in summary["arms"].items()
    ]
    common.show(f"k = {summary['k']}, {summary['prompts']} prompts", ("arm", "tokens/s", "tokens a round"), arms)
    ratios = [
        (name.replace("_over_", " over "), common.ratio_text(s["ratio"], s["ci95"]))
        for name, s in summary["speedups"].items()
    ]
    common.show(f"{summary['prompts_with_equal_texts']} prompts with equal texts", ("speed-up", "95% interval"), ratios)
    common.show("same tokens", ("pair", "prompts"), [(a, f"{b:.0%}") for a, b in summary["equal_texts"].items()])


def main() -> None:
    """Reads the flags and runs; input errors become one sentence."""
    parser = common.parser("Paceline beside Transformers, plain and with the MTP drafter.", "vs_transformers.json")
    default = Options()
    parser.add_argument("--target", default=default.target, help='checkpoint folder, or "embedded"')
    parser.add_argument("--drafter", default=default.drafter, help='drafter folder, or "auto"')
    parser.add_argument("--prompts", type=int, default=default.prompts, help="how many of the embedded prompts")
    parser.add_argument("--k", type=int, help="draft length; default: what the drafter advises")
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens)
    parser.add_argument("--repeats", type=int, default=default.repeats)
    parser.add_argument("--seed", type=int, default=default.seed, help="of the sample and of the order of the arms")
    flags = vars(parser.parse_args())
    out = flags.pop("out")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        check_writable(out)
        run(Options(**flags), out)
    except PacelineError as error:
        sys.exit(f"vs_transformers: {error}")


if __name__ == "__main__":
    main()
