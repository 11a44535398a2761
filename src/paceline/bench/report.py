"""The record in words: a verdict, tables for the console, and one self-contained HTML page."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from paceline.bench import plots
from paceline.bench.record import rows_from_data
from paceline.bench.stats import MIN_PROMPTS

UNKNOWN = "-"
Rows = list[list[str]]


def verdict(record: dict[str, Any]) -> str:
    """One sentence on speed and one on equality; a difference that could be noise is not called one."""
    summary = record["summary"]
    speedup, interval, pairs = summary["speedup"], summary["speedup_ci95"], summary["pairs"]
    if speedup is None:
        return "Nothing can be said: no prompt was measured both with and without drafting."
    what = f"drafting with k={summary['k']} at temperature {summary['temperature']:g}"
    where = f"On {summary['prompts']} prompts, {what} {_effect(speedup, interval)}"
    equal = summary["equal_outputs"]
    if equal == 1.0:
        return f"{where}; outputs equal on 100% of {pairs} pairs."
    differing = pairs - round(equal * pairs)
    return f"{where}; but outputs differ on {differing} of {pairs} pairs, so the two ways did not do the same work."


def _effect(speedup: float, interval: list[float] | None) -> str:
    if interval is None:
        return f"ran at {_times(speedup)} the speed, on too few prompts for an interval"
    number = f"{_times(speedup)} {_interval(interval)}"
    if interval[0] <= 1.0 <= interval[1]:
        return f"made no difference that this run could measure: {number}"
    return f"was faster: {number}" if speedup > 1.0 else f"was slower: {number}"


def cautions(record: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the verdict."""
    summary, notes = record["summary"], []
    if not record["complete"]:
        notes.append(f"The run stopped early ({record['failure'] or 'unknown reason'}): the numbers cover only a part.")
    if summary["off_vs_off_equal_outputs"] not in (None, 1.0):
        notes.append("Two runs without drafting gave different texts: the engine itself is not repeatable here.")
    noise = summary["off_vs_off_ci95"]
    if noise and not noise[0] <= 1.0 <= noise[1]:
        notes.append(f"Off against off is {_interval(noise)}, which leaves out 1: the machine was not steady.")
    load, cores = record["provenance"]["load_before"], record["provenance"]["machine"]["cores"]
    if load and cores and load[0] > cores / 2:
        notes.append(f"The machine was busy at the start: load {load[0]} on {cores} cores (loading counts too).")
    return notes


def console_report(record: dict[str, Any]) -> Group:
    """Verdict, labels, cautions and tables for a terminal."""
    labels = [f"Measured with: {', '.join(map(str, record['labels']))}"] if record["labels"] else []
    notes = [Text(line, style="yellow") for line in labels + [f"! {note}" for note in cautions(record)]]
    return Group(Text(verdict(record), style="bold"), *notes, *console_tables(record))


def console_tables(record: dict[str, Any]) -> list[Table]:
    """The tables of the record, for rich."""
    tables = []
    for title, header, rows in _tables(record["summary"]):
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        tables.append(table)
    return tables


def _tables(summary: dict[str, Any]) -> list[tuple[str, list[str], Rows]]:
    speed = ["speed-up", "95% interval", "tokens/round", "equal", "pairs"]
    noise = [
        "off / off",
        _times(summary["off_vs_off"]),
        _interval(summary["off_vs_off_ci95"]),
        UNKNOWN,
        _percent(summary["off_vs_off_equal_outputs"]),
        UNKNOWN,
    ]
    by_category = [_speed_row(name, block) for name, block in summary["by_category"].items()]
    by_temperature = [_speed_row(name, block) for name, block in summary["by_temperature"].items()]
    return [
        (
            f"Speed-up by category, temperature {summary['temperature'] or 0:g}",
            ["category", *speed],
            [*by_category, _speed_row("all", summary), noise],
        ),
        ("Speed-up by temperature", ["temperature", *speed], by_temperature),
        ("Latency and throughput", ["", "off", "on"], _latency_rows(summary)),
    ]


def _speed_row(name: str, block: dict[str, Any]) -> list[str]:
    length = UNKNOWN if block["acceptance_length"] is None else f"{block['acceptance_length']:.2f}"
    equal = _percent(block["equal_outputs"])
    return [name, _times(block["speedup"]), _interval(block["speedup_ci95"]), length, equal, str(block["pairs"])]


def _latency_rows(summary: dict[str, Any]) -> Rows:
    rows = [["tokens/s", *(_number(summary["tokens_per_s"][arm]) for arm in ("off", "on"))]]
    for key, name in (("ttft_s", "first token, ms"), ("tpot_s", "per later token, ms")):
        for part in ("median", "p90"):
            values = [summary[key][arm][part] for arm in ("off", "on")]
            rows.append([f"{name}, {part}", *(_number(None if v is None else v * 1e3) for v in values)])
    return rows


def _times(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}x"


