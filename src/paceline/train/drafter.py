"""`paceline train drafter`: an MTP drafter, distilled from its target's own hidden states, keys and values.

Every position of a sequence is an anchor at once. At anchor n the drafter reads token n, the target's hidden state of
n - 1 and the target's keys and values before n, and is unrolled over several steps, each fed with the text's next
token and its own previous state, as in decoding. Each step learns the target's whole next-token law.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from paceline.config import parse_drafter, read_target
from paceline.kernels import Reach
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.models.plan import Plan
from paceline.train import miniature
from paceline.train.batch import BatchCache, TrainOps
from paceline.train.data import DEFAULT_WEIGHTS, Batches
from paceline.train.export import copy_tokenizer, export, provenance, write_json
from paceline.train.loop import Recipe, Trainer
from paceline.train.target import BatchTarget, batch_rows, initialise, use_stored_scales
from paceline.weights import fill, read_headers, target_name

STEPS = 4
# Later steps are reached less often: only when every earlier guess was right.
STEP_WEIGHTS = (1.0, 0.85, 0.65, 0.45)
CLUSTER_AT = 0.45  # share of the time after which the head is clustered and the centroids begin to learn
VALID_ROWS = 48


@dataclass
class Anchors:
    """What the target says about a batch [B, T], with each sequence's anchors 1 .. T - STEPS cut out later.

    tokens [B, T]; hidden [B, T, D], logits [B, T, V] of the target; cache: its keys and values, one position late.
    """

    tokens: Tensor
    hidden: Tensor
    logits: Tensor
    cache: BatchCache
    rows: dict[str, Reach]


class BatchDrafter:
    """The engine's drafter over all anchors of a batch."""

    def __init__(self, target: BatchTarget, model: MtpDrafter, plan: Plan) -> None:
        self.target, self.model, self.plan = target, model, plan
        self.clustered = False

    @torch.no_grad()
    def anchors(self, window: Tensor) -> Anchors:
        """Runs the frozen target over a window [B, T + 1], of which the last token is not used."""
        tokens = window[:, :-1]
        hidden, cache = self.target.hidden(tokens)
        logits = self.target.model.logits(hidden).float()
        rows = batch_rows(self.target.model, tokens.shape[0], tokens.shape[1], tokens.device)
        shape = (*tokens.shape, -1)
        return Anchors(tokens, hidden.view(shape), logits.view(shape), cache.for_drafter(), rows)

    def unroll(self, a: Anchors) -> list[tuple[Tensor, Tensor]]:
        """For each step: (the drafter's states [B, T, h], the target's logits [B, T, V] it should have guessed).

        Row n of either is anchor n; the last STEPS rows wrap round and are not for use.
        """
        model, (batch, length) = self.model, a.tokens.shape
        hidden = a.hidden.roll(1, dims=1).flatten(0, 1)  # the state before each anchor
        out = []
        for step in range(STEPS):
            tokens = a.tokens.roll(-step, dims=1).flatten()
            embedded = self.target.model.embed(tokens).detach()
            state, hidden = model.step(embedded, hidden, a.rows, a.cache)  # type: ignore[arg-type]
            out.append((state.view(batch, length, -1), a.logits.roll(-step, dims=1)))
        return out

    def loss(self, window: Tensor) -> Tensor:
        """Mean over steps of half the cross-entropy with the target's law, half with its greedy choice."""
        total = torch.zeros((), device=window.device)
        for weight, (state, wanted) in zip(STEP_WEIGHTS, self.unroll(self.anchors(window)), strict=True):
            state, wanted = state[:, 1:-STEPS].flatten(0, 1), wanted[:, 1:-STEPS].flatten(0, 1)
            total = total + weight * self._step_loss(state, wanted)
        return total / sum(STEP_WEIGHTS)

    def _step_loss(self, state: Tensor, wanted: Tensor) -> Tensor:
        law, best = wanted.softmax(-1), wanted.argmax(-1)
        logits = F.linear(state, self.model.head.tensor.to(state.dtype)).float()  # type: ignore[attr-defined]
        loss = 0.5 * F.cross_entropy(logits, law) + 0.5 * F.cross_entropy(logits, best)
        if self.clustered:
            # A centroid should score its cluster as the target does: by the probability of all its tokens.
            share = law[:, self.model.clusters].sum(-1)
            loss = loss + 0.5 * F.cross_entropy(self.model.ops.linear(state, self.model.centroids).float(), share)
        return loss

    @torch.no_grad()
    def cluster(self) -> None:
        """Cuts the head's tokens into equal clusters of similar embeddings, and starts centroids at their means."""
        head: Tensor = self.model.head.tensor  # type: ignore[attr-defined]
        clusters = balanced_clusters(head.float(), self.model.config.centroids.count)  # type: ignore[union-attr]
        self.model.clusters.copy_(clusters)
        self.model.centroids.write(0, head[clusters].mean(1))
        self.clustered = True

    @torch.no_grad()
    def accuracy(self, window: Tensor) -> list[float]:
        """Share of anchors whose first j guesses all equal the target's greedy choice on the text, j = 1 .. STEPS.

        Uses the head that ships, centroids included.
        """
        alive, shares = None, []
        for state, wanted in self.unroll(self.anchors(window)):
            scores, ids = self.model.logits(state.flatten(0, 1))
            guess = scores.argmax(-1) if ids is None else ids.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
            right = (guess.view(window[:, :-1].shape) == wanted.argmax(-1))[:, 1:-STEPS]
            alive = right if alive is None else alive & right
            shares.append(round(float(alive.float().mean()), 4))
        return shares


