"""How far rounding moves the two likeliest tokens: bf16 in one row (decoding) against five rows (verification).

Paceline writes each text plainly (bf16 weights, sums in fp32) and says the gap between the two likeliest tokens at
every place. Transformers reads the same tokens in bf16, one by one and five by five, as decoding and verification do.
Where the two disagree about the likeliest token, an engine that computes so would have changed the text: the gaps at
these places are what `limit_nats` of paceline.bench.divergence must cover, and no more.

    python benchmarks/near_ties.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from paceline.bench.prompts import load_prompts, sample
from paceline.bench.record import check_writable
from paceline.errors import PacelineError
from paceline.llm import LLM
from paceline.types import SamplingParams

ROWS = (1, 5)
LIMITS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Place:
    """One place of a text. gap_nats: by Paceline; bf16_nats: the same two tokens in bf16, by rows of a pass.

    best: the likeliest token in bf16, by rows of a pass, as its rank by Paceline (2: neither of the two likeliest).
    """

    prompt_id: str
    gap_nats: float
    bf16_nats: tuple[float, ...]
    best: tuple[int, ...]


class Reader:
    """The same checkpoint in Transformers, in bf16 throughout, soft-capped logits included."""

    def __init__(self, folder: Path) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def logits(self, prompt: list[int], text: list[int], rows: int) -> torch.Tensor:
        """Logits [len(text), vocab] before each token of `text`, read `rows` tokens at a time."""
        out = self.model(torch.tensor([prompt]), use_cache=True)
        parts, cache = [out.logits[0, -1:]], out.past_key_values
        for i in range(0, len(text) - 1, rows):
            out = self.model(torch.tensor([text[i : min(i + rows, len(text) - 1)]]), past_key_values=cache)
            parts.append(out.logits[0])
        return torch.cat(parts).float()


def places(llm: LLM, reader: Reader, prompts: int, max_tokens: int) -> Iterator[Place]:
    """Every place of every text."""
    for prompt in sample(load_prompts(None), prompts, 0):
        ids = llm.encode(prompt.prompt)
        [done] = llm.generate([ids], SamplingParams(max_tokens=max_tokens, logprobs=2), k=0)
        read = [reader.logits(ids, done.token_ids, rows) for rows in ROWS]
        for i, told in enumerate(done.logprobs or []):
            (first, a), (second, b) = told.top
            rank = {first: 0, second: 1}
            gaps = tuple(float(logits[i, first] - logits[i, second]) for logits in read)
            best = tuple(rank.get(int(logits[i].argmax()), 2) for logits in read)
            yield Place(prompt.id, a - b, gaps, best)


def summarise(found: list[Place]) -> dict[str, Any]:
    """What the limit must cover, and what share of all places it would cover."""
    gaps = np.array([place.gap_nats for place in found])
    spread = np.abs(np.array([place.bf16_nats for place in found]) @ np.array([1.0, -1.0]))
    flips = [place.gap_nats for place in found if place.best[0] != place.best[1]]
    return {
        "places": len(found),
        "rows_apart_nats": {name: float(np.quantile(spread, q)) for name, q in QUANTILES.items()},
        "flips": len(flips),
        "largest_gap_at_a_flip": max(flips, default=None),
        "places_within": {str(limit): float((gaps <= limit).mean()) for limit in LIMITS},
        "flips_within": {str(limit): sum(gap <= limit for gap in flips) for limit in LIMITS},
    }


QUANTILES = {"median": 0.5, "p99": 0.99, "most": 1.0}


def main() -> None:
    """Reads the flags and runs; input errors become one sentence."""
    parser = common.parser("Rounding at near ties, bf16 in one row against five.", "near_ties.json")
    parser.add_argument("--target", default="embedded", help='checkpoint folder, or "embedded"')
    parser.add_argument("--prompts", type=int, default=24, help="how many of the embedded prompts")
    parser.add_argument("--max-tokens", type=int, default=48)
    flags = vars(parser.parse_args())
    out, threads = flags.pop("out"), flags.pop("threads")
    try:
        check_writable(out)
        llm = LLM.from_pretrained(flags["target"], None, device="cpu")
        common.set_threads(threads)
        record = common.head("paceline-near-ties/1", ["embedded miniature, real prompts", "CPU"], flags)
        found = list(places(llm, Reader(llm.resolved.target), flags["prompts"], flags["max_tokens"]))
        common.write(out, {**record, "summary": summarise(found), "places": [asdict(place) for place in found]})
    except PacelineError as error:
        sys.exit(f"near_ties: {error}")


if __name__ == "__main__":
    main()
