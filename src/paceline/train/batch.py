"""The reference backend over a batch of whole sequences, differentiable: how training runs the engine's own models.

Rows of a pass are the batch's tokens, [batch * length, ...]. Instead of a cache, each layer's keys and values are kept
as they are computed, and attention is PyTorch's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.config import TextConfig
from paceline.kernels import Heads, Rope
from paceline.kernels.reference import TorchOps, split_heads, turn


@dataclass
class BatchView:
    """One layer's keys and values for a whole batch, [batch * length, kv_heads, dim]; filled by `rope_write`.

    `lag` is how far behind the query the newest visible key lies: 0 for the target, 1 for a drafter, whose token has
    no key yet. `window` counts visible keys from the newest backwards; None sees all.
    """

    batch: int
    window: int | None
    lag: int = 0
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))

    def mask(self, length: int, device: torch.device) -> Tensor:
        """[length, length] bool, true where a query sees a key. The first row sees key 0 so that it sees something."""
        behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device) - self.lag
        seen = behind >= 0 if self.window is None else (behind >= 0) & (behind < self.window)
        seen[0, 0].fill_(True)  # assignment would copy from the host, which a CUDA graph refuses
        return seen


class BatchCache:
    """Stands where a `KVCache` does; one view per layer that owns keys and values."""

    def __init__(self, config: TextConfig, batch: int) -> None:
        self.views = {i: BatchView(batch, config.layers[i].window) for i in config.kv_owners}

    def view(self, layer: int) -> BatchView:
        """The layer's view."""
        return self.views[layer]

    def for_drafter(self) -> BatchCache:
        """The same keys and values as a drafter sees them: one position late, cut from the graph."""
        late = BatchCache.__new__(BatchCache)
        late.views = {
            i: BatchView(v.batch, v.window, 1, v.keys.detach(), v.values.detach()) for i, v in self.views.items()
        }
        return late


class TrainOps(TorchOps):
    """`TorchOps` whose attention runs over a `BatchView`, with fused library calls where autograd has them."""

    name = "train"

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), weight, eps)

    def rope_write(  # type: ignore[override]
        self, qkv: Tensor, heads: Heads, rope: Rope, positions: Tensor, view: BatchView | None
    ) -> Tensor:
        q, k, v = split_heads(qkv, heads)
        if view is not None:
            view.keys = turn(self.rms_norm(k, heads.k_norm, heads.eps), rope, positions)
            view.values = self.rms_norm(v, None, heads.eps)
        return turn(self.rms_norm(q, heads.q_norm, heads.eps), rope, positions)

    def attention(self, q: Tensor, view: BatchView, first: Tensor, last: Tensor) -> Tensor:  # type: ignore[override]
        length = len(q) // view.batch
        q, k, v = (x.view(view.batch, length, *x.shape[1:]).transpose(1, 2) for x in (q, view.keys, view.values))
        plain = view.window is None and view.lag == 0
        mask = None if plain else view.mask(length, q.device)
        if q.is_cuda:
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plain, scale=1.0, enable_gqa=True)
        return out.transpose(1, 2).reshape(view.batch * length, -1)
