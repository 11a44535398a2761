"""What a round must move through memory and what a pass must compute: arithmetic on configurations, nothing measured.

Decoding is bound by memory: a pass reads every weight once, however many rows it has. The bytes below are what passes
read and write when nothing but the pass at work is kept near the processor, so that time = bytes / bandwidth. Two
things can stay below that: what a cache keeps from one pass to the next (E2B's and E4B's drafters are small enough),
and layers that share keys and values and find them still cached.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from paceline.config import DrafterConfig, TextConfig
from paceline.errors import UsageError

SCALE_BYTES = 4  # a row of an int8 weight has a scale in fp32
ID_BYTES = 8  # the clusters of a centroid head are lists of int64 ids


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: `batch` sequences, each with `context` tokens in the cache, k drafts and a pass of k + 1 rows.

    distinct_experts: how many experts of a layer the pass reads, on average over layers; None routes uniformly.
    Bytes are those of one weight and of one number in the cache of keys and values. int8: whether the drafter's
    (dense head, body) are in int8.
    """

    batch: int = 1
    k: int = 0
    context: int = 0
    distinct_experts: float | None = None
    weight_bytes: float = 2
    kv_bytes: float = 2
    int8: tuple[bool, bool] = (False, False)

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("k", 0), ("context", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"a round's {name} must be at least {least}, not {getattr(self, name)}")

    @property
    def rows(self) -> int:
        """Rows of the target's pass."""
        return self.batch * (self.k + 1)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one round by class. `lookups` are rows gathered from embedding tables, per-layer embeddings included."""

    dense: float
    experts: float
    head: float
    lookups: float
    kv_read: float
    kv_write: float
    drafter: float
    drafter_head: float
    drafter_kv_read: float

    @property
    def total(self) -> float:
        """All bytes of the round."""
        return float(sum(astuple(self)))

    @property
    def drafting(self) -> float:
        """Bytes of the k draft steps."""
        return self.drafter + self.drafter_head + self.drafter_kv_read

    def seconds(self, bandwidth: float) -> float:
        """The least time of a round at so many bytes a second."""
        return self.total / bandwidth


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A target's parameters by how a pass reads them: `expert` is one expert of every layer, of which there are more.

    head: the embedding table, which is the LM head too. table: per-layer embeddings, of which a token reads one row.
    """

    dense: int
    expert: int
    experts: int
    head: int
    table: int

    @property
    def total(self) -> int:
        """All of them, stored once."""
        return self.dense + self.expert * self.experts + self.head + self.table


def distinct(count: int, active: int, draws: int) -> float:
    """How many of `count` things are expected among `draws` independent choices of `active` different ones each."""
    return count * (1 - (1 - active / count) ** draws)


def parameters(config: TextConfig) -> Parameters:
    """Counts a target's parameters, as the checkpoint has them without keys and values that no layer uses."""
    hidden, experts = config.hidden, config.experts
    ple = config.ple_dim and len(config.layers) * config.ple_dim * hidden + config.ple_dim
    layers = sum(_layer(config, i, config.owns_kv(i)) for i in range(len(config.layers)))
    return Parameters(
        dense=layers + hidden + ple,
        expert=3 * hidden * experts.intermediate * len(config.layers) if experts else 0,
        experts=experts.count if experts else 0,
        head=config.vocab * hidden,
        table=config.ple_vocab * len(config.layers) * config.ple_dim,
    )


def vectors(config: TextConfig) -> int:
    """Those of a target's parameters that are norms and scales, which are kept in fp32 whatever the weights are."""
    layers = range(len(config.layers))
    return sum(_vectors(config, i, config.owns_kv(i)) for i in layers) + config.hidden + config.ple_dim


def drafter_vectors(drafter: DrafterConfig) -> int:
    """The same of a drafter, whose layers own no keys."""
    text = drafter.text
    return sum(_vectors(text, i, False) for i in range(len(text.layers))) + text.hidden


