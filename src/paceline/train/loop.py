"""The training loop both models share: a budget of minutes, AdamW, and one CUDA graph a step where there is a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from torch import Tensor

from paceline.errors import UsageError
from paceline.models.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how hard to train. The learning rate follows the clock: a short rise, then half a cosine to 3%."""

    minutes: float = 8.0
    batch: int = 64
    length: int = 512
    lr: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.batch < 1 or self.length < 16 or self.lr <= 0:
            raise UsageError(f"minutes, batch and lr must be positive and length at least 16: {asdict(self)}")

    def lr_at(self, progress: float) -> float:
        """The learning rate when `progress` (0..1) of the time is gone."""
        rise = min(1.0, progress / 0.02)
        return self.lr * rise * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


LossFunction = Callable[[Tensor], Tensor]


def parameters(plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
    """(matrices, vectors) of a model built on the training backend, made trainable."""
    matrices = [m.tensor for m in plan.matrices]  # type: ignore[attr-defined]
    for tensor in (*matrices, *plan.vectors):
        tensor.requires_grad_(True)
    return matrices, list(plan.vectors)


class Trainer:
    """Minimises `loss(tokens)` over batches until the time is up."""

    def __init__(self, loss: LossFunction, plan: Plan, recipe: Recipe) -> None:
        self.loss, self.recipe = loss, recipe
        matrices, vectors = parameters(plan)
        self.weights = [*matrices, *vectors]
        self.cuda = recipe.device.startswith("cuda")
        self.lr = torch.tensor(recipe.lr, device=recipe.device)
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95), fused=self.cuda, capturable=self.cuda)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.history: list[dict[str, float]] = []

    def run(
        self, batches: Iterator[Tensor], console: Console, at: dict[float, Callable[[], None]] | None = None
    ) -> int:
        """Trains; returns the steps done. `at` maps a share of the time to something done once then."""
        hooks, start, step = sorted((at or {}).items(), key=lambda x: x[0]), time.perf_counter(), 0
        self.tokens = next(batches).to(self.recipe.device)
        self.result = torch.zeros((), device=self.recipe.device)
        shown = start
        while (progress := (time.perf_counter() - start) / (60 * self.recipe.minutes)) < 1.0:
            if hooks and progress >= hooks[0][0]:
                hooks.pop(0)[1]()
                self.graph = None  # the hook may have changed what the step computes
            self.lr.fill_(self.recipe.lr_at(progress))
            self.tokens.copy_(next(batches), non_blocking=True)
            self._step(step)
            step += 1
            if step % 100 == 0 or time.perf_counter() - shown > 20:
                shown = self._log(console, step, progress)
        self._log(console, step, 1.0)
        return step

    def _log(self, console: Console, step: int, progress: float) -> float:
        loss = float(self.result)  # waits for the device, so the host runs at most one interval ahead
        self.history.append({"step": step, "progress": round(progress, 4), "loss": round(loss, 4)})
        console.print(f"{100 * progress:5.1f}%  step {step}  loss {loss:.4f}")
        return time.perf_counter()

    def _step(self, step: int) -> None:
        if self.graph is not None:
            self.graph.replay()
        elif self.cuda and step >= 3:
            self.graph = self._capture()
        else:
            self._update()

    def _update(self) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.cuda):
            loss = self.loss(self.tokens)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
        self.optimizer.step()
        self.result.copy_(loss.detach())

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Records one step as a CUDA graph: thousands of small kernels would otherwise wait for the host."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._update()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._update()
        graph.replay()
        return graph
