"""What a size takes on a machine, class by class, and the longest context that fits.

The arithmetic of caches is the engine's own (`paceline.device.memory.Need`, on the CPU `paceline.cache.Storage`); what
must stay free to work in on a GPU is its margin too, shown here in parts.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass, replace

from paceline import roofline
from paceline.advisor import cpu_memory
from paceline.cache import MAX_TENTATIVE, PAGE
from paceline.config import DrafterConfig, TextConfig
from paceline.device.memory import MARGIN_BYTES, Need, largest_chunk, rope_bytes
from paceline.errors import UsageError

PRECISIONS: dict[str, float] = {"bf16": 16.0, "8 bit": 8.0, "4.5 bit": 4.5}
"""Bits of a weight, scales counted in: 4.5 is what 4-bit blocks of 32 weights with their scales take."""
VECTOR_BYTES = 4
DRAFTS = MAX_TENTATIVE - 1  # what a round may add to a cache beyond the text
GRAPH_BYTES = 256 << 20  # assumed: recorded rounds keep their own work space


@dataclass(frozen=True, kw_only=True)
class Use:
    """What is asked for: sequences side by side, tokens of each (prompt and answer), the drafter, and where.

    On device "cpu" Paceline runs one text after another, with weights in bf16; other precisions are other engines'.
    """

    batch: int = 1
    context: int = 8192
    drafter: bool = True
    int8_head: bool = False
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.context < 1:
            raise UsageError(f"batch and context must be at least 1, not {min(self.batch, self.context)}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes by class. kv_sliding: rings of the window. kv_full: pages of the whole context. rope: rotary tables.

    program: compiled kernels and the tokenizer, where they share the model's memory.
    """

    target: float
    drafter: float
    kv_sliding: float
    kv_full: float
    rope: float
    activations: float
    graphs: float
    margin: float
    program: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))

    @property
    def weights(self) -> float:
        """What does not depend on the context."""
        return self.target + self.drafter


def plan(config: TextConfig, drafter: DrafterConfig, bits: float, use: Use) -> Plan:
    """The memory plan; `bits` of a target's weight, while the drafter, keys and values are bf16 (fp32 on the CPU)."""
    if use.device == "cpu" and bits == PRECISIONS["bf16"]:
        return _cpu_plan(config, drafter, use)
    need = _need(config)
    sliding = need.bytes(use.batch, PAGE) - _one_page(config, use.batch)
    activations, graphs = activation_bytes(config), float(GRAPH_BYTES)
    rope = float(rope_bytes(config, use.context))
    return Plan(
        target=target_bytes(config, bits),
        drafter=drafter_bytes(drafter, use.int8_head) if use.drafter else 0.0,
        kv_sliding=sliding,
        kv_full=need.bytes(use.batch, use.context) - sliding - rope,
        rope=rope,
        activations=activations,
        graphs=graphs,
        margin=max(0.0, MARGIN_BYTES - activations - graphs),
    )


def _cpu_plan(config: TextConfig, drafter: DrafterConfig, use: Use) -> Plan:
    found = cpu_memory.arrays(config, drafter if use.drafter else None, use.context + DRAFTS)
    page = cpu_memory.cache_bytes(config, 2 * PAGE) - cpu_memory.cache_bytes(config, PAGE)
    full = -(-(use.context + DRAFTS) // PAGE) * page
    return Plan(
        target=found.target, drafter=found.drafter, kv_sliding=found.cache - full, kv_full=full,
        rope=rope_bytes(config, use.context), activations=0.0, graphs=0.0, margin=0.0,
        program=cpu_memory.CODE_BYTES + cpu_memory.TOKENIZER_SHARE * cpu_memory.TOKENIZER_FILE,
    )  # fmt: skip


def target_bytes(config: TextConfig, bits: float) -> float:
    """A target's matrices at so many bits of a weight, and its norms and scales in fp32."""
    kept = roofline.vectors(config)
    return (roofline.parameters(config).total - kept) * bits / 8 + VECTOR_BYTES * kept


def _need(config: TextConfig) -> Need:
    return Need(config=config, weights=0)


def _one_page(config: TextConfig, batch: int) -> float:
    """What `Need.bytes` counts besides rings at a context of one page: pages of the full layers, rotary tables."""
    _, full = roofline.kv_per_token(config)
    return (batch + 1) * PAGE * full + rope_bytes(config, PAGE)


def drafter_bytes(drafter: DrafterConfig, int8_head: bool = False) -> float:
    """A drafter in bf16, its dense head in int8 if so said; norms in fp32 and its clusters' int64 ids counted in."""
    order = drafter.text.vocab if drafter.centroids else 0  # `drafter_parameters` counts the ids as parameters
    kept = roofline.drafter_vectors(drafter)
    matrices = roofline.drafter_parameters(drafter) - order - kept
    less = sum(roofline.int8_saved(drafter, (int8_head, False)))
    return 2.0 * matrices - less + VECTOR_BYTES * kept + roofline.ID_BYTES * order


def activation_bytes(config: TextConfig) -> float:
    """An estimate for a chunk of a prompt: residual, queries and the widest products of a layer, and fp32 logits."""
    widest = max(2 * c.intermediate + c.heads * c.head_dim for c in config.layers)
    experts = config.experts.active * 2 * config.experts.intermediate if config.experts else 0
    return 2.0 * largest_chunk(config) * (4 * config.hidden + widest + experts) + 16 * 4 * config.vocab


def fits(found: Plan, room: float) -> float:
    """Bytes left over in `room`; below zero, bytes that are missing."""
    return room - found.total


def longest_context(config: TextConfig, drafter: DrafterConfig, bits: float, use: Use, room: float) -> int:
    """The longest context, in whole pages, that each of the batch's sequences can have; 0 where not one page fits."""
    pages = range(1, config.max_positions // PAGE + 1)

    def total(count: int) -> float:
        return plan(config, drafter, bits, replace(use, context=count * PAGE)).total

    return PAGE * bisect_right(pages, room, key=total)
