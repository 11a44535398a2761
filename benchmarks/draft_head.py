"""What smaller weights of the drafter cost in acceptance: the embedded pair with four drafters, on the CPU.

The heads: the shipped one (the best clusters only), the whole vocabulary in bf16, the same in int8 with a scale for
each row, and with it the body in int8 too, as `draft_weights="int8-head"` and "int8" have them on a GPU: here the
weights are those that int8 stands for, in fp32. Texts must be equal for all: a drafter only guesses.

    python benchmarks/draft_head.py
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import common
from safetensors.torch import load_file, save_file

from paceline.bench.prompts import load_prompts, sample
from paceline.hub import resolve_checkpoint
from paceline.kernels.gpu.int8 import dequantised, quantize
from paceline.llm import LLM
from paceline.types import SamplingParams

HEAD = "model.embed_tokens.weight"


def variant(folder: Path, source: Path, head: bool = False, body: bool = False) -> Path:
    """A copy of the drafter whose head covers the whole vocabulary, with its head or its body as int8 holds it."""
    folder.mkdir()
    shutil.copy(source / "generation_config.json", folder)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "use_ordered_embeddings": False}), encoding="utf-8")
    tensors = {n: t for n, t in load_file(source / "model.safetensors").items() if not n.startswith("masked_embedding")}
    for name in (name for name, tensor in tensors.items() if tensor.dim() == 2):
        if head if name == HEAD else body:
            tensors[name] = dequantised(quantize(tensors[name]))
    save_file(tensors, folder / "model.safetensors")
    return folder


def accept(drafter: Path, prompts: list[Any], options: Any) -> tuple[dict[str, Any], list[list[int]]]:
    """Acceptance by temperature, and the texts."""
    llm = LLM.from_pretrained("embedded", drafter=str(drafter), device="cpu", min_confidence=0.0)
    found: dict[str, Any] = {}
    texts = []
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, top_k=64, top_p=0.95, seed=3, max_tokens=options.max_tokens)
        done = llm.generate([p.prompt for p in prompts], params, options.k)
        rounds = sum(c.stats.rounds for c in done)
        kept = sum(sum(c.stats.accepted) for c in done)
        found[f"{temperature:g}"] = {
            "tokens_per_round": 1 + kept / rounds, "rounds": rounds,
            "per_prompt": [round(c.stats.acceptance_length, 4) for c in done],
        }  # fmt: skip
        texts += [c.token_ids for c in done]
    return found, texts


def main() -> None:
    parser = common.parser(__doc__, "draft_head.json")
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--k", type=int, default=4)
    options = parser.parse_args()
    common.set_threads(options.threads)
    record = common.head(
        "paceline-draft-head/1", ["CPU", "embedded miniature"], {"k": options.k, "max_tokens": options.max_tokens}
    )
    prompts = sample(load_prompts(None), options.prompts, 0)
    source = resolve_checkpoint("embedded").parent / "assistant"
    heads, texts = {}, {}
    with tempfile.TemporaryDirectory() as room:
        folders = {
            "clusters (shipped)": source,
            "dense bf16": variant(Path(room) / "dense", source),
            "dense int8": variant(Path(room) / "int8", source, head=True),
            "dense int8, body int8": variant(Path(room) / "body", source, head=True, body=True),
        }
        for name, folder in folders.items():
            heads[name], texts[name] = accept(folder, prompts, options)
            common.show(name, ("temperature", "tokens a round"),
                        [(t, f"{found['tokens_per_round']:.4f}") for t, found in heads[name].items()])  # fmt: skip
    first = next(iter(texts.values()))
    equal = statistics.mean(float(a == b) for other in texts.values() for a, b in zip(first, other, strict=True))
    record["heads"] = heads
    record["summary"] = {
        "prompts": len(prompts), "k": options.k, "equal_texts": equal,
        "tokens_per_round": {n: {t: f["tokens_per_round"] for t, f in h.items()} for n, h in heads.items()},
    }  # fmt: skip
    common.write(options.out, record)


if __name__ == "__main__":
    main()
