"""Gemma 4's MTP drafter: query-only layers over the target's own keys and values.

It has no cache. One step reads the target's embedding of a token and a hidden state of the target's width, and
returns logits for the next token and the hidden state for the step after.
"""

from __future__ import annotations

from paceline.cache import KVCache
from paceline.config import DrafterConfig, TextConfig
from paceline.errors import CheckpointError
from paceline.kernels import Array, Matrix, Reach
from paceline.models.gemma4 import Target
from paceline.models.layers import build_layer
from paceline.models.plan import Plan


class MtpDrafter:
    """Weights and one draft step of an assistant checkpoint."""

    def __init__(self, config: DrafterConfig, target: TextConfig, plan: Plan) -> None:
        check_pair(config, target)
        self.config, self.ops = config, plan.ops
        text = config.text
        self.kv_layers = [target.last_owner(layer.kind) for layer in text.layers]
        self.kinds = {layer.kind: layer for layer in text.layers}
        self.pre_projection = plan.matrix({"pre_projection.weight": text.hidden}, 2 * config.backbone_hidden)
        self.layers = [build_layer(plan, text, i, f"model.layers.{i}", False) for i in range(len(text.layers))]
        self.blocks = [layer.block for layer in self.layers]
        self.norm = plan.vector("model.norm.weight", text.hidden)
        self.post_projection = plan.matrix({"post_projection.weight": config.backbone_hidden}, text.hidden)
        # The centroid head only ever gathers rows; the dense head multiplies the whole table.
        head = {"model.embed_tokens.weight": text.vocab}
        self.head = plan.matrix(head, text.hidden, table=config.centroids is not None)
        if config.centroids is not None:
            self._build_centroids(plan, config.centroids.count)

    def _build_centroids(self, plan: Plan, count: int) -> None:
        text = self.config.text
        self.centroids = plan.matrix({"masked_embedding.centroids.weight": count}, text.hidden)
        ordering = plan.indices("masked_embedding.token_ordering", text.vocab)
        self.clusters = ordering.reshape(count, text.vocab // count)

    @property
    def body(self) -> list[Matrix]:
        """The matrices that every step reads, whatever the head."""
        layers = [matrix for b in self.blocks for matrix in (b.qkv, b.output, b.gate_up, b.down)]
        return [self.pre_projection, *layers, self.post_projection]

    def rows(self, target: Target, cache: KVCache, position: int) -> dict[str, Reach]:
        """What one query at the constant `position` attends: the last window of the cache, or all of it."""
        here, last = self.ops.indices([position]), self.ops.indices([cache.length - 1])
        rows = {}
        for kind, layer in self.kinds.items():
            first = self.ops.indices([max(0, cache.length - (layer.window or cache.length))])
            rows[kind] = Reach(here, first, last, target.ropes.get(layer, position + 1))
        return rows

    def step(self, embedded: Array, hidden: Array, rows: dict[str, Reach], cache: KVCache) -> tuple[Array, Array]:
        """One draft step: (normed state y [1, h] for the head, next hidden state [1, backbone]).

        embedded: the target's scaled embedding of the last token [1, backbone]; hidden: the state that predicted it.
        """
        ops, layers = self.ops, self.layers
        y = ops.linear(ops.concat(embedded, hidden), self.pre_projection)
        h, x = ops.enter(y, layers[0].input_norm, self.config.text.eps)
        for i, block in enumerate(self.blocks):
            following = layers[i + 1].input_norm if i + 1 < len(layers) else self.norm
            h, x = ops.query_block(h, x, block, rows[layers[i].config.kind], cache.view(self.kv_layers[i]), following)
        return x, ops.linear(x, self.post_projection)

    def logits(self, y: Array) -> tuple[Array, Array | None]:
        """Scores of the next token: ([n, vocab], None), or with centroids ([n, m], ids [n, m]) of the best clusters."""
        if self.config.centroids is None:
            return self.ops.logits(y, self.head, None), None
        best, _ = self.ops.top(self.ops.linear(y, self.centroids), self.config.centroids.active)
        ids = self.ops.gather_rows(self.clusters, best)
        return self.ops.gather_linear(y, self.head, ids), ids


def check_pair(drafter: DrafterConfig, target: TextConfig) -> None:
    """Refuses a drafter that was made for another target, naming the first size that differs."""
    facts: list[tuple[str, int | None, int | None]] = [
        ("hidden size", drafter.backbone_hidden, target.hidden),
        ("vocabulary", drafter.text.vocab, target.vocab),
    ]
    for layer in drafter.text.layers:
        if layer.kind not in {target.layers[i].kind for i in target.kv_owners}:
            raise CheckpointError(f"the drafter reads {layer.kind} keys and values, but the target has none")
        owner = target.layers[target.last_owner(layer.kind)]
        facts.append((f"{layer.kind} key/value heads", layer.kv_heads, owner.kv_heads))
        facts.append((f"{layer.kind} head size", layer.head_dim, owner.head_dim))
        facts.append((f"{layer.kind} window", layer.window, owner.window))
    for what, have, need in facts:
        if have != need:
            raise CheckpointError(f"this drafter belongs to another target: its {what} is {have}, the target's {need}")
