"""One row of the raw record: one text generated once."""

from __future__ import annotations

from dataclasses import dataclass

OFF, ON, OFF_AGAIN = "off", "on", "off2"
ARMS = (OFF, ON, OFF_AGAIN)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One generated text and what it cost.

    `order` counts measurements since the start; `drafted[i]` and `accepted[i]` belong to draft position i, i from 0.
    `seconds` is wall time around the call; `token_times_s` and `ttft_s` count from the request, as the engine saw it.
    `token_sha256` is the digest of the token ids: two texts are equal when their digests are.
    """

    order: int
    prompt_id: str
    category: str
    arm: str
    temperature: float
    repeat: int
    seed: int
    seconds: float
    ttft_s: float
    tpot_s: float
    prompt_tokens: int
    tokens: int
    rounds: int
    drafted: list[int]
    accepted: list[int]
    token_times_s: list[float]
    token_sha256: str
    finish_reason: str

    @property
    def pair_key(self) -> tuple[str, float, int]:
        """What the arms of one comparison share."""
        return self.prompt_id, self.temperature, self.repeat
