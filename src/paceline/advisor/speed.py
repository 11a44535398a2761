"""Predicted times: bytes over bandwidth, and operations over rate, plus overheads that were fitted.

In a round the two times add up: kernels of a few dozen rows overlap reading and multiplying so little that the sum fits
measured rounds better than the longer of the two. In a prompt, the longer one counts.

The constants come from rounds measured on one GPU (`benchmarks/advisor_fit.py` fits them and keeps where they come
from in calibration.json). On other machines they are an assumption: shares of what the datasheet says stay the same,
and so do the overheads in seconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from paceline import roofline
from paceline.advisor.machines import Machine
from paceline.config import DrafterConfig, TextConfig
from paceline.control.cost import CostTable
from paceline.errors import UsageError

DRAFTER_BYTES = 2.0  # drafters are published in bf16
OVERLAP = 0.4
"""Overlap of a text's next tokens as published for another mixture (256 experts, 8 active, lucebox #501): 39.4 distinct
ones at 8 rows where independent choice gives 57.4, and 58.9 at 15 rows where it gives 97: 0.36 and 0.43."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What no datasheet says.

    bandwidth_share, rate_share: of the datasheet's bandwidth and dense bf16 rate, in rounds. Seconds: of every round,
    of every draft step, and of every row in every layer of the target (its norms, its attention). Prompts: their own
    share of the rate, and seconds of a layer.
    """

    bandwidth_share: float
    rate_share: float
    round_s: float
    draft_s: float
    row_s: float
    prompt_rate_share: float
    prompt_layer_s: float


@dataclass(frozen=True, kw_only=True)
class Load:
    """A round to predict. weight_bytes: of one of the target's weights. context: tokens in each sequence's cache.

    overlap: how much of the way from independent experts (0) to the same ones for every row (1) routing goes among the
    rows of one text; texts side by side choose independently. distinct_experts, where known, is taken instead.
    measured: rounds of this pair on this machine, which are taken instead of any prediction.
    """

    batch: int = 1
    k: int = 0
    context: int = 0
    weight_bytes: float = 2.0
    int8_head: bool = False
    int8_body: bool = False
    overlap: float = 0.0
    distinct_experts: float | None = None
    measured: CostTable | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 1:
            raise UsageError(f"overlap must lie in [0, 1], not {self.overlap}")


@cache
def calibration() -> dict[str, Any]:
    """The fitted constants and their provenance."""
    text = files("paceline.advisor").joinpath("calibration.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def fitted() -> Costs:
    """The constants that ship."""
    return Costs(**calibration()["costs"])


def experts(config: TextConfig, load: Load) -> float | None:
    """Distinct experts of a layer that the round reads, None for a size without experts."""
    if config.experts is None:
        return None
    if load.distinct_experts is not None:
        return load.distinct_experts
    count, active = config.experts.count, config.experts.active
    uniform = roofline.distinct(count, active, load.k + 1)
    own = active + (uniform - active) * (1 - load.overlap)
    return count * (1 - (1 - own / count) ** load.batch)


def round_bytes(config: TextConfig, drafter: DrafterConfig, load: Load) -> float:
    """Bytes that a round moves; the drafter is bf16 whatever the target's weights are, its parts int8 if so said."""
    round_ = roofline.Round(batch=load.batch, k=load.k, context=load.context, weight_bytes=load.weight_bytes,
                            distinct_experts=experts(config, load), int8=(load.int8_head, load.int8_body))  # fmt: skip
    target = roofline.traffic(config, None, round_)
    body, head, kv = roofline.draft_step(drafter, replace(round_, weight_bytes=DRAFTER_BYTES))
    return target.total + load.k * (body + head + kv)


def round_seconds(config: TextConfig, drafter: DrafterConfig, load: Load, machine: Machine, costs: Costs) -> float:
    """Seconds of a round. Where the machine's rate is unknown, it is taken to be bound by memory.

    Measured rounds go before all that. Raises UsageError where neither they nor its bandwidth are known.
    """
    if load.measured is not None:
        return load.measured.ms(load.k, load.batch, load.context) * 1e-3
    if machine.bandwidth is None:
        raise UsageError(f"the bandwidth of {machine.name} is unknown; give it with --bandwidth, as in 1008GB/s")
    moving = round_bytes(config, drafter, load) / (machine.bandwidth * costs.bandwidth_share)
    rows = load.batch * (load.k + 1)
    computing = 0.0
    if machine.flops is not None:
        computing = roofline.pass_flops(config, rows, load.context).total / (machine.flops * costs.rate_share)
    return moving + computing + overhead(config, load, costs)


def overhead(config: TextConfig, load: Load, costs: Costs) -> float:
    """Seconds that neither bytes nor operations explain."""
    rows = load.batch * (load.k + 1)
    return costs.round_s + load.k * costs.draft_s + rows * len(config.layers) * costs.row_s


def prompt_seconds(
    config: TextConfig, tokens: int, weight_bytes: float, machine: Machine, costs: Costs
) -> float | None:
    """Seconds to the first token of one prompt, or None where the machine's rate is unknown."""
    if machine.flops is None or machine.bandwidth is None:
        return None
    computing = roofline.prompt_flops(config, tokens).total / (machine.flops * costs.prompt_rate_share)
    held = roofline.parameters(config)
    moving = (held.total - held.table) * weight_bytes / (machine.bandwidth * costs.bandwidth_share)
    return max(computing, moving) + len(config.layers) * costs.prompt_layer_s


def as_record(costs: Costs) -> dict[str, float]:
    """The constants as calibration.json keeps them."""
    return asdict(costs)
