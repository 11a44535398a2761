"""What `paceline bench --shape` times, checked before anything needs a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paceline import acceptance
from paceline.acceptance import Profile
from paceline.bench import record as files
from paceline.draft_weights import int8_parts
from paceline.errors import UsageError
from paceline.shapes import drafter_config, target_config

SCHEMA = "paceline-shape/1"
ROOM_AFTER = 1024  # tokens a sequence may still grow by while it is timed
LEAST_TOKENS, MOST_TOKENS = 16, 1000  # of each sequence, for throughput: enough to time, and within that room


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """What to time: every batch with every draft length at every context; `tokens` of each sequence for throughput.

    kernels asks for a profile of each round; skew makes some experts likelier than others; tokens 0 times rounds only.
    """

    shape: str
    batches: tuple[int, ...] = (1,)
    ks: tuple[int, ...] = (0, 4)
    contexts: tuple[int, ...] = (170,)
    profile: Profile = acceptance.PROFILES["speed-bench"]
    tokens: int = 200
    kernels: bool = False
    skew: float = 0.0
    int8_head: bool = False
    int8_body: bool = False
    repeats: int = 20

    def __post_init__(self) -> None:
        config = target_config(self.shape)
        _check_range("batch", self.batches, 1, 64)
        _check_range("k", self.ks, 0, 15)
        _check_range("context", self.contexts, 1, config.max_positions - ROOM_AFTER)
        if self.tokens:
            _check_range("tokens", (self.tokens,), LEAST_TOKENS, MOST_TOKENS)
        if not 0 <= self.skew < 1:
            raise UsageError(f"skew must lie in [0, 1), not {self.skew}")
        if self.skew and config.experts is None:
            raise UsageError(f"skew is for sizes with experts, and {self.shape} has none; leave it out")
        if self.int8_head and drafter_config(self.shape).centroids:
            raise UsageError(f"an int8 head is for dense heads, and the drafter of {self.shape} has centroids")

    @property
    def int8(self) -> tuple[bool, bool]:
        """Whether the drafter's (dense head, body) are in int8."""
        return self.int8_head, self.int8_body

    @property
    def labels(self) -> list[str]:
        """What every table and record of this must say."""
        return ["random weights", f"synthetic acceptance: {self.profile.name}"]


def _check_range(name: str, values: tuple[int, ...], low: int, high: int) -> None:
    wrong = [value for value in values if not low <= value <= high]
    if wrong:
        raise UsageError(f"{name} must lie in {low} .. {high}, not {wrong[0]}")


def from_flags(flags: Mapping[str, Any]) -> ShapeOptions:
    """The options as `paceline bench --shape` names them. Raises UsageError for what does not fit."""
    if flags["device"] not in ("auto", "cuda"):
        raise UsageError(f"--shape runs on a GPU, not on device {flags['device']!r}; leave --device out")
    head, body = int8_parts(flags["draft_weights"], drafter_config(flags["shape"]))
    return ShapeOptions(
        shape=flags["shape"],
        batches=numbers("--batch", flags["batch"] or ["1"]),
        ks=numbers("--draft-lengths", [flags["draft_lengths"]]),
        contexts=numbers("--at-context", [flags["at_context"]]),
        profile=acceptance.parse(flags["acceptance"]),
        tokens=flags["tokens"],
        kernels=flags["profile"],
        skew=flags["skew"],
        int8_head=head,
        int8_body=body,
    )


def numbers(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
    """Whole numbers with commas between them, in one text or several. Raises UsageError, which names the flag."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    wrong = [part for part in parts if not part.removeprefix("-").isdecimal()]
    if wrong:
        raise UsageError(f"{flag} takes whole numbers with commas between them, not {wrong[0]!r}")
    return tuple(map(int, parts))


def record_head(options: ShapeOptions) -> dict[str, Any]:
    """The part of a record that is known before anything is measured."""
    return {
        "schema": SCHEMA,
        "complete": False,
        "labels": options.labels,
        "options": asdict(options),
        "provenance": files.provenance(),
    }
