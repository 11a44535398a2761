"""A run in sentences: what drafting is worth, whether the text stayed the same, and what speaks against believing it.

A difference that could be noise is not called a gain: the interval must leave out 1, and where drafting off
differs from drafting off, leave out that difference too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from paceline.bench.document import Note
from paceline.bench.stats import MIN_PROMPTS
from paceline.bench.wording import count, interval, listing, name, number, plain, times, times_in

GAIN, LOSS, NOISE, FEW = "gain", "loss", "noise", "few"
NAMED = 4  # categories in the headline; more are told by their extremes
SHORT = 30  # letters of a category's name in a sentence
Block = dict[str, Any]


def floor_of(summary: Block) -> float:
    """The ratio that noise alone reaches here: above 1 where off against off leaves out 1."""
    noise = summary["off_vs_off_ci95"]
    return 1.0 if noise is None or noise[0] <= 1.0 <= noise[1] else max(noise[1], 1 / noise[0])


def effect(block: Block, floor: float = 1.0) -> str:
    """GAIN, LOSS, NOISE (neither can be told) or FEW (no interval)."""
    if block["speedup_ci95"] is None:
        return FEW
    low, high = block["speedup_ci95"]
    return GAIN if low > floor else LOSS if high < 1 / floor else NOISE


def verdict(record: dict[str, Any]) -> list[str]:
    """One sentence on speed, with what to do about it, and one on the text."""
    summary = record["summary"]
    if summary["speedup"] is None:
        return ["Nothing can be said: no prompt was measured both with and without drafting."]
    where = f"On {'this' if summary['prompts'] == 1 else 'these'} {count(summary['prompts'], 'prompt')}"
    at = f"at temperature {summary['temperature']:g}" if summary["temperature"] is not None else ""
    at += f" with {summary['concurrency']} requests at once" if summary["concurrency"] > 1 else ""
    parts = [f"{where} {at}".rstrip() + f", {_worth(summary)}", *_what_to_do(record)]
    return [f"{'; '.join(parts)}.", *_text(record)]


def _worth(summary: Block) -> str:
    categories, floor = summary["by_category"], floor_of(summary)
    known = {key: block for key, block in categories.items() if block["speedup"] is not None}
    if 1 < len(known) <= NAMED and effect(summary, floor) != FEW:
        return _each(known, floor)
    what = _says("drafting", summary, effect(summary, floor))
    told = {key: block for key, block in known.items() if block["speedup_ci95"] is not None}
    return f"{what} ({_range(told)})" if len(known) > NAMED and len(told) > 1 else what


def _range(blocks: dict[str, Block]) -> str:
    """The extremes of many categories; the most and the least of many always differ, so by chance too."""
    ranked = sorted(blocks.items(), key=lambda item: item[1]["speedup"])
    low, high = ranked[0][1], ranked[-1][1]
    chance = "" if high["speedup_ci95"][0] > low["speedup_ci95"][1] else ", an order that may be chance"
    first, last = (f"{times(block['speedup'])} in {name(key, SHORT)}" for key, block in (ranked[0], ranked[-1]))
    return f"from {first} to {last}{chance}"


def _each(blocks: dict[str, Block], floor: float) -> str:
    """Each category with its own number, those that gain first; a verb that stood before is left out."""
    ranked = sorted(blocks.items(), key=lambda item: -item[1]["speedup"])
    parts, before = list[str](), ""
    for kind in (GAIN, LOSS, NOISE, FEW):
        for key, block in ranked:
            if effect(block, floor) == kind:
                again = kind == before and kind in (GAIN, LOSS)
                parts.append(f"{name(key, SHORT)} {_numbers(block)}" if again else _says(name(key, SHORT), block, kind))
                before = kind
    return listing(parts)


def _says(who: str, block: Block, kind: str) -> str:
    numbers = _numbers(block)
    return {
        GAIN: f"{who} gains {numbers}",
        LOSS: f"{who} slows down to {numbers}",
        NOISE: f"{who} shows no difference beyond noise ({numbers})",
        FEW: f"{who} has too few prompts to tell ({times(block['speedup'])} so far)",
    }[kind]


def _numbers(block: Block) -> str:
    return times_in(block["speedup"], block["speedup_ci95"])


def _what_to_do(record: Block) -> Iterator[str]:
    summary = record["summary"]
    kind = effect(summary, floor_of(summary))
    if kind == LOSS:
        yield "leave drafting off"
        return
    if (k := length_of(record)) is not None:
        several = kind == GAIN and len(_ks(summary)) > 1
        yield f"use k = {k}{_as_good(summary)}" if several else f"measured at k = {k}"
    off_from, measured = summary["advice"].get("off_from"), [int(c) for c in summary["by_concurrency"]]
    if off_from is not None and kind == GAIN and off_from > summary["concurrency"]:
        last = off_from == max(measured, default=off_from)
        yield f"at concurrency {off_from} turn it off" if last else f"from concurrency {off_from} on turn it off"


def _ks(summary: Block) -> list[str]:
    return [key for key, block in summary["by_k"].items() if block["speedup"] is not None]


def length_of(record: Block) -> str | None:
    """The draft length of the headline; None where nothing tells it, as of a server."""
    if (k := record["summary"]["k"]) is not None:
        return str(k)
    chosen = any(arm["drafts"] and arm["k"] is None and arm["engine"] == "paceline" for arm in record["arms"])
    return "auto" if chosen else None


def _as_good(summary: Block) -> str:
    """The draft lengths that do about as well: within the interval of the best one."""
    best = str(summary["k"])
    own = summary["by_k"].get(best, {}).get("speedup_ci95")
    if own is None:
        return ""
    near = [
        key.replace("None", "auto") for key in _ks(summary) if key != best and summary["by_k"][key]["speedup"] >= own[0]
    ]
    return f" ({listing(near)} {'does' if len(near) == 1 else 'do'} about as well)" if near else ""


def texts_compared(record: dict[str, Any]) -> tuple[int, int]:
    """How many pairs of texts were compared, and how many of them differ.

    By the examination of the texts where there was one, which leaves out what cannot be compared: sampled texts of an
    engine that does not repeat itself. Else by their digests.
    """
    summary, found = record["summary"], record["divergences"]
    if found["compared"] or found["not_compared"]:
        return found["compared"], found["differ"]
    if summary["equal_outputs"] is None:
        return 0, 0
    return summary["pairs"], summary["pairs"] - round(summary["equal_outputs"] * summary["pairs"])


def _text(record: dict[str, Any]) -> Iterator[str]:
    found, (pairs, differing) = record["divergences"], texts_compared(record)
    if not pairs:
        if found["not_compared"]:
            yield "Whether the text stayed the same cannot be told."
        return
    if not differing:
        yield f"The text stayed the same in all {count(pairs, 'pair')}." if pairs > 1 else "The text stayed the same."
        return
    kinds = [count(found[key], what) for key, what in (("defects", "defect"), ("near_ties", "rounding near-tie"))
             if found[key]]  # fmt: skip
    kinds += [f"{found['unexplained']:,} unexplained"] if found["unexplained"] else []
    why = listing(kinds) if kinds else "whether by rounding or by a defect, nothing tells"
    yield f"The text changed in {differing:,} of {count(pairs, 'pair')}: {why}."


def notes(record: dict[str, Any]) -> list[Note]:
    """What a reader must know before believing the verdict, the gravest first."""
    found = [*_broken(record), *_unequal(record), *_unsteady(record), *_little(record)]
    return sorted(found, key=lambda note: not note.grave)


def _broken(record: dict[str, Any]) -> Iterator[Note]:
    """What went wrong in the run."""
    if not record["complete"]:
        why = plain(record["failure"] or "unknown reason")
        yield Note(f"The run stopped early ({why}): the numbers cover only a part.", grave=True)
    if failures := record["failures"]:
        first = plain(failures[0].get("why", "no reason given"))
        yield Note(f"{count(len(failures), 'request')} brought no text; the first: {first}", grave=True)
    for gate in record["health"]:
        if gate.get("ok") is False:
            yield Note(f"{name(gate.get('gate'))}: {plain(gate.get('says', ''))}", grave=True)


def _unequal(record: dict[str, Any]) -> Iterator[Note]:
    """What is wrong with the texts."""
    summary, found, (_, differing) = record["summary"], record["divergences"], texts_compared(record)
    if found["defects"]:
        yield Note(f"{count(found['defects'], 'text')} changed in a way that rounding does not explain: the two ways"
                   " did not do the same work, and the engine has a defect.", grave=True)  # fmt: skip
    elif differing and not found["near_ties"]:
        yield Note("Texts that differ are not the same work: part of the difference in time may be theirs.", grave=True)
    if found["unexplained"]:
        blamed = found["blamed"] > found["defects"]
        yield Note(f"For {count(found['unexplained'], 'changed text')} nothing tells whether it was rounding.", blamed)
    for temperature, why in found["not_compared"].items():
        yield Note(f"Texts at temperature {plain(temperature)} were not compared: {plain(why)}.")
    yield from _unrepeatable(record)
    if summary["over_long"]:
        yield Note(f"{count(summary['over_long'], 'text')} had more tokens than asked for.")


def _unrepeatable(record: dict[str, Any]) -> Iterator[Note]:
    """Where an arm differs from itself: by the examination of the texts, which knows by how much, or by digests."""
    if noise := record["divergences"]["noise"]:
        yield from (Note(f"{plain(says)[:1].upper()}{plain(says)[1:]}.") for says in noise)
        return
    for key, what in (("off_vs_off_equal_outputs", "without"), ("on_vs_on_equal_outputs", "with")):
        if record["summary"][key] not in (None, 1.0):
            yield Note(f"Two runs {what} drafting gave different texts: the engine itself is not repeatable here.")


def _unsteady(record: dict[str, Any]) -> Iterator[Note]:
    """What is wrong with the times."""
    summary = record["summary"]
    noise, drift = summary["off_vs_off_ci95"], summary["drift"]
    if noise and not noise[0] <= 1.0 <= noise[1]:
        yield Note(f"Off against off is {interval(noise)}, which leaves out 1: the machine was not steady, and what"
                   f" lies within {times(floor_of(summary))} is not called a difference.", grave=True)  # fmt: skip
    if drift.get("steady") is False:
        slope = f"a token took {times_in(drift.get('ratio'), drift.get('ci95'))} as long at the end as at the start"
        why = f" ({plain(drift['why'])})" if drift.get("why") else ""
        yield Note(f"The machine drifted: {slope}{why}.", grave=True)
    load, cores = record["provenance"]["load_before"], record["provenance"]["machine"].get("cores")
    if load and cores and load[0] > cores / 2:
        yield Note(f"The machine was busy at the start: load {load[0]} on {cores} cores (loading counts too).")


def _little(record: dict[str, Any]) -> Iterator[Note]:
    """What there was too little of."""
    summary = record["summary"]
    if summary["speedup"] is None:
        return
    if summary["speedup_ci95"] is None:
        yield Note(f"{count(summary['prompts'], 'prompt')} is too little for an interval, so no difference can be told"
                   f" from noise; use at least {MIN_PROMPTS}, better 20 or more.", grave=True)  # fmt: skip
    elif few := [name(key) for key, block in summary["by_category"].items() if effect(block) == FEW]:
        yield Note(f"Too few prompts for an interval in {listing(few[:6])}{' and others' if len(few) > 6 else ''}.")
    if summary["acceptance_length"] is None:
        yield Note("Nothing told how many drafts were accepted: only time was measured.")
    if summary["k_chosen_here"]:
        yield Note("k was chosen on these same prompts: the best of several looks a little better than it is.")


def key_figures(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The four numbers that most are looking for: what, how much, and what to read beside it."""
    summary, (pairs, differing) = record["summary"], texts_compared(record)
    if summary["speedup"] is None:
        return []
    ci95, speed = summary["speedup_ci95"], summary["tokens_per_s"]
    between = f"95% interval {ci95[0]:.2f} to {ci95[1]:.2f}" if ci95 else "too few prompts for an interval"
    figures = [("Speed-up, all prompts", times(summary["speedup"]), between)]
    if speed["off"] is not None and speed["on"] is not None:
        figures.append(("Tokens/s", f"{number(speed['off'], 0)} → {number(speed['on'], 0)}", "drafting off → on"))
    if summary["acceptance_length"] is not None:
        figures.append(("Tokens per round", f"{summary['acceptance_length']:.2f}", "1.00 is plain decoding"))
    if pairs:
        figures.append(("Same text", f"{pairs - differing:,} of {pairs:,}", "pairs, drafting off and on"))
    return figures
