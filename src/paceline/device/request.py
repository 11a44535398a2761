"""One text to generate on the device: what was asked for, and what is known of it so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

from paceline.device.pilot import Seat
from paceline.errors import PacelineError
from paceline.kernels.gpu.rules import MOST_BIASES
from paceline.speculate import Round
from paceline.steering import LONGEST
from paceline.structure import Constraint
from paceline.types import AUTO, DraftLength, SamplingParams, TokenLogprobs

NUMBERS = count(1)  # names of requests


@dataclass(eq=False)
class Request:
    """One text to generate, drafting at most k tokens a round, or what pays. `rounds`: what is known of it so far.

    constraint: the grammar that its text follows. logprobs: of the tokens of all rounds, where they are asked for.
    failure: why it ended before its time.
    """

    prompt: Sequence[int]
    params: SamplingParams
    k: DraftLength
    stop_ids: bool = True
    constraint: Constraint | None = None
    rounds: deque[Round] = field(default_factory=deque)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    emitted: int = 0
    finished: bool = False
    failure: PacelineError | None = None
    name: str = field(default_factory=lambda: f"{next(NUMBERS)}")

    @cached_property
    def most(self) -> int:
        """The longest draft that a round may make for it."""
        return LONGEST if self.k == AUTO else self.k

    @property
    def tokens(self) -> int:
        """Most tokens its cache must hold: a last round may write k beyond the end."""
        return len(self.prompt) + self.params.max_tokens + self.most

    @property
    def context(self) -> int:
        """Tokens of the prompt and of the text so far."""
        return len(self.prompt) + self.emitted

    @property
    def seat(self) -> Seat:
        """What the choice of draft lengths knows of it."""
        return Seat(self.name, self.context, self.k == AUTO)

    @property
    def hosted(self) -> bool:
        """Whether the host must choose its tokens, round by round: see `paceline.device.hosted`."""
        p = self.params
        tested = p.accept != "coupled" and p.temperature > 0.0
        return bool(tested or self.constraint or p.logprobs or len(p.biases) > MOST_BIASES)

    @property
    def reported(self) -> bool:
        """Whether the batch's rounds report log-probabilities for it: of its own tokens, and of no others."""
        return self.params.logprobs is not None and not self.hosted
