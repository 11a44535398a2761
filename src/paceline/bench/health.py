"""Gates: signs, in a run's own rows, that an engine drafts wrongly. Each is some user's published trouble.

A gate is ok, not ok, or not known (None) where the run does not tell; its sentence has the figures and the mend.
Pure functions of the rows, the steps and what the arms said of themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paceline.bench.arms import Facts
from paceline.bench.known_bad import Setting, known_bad
from paceline.bench.measurement import OFF, OFF_AGAIN, ON, ON_AGAIN, Measurement, StepRecord
from paceline.bench.pairing import after_flag, command_of, decision, mismatch, pair_of, speculative_config
from paceline.bench.plan import ArmKey
from paceline.bench.stats import MIN_PROMPTS, Floats, ratio_interval

ArmFacts = Mapping[ArmKey, Facts]
Told = tuple[bool | None, str]
Parts = Iterable[tuple[str, float, float]]  # of each text: its cluster, a numerator, a denominator

LEAST_ACCEPTANCE = 0.05
FEW_DRAFTS = 100
COLLAPSE = 0.5
LONGER = 2.0
CACHE_LOSS = 0.05
FAST_AGAIN, SLOW_AGAIN = 0.7, 0.85  # TTFT of a prompt read before over that of one that was not
LONG_ENOUGH = 256
HIGH_ACCEPTANCE = 0.5
MTP_NAMES = frozenset({"mtp", "draft-mtp", "frozen_kv_mtp", "nextn", "assistant"})
OTHER_STEMS = (
    "ngram",
    "suffix",
    "prompt_lookup",
    "medusa",
    "draft",
    "simple",
    "standalone",
    "eagle3",
    "dflash",
    "dspark",
)


def gates(rows: Sequence[Measurement], steps: Sequence[StepRecord], facts: ArmFacts) -> list[dict[str, Any]]:
    """The record's "health": for each gate its name, ok (true, false, or null for not known), and what it says."""
    own = {key: told for key, told in facts.items() if key.drafts}
    found: dict[str, Told] = {
        "acceptance": acceptance(rows, steps),
        "acceptance by context": acceptance_by_context(rows),
        "prefix cache": prefix_cache(rows),
        "method": method(rows, own),
        "known trouble": known_trouble(rows, own),
        "drafter": drafter(own),
        "draft length": draft_length(own),
        "speed": speed(rows),
    }
    return [{"gate": name, "ok": ok, "says": says} for name, (ok, says) in found.items()]


# ---- acceptance -----------------------------------------------------------------------------------------------------


def acceptance(rows: Sequence[Measurement], steps: Sequence[StepRecord]) -> Told:
    """Not ok where hardly a draft is accepted: below 5% with the whole interval."""
    parts = [_accepted(row) for row in drafting(rows)]
    if not parts:  # only counters tell, for each step
        counted = [step for step in steps if step.arm in (ON, ON_AGAIN) and step.drafted]
        parts = [(str(i), step.accepted or 0, step.drafted or 0) for i, step in enumerate(counted)]
    if not parts:
        return None, "nothing tells how many drafts were accepted"
    rate, interval = share(parts)
    says = f"{in_percent(rate, interval)} of the drafts were accepted"
    if rate >= LEAST_ACCEPTANCE:
        return True, says
    certain = interval[1] < LEAST_ACCEPTANCE if interval else sum(part[2] for part in parts) >= FEW_DRAFTS
    mend = (
        "a healthy MTP drafter has 30% and more: check that it is this target's own drafter, at the target's precision"
        " (an fp8 KV cache needs its scales in the drafter), and that it reads the target's keys and values"
    )
    return (False, f"{says}; {mend}") if certain else (None, f"{says}, too few to tell; measure more prompts")


def acceptance_by_context(rows: Sequence[Measurement]) -> Told:
    """Not ok where the longest third of the prompts has less than half the acceptance of the shortest, surely."""
    own = sorted((row for row in drafting(rows) if row.prompt_tokens), key=lambda row: row.prompt_tokens)
    third = len(own) // 3
    short, long = own[:third], own[len(own) - third :]
    if len({row.prompt_id for row in short}) < MIN_PROMPTS or len({row.prompt_id for row in long}) < MIN_PROMPTS:
        return None, f"fewer than {3 * MIN_PROMPTS} prompts of known length tell of their acceptance"
    lengths = [float(np.median([row.prompt_tokens for row in part])) for part in (short, long)]
    if lengths[1] < LONGER * lengths[0] or lengths[1] < LONG_ENOUGH:
        return (
            None,
            f"the prompts are too alike in length, or short ({lengths[0]:.0f} to {lengths[1]:.0f} tokens), to tell",
        )
    rates = [share(map(_accepted, part)) for part in (short, long)]
    (near, near_ci), (far, far_ci) = rates
    says = (
        f"{in_percent(near, near_ci)} accepted after prompts of about {lengths[0]:.0f} tokens,"
        f" {in_percent(far, far_ci)} after {lengths[1]:.0f}"
    )
    assert near_ci is not None
    assert far_ci is not None
    if far_ci[1] < COLLAPSE * near_ci[0]:
        return False, f"{says}; the drafter loses long contexts: check its sliding window, positions and KV precision"
    return True, says


