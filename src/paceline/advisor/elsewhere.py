"""What a choice takes in other engines: estimates from their documents and sources, none of them measured here.

Each is weights with the encoders of images and sound, the drafter in bf16, keys and values as the engine keeps them,
and a flat sum for its work space; `room` is what the engine allows itself of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline import roofline
from paceline.advisor import memory
from paceline.advisor.machines import Machine
from paceline.advisor.memory import PRECISIONS, Use
from paceline.config import TextConfig
from paceline.shapes import drafter_config, target_config

ESTIMATE = "estimate"
ENCODERS = {"e2b": 494_609_600, "e4b": 533_144_000, "12b": 52_379_904, "26b-a4b": 572_794_416, "31b": 575_743_536}
"""Parameters of the published checkpoints beside those of the text model; quantised releases keep them in 16 bits."""
GIB = float(1 << 30)
UBATCH, CELLS = 512, 256  # llama.cpp's default pass, and what it rounds caches up to


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes that an engine is estimated to take, the bytes it may, and what the estimate is made of."""

    engine: str
    bytes: float
    room: float
    basis: str

    @property
    def fits(self) -> bool:
        """Whether it is estimated to run."""
        return self.bytes <= self.room


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """How an engine keeps keys and values, its work space in bytes, and its share of the memory."""

    kv: Callable[[TextConfig, Use], float]
    work: float
    share: float
    basis: str


def _windowed(config: TextConfig, use: Use) -> float:
    """Every layer keeps what it attends: the window or all."""
    return use.batch * roofline.kv_held(config, use.context)


def _cells(config: TextConfig, use: Use) -> float:
    """llama.cpp: sliding layers hold the windows of all texts and one pass, everything in whole blocks of cells."""
    sliding, full = roofline.kv_per_token(config)
    window = max(layer.window or 0 for layer in config.layers)
    kept = min(use.batch * window + UBATCH, use.batch * use.context)
    return sliding * _rounded(kept) + full * _rounded(use.batch * use.context)


def _rounded(cells: int) -> int:
    return -(-cells // CELLS) * CELLS


ENGINES = {
    "vLLM": _Engine(
        kv=_windowed, work=2.0 * GIB, share=0.9,
        basis="--gpu-memory-utilization 0.9, its default, bounds everything; 2 GiB of it for graphs and activations"
        " (assumed); what is left becomes cache, so it always shows as full",
    ),
    "SGLang": _Engine(
        kv=_windowed, work=2.4 * GIB, share=0.85,
        basis="--mem-fraction-static 0.85, as its Gemma 4 page has it, bounds weights and cache; copies of the"
        " vocabulary for the drafter took 2.4 GiB (pull request 37155)",
    ),
    "llama.cpp": _Engine(
        kv=_cells, work=1.0 * GIB, share=1.0,
        basis="sliding layers keep the windows and one pass of 512 tokens in cells of 256 (pull request 13833); 1 GiB"
        " of buffers, most of it logits of a pass over 262144 ids (assumed)",
    ),
    "Ollama": _Engine(
        kv=_cells, work=1.5 * GIB, share=1.0,
        basis="llama.cpp's, and half a GiB more: its own estimate counts sliding layers higher (issue 16617)",
    ),
    "MLX": _Engine(
        kv=_windowed, work=1.0 * GIB, share=1.0,
        basis="16-bit keys and values of each window; 1 GiB of buffers (assumed); macOS lets the GPU take three"
        " quarters",
    ),
    "Transformers": _Engine(
        kv=_windowed, work=3.0 * GIB, share=1.0,
        basis="a cache that grows by copying, logits and hidden states of all layers kept for the drafter: 3 GiB"
        " (assumed)",
    ),
}  # fmt: skip


def estimates(size: str, precision: str, use: Use, machine: Machine) -> list[Estimate]:
    """One for each engine; which of them runs on the machine, `commands` knows."""
    config, drafter = target_config(size), drafter_config(size)
    weights = memory.target_bytes(config, PRECISIONS[precision]) + 2 * ENCODERS[size]
    small = memory.drafter_bytes(drafter) if use.drafter else 0.0
    return [
        Estimate(engine=name, bytes=weights + small + own.kv(config, use) + own.work, room=machine.room * own.share,
                 basis=own.basis)
        for name, own in ENGINES.items()
    ]  # fmt: skip
