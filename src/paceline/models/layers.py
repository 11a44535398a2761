"""One Gemma 4 decoder layer, shared by targets and drafters. The forward reads like the architecture's description."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.config import LayerConfig, TextConfig
from paceline.kernels import Array, Block, Heads, LayerView, Matrix, Mixture, Ops, Reach
from paceline.models.plan import Plan


@dataclass(frozen=True)
class PerLayerInput:
    """The per-layer embedding's gate into the residual stream (E2B, E4B)."""

    gate: Matrix
    projection: Matrix
    norm: Array


@dataclass(frozen=True)
class Layer:
    """Weights of one layer. `qkv` holds queries, then keys and values where the layer owns them."""

    config: LayerConfig
    eps: float
    heads: Heads
    qkv: Matrix
    output: Matrix
    gate_up: Matrix
    down: Matrix
    input_norm: Array
    post_attention_norm: Array
    pre_mlp_norm: Array
    post_mlp_norm: Array
    scalar: Array
    one: Array
    per_layer_input: PerLayerInput | None
    mixture: Mixture | None

    @property
    def block(self) -> Block:
        """The layer as `Ops.query_block` takes it."""
        return Block(
            self.heads, self.qkv, self.output, self.gate_up, self.down,
            self.post_attention_norm, self.pre_mlp_norm, self.post_mlp_norm, self.scalar, self.one,
        )  # fmt: skip


def build_layer(plan: Plan, config: TextConfig, index: int, prefix: str, owns_kv: bool) -> Layer:
    """The weights of layer `index`, whose tensors are called `prefix`...; registers them in `plan`."""
    c, attention = config.layers[index], f"{prefix}.self_attn"
    q_norm = plan.vector(f"{attention}.q_norm.weight", c.head_dim)
    parts = {f"{attention}.q_proj.weight": c.heads * c.head_dim}
    if owns_kv:
        parts[f"{attention}.k_proj.weight"] = c.kv_heads * c.head_dim
        if not c.k_eq_v:
            parts[f"{attention}.v_proj.weight"] = c.kv_heads * c.head_dim
    k_norm = plan.vector(f"{attention}.k_norm.weight", c.head_dim) if owns_kv else q_norm
    mlp, hidden = f"{prefix}.mlp", config.hidden
    gate_up = {f"{mlp}.gate_proj.weight": c.intermediate, f"{mlp}.up_proj.weight": c.intermediate}
    gate_up_proj = plan.matrix(gate_up, hidden)
    down_proj = plan.matrix({f"{mlp}.down_proj.weight": hidden}, c.intermediate)
    return Layer(
        config=c,
        eps=config.eps,
        heads=Heads(c.heads, c.k_eq_v, q_norm, k_norm, config.eps),
        qkv=plan.matrix(parts, hidden),
        output=plan.matrix({f"{attention}.o_proj.weight": hidden}, c.heads * c.head_dim),
        gate_up=gate_up_proj,
        down=down_proj,
        input_norm=plan.vector(f"{prefix}.input_layernorm.weight", hidden),
        post_attention_norm=plan.vector(f"{prefix}.post_attention_layernorm.weight", hidden),
        pre_mlp_norm=plan.vector(f"{prefix}.pre_feedforward_layernorm.weight", hidden),
        post_mlp_norm=plan.vector(f"{prefix}.post_feedforward_layernorm.weight", hidden),
        scalar=plan.vector(f"{prefix}.layer_scalar", 1),
        one=plan.one,
        per_layer_input=_build_ple(plan, config, prefix) if config.ple_dim else None,
        mixture=_build_mixture(plan, config, prefix, (gate_up_proj, down_proj)) if config.experts else None,
    )


def _build_ple(plan: Plan, config: TextConfig, prefix: str) -> PerLayerInput:
    return PerLayerInput(
        gate=plan.matrix({f"{prefix}.per_layer_input_gate.weight": config.ple_dim}, config.hidden),
        projection=plan.matrix({f"{prefix}.per_layer_projection.weight": config.hidden}, config.ple_dim),
        norm=plan.vector(f"{prefix}.post_per_layer_input_norm.weight", config.hidden),
    )


def _build_mixture(plan: Plan, config: TextConfig, prefix: str, dense: tuple[Matrix, Matrix]) -> Mixture:
    assert config.experts is not None
    count, size, hidden = config.experts.count, config.experts.intermediate, config.hidden
    return Mixture(
        *dense,
        router=plan.matrix({f"{prefix}.router.proj.weight": count}, hidden),
        router_norm=plan.vector(f"{prefix}.router.scale", hidden, factor=hidden**-0.5),
        expert_scale=plan.vector(f"{prefix}.router.per_expert_scale", count),
        gate_up=plan.stack(f"{prefix}.experts.gate_up_proj", count, 2 * size, hidden),
        down=plan.stack(f"{prefix}.experts.down_proj", count, hidden, size),
        dense_norm=plan.vector(f"{prefix}.post_feedforward_layernorm_1.weight", hidden),
        input_norm=plan.vector(f"{prefix}.pre_feedforward_layernorm_2.weight", hidden),
        output_norm=plan.vector(f"{prefix}.post_feedforward_layernorm_2.weight", hidden),
        active=config.experts.active,
        eps=config.eps,
    )


def attend(ops: Ops, layer: Layer, x: Array, rows: Reach, view: LayerView, owns_kv: bool = True) -> Array:
    """Attention of normalised input x [n, hidden], writing this layer's keys and values first if it owns them."""
    q = ops.rope_write(ops.linear(x, layer.qkv), layer.heads, rows.rope, rows.positions, view if owns_kv else None)
    return ops.linear(ops.attention(q, view, rows.first, rows.last), layer.output)


def feed_forward(ops: Ops, layer: Layer, h: Array, x: Array) -> Array:
    """The dense MLP of x [n, hidden], plus the experts' answer to the residual stream h where there are experts."""
    if layer.mixture is None:
        return ops.linear(ops.gated(x, layer.gate_up), layer.down)
    return ops.mixture(h, x, layer.mixture)


def finish(
    ops: Ops, layer: Layer, h: Array, y: Array, norm: Array, ple: tuple[Array, int] | None = None
) -> tuple[Array, Array]:
    """Adds the MLP's result y to the stream h, then the per-layer input, then scales.

    ple: all layers' inputs [n, L, P] and which is this one's. Returns the new stream and its norm for the next block.
    """
    p = layer.per_layer_input
    if p is None or ple is None:
        return ops.add_norm(h, y, layer.post_mlp_norm, norm, layer.scalar, layer.eps)  # type: ignore[no-any-return]
    h, x = ops.add_norm(h, y, layer.post_mlp_norm, None, layer.one, layer.eps)
    y = ops.linear(ops.gate_ple(ops.linear(x, p.gate), *ple), p.projection)
    return ops.add_norm(h, y, p.norm, norm, layer.scalar, layer.eps)  # type: ignore[no-any-return]
