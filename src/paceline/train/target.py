"""`paceline train target`: a miniature Gemma 4 on real text, by next-token prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from paceline.config import parse_text
from paceline.kernels import Reach
from paceline.kernels.reference import embed_scale
from paceline.models.gemma4 import Target
from paceline.models.plan import Plan
from paceline.train import miniature
from paceline.train.batch import BatchCache, TrainOps
from paceline.train.data import Batches
from paceline.train.export import copy_tokenizer, export, provenance, write_json
from paceline.train.loop import Recipe, Trainer
from paceline.train.tokenizer import load_tokenizer

VALID_ROWS = 64


class BatchTarget:
    """The engine's target over whole sequences: hidden states, and what the LM head makes of them."""

    def __init__(self, model: Target, plan: Plan, ops: TrainOps) -> None:
        self.model, self.plan, self.ops = model, plan, ops

    def hidden(self, tokens: Tensor) -> tuple[Tensor, BatchCache]:
        """Post-norm hidden states [B * T, hidden] of tokens [B, T], and the keys and values computed on the way."""
        model, (batch, length) = self.model, tokens.shape
        cache, ids = BatchCache(model.config, batch), tokens.flatten()
        h = model.embed(ids)
        rows = batch_rows(model, batch, length, tokens.device)
        out = model.run(h, model.per_layer_inputs(ids, h), rows, cache, len(ids))  # type: ignore[arg-type]
        return out, cache

    def loss(self, window: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats over a window [B, T + 1]."""
        hidden, _ = self.hidden(window[:, :-1])
        return F.cross_entropy(self.model.logits(hidden).float(), window[:, 1:].flatten())


def batch_rows(model: Target, batch: int, length: int, device: torch.device) -> dict[str, Reach]:
    """Positions 0 .. length - 1 for every sequence; the batch views know what each row may see."""
    positions = torch.arange(length, device=device).repeat(batch)
    return {
        kind: Reach(positions, positions, positions, model.ropes.get(layer, length))
        for kind, layer in model.kinds.items()
    }


def build(vocab: int, device: str, seed: int) -> BatchTarget:
    """A freshly initialised miniature on `device`."""
    torch.manual_seed(seed)
    ops = TrainOps(device)
    config = parse_text(miniature.target_config(vocab), "the miniature's config")
    plan = Plan(ops, lambda _name: torch.float32)
    model = Target(config, plan)
    use_stored_scales(model)
    initialise(plan, small=("post_attention", "post_feedforward", "post_per_layer"), branches=3 * len(config.layers))
    return BatchTarget(model, plan, ops)


def use_stored_scales(model: Target) -> None:
    """Scales embeddings as readers of the checkpoint will: it is stored in bf16, and so are their factors."""
    model.scale = embed_scale(model.config.hidden, torch.bfloat16)
    if model.config.ple_dim:
        model.ple_scale = embed_scale(model.config.ple_dim, torch.bfloat16)


@torch.no_grad()
def initialise(plan: Plan, small: tuple[str, ...], branches: int) -> None:
    """Unit-variance matrices; norms at 1, but those that close a residual branch at 1/sqrt(branches)."""
    for weight in plan.matrices:
        tensor: Tensor = weight.tensor  # type: ignore[attr-defined]
        tensor.normal_(std=weight.cols**-0.5)
    for name, place in plan.places.items():
        if len(place.shape) == 1 and not name.endswith("token_ordering"):
            value = 1 / math.sqrt(branches) if any(s in name for s in small) else 1.0
            place.write(torch.full(place.shape, value), 0)


@torch.no_grad()
def validate(target: BatchTarget, batches: Batches) -> dict[str, float]:
    """Held-out loss in nats per token, by category."""
    losses = {}
    for category in batches.names:
        window = batches.valid(category, VALID_ROWS).to(target.ops.device)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=window.is_cuda):
            losses[category] = round(float(target.loss(window)), 4)
    return losses


def train_target(
    corpus: Path, tokenizer: Path, out: Path, recipe: Recipe, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Trains the miniature and writes the checkpoint folder `out`; returns its held-out losses by category."""
    console = Console(stderr=True)
    batches = Batches(corpus, recipe.batch, recipe.length, weights, recipe.seed)
    vocab = load_tokenizer(tokenizer).get_vocab_size()
    target = build(vocab, recipe.device, recipe.seed)
    trainer = Trainer(target.loss, target.plan, recipe)
    console.print(f"training {sum(w.numel() for w in trainer.weights):,} parameters for {recipe.minutes} minutes")
    steps = trainer.run(iter(batches), console)
    losses = validate(target, batches)
    export(target.plan, out, miniature.target_config(vocab), miniature.TARGET_GENERATION)
    copy_tokenizer(tokenizer, out)
    record = {
        **provenance(),
        "steps": steps,
        "tokens": steps * recipe.batch * recipe.length,
        "validation_nats_per_token": losses,
        "history": trainer.history[:: max(1, len(trainer.history) // 60)],
    }
    write_json(out / "training.json", record)
    console.print(f"held-out loss {losses}")
    return losses
