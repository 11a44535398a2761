"""The tables of a run, for the console, the page and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from paceline.bench.document import Row, Table
from paceline.bench.wording import UNKNOWN, interval, milliseconds, name, number, percent, plain, times

SPEED = ["speed-up", "95% interval", "tokens per round", "same text", "prompts", "pairs"]
Summary = dict[str, Any]


def tables_of(record: dict[str, Any]) -> list[Table]:
    """Those that have data, what most look for first."""
    summary = record["summary"]
    parts = (
        _by_category(summary), _by_k(summary), _by_concurrency(summary), _by_temperature(summary), _latency(summary),
        _costs(record), _gates(record), _divergences(record), _failures(record), _arms(record),
    )  # fmt: skip
    return list(chain(*parts))


def speed_cells(block: Summary) -> Row:
    """A block's numbers under SPEED."""
    counts = [f"{block['prompts']:,}", f"{block['pairs']:,}"]
    length = UNKNOWN if block["acceptance_length"] is None else f"{block['acceptance_length']:.2f}"
    return [times(block["speedup"]), interval(block["speedup_ci95"]), length, percent(block["equal_outputs"]), *counts]


def _by_category(summary: Summary) -> Iterator[Table]:
    if summary["speedup"] is None:
        return
    noise = [times(summary["off_vs_off"]), interval(summary["off_vs_off_ci95"]), UNKNOWN,
             percent(summary["off_vs_off_equal_outputs"]), UNKNOWN, UNKNOWN]  # fmt: skip
    rows = [[name(key), *speed_cells(block)] for key, block in summary["by_category"].items()]
    timed = {**summary, "pairs": summary["timed_pairs"] or summary["pairs"]}
    rows += [["all", *speed_cells(timed)], ["off against off (noise)", *noise]]
    at = f", temperature {summary['temperature']:g}" if summary["temperature"] is not None else ""
    at += f", k = {summary['k']}" if summary["k"] is not None else ""
    yield Table(f"Speed-up by category{at}", ["category", *SPEED], rows)


def _by_k(summary: Summary) -> Iterator[Table]:
    if len(summary["by_k"]) > 1:
        rows = [[_k(key), *speed_cells(block)] for key, block in in_order(summary["by_k"])]
        yield Table("Speed-up by draft length", ["k", *SPEED], rows)


def _by_concurrency(summary: Summary) -> Iterator[Table]:
    if len(summary["by_concurrency"]) < 2:
        return
    header = ["requests at once", "best k", "speed-up", "95% interval", "tokens/s off", "tokens/s on", "worth it"]
    rows = []
    for key, block in in_order(summary["by_concurrency"]):
        speed = block.get("tokens_per_s") or {}
        cells = [times(block["speedup"]), interval(block["speedup_ci95"]), number(speed.get("off")),
                 number(speed.get("on")), _yes(block.get("worth_it"))]  # fmt: skip
        rows.append([key, _k(str(block.get("k"))), *cells])
    yield Table("Speed-up by requests at once", header, rows, "Tokens/s: all requests in flight together.")


def _by_temperature(summary: Summary) -> Iterator[Table]:
    if len(summary["by_temperature"]) > 1:
        rows = [[f"{float(key):g}", *speed_cells(block)] for key, block in in_order(summary["by_temperature"])]
        yield Table("Speed-up by temperature", ["temperature", *SPEED], rows)


def _latency(summary: Summary) -> Iterator[Table]:
    speed = summary["tokens_per_s"]
    rows = [["tokens/s", number(speed["off"]), number(speed["on"])]]
    for key, what in (("ttft_s", "TTFT, ms"), ("tpot_s", "TPOT, ms")):
        for part in ("median", "p90"):
            rows.append([f"{what}, {part}", *(milliseconds(summary[key][arm].get(part)) for arm in ("off", "on"))])
    if any(cell != UNKNOWN for row in rows for cell in row[1:]):
        note = "TTFT: time to first token. TPOT: time per output token after it."
        yield Table("Latency and throughput", ["", "drafting off", "drafting on"], rows, note)


