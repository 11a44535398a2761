"""How a run was measured, and on what: the prose and facts at the end of a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from paceline.bench.document import Passage, Section
from paceline.bench.stats import CONFIDENCE, DRAWS, MIN_PROMPTS
from paceline.bench.wording import UNKNOWN, context, count, listing, name, percent, plain

SHOWN = 20  # passages on a page; the record holds all
LONGEST_FACT = 300
VERDICTS = {
    "near-tie": "a rounding near-tie",
    "defect": "a defect: rounding does not explain it",
    "unexplained": "unexplained",
}
Record = dict[str, Any]


def sections_of(record: Record) -> list[Section]:
    """Method, machine, and the arms in full."""
    sections = [Section("How it was measured", [*_design(record), *_statistics(record["summary"])])]
    sections.append(Section("Machine, versions and command", facts=machine_facts(record)))
    details = [fact for arm in record["arms"] for fact in _details(arm)]
    return [*sections, Section("The arms in full", facts=details)] if details else sections


def _design(record: Record) -> Iterator[str]:
    options = record["plan"]["options"]
    if not options:
        return
    yield f"{_order(record)} {_requests(options)}"
    warmup, ended = options.get("warmup"), record["summary"]["ended_naturally"]
    seed, most = options.get("seed", UNKNOWN), options.get("max_tokens", UNKNOWN)
    yield (
        f"Repeats: {options.get('repeats', 1)}. Temperatures: {listing(_numbers(options.get('temperatures')))}. Seed:"
        f" {seed}. At most {most} tokens; {percent(ended)} of the texts ended by themselves. Prompts run before as a"
        f" warm-up, uncounted: {UNKNOWN if warmup is None else warmup}."
    )


def _order(record: Record) -> str:
    ks = [k for k in record["plan"]["ks"] if k is not None]
    what = f"with k = {listing(_numbers(ks), 'or')}" if ks else "with drafting"
    if record["plan"]["options"].get("alternate"):
        return f"One arm ran at a time, in whole passes over the prompts: {what}, without twice, and {what} again."
    return f"Each prompt was generated without drafting, {what}, and without drafting again, in random order."


def _requests(options: Record) -> str:
    several = options.get("concurrencies") or [1]
    return "One text at a time." if list(several) == [1] else f"Requests at once: {listing(_numbers(several))}."


def _numbers(values: Any) -> list[str]:
    return [f"{value:g}" for value in values or []] or [UNKNOWN]


def _statistics(summary: Record) -> Iterator[str]:
    yield (
        "Speed-up is all seconds without drafting over all seconds with it, prompt processing included, for the same"
        f" pairs: a ratio of sums, never a mean of ratios. Intervals ({CONFIDENCE:.0%}) come from {DRAWS:,} bootstrap"
        f" draws of whole prompts, widened for few prompts as Student's t is; below {MIN_PROMPTS} prompts none is"
        " given. Each stands alone: of twenty categories without any difference, one leaves out 1 by chance."
    )
    yield (
        "Tokens per round counts the bonus token, so 1.00 is plain decoding. Two texts are the same when their token"
        " ids are, or where an engine tells none, their characters."
    )
    if summary["counting"]:
        yield f"How acceptance was counted: {plain(summary['counting'])}."


def machine_facts(record: Record) -> list[tuple[str, str]]:
    """Names and values of what the run came from."""
    origin, machine = record["provenance"], record["provenance"]["machine"]
    git, memory = origin["git"], machine.get("memory_bytes")
    versions = [f"{key} {version}" for key, version in origin["versions"].items() if version]
    threads = [f"{key} {threads}" for key, threads in (machine.get("threads") or {}).items() if threads]
    loads = [f"{load[0]:g}" if load else UNKNOWN for load in (origin["load_before"], origin["load_after"])]
    cores = f", {machine['cores_usable']} of {machine['cores']} cores usable" if machine.get("cores") else ""
    facts = [
        ("CPU", f"{machine.get('cpu') or UNKNOWN}{cores}"),
        ("GPU", machine.get("gpu") or "none used in this process"),
        ("Memory", UNKNOWN if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("Threads", ", ".join(threads) or UNKNOWN),
        ("Load before / after", " / ".join(loads)),
        ("System", f"{machine.get('system') or UNKNOWN}, Python {origin['python'] or UNKNOWN}"),
        ("Versions", ", ".join(versions) or UNKNOWN),
        ("Commit", UNKNOWN if not git else f"{git['commit']}{' with changes' if git['changed'] else ''}"),
        ("Date", origin["date_utc"] or UNKNOWN),
        ("Command", " ".join(origin["command"]) or UNKNOWN),
        ("Prompts", _prompts(record["plan"]["prompts"])),
    ]
    return [(key, plain(value)) for key, value in facts]


def _prompts(prompts: Record) -> str:
    digest = str(prompts.get("sha256") or "")
    return count(prompts.get("count") or 0, "prompt") + (f", SHA-256 {digest[:16]}" if digest else "")


def _details(arm: Record) -> Iterator[tuple[str, str]]:
    label = name(arm.get("arm", "")) + (f", k = {arm['k']}" if arm.get("k") else "")
    for key, value in _flat("", arm.get("details") or {}):
        text = plain(value)
        # A command is there to be run again, so it is whole.
        short = text if "command" in key or len(text) <= LONGEST_FACT else text[:LONGEST_FACT] + "…"
        yield f"{label}: {plain(key)}", short


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key != "labels":
                yield from _flat(f"{prefix} {key}".strip(), item)
    else:
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        yield prefix, {True: "yes", False: "no"}[value] if isinstance(value, bool) else shown


def passages_of(record: Record) -> tuple[list[Passage], str]:
    """Where texts part, defects first, and what stands above them."""
    found = sorted(record["divergences"]["found"], key=lambda one: one.get("verdict") != "defect")
    more = f" The first {SHOWN} of {len(found)} are shown; the record has all." if len(found) > SHOWN else ""
    note = "The end of what both texts share, then how each goes on. ⏎ is a line end." + more
    return [_passage(one) for one in found[:SHOWN]], note if found else ""


def _passage(one: Record) -> Passage:
    parts = [f"prompt {name(one.get('prompt_id', ''))}", name(one.get("category", ""))]
    parts += [f"k = {one['k']}"] if one.get("k") is not None else []
    parts += [f"temperature {one['temperature']:g}"] if one.get("temperature") is not None else []
    parts += [f"{one['concurrency']} requests at once"] if (one.get("concurrency") or 1) > 1 else []
    kind, gap, why = one.get("verdict") or "unexplained", one.get("gap_nats"), plain(one.get("why") or "")
    says = [VERDICTS.get(kind, plain(kind)), f"gap {gap:.3g} nats" if gap is not None else "", why]
    common, off, on = (context(str(one.get(key) or "")) for key in ("common", "off", "on"))
    verdict = "; ".join(part for part in says if part)
    return Passage(", ".join(parts), common, off, on, verdict, grave=kind == "defect")
