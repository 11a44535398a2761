"""Blocks of several operations, spelled out: what a backend does unless it has something faster."""

from __future__ import annotations

from typing import Any

from paceline.kernels import Array, Block, Branch, Mixture, Reach, View


class ComposedOps:
    """The larger operations of `paceline.kernels.Ops`, made of the smaller ones."""

    def query_block(self: Any, h: Array, x: Array, block: Block, reach: Reach, view: View, norm: Array) -> Any:
        b = block
        q = self.rope_write(self.linear(x, b.qkv), b.heads, reach.rope, reach.positions, None)
        y = self.linear(self.attention(q, view, reach.first, reach.last), b.output)
        h, x = self.add_norm(h, y, b.post_attention_norm, b.pre_mlp_norm, b.one, b.heads.eps)
        y = self.linear(self.gated(x, b.gate_up), b.down)
        return self.add_norm(h, y, b.post_mlp_norm, norm, b.scalar, b.heads.eps)

    def mixture(self: Any, h: Array, x: Array, m: Mixture) -> Array:
        dense = self.linear(self.gated(x, m.dense_gate_up), m.dense_down)
        # The router sees the raw residual stream, the experts a norm of it, neither the dense branch.
        seen, x = self.norms(h, m.router_norm, m.input_norm, m.eps)
        ids, weights = self.route(self.linear(seen, m.router), m.active, m.expert_scale)
        sparse = self.experts(x, ids, m.gate_up, m.down)
        return self.mix_experts(Branch(dense, m.dense_norm), Branch(sparse, m.output_norm), weights, m.eps)
