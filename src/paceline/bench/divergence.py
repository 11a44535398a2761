"""Is the text really unchanged? Texts of both arms pair by pair; where they part, whether rounding explains it.

Drafting verifies several tokens in one pass, and libraries round several rows otherwise than one. A greedy text may
then part where two tokens were almost equally likely. That is no defect; a token that was not likely is one. So at
each first difference somebody is asked for the likeliest tokens there: the plain engine, or Paceline's own model.

The limit. A bf16 logit of 16 to 32, where those of likely tokens lie, is a multiple of 2^-3: the last rounding alone
moves the distance of two of them by up to 0.125 nats in one run, so by 0.25 between two, and what earlier layers
rounded comes on top. `benchmarks/near_ties.py` measures all of it (docs/benchmarking.md). With fp32 the same
arithmetic gives 2^-19 for the last rounding; FP32_LIMIT_NATS leaves room for the sums before it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.bench.arms import Arm, ArmError, Ask, Facts
from paceline.bench.judge import Judge, JudgeTrail
from paceline.bench.measurement import OFF, OFF_AGAIN, ON, ON_AGAIN, Measurement
from paceline.bench.plan import BenchOptions
from paceline.bench.prompts import BenchPrompt
from paceline.bench.trail import ArmTrail, Fork, Trail, common_length, follow
from paceline.errors import PacelineError, UsageError

Pair = tuple[Measurement, Measurement]
Asks = Callable[[Measurement], Ask]
Found = dict[str, Any]

LIMIT_NATS = 0.5
FP32_LIMIT_NATS = 0.001
NEAR_TIE, DEFECT, UNEXPLAINED = "near-tie", "defect", "unexplained"
IMPOSSIBLE_NATS = 14.0  # below the likeliest: once in a million tokens, so not in the texts of one run
ENGINE, JUDGE = "the plain engine's log-probabilities", "Paceline's own model"
CONTEXT_CHARS, SHOWN_CHARS = 60, 40
RARE = 0.01
LONG_TAIL = 24


@dataclass(frozen=True, kw_only=True)
class Settings:
    """limit_nats: the widest gap that rounding explains (see the module). likeliest: how many tokens to ask for.

    same_samples: whether this engine promises equal sampled texts with and without drafting; None: the run shows it.
    """

    limit_nats: float = LIMIT_NATS
    likeliest: int = 20
    same_samples: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.limit_nats < math.inf:
            raise UsageError(f"the limit for near ties must be a number of nats above 0, not {self.limit_nats!r}")
        if self.likeliest < 2:
            raise UsageError(f"a near tie needs at least the 2 likeliest tokens, not {self.likeliest!r}")


def settings_of(off: Facts) -> Settings:
    """The usual settings for an engine: Paceline promises equal bits, so there rounding excuses next to nothing."""
    if off.engine == "paceline":
        return Settings(limit_nats=FP32_LIMIT_NATS, same_samples=True)
    return Settings()


def asks_of(prompts: Iterable[BenchPrompt], options: BenchOptions) -> Asks:
    """The request that each row of a run answered."""
    known = {prompt.id: prompt.prompt for prompt in prompts}
    return lambda row: Ask(known[row.prompt_id], options.params(row.temperature, row.seed))


async def examine(
    rows: Sequence[Measurement], off: Arm, asks: Asks, judge: Judge | None = None, settings: Settings | None = None
) -> dict[str, Any]:
    """What differs between the arms, and why: the record's "divergences".

    off: closed; it is opened only where a text changed, to be asked, and closed again. asks: the request of a row.
    Texts of a temperature above 0 are compared where the engine repeats them for equal seeds (else "not_compared" says
    why not). Where plain runs differ among themselves too, "noise" says so, and drafting is not blamed for that much.
    """
    review = _Review(off, asks, judge, settings or Settings())
    try:
        parts = [await _at(review, [row for row in rows if row.temperature == t]) for t in _temperatures(rows)]
    finally:
        await review.close()
    found = [entry for part in parts for entry in part["found"]]
    counts = {
        name: sum(part[name] for part in parts) for name in ("compared", "other_ids", "other_endings", "over_long")
    }
    verdicts = [entry["verdict"] for entry in found]
    return {
        **counts,
        "differ": len(found),
        "near_ties": verdicts.count(NEAR_TIE),
        "defects": verdicts.count(DEFECT),
        "unexplained": verdicts.count(UNEXPLAINED),
        "limit_nats": review.settings.limit_nats,
        "not_compared": {
            str(t): part["why_not"] for t, part in zip(_temperatures(rows), parts, strict=True) if part["why_not"]
        },
        "noise": [part["noise"] for part in parts if part["noise"]],
        "blamed": sum(entry["blamed"] for entry in found),
        "found": found,
    }


def exit_code(divergences: dict[str, Any]) -> int:
    """1 where a text changed in a way that neither rounding nor the engine's own noise explains, else 0."""
    return int(divergences["blamed"] > 0)


