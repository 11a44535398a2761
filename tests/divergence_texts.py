"""Real texts of the embedded pair with planted changes, and arms that answer questions about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from paceline.bench.arms import Answer, Ask, Candidate, Drafting, Facts
from paceline.bench.judge import Judge
from paceline.bench.measurement import OFF, Measurement
from paceline.bench.prompts import load_prompts, sample
from paceline.llm import LLM
from paceline.types import Prompt, SamplingParams

MAX_TOKENS = 48


def row(prompt_id: str = "p", arm: str = OFF, text: str = "", **more: object) -> Measurement:
    """A measurement whose times say nothing."""
    plain = Measurement(
        order=0, prompt_id=prompt_id, category="chat", arm=arm, temperature=0.0, repeat=0, seed=0, seconds=1.0,
        ttft_s=0.1, tpot_s=0.01, prompt_tokens=10, tokens=len(text.split()), rounds=0, drafted=[], accepted=[],
        token_times_s=[], token_sha256=hashlib.sha256(text.encode()).hexdigest(), finish_reason="stop", text=text,
        k=0 if arm.startswith("off") else 4,
    )  # fmt: skip
    return replace(plain, **more)  # type: ignore[arg-type]


def ask_of(prompts: dict[str, Prompt], most: int = MAX_TOKENS) -> Callable[[Measurement], Ask]:
    """The request of each row."""
    return lambda r: Ask(prompts.get(r.prompt_id, "x"), SamplingParams(max_tokens=most, temperature=r.temperature))


class FakeArm:
    """An engine that is only asked: `tells` maps the text so far to candidates; None for a text it does not know."""

    def __init__(self, tells: dict[str, Sequence[tuple[str, float]]] | None = None) -> None:
        self.tells, self.asked, self.opened, self.closed = tells, list[str](), 0, 0

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1

    async def check(self) -> Facts:
        return Facts("fake", None, "m", False, "says so")

    async def answer(self, ask: Ask) -> Answer:
        raise AssertionError("an examination generates nothing")

    async def counters(self) -> Drafting | None:
        return None

    async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
        self.asked.append(so_far)
        known = None if self.tells is None else self.tells.get(so_far)
        return None if known is None else [Candidate(text, logprob) for text, logprob in known[:n]]


@dataclass(frozen=True)
class RealText:
    """What the embedded target writes for a prompt: ids, and at each place the likeliest (id, log-probability)."""

    prompt_id: str
    prompt: Prompt
    ids: list[int]
    tops: list[tuple[tuple[int, float], ...]]
    text: str
    finish_reason: str

    def gap(self, place: int, rank: int) -> float:
        """How far the token of that rank lies below the likeliest."""
        return self.tops[place][0][1] - self.tops[place][rank][1]


class RealTexts:
    """The embedded target, some of its texts, and what they become when another token is forced at one place."""

    def __init__(self, prompts: int) -> None:
        self.llm = LLM.from_pretrained("embedded", drafter=None, device="cpu")
        self.judge = Judge.of(self.llm)
        self.texts = [self._write(prompt.id, prompt.prompt) for prompt in sample(load_prompts(None), prompts, 3)]
        self.asks = ask_of({text.prompt_id: text.prompt for text in self.texts})

    def _write(self, prompt_id: str, prompt: Prompt) -> RealText:
        [done] = self.llm.generate([prompt], SamplingParams(max_tokens=MAX_TOKENS, logprobs=20), k=0)
        tops = [told.top for told in done.logprobs or []]
        return RealText(prompt_id, prompt, done.token_ids, tops, done.text, done.finish_reason)

    def forced(self, text: RealText, place: int, token: int) -> Measurement:
        """The drafting arm's row: `token` at one place, then what the target itself goes on with."""
        assert self.llm.text is not None
        kept = [*text.ids[:place], token]
        if token in self.llm.engine.end_ids:
            return row(text.prompt_id, "on", self.llm.text.decode(kept), tokens=len(kept))
        ids = [*self.llm.encode(text.prompt), *kept]
        [done] = self.llm.generate([ids], SamplingParams(max_tokens=MAX_TOKENS - len(kept)), k=0)
        whole = self.llm.text.decode([*kept, *done.token_ids])
        total = len(kept) + len(done.token_ids)
        return row(text.prompt_id, "on", whole, tokens=total, finish_reason=done.finish_reason)

    def plain(self, text: RealText, arm: str = OFF) -> Measurement:
        """The plain arm's row."""
        return row(text.prompt_id, arm, text.text, tokens=len(text.ids), finish_reason=text.finish_reason)

    def places(self, fits: Callable[[RealText, int], bool]) -> list[tuple[RealText, int]]:
        """Places of all texts, save the last tokens of each, that fit."""
        return [(t, i) for t in self.texts for i in range(1, len(t.ids) - 2) if fits(t, i)]