def balanced_clusters(points: Tensor, count: int) -> Tensor:
    """Indices [count, n / count] of points [n, d]: halved along the main axis of each part, `count` a power of two."""
    groups = [torch.arange(len(points), device=points.device)]
    while len(groups) < count:
        halves = []
        for group in groups:
            centred = points[group] - points[group].mean(0)
            axis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
            order = group[(centred @ axis).argsort()]
            halves += [order[: len(order) // 2], order[len(order) // 2 :]]
        groups = halves
    return torch.stack(groups)


def frozen_target(folder: Path, ops: TrainOps) -> BatchTarget:
    """A trained target on the training backend."""
    config = read_target(folder)
    plan = Plan(ops, lambda _name: torch.float32)
    model = Target(config, plan)
    use_stored_scales(model)
    fill(plan, read_headers(folder, lambda name: target_name(name, config)), folder)
    return BatchTarget(model, plan, ops)


def build(target: BatchTarget, seed: int) -> BatchDrafter:
    """A freshly initialised drafter for `target`."""
    torch.manual_seed(seed)
    vocab = target.model.config.vocab
    data = miniature.drafter_config(vocab)
    config = parse_drafter(data, "the miniature's config")
    plan = Plan(target.ops, lambda _name: torch.float32)
    model = MtpDrafter(config, target.model.config, plan)
    initialise(plan, small=("post_attention", "post_feedforward"), branches=2 * len(model.layers))
    return BatchDrafter(target, model, plan)


def category_weights(corpus: Path) -> dict[str, float]:
    """The usual shares of the categories that `corpus` has."""
    return {name: share for name, share in DEFAULT_WEIGHTS.items() if (corpus / f"train.{name}.u16").is_file()}


def resume(drafter: BatchDrafter, folder: Path) -> None:
    """Starts from the drafter in `folder`, its clusters included."""
    fill(drafter.plan, read_headers(folder, lambda name: name), folder)
    drafter.clustered = True


def train_drafter(
    target_folder: Path, corpus: Path, out: Path, recipe: Recipe, start: Path | None = None
) -> dict[str, list[float]]:
    """Distils a drafter for the target in `target_folder` and writes its checkpoint folder.

    `start` is a drafter to go on from. Returns teacher-forced greedy acceptance by category: the share of anchors
    whose first j guesses are all right.
    """
    console = Console(stderr=True)
    batches = Batches(corpus, recipe.batch, recipe.length, category_weights(corpus), recipe.seed + 1)
    drafter = build(frozen_target(target_folder, TrainOps(recipe.device)), recipe.seed)
    if start is not None:
        resume(drafter, start)
    trainer = Trainer(drafter.loss, drafter.plan, recipe)
    console.print(f"training {sum(w.numel() for w in trainer.weights):,} parameters for {recipe.minutes} minutes")
    steps = trainer.run(iter(batches), console, {} if drafter.clustered else {CLUSTER_AT: drafter.cluster})
    acceptance = {c: drafter.accuracy(batches.valid(c, VALID_ROWS).to(recipe.device)) for c in batches.names}
    vocab = drafter.target.model.config.vocab
    export(drafter.plan, out, miniature.drafter_config(vocab), miniature.DRAFTER_GENERATION)
    copy_tokenizer(target_folder, out)
    record = {
        **provenance(),
        "steps": steps,
        "tokens": steps * recipe.batch * recipe.length,
        "teacher_forced_survival": acceptance,
        "history": trainer.history[:: max(1, len(trainer.history) // 60)],
    }
    write_json(out / "training.json", record)
    console.print(f"teacher-forced survival by position {acceptance}")
    return acceptance