def _temperatures(rows: Iterable[Measurement]) -> list[float]:
    return list(dict.fromkeys(row.temperature for row in rows))


async def _at(review: _Review, rows: Sequence[Measurement]) -> dict[str, Any]:
    """All of one temperature."""
    pairs = [*pairs_of(rows, OFF, ON), *pairs_of(rows, OFF_AGAIN, ON_AGAIN)]
    plain = pairs_of(rows, OFF, OFF_AGAIN)
    why_not = _incomparable(pairs, plain, review.settings.same_samples)
    if why_not:
        return {
            "compared": 0,
            "other_ids": 0,
            "other_endings": 0,
            "over_long": 0,
            "found": [],
            "noise": "",
            "why_not": why_not,
        }
    found = [await review.found(pair) for pair in pairs if changed(pair)]
    own = [await review.found(pair) for pair in plain if changed(pair)]
    noise = _noise(found, own, (len(pairs), len(plain)))
    return {
        "compared": len(pairs),
        "other_ids": sum(off.token_sha256 != on.token_sha256 and not changed((off, on)) for off, on in pairs),
        "other_endings": sum(off.finish_reason != on.finish_reason and not changed((off, on)) for off, on in pairs),
        "over_long": sum(on.tokens > review.asks(on).params.max_tokens for _, on in pairs),
        "found": found,
        "noise": noise,
        "why_not": "",
    }


def pairs_of(rows: Iterable[Measurement], first: str, second: str) -> list[Pair]:
    """Every row of the arm `second`, whatever its draft length, with the row of `first` that it must equal."""
    rows = list(rows)
    partner = {row.pair_key: row for row in rows if row.arm == first}
    return [(partner[row.pair_key], row) for row in rows if row.arm == second and row.pair_key in partner]


def changed(pair: Pair) -> bool:
    """Whether the text is another: by its words, or where none were kept by the digest of its tokens."""
    first, second = pair
    unread = not first.text and not second.text
    return first.token_sha256 != second.token_sha256 and (first.text != second.text or unread)


def _equal_share(pairs: Sequence[Pair]) -> float:
    return sum(not changed(pair) for pair in pairs) / len(pairs)


def _incomparable(pairs: Sequence[Pair], plain: Sequence[Pair], promised: bool | None) -> str:
    """Why the sampled texts of this engine say nothing about drafting; empty where they do."""
    if not pairs or pairs[0][0].temperature == 0:
        return ""
    if not plain:
        return "no plain text was sampled twice, so nothing tells whether this engine repeats itself for equal seeds"
    if _equal_share(plain) < 0.5:
        return "sampled texts cannot be compared on this engine: off against off, equal seeds do not give equal texts"
    if not promised and _equal_share(pairs) < 0.5:
        return (
            "sampled texts cannot be compared on this engine: plain runs repeat themselves for equal seeds, but with"
            " drafting it draws other random numbers, or rounding moves its draws; only the law of many texts can tell"
        )
    return ""