def _layer(config: TextConfig, index: int, owns_kv: bool) -> int:
    """Parameters of a layer but for its experts: matrices, then norms and scales."""
    return _matrices(config, index, owns_kv) + _vectors(config, index, owns_kv)


def _vectors(config: TextConfig, index: int, owns_kv: bool) -> int:
    hidden, experts, dim = config.hidden, config.experts, config.layers[index].head_dim
    count = 4 * hidden + 1 + dim + (dim if owns_kv else 0) + (hidden if config.ple_dim else 0)
    if experts:
        count += 3 * hidden + hidden + experts.count
    return count


def _matrices(config: TextConfig, index: int, owns_kv: bool) -> int:
    c, hidden = config.layers[index], config.hidden
    keys_values = (1 if c.k_eq_v else 2) * c.kv_heads if owns_kv else 0
    attention = hidden * c.head_dim * (2 * c.heads + keys_values)
    router = config.experts.count * hidden if config.experts else 0
    return attention + 3 * hidden * c.intermediate + 2 * hidden * config.ple_dim + router


def drafter_body(drafter: DrafterConfig) -> int:
    """Parameters that every draft step reads, whatever its head."""
    text = drafter.text
    layers = sum(_layer(text, i, False) for i in range(len(text.layers)))
    return layers + text.hidden + 3 * text.hidden * drafter.backbone_hidden


def int8_saved(drafter: DrafterConfig, int8: tuple[bool, bool], width: float = 2) -> tuple[float, float]:
    """Bytes of a drafter's (head, body) in numbers of `width` bytes that int8 with a scale for each row saves.

    int8: whether each of them is in int8; a head with centroids never is.
    """
    text = drafter.text
    rows = sum(c.heads * c.head_dim + 2 * c.intermediate + 2 * text.hidden for c in text.layers)
    rows += text.hidden + drafter.backbone_hidden
    matrices = drafter_body(drafter) - drafter_vectors(drafter)
    head = 0 if drafter.centroids else text.vocab * (text.hidden * (width - 1) - SCALE_BYTES)
    return int8[0] * head, int8[1] * (matrices * (width - 1) - rows * SCALE_BYTES)


def drafter_parameters(drafter: DrafterConfig) -> int:
    """All of a drafter's parameters, the order of the tokens in its clusters counted in."""
    text, centroids = drafter.text, drafter.centroids
    extra = centroids.count * text.hidden + text.vocab if centroids else 0
    return drafter_body(drafter) + text.vocab * text.hidden + extra


def traffic(config: TextConfig, drafter: DrafterConfig | None, round_: Round) -> Traffic:
    """What must move in a round; drafts cost nothing without a drafter (n-grams)."""
    own, width = parameters(config), round_.weight_bytes
    active = config.experts.active if config.experts else 0
    uniform = distinct(own.experts, active, round_.rows) if own.experts else 0.0
    met = uniform if round_.distinct_experts is None else round_.distinct_experts
    body, head, kv = draft_step(drafter, round_) if drafter else (0.0, 0.0, 0.0)
    # A draft step, too, reads the target's embedding of one token.
    row = config.hidden * (round_.rows + (round_.batch * round_.k if drafter else 0))
    return Traffic(
        dense=own.dense * width,
        experts=own.expert * met * width,
        head=own.head * width,
        lookups=(row + round_.rows * len(config.layers) * config.ple_dim) * width,
        kv_read=round_.batch * kv_read(config, round_.context, round_.kv_bytes),
        kv_write=round_.rows * sum(kv_per_token(config, round_.kv_bytes)),
        drafter=round_.k * body,
        drafter_head=round_.k * head,
        drafter_kv_read=round_.k * kv,
    )


def draft_step(drafter: DrafterConfig, round_: Round) -> tuple[float, float, float]:
    """Bytes of one draft step of all sequences: (body, head, keys and values).

    A centroid head reads its centroids and the clusters its sequences choose, taken to choose uniformly.
    """
    text, centroids, width = drafter.text, drafter.centroids, round_.weight_bytes
    head = text.vocab * text.hidden * width
    if centroids:
        share = distinct(centroids.count, centroids.active, round_.batch) / centroids.count
        head = (centroids.count + share * text.vocab) * text.hidden * width + share * text.vocab * ID_BYTES
    head_less, body_less = int8_saved(drafter, round_.int8, width)
    body = drafter_body(drafter) * width - body_less
    return body, head - head_less, round_.batch * kv_read(text, round_.context, round_.kv_bytes)