def _costs(record: dict[str, Any]) -> Iterator[Table]:
    summary, prices = record["summary"], record["prices"]
    currency = name(prices.get("currency") or "USD")
    cost, joule = summary["cost_per_million_tokens"], summary["tokens_per_joule"]
    rows = [[f"{currency} per million output tokens", *_two(cost, 3)]] if cost else []
    rows += [["tokens per joule", *_two(joule, 3)]] if joule else []
    given = [f"{prices['price_per_hour']:g} {currency} an hour"] if prices.get("price_per_hour") is not None else []
    given += [f"{prices['watts']:g} W"] if prices.get("watts") is not None else []
    if rows:
        yield Table("Cost", ["", "drafting off", "drafting on"], rows, f"From the figures given: {', '.join(given)}.")


def _two(pair: dict[str, float | None], digits: int) -> Row:
    return [number(pair.get("off"), digits), number(pair.get("on"), digits)]


def _gates(record: dict[str, Any]) -> Iterator[Table]:
    if record["health"]:
        word = {True: "passed", False: "FAILED", None: "cannot be told"}
        gates = [(gate.get("gate"), word[gate.get("ok")], gate.get("says", "")) for gate in record["health"]]
        rows = [[name(gate), result, plain(says)] for gate, result, says in gates]
        yield Table("Health of the engine", ["gate", "result", "why"], rows, words=True)


def _divergences(record: dict[str, Any]) -> Iterator[Table]:
    found = record["divergences"]
    if not found["differ"]:
        return
    row = [f"{found[key]:,}" for key in ("compared", "differ", "near_ties", "defects", "unexplained")]
    header = ["", "pairs compared", "differ", "near-ties", "defects", "unexplained"]
    limit = found["limit_nats"]
    note = f"A near-tie: the plain run's two likeliest tokens lay within {limit:g} nats of each other." if limit else ""
    yield Table("Texts that changed", header, [["pairs", *row]], note)


def _failures(record: dict[str, Any]) -> Iterator[Table]:
    failures = record["failures"]
    if failures:
        counted: dict[tuple[str, str], int] = {}
        for failure in failures:
            key = (name(failure.get("arm", "")), plain(failure.get("why", "")))
            counted[key] = counted.get(key, 0) + 1
        rows = [[arm, f"{times_seen:,}", why] for (arm, why), times_seen in counted.items()]
        yield Table("Requests that brought no text", ["arm", "how many", "why"], rows, words=True)


def _arms(record: dict[str, Any]) -> Iterator[Table]:
    if any(arm.get("why") for arm in record["arms"]):  # else nothing is known that the sections do not have
        rows = [_arm(arm) for arm in record["arms"]]
        header = ["arm", "engine", "model", "drafts", "how that is known", "acceptance from"]
        yield Table("Arms", header, rows, words=True)


def _arm(arm: dict[str, Any]) -> Row:
    label = name(arm.get("arm", "")) + (f", k = {arm['k']}" if arm.get("k") else "")
    engine = " ".join(plain(part) for part in (arm.get("engine"), arm.get("version")) if part)
    words = [plain(arm.get(key) or UNKNOWN) for key in ("why", "acceptance")]
    return [label, engine or UNKNOWN, plain(arm.get("model") or UNKNOWN), _yes(arm.get("drafts")), *words]


def in_order(blocks: dict[str, Any]) -> list[tuple[str, Any]]:
    """Blocks by the number that names them; unknown ones last."""
    return sorted(blocks.items(), key=lambda item: float("inf") if item[0] == "None" else float(item[0]))


def _k(key: str) -> str:
    return "auto or not told" if key == "None" else key


def _yes(value: bool | None) -> str:
    return UNKNOWN if value is None else "yes" if value else "no"