def _noise(found: list[Found], own: list[Found], compared: tuple[int, int]) -> str:
    """What the plain runs' own differences say; takes the blame from drafting where they are as many.

    As many: Fisher's exact test of the shares that rounding does not explain finds drafting no worse at 1%.
    """
    if not own:
        return ""
    odd = [entry for entry in found if entry["blamed"]]
    own_odd = sum(entry["blamed"] for entry in own)
    says = f"the plain run does not repeat itself: off against off, {len(own)} of {compared[1]} texts differ"
    if not own_odd:
        return f"{says}, by near ties alone"
    if _excess((len(odd), compared[0]), (own_odd, compared[1])) < RARE:
        return f"{says}; with drafting significantly more do"
    for entry in odd:
        entry |= {
            "verdict": UNEXPLAINED,
            "blamed": False,
            "why": f"{entry['why']}; {says}, so it is the engine's noise",
        }
    return f"{says}, and with drafting no more: these differences are the engine's noise, not drafting's"


def _excess(ours: tuple[int, int], theirs: tuple[int, int]) -> float:
    """Fisher's exact test, one-sided: how likely luck alone would put at least so many of all odd texts among ours."""
    (x, n), (y, m) = ours, theirs
    ways = sum(math.comb(n, i) * math.comb(m, x + y - i) for i in range(x, min(n, x + y) + 1))
    return ways / math.comb(n + m, x + y)


class _Review:
    """Looks at one pair after the other, and asks whoever can tell."""

    def __init__(self, off: Arm, asks: Asks, judge: Judge | None, settings: Settings) -> None:
        self.arm, self.asks, self.judge, self.settings = off, asks, judge, settings
        self.is_open, self.silent = False, dict[str, str]()
        self.known: dict[tuple[str, float, str, str], tuple[str, float | None, str, str]] = {}

    async def close(self) -> None:
        if self.is_open:
            await self.arm.close()

    async def found(self, pair: Pair) -> Found:
        """The record's entry of a pair whose texts differ."""
        first, second = pair
        key = first.prompt_id, first.temperature, first.text, second.text  # the same for many draft lengths
        own = judged_by_shape(pair, self.asks(second).params.max_tokens)
        if own is None and key not in self.known:
            self.known[key] = await self._ask(pair)
        verdict, gap, source, why = own or self.known[key]
        hint = shape_hint(first.text, second.text)
        at = common_length(first.text, second.text)
        return {
            "prompt_id": second.prompt_id, "category": second.category, "k": second.k,
            "temperature": second.temperature, "repeat": second.repeat, "concurrency": second.concurrency,
            "at_char": at, "common": first.text[max(0, at - CONTEXT_CHARS) : at],
            "off": first.text[at : at + SHOWN_CHARS], "on": second.text[at : at + SHOWN_CHARS], "gap_nats": gap,
            "verdict": verdict, "source": source, "why": f"{why}; {hint}" if hint else why,
            "blamed": self._blames(verdict, first.temperature),
        }  # fmt: skip

    def _blames(self, verdict: str, temperature: float) -> bool:
        """Whether it speaks against drafting; a sampled draw that rounding may have moved does so only on a promise."""
        open_to_doubt = temperature > 0 and not self.settings.same_samples
        return verdict == DEFECT or (verdict == UNEXPLAINED and not open_to_doubt)

    async def _ask(self, pair: Pair) -> tuple[str, float | None, str, str]:
        if not pair[0].text and not pair[1].text:
            return UNEXPLAINED, None, "", "no text was kept, only digests of its tokens"
        reasons = []
        for name, trail in ((ENGINE, self._arm_trail), (JUDGE, self._judge_trail)):
            try:
                way = await trail(pair)
                fork = None if way is None else await follow(way, self.settings.likeliest)
            except PacelineError as error:
                reasons.append(f"{name}: {error}")
                continue
            verdict, gap, why = self._verdict(fork, pair[0].temperature)
            if verdict != UNEXPLAINED or gap is not None:
                return verdict, gap, name, why
            reasons += [f"{name}: {why}"] if way is not None else []
        return (
            UNEXPLAINED,
            None,
            "",
            "; ".join(reasons) or "nobody could be asked; name the target's checkpoint as judge",
        )

    async def _arm_trail(self, pair: Pair) -> Trail | None:
        await self._once(ENGINE, self._open)
        return ArmTrail(self.arm, self.asks(pair[0]), (pair[0].text, pair[1].text))

    async def _judge_trail(self, pair: Pair) -> Trail | None:
        if self.judge is None:
            return None
        await self._once(JUDGE, self._load)
        return JudgeTrail(self.judge, self.asks(pair[0]), (pair[0].text, pair[1].text))

    async def _once(self, name: str, prepare: Callable[[], Awaitable[None]]) -> None:
        """Prepares one who is asked; whoever could not be is not tried again for each text."""
        if name in self.silent:
            raise ArmError(self.silent[name])
        try:
            await prepare()
        except PacelineError as error:
            self.silent[name] = str(error)
            raise

    async def _open(self) -> None:
        if not self.is_open:
            self.is_open = True  # before it is open: one that fails half-way must be closed too
            await self.arm.open()

    async def _load(self) -> None:
        assert self.judge is not None
        self.judge.load()

    def _verdict(self, fork: Fork | None, temperature: float) -> tuple[str, float | None, str]:
        if fork is None:
            return UNEXPLAINED, None, "no likely tokens are to be had there"
        return sampled_verdict(fork, temperature) if temperature else greedy_verdict(fork, self.settings.limit_nats)


