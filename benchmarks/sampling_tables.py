"""What the records of sampling say, as tables and sentences of the documents; `readme_table.py` writes them there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Record = dict[str, Any]
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
MODES = ("coupled", "rejection", "block")
RATIOS = ("block over rejection", "coupled over rejection")


def acceptance_table(table: Table) -> Callable[[Record], str]:
    """Expected tokens a round of the same rounds, by temperature and mode."""

    def made(record: Record) -> str:
        columns = ("temperature", *MODES, *RATIOS)
        parts = []
        for name, points in record["same_rounds"].items():
            rows = [(f"{float(t):g}", *(_value(p[key]) for key in MODES + RATIOS)) for t, p in points.items()]
            parts.append(f"Tokens a round, {name}:\n\n{table(columns, rows)}")
        o = record["options"]
        note = (
            f"k = {o['k']}, top-k {o['top_k']}, top-p {o['top_p']}; {o['prompts']} prompts, answers of at most"
            f" {o['max_tokens']} tokens; the same rounds judged by each mode, its noise added up; 95% intervals over"
            " prompts."
        )
        return "\n\n".join([*parts, note])

    return made


def acceptance_line(record: Record) -> str:
    """The order of the modes at temperature 1, in whole texts."""
    found = record["summary"]["whole_texts_at_1"]
    lengths = [f"{mode} {found[mode]['acceptance_length']:.2f}" for mode in MODES]
    kept = found["compared"]["coupled over rejection"]
    return (
        f"tokens a round at temperature 1: {', '.join(lengths)}; coupled keeps {kept['ratio']:.0%}"
        f" ({kept['ci95'][0]:.0%} to {kept['ci95'][1]:.0%}) of rejection's"
    )


def end_to_end_table(table: Table) -> Callable[[Record], str]:
    """What the two-sample tests found, and that they find mistakes."""

    def made(record: Record) -> str:
        s = record["summary"]
        rows = [
            (
                "coupled: texts that are equal, drafting or not",
                f"{s['coupled_equal']:.0%} of {s['coupled_texts'] // 2:,}",
            )
        ]
        rows += [(f"{name}: least p, by Holm", f"{p:.2g}") for name, p in s["least_p_holm"].items()]
        rows += [(f"{name}: least p (must be caught)", f"{p:.2g}") for name, p in s["controls_least_p"].items()]
        return table(("first three tokens, drafting on against off", ""), rows)

    return made


def end_to_end_line(record: Record) -> str:
    """The same in a sentence."""
    s = record["summary"]
    worst = min(s["least_p_holm"].values())
    return (
        f"{s['coupled_equal']:.0%} of {s['coupled_texts'] // 2:,} coupled texts are equal, drafting or not; the laws of"
        f" {s['texts_an_arm']:,} texts a mode do not differ (p = {worst:.2g})"
    )


def processors_table(table: Table) -> Callable[[Record], str]:
    """Shares of a text's CPU time, by way of choosing."""

    def made(record: Record) -> str:
        large = record["at_e2b_size"]
        rows = [
            (name, *(f"{part[key]['share']:.1%}" for key in ("choosing", "rules", "llguidance")), _large(large, name))
            for name, part in record["summary"].items()
        ]
        columns = ("share of a text's CPU time", "all choosing", "of it rules and grammar", "of that llguidance",
                   "at E2B's size, ms a round")  # fmt: skip
        return table(columns, rows) + (
            f"\n\nThe last column: random logits of E2B's size, every draft verified and kept; in brackets the share at"
            f" most, beside the least that E2B's round of {record['options']['k']} drafts can take on this machine"
            f" (predicted: {large['round_bytes'] / 1e9:.1f} GB at {large['copy_bytes_per_s'] / 1e9:.0f} GB/s, the"
            f" bandwidth of a copy: {large['least_round_ms']:.0f} ms)."
        )

    return made


def _large(large: dict[str, Any], name: str) -> str:
    way = large["ways"].get(name)
    return "" if way is None else f"{way['choosing_ms']:.1f} ({way['share_at_most']:.1%})"


def processors_line(record: Record) -> str:
    """What sampling takes over greedy decoding."""
    s = record["summary"]
    more = s["top-k, top-p"]["choosing"]["share"] - s["greedy"]["choosing"]["share"]
    return f"drawing with top-k and top-p takes {more:.1%} of a text's CPU time more than greedy does"


def hosted_table(table: Table) -> Callable[[Record], str]:
    """Milliseconds of a round whose tokens the graph chooses, and of one whose tokens the host chooses."""

    def made(record: Record) -> str:
        times = {(t["model"], t["kind"], t["k"]): t["ms"] for t in record["times"]}
        lengths = sorted({k for _, _, k in times})
        rows = [
            (f"{model.upper()}: {kind}", *(_ms(times.get((model, kind, k))) for k in lengths))
            for model, kind in dict.fromkeys((m, kind) for m, kind, _ in times)
        ]
        note = f"Medians, one text, {record['options']['layers']} layers of full width. {hosted_line(record)}."
        return f"{table(('round, ms', *(f'k = {k}' for k in lengths)), rows)}\n\n{note}"

    return made


def hosted_line(record: Record) -> str:
    """How many of the checks passed."""
    passed = sum(check["passed"] for check in record["checks"])
    return f"{passed} of {len(record['checks'])} checks passed"


def _ms(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}"


def _value(part: dict[str, Any]) -> str:
    interval = part["ci95"]
    return f"{part['value']:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def views(table: Table) -> dict[str, tuple[Callable[[Record], str], Callable[[Record], str]]]:
    """(table, sentence) of each schema."""
    return {
        "paceline-acceptance-by-temperature/1": (acceptance_table(table), acceptance_line),
        "paceline-sampling-end-to-end/1": (end_to_end_table(table), end_to_end_line),
        "paceline-processors/2": (processors_table(table), processors_line),
        "paceline-gpu-hosted/1": (hosted_table(table), hosted_line),
    }
