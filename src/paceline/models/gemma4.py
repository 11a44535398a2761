"""The Gemma 4 target: E2B, E4B, 12B, 26B-A4B and 31B are one decoder with different configurations."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.cache import MAX_TENTATIVE, KVCache
from paceline.config import LayerConfig, TextConfig
from paceline.kernels import Array, Ops, Reach, Rope
from paceline.kernels.reference import embed_scale, rope_tables
from paceline.models.layers import attend, build_layer, feed_forward, finish
from paceline.models.plan import Plan


class RopeTables:
    """cos and sin for every kind of layer, grown as contexts grow."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self._tables: dict[tuple[float, int, int], tuple[int, Rope]] = {}

    def get(self, layer: LayerConfig, length: int) -> Rope:
        """Tables for positions 0 .. length - 1 at least."""
        key = (layer.rope_theta, layer.rotated, layer.head_dim)
        have, rope = self._tables.get(key, (0, None))
        if rope is None or have < length:
            have = max(256, 2 * length)
            cos, sin = rope_tables(*key, have)
            rope = Rope(self.ops.array(cos), self.ops.array(sin))
            self._tables[key] = (have, rope)
        return rope


class Target:
    """Text decoder. `forward` returns hidden states after the final norm: what the LM head and the drafter read."""

    def __init__(self, config: TextConfig, plan: Plan) -> None:
        self.config, self.ops, self.ropes = config, plan.ops, RopeTables(plan.ops)
        c, name = config, "model.embed_tokens.weight"
        self.embedding = plan.matrix({name: c.vocab}, c.hidden)  # tied: also the LM head
        self.scale = embed_scale(c.hidden, plan.dtype_of(name))
        self.layers = [build_layer(plan, c, i, f"model.layers.{i}", c.owns_kv(i)) for i in range(len(c.layers))]
        self.norm = plan.vector("model.norm.weight", c.hidden)
        self.kinds = {layer.kind: layer for layer in c.layers}
        # Layers past this one own no keys and values: a prompt's earlier tokens need not go through them.
        self.last_owner = max(c.kv_owners)
        if c.ple_dim:
            self._build_ple(plan)

    def _build_ple(self, plan: Plan) -> None:
        c, name = self.config, "model.embed_tokens_per_layer.weight"
        width = len(c.layers) * c.ple_dim
        self.ple_table = plan.matrix({name: c.ple_vocab}, width, table=True)
        self.ple_scale = embed_scale(c.ple_dim, plan.dtype_of(name))
        self.ple_projection = plan.matrix({"model.per_layer_model_projection.weight": width}, c.hidden)
        self.ple_norm = plan.vector("model.per_layer_projection_norm.weight", c.ple_dim)

    def forward(self, tokens: Sequence[int], cache: KVCache, wanted: int | None = None) -> Array:
        """Appends `tokens` to the cache; hidden states [wanted, hidden] of the last `wanted` (default: all) of them."""
        ids = self.ops.indices(tokens)
        positions = cache.append(len(tokens))
        wanted = len(tokens) if wanted is None else wanted
        h = self.embed(ids)
        return self.run(h, self.per_layer_inputs(ids, h), self.row_ranges(positions), cache, wanted)

    def run(self, h: Array, ple: Array | None, rows: dict[str, Reach], cache: KVCache, wanted: int) -> Array:
        """The decoder over embedded tokens h [n, hidden]: hidden states [wanted, hidden] after the final norm."""
        ops, layers, skip = self.ops, self.layers, len(h) - wanted
        x = ops.rms_norm(h, layers[0].input_norm, self.config.eps)
        for i, layer in enumerate(layers):
            c = layer.config
            y = attend(ops, layer, x, rows[c.kind], cache.view(c.kv_layer), c.kv_layer == i)
            h, x = ops.add_norm(h, y, layer.post_attention_norm, layer.pre_mlp_norm, layer.one, layer.eps)
            y = feed_forward(ops, layer, h, x)
            following = layers[i + 1].input_norm if i + 1 < len(layers) else self.norm
            h, x = finish(ops, layer, h, y, following, None if ple is None else (ple, i))
            if i == self.last_owner and skip:
                keep = slice(skip, None)
                h, x, ple = h[keep], x[keep], None if ple is None else ple[keep]
                rows = {k: Reach(r.positions[keep], r.first[keep], r.last[keep], r.rope) for k, r in rows.items()}
                if wanted == 0:
                    return x
        return x

    def embed(self, ids: Array) -> Array:
        """Scaled input embeddings [n, hidden]; the drafter reads the same table."""
        return self.ops.embed(self.embedding, ids, self.scale)

    def logits(self, hidden: Array) -> Array:
        """LM head over hidden states [n, hidden]: [n, vocab], soft-capped."""
        return self.ops.logits(hidden, self.embedding, self.config.softcap)

    def prefill(self, tokens: Sequence[int], cache: KVCache) -> Array:
        """Appends a whole prompt in chunks; the last token's hidden state [1, hidden].

        The chunking is fixed by the prompt alone, and every chunk uses the arithmetic of decoding.
        """
        for start in range(0, len(tokens), MAX_TENTATIVE):
            chunk = tokens[start : start + MAX_TENTATIVE]
            hidden = self.forward(chunk, cache, wanted=int(start + len(chunk) == len(tokens)))
        return hidden

    def per_layer_inputs(self, ids: Array, h: Array) -> Array | None:
        """Per-layer embeddings [n, layers, P] of tokens and their embeddings h [n, hidden]; None in sizes without."""
        if not self.config.ple_dim:
            return None
        token = self.ops.embed(self.ple_table, ids, self.ple_scale)
        context = self.ops.linear(h, self.ple_projection)
        return self.ops.mix_ple(context, token, self.ple_norm, self.config.hidden**-0.5, self.config.eps)

    def row_ranges(self, positions: range) -> dict[str, Reach]:
        """For each kind of layer, what the rows at `positions` attend: themselves and what their window reaches."""
        rows = {}
        for kind, layer in self.kinds.items():
            here, first = self.ops.reach(positions, layer.window or positions.stop)
            rows[kind] = Reach(here, first, here, self.ropes.get(layer, positions.stop))
        return rows
