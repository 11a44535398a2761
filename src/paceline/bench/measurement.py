"""One row of the raw record: one text generated once, or a request that failed."""

from __future__ import annotations

from dataclasses import dataclass, field

OFF, ON, OFF_AGAIN, ON_AGAIN = "off", "on", "off2", "on2"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One generated text and what it cost.

    arm: "off", "on", and "off2" or "on2" for the same again; k: the draft length of an arm that drafts, None where
    the engine does not tell, 0 without drafting. `order` counts measurements as they ended; started_s: since the run
    began. `seconds` is wall time around the request; `token_times_s` and `ttft_s` count from it, one time for each
    streamed event, which brought `event_tokens` tokens (empty: one each).
    `drafted[i]` and `accepted[i]` belong to draft position i, i from 0, and are empty where only their sums
    `drafted_tokens` and `accepted_tokens` are known; those are None where nothing tells. `judged[i]`: of the drafts
    made there those before which all were accepted, empty where the engine does not tell. rounds: of verification, 0
    where not told. `token_sha256` is the digest of the token ids, or of the text where an engine gives no ids: two
    texts are equal when their digests are.
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
    k: int | None = None
    concurrency: int = 1
    started_s: float = 0.0
    event_tokens: list[int] = field(default_factory=list)
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    cached_tokens: int | None = None
    method: str | None = None
    text: str = ""
    judged: list[int] = field(default_factory=list)

    @property
    def pair_key(self) -> tuple[str, float, int, int]:
        """What the arms of one comparison share."""
        return self.prompt_id, self.temperature, self.repeat, self.concurrency


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that brought no text, and why, in a sentence."""

    prompt_id: str
    arm: str
    k: int | None
    temperature: float
    repeat: int
    concurrency: int
    started_s: float
    why: str


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One arm over some texts, `concurrency` at a time: seconds from the first request to the last answer.

    drafted, accepted, rounds: differences of the engine's counters over the step, where single answers do not tell.
    failed: requests that brought no text.
    """

    arm: str
    k: int | None
    concurrency: int
    texts: int
    failed: int
    tokens: int
    wall_s: float
    drafted: int | None = None
    accepted: int | None = None
    rounds: int | None = None
    drafted_by_position: tuple[int, ...] = ()
    accepted_by_position: tuple[int, ...] = ()
    temperature: float | None = None