def _accepted(row: Measurement) -> tuple[str, int, int]:
    return row.prompt_id, row.accepted_tokens or 0, row.drafted_tokens or 0


def drafting(rows: Iterable[Measurement]) -> list[Measurement]:
    """The rows that tell of their drafts."""
    return [row for row in rows if row.arm in (ON, ON_AGAIN) and row.drafted_tokens]


# ---- the prefix cache -----------------------------------------------------------------------------------------------


def prefix_cache(rows: Sequence[Measurement]) -> Told:
    """Not ok where prompts that the plain engine finds in its prefix cache are read anew with drafting."""
    arms = [
        [row for row in rows if row.arm in names and row.prompt_tokens] for names in ((OFF, OFF_AGAIN), (ON, ON_AGAIN))
    ]
    if all(arms) and all(row.cached_tokens is not None for arm in arms for row in arm):
        return _cached(*arms)
    return _read_again(*arms)


def _cached(off: list[Measurement], on: list[Measurement]) -> Told:
    (plain, _), (own, interval) = (
        share((r.prompt_id, r.cached_tokens or 0, r.prompt_tokens) for r in arm) for arm in (off, on)
    )
    says = f"{plain:.0%} of the prompt tokens came from the prefix cache without drafting, {own:.0%} with it"
    sure = interval is None or interval[1] < plain
    if plain - own > CACHE_LOSS and sure:
        return (
            False,
            f"{says}; drafting costs cache hits: see the engine's block drop or lookahead settings, or compare TTFT",
        )
    return True, says


def _read_again(off: list[Measurement], on: list[Measurement]) -> Told:
    """By time to first token: of prompts read before, over the same when they were new."""
    ratios = [_again(arm) for arm in (off, on)]
    if None in ratios:
        return None, "no answer tells of cached tokens, and too few long prompts were read twice to tell by their TTFT"
    plain, own = (ratio or 0.0 for ratio in ratios)
    says = f"prompts read before took {plain:.2f} times the TTFT of new ones without drafting, {own:.2f} with it"
    if plain < FAST_AGAIN and own > SLOW_AGAIN:
        return False, f"{says}; with drafting the prefix cache does not serve: check that it is on in both arms"
    return True, says


def _again(rows: list[Measurement]) -> float | None:
    """TTFT of later visits over first visits, as a ratio of sums; None for fewer than MIN_PROMPTS long prompts."""
    visits: dict[tuple[str, int | None, int], list[float]] = {}
    for row in sorted(rows, key=lambda row: row.started_s):
        if row.prompt_tokens >= LONG_ENOUGH:
            visits.setdefault((row.prompt_id, row.k, row.concurrency), []).append(row.ttft_s)
    twice = [times for times in visits.values() if len(times) > 1]
    first = sum(times[0] for times in twice)
    return sum(float(np.mean(times[1:])) for times in twice) / first if len(twice) >= MIN_PROMPTS and first else None


# ---- what runs ------------------------------------------------------------------------------------------------------


def method(rows: Sequence[Measurement], facts: ArmFacts) -> Told:
    """Not ok where something else than the MTP drafter drafts."""
    told = [name for key, own in facts.items() for name in _methods(own)]
    told += [row.method for row in rows if row.arm in (ON, ON_AGAIN) and row.method]
    names = sorted({name for text in told for name in text.lower().split(",")} - {"none", ""})
    other = [name for name in names if name not in MTP_NAMES and name.removeprefix("draft-").startswith(OTHER_STEMS)]
    if any(map(_mute_drafter, facts.values())):
        return False, "llama.cpp was given a drafter without --spec-type and drafts nothing; add --spec-type draft-mtp"
    if other:
        return (
            False,
            f"{', '.join(other)} drafts here, not the MTP drafter; choose draft-mtp, mtp or NEXTN, as it is called",
        )
    if names and all(name in MTP_NAMES for name in names):
        return True, f"the engine says it drafts with {', '.join(names)}"
    return None, f"the engine calls its method {', '.join(names)}" if names else "the engine does not say how it drafts"


def _methods(facts: Facts) -> list[str]:
    by_command = after_flag(command_of(facts), ("--spec-type", "--draft-kind", "--speculative-algorithm"))
    chosen = decision(facts, "drafter")
    own = None if chosen is None else "ngram" if chosen == "ngram" else "mtp"
    config = speculative_config(command_of(facts))
    return [name for name in (facts.method, by_command, config.get("method"), own) if name]


def _mute_drafter(facts: Facts) -> bool:
    words = command_of(facts)
    return facts.engine == "llamacpp" and bool({"-md", "--model-draft"} & {*words}) and "--spec-type" not in words