def _interval(value: list[float] | None) -> str:
    return UNKNOWN if value is None else f"[{value[0]:.2f}, {value[1]:.2f}]"


def _percent(value: float | None) -> str:
    # Rounded down: 99.97% equal must not read as 100%.
    return UNKNOWN if value is None else f"{int(value * 1000) / 10:g}%"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def html_report(record: dict[str, Any]) -> str:
    """One HTML page without outside resources. Raises UsageError when matplotlib is missing."""
    labels = "".join(f"<span class=label>{escape(str(label))}</span>" for label in record["labels"])
    notes = "".join(f"<p class=caution>{escape(note)}</p>" for note in cautions(record))
    body = [
        f"<h1>{escape(verdict(record))}</h1>",
        f"<p>{labels}</p>" if labels else "",
        notes,
        f"<div class=grid>{''.join(_figures(record))}</div>",
        *(_html_table(*table) for table in _tables(record["summary"])),
        "<h2>How it was measured</h2>",
        *(f"<p>{escape(line)}</p>" for line in _method(record)),
        "<h2>Machine and versions</h2>",
        _html_pairs(_origin(record)),
    ]
    page = files("paceline").joinpath("assets/report.html").read_text("utf-8")
    return page.replace("{{body}}", "\n".join(body))


def _figures(record: dict[str, Any]) -> list[str]:
    summary, rows = record["summary"], rows_from_data(record["measurements"])
    if summary["speedup"] is None:
        return []
    figures = [_figure("Speed-up by category", plots.category_plot(summary), _CATEGORY_NOTE)]
    if summary["acceptance_by_position"]:
        figures.append(_figure("Accepted drafts by position", plots.acceptance_plot(summary), _ACCEPTANCE_NOTE))
    pair = plots.typical_pair(rows)
    if pair:
        note = f"Prompt {pair[0].prompt_id}, temperature {pair[0].temperature}: the pair nearest the overall speed-up."
        figures.append(_figure("One text, token by token", plots.timeline_plot(pair), note))
    return [*figures, _figure("Is it more than noise?", plots.noise_plot(rows), _NOISE_NOTE)]


_CATEGORY_NOTE = "Lines are 95% intervals. Right of 1 drafting is faster, left of it slower."
_ACCEPTANCE_NOTE = "A draft counts only while every draft before it in its round was accepted."
_NOISE_NOTE = "Off against off compares the same work with itself: its spread is what this machine adds by chance."


def _figure(title: str, svg: str, note: str) -> str:
    return f"<figure><h2>{escape(title)}</h2>{svg}<figcaption>{escape(note)}</figcaption></figure>"


def _method(record: dict[str, Any]) -> list[str]:
    options, ended = record["plan"]["options"], _percent(record["summary"]["ended_naturally"])
    return [
        "Each prompt was generated three times in a row, in random order: without drafting, with"
        f" k={record['plan']['ks']} drafts, and without drafting again; one text at a time."
        f" Repeats: {options['repeats']}."
        f" Temperatures: {', '.join(map(str, options['temperatures']))}. Seed: {options['seed']}. At most"
        f" {options['max_tokens']} tokens; {ended} of the texts ended by themselves. Prompts run before as a warm-up,"
        f" uncounted: {options['warmup']}.",
        "Speed-up is all seconds without drafting over all seconds with it, prompt processing included, for the same"
        " pairs: a ratio of sums, never a mean of ratios. Intervals (95%) come from 10,000 bootstrap draws of whole"
        f" prompts, widened for few prompts as Student's t is; below {MIN_PROMPTS} none is given. Tokens per round"
        " counts the bonus token, so 1.00 is plain decoding. Equal means equal token ids.",
    ]


def _origin(record: dict[str, Any]) -> list[tuple[str, str]]:
    origin, engine = record["provenance"], record["arms"][0] if record["arms"] else {}
    machine, git = origin["machine"], origin["git"]
    memory = machine["memory_bytes"]
    versions = ", ".join(f"{name} {version or UNKNOWN}" for name, version in origin["versions"].items())
    commit = UNKNOWN if git is None else f"{git['commit']}{' with changes' if git['changed'] else ''}"
    return [
        ("CPU", f"{machine['cpu'] or UNKNOWN}, {machine['cores_usable']} of {machine['cores']} cores usable"),
        ("GPU", machine["gpu"] or "none used"),
        ("Memory", UNKNOWN if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("Threads", ", ".join(f"{name} {count or UNKNOWN}" for name, count in machine["threads"].items())),
        ("Load before / after", f"{origin['load_before'] or UNKNOWN} / {origin['load_after'] or UNKNOWN}"),
        ("System", f"{machine['system']}, Python {origin['python']}"),
        ("Versions", versions),
        ("Commit", commit),
        ("Date", origin["date_utc"]),
        ("Command", " ".join(origin["command"])),
        *((f"Engine: {key}", str(value)) for key, value in engine.items() if key != "labels"),
    ]


def _html_table(title: str, header: list[str], rows: Rows) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _html_pairs(pairs: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"
