"""Raw rows and steps by hand."""

from __future__ import annotations

from paceline.bench.measurement import Measurement, StepRecord


def row(**changes: object) -> Measurement:
    base = {
        "order": 0, "prompt_id": "p", "category": "c", "arm": "off", "temperature": 0.0, "repeat": 0, "seed": 0,
        "seconds": 1.0, "ttft_s": 0.1, "tpot_s": 0.01, "prompt_tokens": 3, "tokens": 10, "rounds": 0, "drafted": [],
        "accepted": [], "token_times_s": [], "token_sha256": "x", "finish_reason": "stop",
    }  # fmt: skip
    return Measurement(**(base | changes))  # type: ignore[arg-type]


def step(**changes: object) -> StepRecord:
    base = {"arm": "on", "k": 4, "concurrency": 1, "texts": 1, "failed": 0, "tokens": 10, "wall_s": 1.0}
    return StepRecord(**(base | changes))  # type: ignore[arg-type]
