"""`paceline train continuations`: text written by the target itself, for a drafter to learn on.

A drafter guesses what its target will write, not what people wrote. So prompts are cut from the corpus (a chat up to
the model's turn, the first lines of a document), the target continues them, half greedily and half sampled with
Gemma's defaults, and the result is written as a corpus folder of its own.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from paceline.config import TextConfig
from paceline.kernels import Heads, Reach, Rope
from paceline.kernels.reference import split_heads, turn
from paceline.train.batch import TrainOps
from paceline.train.data import Batches
from paceline.train.drafter import frozen_target
from paceline.train.loop import Recipe
from paceline.train.target import BatchTarget

PROMPT_TOKENS = (12, 96)  # shortest and longest prompt cut from a document
MODEL_TURN, END_TURN = 105, 106
TOP_K, TOP_P = 64, 0.95


@dataclass
class StepView:
    """One layer's keys and values of every sequence, [batch, kv_heads, length, dim]; `at` is the step being written."""

    keys: Tensor
    values: Tensor
    window: int | None
    at: int = 0


@dataclass
class StepCache:
    """Stands where a `KVCache` does while a whole batch advances one token a step."""

    views: dict[int, StepView] = field(default_factory=dict)

    def view(self, layer: int) -> StepView:
        """The layer's view."""
        return self.views[layer]


class StepOps(TrainOps):
    """The training backend, one new token a sequence."""

    def rope_write(  # type: ignore[override]
        self, qkv: Tensor, heads: Heads, rope: Rope, positions: Tensor, view: StepView | None
    ) -> Tensor:
        q, k, v = split_heads(qkv, heads)
        if view is not None:
            view.keys[:, :, view.at] = turn(self.rms_norm(k, heads.k_norm, heads.eps), rope, positions)
            view.values[:, :, view.at] = self.rms_norm(v, None, heads.eps)
        return turn(self.rms_norm(q, heads.q_norm, heads.eps), rope, positions)

    def attention(self, q: Tensor, view: StepView, first: Tensor, last: Tensor) -> Tensor:  # type: ignore[override]
        begin = 0 if view.window is None else max(0, view.at - view.window + 1)
        seen = slice(begin, view.at + 1)
        keys, values = view.keys[:, :, seen], view.values[:, :, seen]
        out = F.scaled_dot_product_attention(q[:, :, None].to(keys.dtype), keys, values, scale=1.0, enable_gqa=True)
        return out.flatten(1)


def new_cache(config: TextConfig, batch: int, length: int, device: str) -> StepCache:
    """Room for `length` tokens of `batch` sequences."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    cache = StepCache()
    for i in config.kv_owners:
        c = config.layers[i]
        keys, values = (
            torch.zeros(batch, c.kv_heads, length, c.head_dim, dtype=dtype, device=device) for _ in range(2)
        )
        cache.views[i] = StepView(keys, values, c.window)
    return cache


@torch.no_grad()
def continue_batch(
    target: BatchTarget, prompts: Tensor, lengths: Tensor, greedy: Tensor, generator: torch.Generator
) -> Tensor:
    """Fills prompts [B, T] from each row's length on, with the target's own tokens. greedy [B] bool."""
    model, (batch, total) = target.model, prompts.shape
    cache = new_cache(model.config, batch, total, target.ops.device)
    out = prompts.clone()
    for t in range(total - 1):
        for view in cache.views.values():
            view.at = t
        positions = torch.full((batch,), t, device=prompts.device)
        rows = {k: Reach(positions, positions, positions, model.ropes.get(x, total)) for k, x in model.kinds.items()}
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=prompts.is_cuda):
            h = model.embed(out[:, t])
            hidden = model.run(h, model.per_layer_inputs(out[:, t], h), rows, cache, batch)  # type: ignore[arg-type]
            chosen = choose(model.logits(hidden).float(), greedy, generator)
        out[:, t + 1] = torch.where(t + 1 < lengths, out[:, t + 1], chosen)
    return out


def choose(logits: Tensor, greedy: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row [B]: the greatest logit, or a draw at temperature 1 after top-k and top-p."""
    values, ids = logits.topk(TOP_K, dim=-1)
    law = values.softmax(-1)
    law = law.masked_fill(law.cumsum(-1) - law > TOP_P, 0.0)
    drawn = torch.multinomial(law, 1, generator=generator)
    return torch.where(greedy, ids[:, 0], ids.gather(1, drawn)[:, 0])


def cut_prompts(windows: Tensor, rng: np.random.Generator) -> Tensor:
    """Prompt lengths [B]: up to and with the line that opens the model's turn, or a random length."""
    shortest, longest = PROMPT_TOKENS
    lengths = rng.integers(shortest, longest, size=len(windows))
    for i, row in enumerate(windows[:, :longest].numpy()):
        turns = np.flatnonzero(row == MODEL_TURN)
        if len(turns) >= 2:  # the second turn is the model's; three pieces spell its opening line
            lengths[i] = min(turns[1] + 3, longest)
    return torch.from_numpy(lengths)


def documents(rows: Tensor, lengths: Tensor, ends: frozenset[int]) -> Iterator[NDArray[np.uint16]]:
    """Each row up to the first end token after its prompt."""
    for row, length in zip(rows.cpu().numpy().astype(np.uint16), lengths.tolist(), strict=True):
        stops = np.flatnonzero(np.isin(row[length:], list(ends)))
        yield row[: length + stops[0] + 1] if len(stops) else row


def write_continuations(
    target_folder: Path, corpus: Path, out: Path, recipe: Recipe, only: str | None = None
) -> dict[str, int]:
    """Continues prompts of every category (or `only` one) for the recipe's minutes; returns tokens by category."""
    console, started, r = Console(stderr=True), time.perf_counter(), recipe
    target = frozen_target(target_folder, StepOps(r.device))
    generator, rng = torch.Generator(device=r.device).manual_seed(r.seed), np.random.default_rng(r.seed)
    greedy = torch.arange(r.batch, device=r.device) % 2 == 0
    names = [only] if only else Batches(corpus, 1, r.length).names
    feeds = {name: iter(Batches(corpus, r.batch, r.length - 1, {name: 1.0}, r.seed)) for name in names}
    texts: dict[str, list[NDArray[np.uint16]]] = {name: [] for name in names}
    while (time.perf_counter() - started) / 60 < r.minutes:
        for name in names:
            windows = next(feeds[name])
            lengths = cut_prompts(windows, rng)
            rows = continue_batch(target, windows.to(r.device), lengths.to(r.device), greedy, generator)
            texts[name].extend(documents(rows, lengths, frozenset(target.model.config.eos_ids)))
        done = {name: int(sum(map(len, t))) for name, t in texts.items()}
        console.print(f"{(time.perf_counter() - started):.0f} s  tokens {done}")
    _write(texts, corpus, out)
    return done


def _write(texts: dict[str, list[NDArray[np.uint16]]], corpus: Path, out: Path) -> None:
    """The continuations as the training split; held-out text stays the people's."""
    out.mkdir(parents=True, exist_ok=True)
    for name, documents_ in texts.items():
        starts = np.cumsum([0] + [len(d) for d in documents_[:-1]])
        np.concatenate(documents_).astype("<u2").tofile(out / f"train.{name}.u16")
        starts.astype("<u4").tofile(out / f"starts.train.{name}.u32")
        for file in (f"valid.{name}.u16", f"starts.valid.{name}.u32"):
            shutil.copyfile(corpus / file, out / file)
    summary = {name: {"documents": len(t), "tokens": int(sum(map(len, t)))} for name, t in texts.items()}
    (out / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