def kv_per_token(config: TextConfig, kv_bytes: float = 2) -> tuple[float, float]:
    """Bytes a token adds to the cache: in the sliding layers, which keep their window only, and in the full ones."""
    sizes = [(c.window, 2 * c.kv_heads * c.head_dim * kv_bytes) for c in (config.layers[i] for i in config.kv_owners)]
    return sum(s for window, s in sizes if window is not None), sum(s for window, s in sizes if window is None)


def kv_held(config: TextConfig, context: int, kv_bytes: float = 2) -> float:
    """Bytes of one sequence's cache at this length, without room for drafts."""
    return sum(_kv(config, i, context) for i in config.kv_owners) * kv_bytes


def kv_read(config: TextConfig, context: int, kv_bytes: float = 2) -> float:
    """Bytes of keys and values that one pass reads for one sequence, whatever its rows: every layer reads its own.

    A drafter's layers and those that share a cache read the owner's again, because the weights of whole layers
    pass between two reads.
    """
    return sum(_kv(config, i, context) for i in range(len(config.layers))) * kv_bytes


def _kv(config: TextConfig, index: int, context: int) -> int:
    """Numbers that layer `index` reads of a sequence's keys and values."""
    c = config.layers[index]
    return 2 * c.kv_heads * c.head_dim * min(context, c.window or context)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations, a multiplication and an addition counted as two: matrices, LM head, attention."""

    linear: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        """All three."""
        return self.linear + self.head + self.attention


def pass_flops(config: TextConfig, rows: int, context: int) -> Flops:
    """A decoding pass of `rows` rows, each of which attends `context` tokens, or its window."""
    layers = range(len(config.layers))
    return Flops(
        linear=2 * rows * (sum(_active(config, i) for i in layers) + _ple_projection(config)),
        head=2 * rows * config.vocab * config.hidden,
        attention=rows * sum(attention_flops(config, i) * _attended(config, i, context) for i in layers),
    )


def prompt_flops(config: TextConfig, tokens: int) -> Flops:
    """A prompt of `tokens` tokens: past the last layer that owns keys and values, only its last token goes on."""
    last = max(config.kv_owners)
    rows = [tokens if i <= last else 1 for i in range(len(config.layers))]
    seen = [_triangle(config, i, tokens) if i <= last else _attended(config, i, tokens) for i in range(len(rows))]
    return Flops(
        linear=2 * (sum(_active(config, i) * n for i, n in enumerate(rows)) + tokens * _ple_projection(config)),
        head=2 * config.vocab * config.hidden,
        attention=sum(attention_flops(config, i) * n for i, n in enumerate(seen)),
    )


def _active(config: TextConfig, index: int) -> int:
    """Parameters of the layer's matrices that a row is multiplied with."""
    experts = config.experts
    mixture = 3 * config.hidden * experts.intermediate * experts.active if experts else 0
    return _matrices(config, index, config.owns_kv(index)) + mixture


def _ple_projection(config: TextConfig) -> int:
    return len(config.layers) * config.ple_dim * config.hidden


def attention_flops(config: TextConfig, index: int) -> int:
    """Operations of one row for each token it attends: scores, then the weighted sum."""
    return 4 * config.layers[index].heads * config.layers[index].head_dim


def _attended(config: TextConfig, index: int, context: int) -> int:
    return min(context, config.layers[index].window or context)


def _triangle(config: TextConfig, index: int, tokens: int) -> int:
    """Tokens attended by all rows of a prompt together: 1, 2, 3 ... up to the window."""
    window = _attended(config, index, tokens)
    return window * (window + 1) // 2 + (tokens - window) * window