def known_trouble(rows: Sequence[Measurement], facts: ArmFacts) -> Told:
    """Not ok where this engine, version and setting are known to fail; see `paceline.bench.known_bad`."""
    settings = {
        Setting(own.engine, own.version, row.k if row.k is not None else own.k, row.concurrency, row.temperature)
        for key, own in facts.items()
        for row in rows
        if row.arm in (ON, ON_AGAIN) and key.k in (row.k, None)
    }
    certain, possible = known_bad(settings)
    says = "; ".join(f"{entry.what}: {entry.mend} ({entry.source})" for entry in certain or possible)
    if certain:
        return False, says
    return (
        (None, f"the engine does not tell what decides it: {says}")
        if possible
        else (True, "nothing is known against it")
    )


def drafter(facts: ArmFacts) -> Told:
    """Not ok where the drafter is another size's."""
    pairs = {pair_of(own) for own in facts.values()}
    known = [(target, drafter) for target, drafter in pairs if target and drafter]
    if not known:
        return None, "nothing tells which target and drafter run"
    told = [mismatch(*pair) for pair in known]
    wrong = next((says for bad, says in told if bad), None)
    if wrong:
        return False, f"{wrong}; use the -assistant checkpoint of the target's own name"
    return (None if any(bad is None for bad, _ in told) else True), told[0][1]


def draft_length(facts: ArmFacts) -> Told:
    """Not ok for vLLM's k = 1, which nobody chose."""
    ks = sorted({key.k if key.k is not None else own.k or 0 for key, own in facts.items()} - {0})
    auto = any(own.engine == "paceline" and own.k is None for own in facts.values())
    if not ks and not auto:
        return None, "nothing tells the draft length"
    if ks == [1] and any(own.engine == "vllm" for own in facts.values()):
        return False, (
            'vLLM drafts one token a round, as it does where "num_speculative_tokens" is left out; set it, to 2 for E2B'
            " and 4 for the others"
        )
    named = [*map(str, ks), *["auto, which the controller chooses round by round"] * auto]
    return True, f"k = {', '.join(named)}"


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed(rows: Sequence[Measurement]) -> Told:
    """Not ok where drafts are good and the engine is slower all the same with its best draft length.

    At the first temperature and the fewest requests in flight, where drafting has most to gain.
    """
    temperature, concurrency = _first(rows)
    here = [row for row in rows if row.temperature == temperature and row.concurrency == concurrency]
    plain = {row.pair_key: row for row in here if row.arm == OFF}
    own = [row for row in drafting(here) if row.arm == ON and row.pair_key in plain]
    if not own:
        return None, "no pairs tell of both speed and acceptance"
    by_k = {k: [row for row in own if row.k == k] for k in dict.fromkeys(row.k for row in own)}
    gains = {k: share((r.prompt_id, plain[r.pair_key].seconds, r.seconds) for r in part) for k, part in by_k.items()}
    best = max(gains, key=lambda k: gains[k][0])
    return _slow("drafting" if best is None else f"k = {best}", gains[best], share(map(_accepted, by_k[best]))[0])


def _slow(name: str, gained: tuple[float, list[float] | None], rate: float) -> Told:
    gain, interval = gained
    spread = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    says = f"{name}: {gain:.2f} times as fast{spread}, {rate:.0%} of the drafts accepted"
    if rate >= HIGH_ACCEPTANCE and interval and interval[1] < 1:
        return False, (
            f"{says}; good drafts that do not pay cost too much: look for eager mode or missing CUDA graphs with"
            " drafting, at a smaller k, and in a mixture of experts at what each verified token reads"
        )
    return True, says


def _first(rows: Sequence[Measurement]) -> tuple[float | None, int | None]:
    temperature = rows[0].temperature if rows else None
    return temperature, min((row.concurrency for row in rows), default=None)


# ---- shares ---------------------------------------------------------------------------------------------------------


def share(parts: Parts) -> tuple[float, list[float] | None]:
    """A ratio of sums and its 95% interval, by cluster; no interval for too few."""
    totals: dict[str, list[float]] = {}
    for cluster, numerator, denominator in parts:
        total = totals.setdefault(cluster, [0.0, 0.0])
        total[0] += numerator
        total[1] += denominator
    both: Floats = np.array(list(totals.values()), dtype=np.float64).reshape(-1, 2)
    interval = ratio_interval(both[:, 0], both[:, 1])
    return float(both[:, 0].sum() / both[:, 1].sum()), None if interval is None else interval.tolist()


def in_percent(rate: float, interval: Sequence[float] | None) -> str:
    """ "12% (10% to 14%)"."""
    digits: Callable[[float], str] = "{:.1%}".format if rate < 0.1 else "{:.0%}".format
    return digits(rate) + (f" ({digits(interval[0])} to {digits(interval[1])})" if interval else "")
