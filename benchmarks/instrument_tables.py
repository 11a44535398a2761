"""What the records of the instrument say, as tables and sentences; `readme_table.py` writes them into the documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Record = dict[str, Any]
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
ORDER = ("transformers", "llama.cpp", "vllm", "mlx-vlm", "paceline")


def truth_table(table: Table) -> Callable[[Record], str]:
    """How often intervals cover what was planted, and how often noise was taken for a difference."""

    def made(record: Record) -> str:
        designs: dict[str, list[Record]] = {}
        for case in record["cases"]:
            designs.setdefault(case["case"], []).append(case)
        s = record["summary"]
        rows = [
            (name, f"{min(c['coverage'] for c in cases):.1%} to {max(c['coverage'] for c in cases):.1%}",
             f"{s['a_a_rejects'][name]:.1%}", f"{s['steady_said_to_drift'][name]:.1%}")
            for name, cases in designs.items()
        ]  # fmt: skip
        columns = ("design", "95% interval covers", "off against off rejected", "a steady run said to drift")
        return table(columns, rows)

    return made


def truth_line(record: Record) -> str:
    """The outcome in a sentence."""
    s = record["summary"]
    rejected = s["a_a_rejects"].values()
    return (
        f"over {s['runs']} simulated runs in each of {s['cases']} cases (speed-ups of 1.00, 1.05, 1.5 and 0.8; 12 to 60"
        f" prompts; alone, 4 in flight, alternating), the 95% interval covers the truth in {s['mean_coverage']:.1%} of"
        f" runs, in {s['cases_covered_92_to_98']} of {s['cases']} cases in 92% to 98%; off against off is rejected in"
        f" {min(rejected):.1%} to {max(rejected):.1%}; intervals taken the wrong way cover at most"
        f" {s['wrong_ways_cover_at_most']:.0%}"
    )


def overhead_line(record: Record) -> str:
    """What measuring costs."""
    s, flight = record["summary"], record["options"]["concurrency"]
    return (
        f"{s['cpu_ms_per_event']:.2f} ms of CPU for each streamed event with {flight} requests in flight,"
        f" {s['added_delay_ms_median']:.2f} ms more delay than a bare socket (median)"
    )


def engines_table(table: Table, records: Sequence[Record]) -> str:
    """Engines side by side, each measured against itself."""
    rows = []
    for record in sorted(records, key=_rank):
        s, off = record["summary"], next(arm for arm in record["arms"] if arm["arm"] == "off")
        texts = record["divergences"]
        rows.append((
            f"{off['engine']} {off['version'] or ''}".strip(), _ratio(s["speedup"], s["speedup_ci95"]),
            "-" if s["acceptance_length"] is None else f"{s['acceptance_length']:.2f}",
            _number(s["tokens_per_s"]["off"]), _number(s["tokens_per_s"]["on"]),
            f"{texts['compared'] - texts['differ']} of {texts['compared']}",
            _ratio(s["off_vs_off"], s["off_vs_off_ci95"]),
        ))  # fmt: skip
    columns = ("engine", "speed-up (95%)", "tokens a round", "tokens/s off", "tokens/s on", "same text",
               "off against off")  # fmt: skip
    first = records[0]
    options, count = first["plan"]["options"], first["plan"]["prompts"]["count"]
    note = (
        f"k = {first['plan']['ks'][0]}, temperature {options['temperatures'][0]:g}, {count} prompts, at most"
        f" {options['max_tokens']} tokens; each engine against itself, started and stopped by the instrument, with the"
        " embedded pair (a miniature of 14 MB, where a call's overhead counts most) as"
        " `benchmarks/engines/convert_pair.py` writes it for each."
    )
    return f"{table(columns, rows)}\n\n{note}"


def _rank(record: Record) -> tuple[int, str]:
    engine = str(record["arms"][0]["engine"])
    return (ORDER.index(engine) if engine in ORDER else len(ORDER), engine)


def _ratio(ratio: float | None, interval: Sequence[float] | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def views(table: Table) -> dict[str, tuple[Callable[[Record], str], Callable[[Record], str]]]:
    """By schema: the table and the sentence of a record."""
    return {
        "paceline-instrument-truth/1": (truth_table(table), truth_line),
        "paceline-instrument-overhead/1": (overhead_line, overhead_line),
    }