def greedy_verdict(fork: Fork, limit: float) -> tuple[str, float | None, str]:
    """Verdict, gap in nats and reason, for texts that take the likeliest token each time."""
    off, on = fork.gaps
    if off is None or off > limit:
        how = "is not among the likeliest tokens" if off is None else f"lies {off:.2f} nats below the likeliest token"
        return (
            UNEXPLAINED,
            None,
            f"the plain text's own next token {how} there: another model, template or tokenisation?",
        )
    if on is None and fork.reach_nats <= limit:
        return UNEXPLAINED, None, "the few likeliest tokens told there are all near ties, and this is none of them"
    if on is None:
        return DEFECT, None, f"not among the likeliest tokens, which reach {fork.reach_nats:.2f} nats below the first"
    if on > limit:
        return DEFECT, on, f"at least {on:.2f} nats below the likeliest token; rounding explains {limit:g}"
    if fork.inner_nats > limit:
        return DEFECT, on, "it begins like a near tie, but goes on with a token that is not likely there"
    return NEAR_TIE, max(off, on), f"both continuations lie within {limit:g} nats of the likeliest token: rounding"


def sampled_verdict(fork: Fork, temperature: float) -> tuple[str, float | None, str]:
    """The same for sampled texts, where only what is practically impossible can be told from luck."""
    on = fork.gaps[1]
    if on is not None and on / temperature > IMPOSSIBLE_NATS:
        return DEFECT, on, f"sampled, but {on:.1f} nats below the likeliest token at temperature {temperature:g}"
    why = "sampled: a token that may come, but for the same seed the plain run drew another"
    return UNEXPLAINED, on, why


def judged_by_shape(pair: Pair, most: int) -> tuple[str, float | None, str, str] | None:
    """The verdict on texts that no choice of tokens can explain; None where one might."""
    off, on = pair
    short, long = sorted(pair, key=lambda row: len(row.text))
    why = ""
    if on.tokens > most >= off.tokens:
        why = f"{on.tokens} tokens where {most} were asked for"
    elif off.text and not on.text:
        why = "the answer is empty"
    elif long.text.startswith(short.text) and short.text and short.finish_reason == "length" and short.tokens < most:
        why = f"the {short.arm} text is cut off at {short.tokens} of {most} tokens, and says that it is full"
    return (DEFECT, None, "the shape of the texts", why) if why else None


def shape_hint(off: str, on: str) -> str:
    """What the difference looks like, where it is more than other words."""
    at = common_length(off, on)
    rests = off[at:], on[at:]
    extra = len(on) - len(off)
    if min(map(len, rests)) < LONG_TAIL or not extra:
        return ""
    if extra < 0 and rests[0].endswith(rests[1]):
        return f"with drafting {-extra} characters are missing, and the rest is the same"
    if extra > 0 and rests[1].endswith(rests[0]):
        again = on[: at + extra].endswith(rests[1][:extra] * 2)
        return f"with drafting {extra} characters {'come twice' if again else 'are added'}, and the rest is the same"
    return ""
