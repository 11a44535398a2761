"""Tables of the GPU results, for `readme_table.py`: rounds of the sizes, same text, first tokens, the miniature."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
RESULTS = Path(__file__).resolve().parent / "results"
CLASSES = ("matmul", "gated matmul", "experts", "LM head", "attention", "norm", "rope and cache", "routing", "gaps")
NAMES = {"e2b": "E2B", "e4b": "E4B", "12b": "12B", "26b-a4b": "26B-A4B", "31b": "31B"}
BESIDE = ("alone", "batches", "int8 head", "int8 drafter")
INT8 = {"int8 head": "with int8 drafter head", "int8 drafter": "with int8 drafter"}  # plans of cuda_rounds.py


def row_of(run: Record, batch: int, k: int, context: int = 170) -> Record | None:
    """The row of a setting, if it was measured."""
    found = (r for r in run["rows"] if (r["batch"], r["k"], r["context"]) == (batch, k, context))
    return next(found, None)


def best(run: Record, batch: int = 1) -> Record:
    """The row of a batch with the most tokens per second."""
    return max((r for r in run["rows"] if r["batch"] == batch), key=rate)


def rate(row: Record) -> float:
    """Tokens per second: the expected tokens of a round, as often as the served engine, or the timer, ran one."""
    served = row["tokens_per_s"] / row["tokens_per_round"] if "tokens_per_s" in row else row["batch"] * 1e3 / row["ms"]
    return float(served * row["expected_tokens"])


def time(row: Record | None, bandwidth: float) -> str:
    """Milliseconds and the share of the copy bandwidth."""
    return "-" if row is None else f"{row['ms']:.2f} ({share(row, bandwidth):.0%})"


def share(row: Record, bandwidth: float) -> float:
    """Bytes that had to move, over the time they took, over the copy bandwidth."""
    return float(row["bytes"] / (row["ms"] * 1e-3) / bandwidth)


def rounds_table(table: Table) -> Callable[[Record], str]:
    """Batch 1: round times beside the bound, and tokens per second plain and with the best draft length."""

    def show(record: Record) -> str:
        rows, top_speed = [], bandwidth(record)
        for name, runs in record["sizes"].items():
            alone, contexts = runs["alone"], runs.get("contexts", {"rows": []})
            plain = row_of(alone, 1, 0)
            assert plain is not None
            rows.append((
                NAMES[name], f"{plain['bytes'] / 1e9:.1f} GB", f"{plain['bytes'] / top_speed * 1e3:.2f}",
                time(plain, top_speed), time(row_of(alone, 1, 4), top_speed),
                time(row_of(contexts, 1, 0, 8192), top_speed),
                f"{rate(plain):.0f}", fastest(runs, "alone"), fastest(runs, "int8 drafter"),
            ))  # fmt: skip
        columns = ("", "bytes a token", "bound, ms", "plain round, ms", "k = 4, ms", "plain at 8k, ms",
                   "tokens/s plain", "tokens/s, best k", "drafter in int8")  # fmt: skip
        note = (
            f"Batch 1, bf16, context 170; in brackets the bytes that had to move over the time, as a share of the copy"
            f" bandwidth ({top_speed / 1e12:.2f} TB/s). Random weights; tokens/s as expected of"
            f" the acceptance, {described(record)}."
        )
        return f"{table(columns, rows)}\n\n{note}"

    return show


def fastest(runs: Record, plan: str) -> str:
    """Tokens per second with the best draft length of a plan at batch 1."""
    if plan not in runs:
        return ""
    top = best(runs[plan])
    return f"{rate(top):.0f} (k = {top['k']})"


def bandwidth(record: Record) -> float:
    """The greatest copy bandwidth measured over the runs of a record."""
    return float(max(run["copy_bandwidth"] for runs in record["sizes"].values() for run in runs.values()))


def described(record: Record) -> str:
    """The synthetic acceptance in words."""
    profile = next(iter(record["sizes"].values()))["alone"]["options"]["profile"]
    first, survive = profile["conditional"][0], math.prod(profile["conditional"][:8])
    return f"synthetic ({profile['name']}: {first:.2f} at the first draft, {survive:.2f} survive to the eighth)"


def rounds_line(record: Record) -> str:
    """The largest size in a sentence."""
    alone = record["sizes"]["31b"]["alone"]
    plain, top = row_of(alone, 1, 0), best(alone)
    assert plain is not None
    return (
        f"31B decodes at {share(plain, bandwidth(record)):.0%} of copy bandwidth; {rate(plain):.0f} tokens/s plain and"
        f" {rate(top):.0f} with k = {top['k']} (random weights, synthetic acceptance)"
    )


def batches_table(table: Table, record: Record) -> str:
    """Batches of the sizes that were measured with several: round times, tokens per second plain and at the best k."""
    rows, speed = [], bandwidth(record)
    for name, runs in record["sizes"].items():
        measured = [r for label in ("alone", "batches") for r in runs.get(label, {"rows": []})["rows"]]
        for batch in sorted({r["batch"] for r in measured if name in ("26b-a4b", "31b")}):
            own = [r for r in measured if r["batch"] == batch]
            plain, top = next(r for r in own if r["k"] == 0), max(own, key=rate)
            four = next((r for r in own if r["k"] == 4), None)
            experts = f"{plain['distinct_experts']:.0f}" if plain["distinct_experts"] else ""
            rows.append((NAMES[name], str(batch), time(plain, speed), time(four, speed), experts, f"{rate(plain):.0f}",
                         f"{rate(top):.0f} (k = {top['k']})"))  # fmt: skip
    columns = ("", "batch", "plain, ms", "k = 4, ms", "experts met, plain", "tokens/s plain", "best k")
    return "\n\n".join([table(columns, rows), *notes(record, ("alone", "batches"))])


def notes(record: Record, plans: Sequence[str]) -> list[str]:
    """What is out of the ordinary about these runs of a record."""
    return [f"{NAMES[name]}, {label}: {run['note']}." for name, runs in record["sizes"].items()
            for label, run in runs.items() if "note" in run and label in plans]  # fmt: skip


def beside_table(table: Table, record: Record) -> str:
    """Round times beside another engine's on the same kind of machine, and beside what was aimed at."""
    anchors = json.loads((RESULTS / "anchors_h100.json").read_text(encoding="utf-8"))["sizes"]
    rows = []
    for name, runs in record["sizes"].items():
        for k, batch in ((k, batch) for k in (0, 2, 4, 8) for batch in (1, 8, 16)):
            own = found_row(runs, batch, k)
            vllm, aim = (anchors[name][kind].get(str(k), {}).get(str(batch)) for kind in ("vllm", "aim"))
            if own and (vllm or aim):
                smaller = (found_row(runs, batch, k, (plan, f"{plan} batches")) for plan in INT8)
                rows.append((
                    NAMES[name], str(k), str(batch), f"{own['ms']:.2f}",
                    *(f"{row['ms']:.2f}" if row else "" for row in smaller),
                    f"{aim:.2f}" if aim else "", f"{vllm:.2f}" if vllm else "",
                    f"{vllm / own['ms']:.2f}x" if vllm else "",
                ))  # fmt: skip
    columns = ("", "k", "batch", "round, ms", *INT8.values(), "aim", "vLLM 0.25.1", "vLLM over ours")
    return "\n\n".join([table(columns, rows), *notes(record, [*BESIDE, *(f"{plan} batches" for plan in INT8)])])


def found_row(runs: Record, batch: int, k: int, plans: Sequence[str] = ("alone", "batches")) -> Record | None:
    """The row of a setting in the first of these plans that has it; these take the sizes as they are."""
    found = (row_of(runs[label], batch, k) for label in plans if label in runs)
    return next((row for row in found if row), None)


def kernels_table(table: Table, record: Record) -> str:
    """Where a plain round at batch 1 spends its time, by class of kernel, and the gaps between kernels."""
    rows, classes = [], CLASSES
    for name, runs in record["sizes"].items():
        row = row_of(runs["alone"], 1, 0)
        spent = (row or {}).get("kernels", {})
        whole = sum(seen["us"] for seen in spent.values())
        if whole:
            parts = [spent.get(label, {"us": 0.0})["us"] / whole for label in classes]
            launches = sum(seen["launches"] for seen in spent.values())
            rows.append((NAMES[name], f"{launches:.0f}", *(f"{part:.0%}" for part in parts)))
    return table(("", "launches", *classes), rows)


def overlap_table(table: Table, record: Record) -> str:
    """26B-A4B at batch 1 with routers that route uniformly, and with routers that favour some experts."""
    runs, rows = record["sizes"]["26b-a4b"], []
    for row in runs["overlap"]["rows"]:
        even = row_of(runs["alone"], 1, row["k"])
        assert even is not None
        rows.append((str(row["k"]), f"{even['distinct_experts']:.1f}", f"{even['ms']:.2f}", f"{rate(even):.0f}",
                     f"{row['distinct_experts']:.1f}", f"{row['ms']:.2f}", f"{rate(row):.0f}"))  # fmt: skip
    return table(("k", "experts, uniform", "ms", "tokens/s", "experts, skewed", "ms", "tokens/s"), rows)


def same_table(table: Table) -> Callable[[Record], str]:
    """How many texts and tokens were compared, and how many differed."""

    def show(record: Record) -> str:
        rows = []
        for name, own in record["sizes"].items():
            checks = [c for c in own["checks"] if "different" in c]
            control = own.get("library_control")
            rows.append((
                NAMES[name], str(len(checks)), str(sum(c["texts"] for c in checks)),
                f"{sum(c['tokens'] for c in checks):,}", str(sum(c["different"] for c in checks)),
                "-" if control is None else f"{control['different']} of {control['texts']}", distance(own),
            ))  # fmt: skip
        columns = ("", "ways of writing", "texts compared", "tokens compared", "texts that differ",
                   "differ with a library matmul", "fp32 logits off the reference")  # fmt: skip
        return table(columns, rows)

    return show


def distance(own: Record) -> str:
    """Greatest relative distance of fp32 logits from the reference backend's, where it was measured."""
    return f"{max(own['oracle']['float32'].values()):.0e}" if "oracle" in own else "-"


def same_line(record: Record) -> str:
    """The outcome in a sentence."""
    checks = [c for own in record["sizes"].values() for c in own["checks"] if "different" in c]
    texts, tokens, different = (sum(c[key] for c in checks) for key in ("texts", "tokens", "different"))
    return f"{different} of {texts:,} texts differ ({tokens:,} tokens, {len(checks)} ways of writing)"


def extras_table(table: Table) -> Callable[[Record], str]:
    """Time to first token of a long prompt, beside what its operations need."""

    def show(record: Record) -> str:
        rows = [
            (NAMES[r["shape"]], str(r["prompt"]), f"{sorted(r['seconds'])[len(r['seconds']) // 2] * 1e3:.0f}",
             f"{r['flops'] / 1e12:.1f}", f"{r['ratio']:.2f}")
            for r in record["ttft"]
        ]  # fmt: skip
        rate = record["ttft"][0]["matmul_rate"] / 1e12
        columns = ("", "prompt tokens", "first token, ms", "TFLOP", f"over its FLOP at 60% of {rate:.0f} TFLOP/s")
        more = [left_over(record), loading(record), beside_transformers(table, record)]
        return "\n\n".join([table(columns, rows), *(text for text in more if text)])

    return show


def prompt_table(table: Table) -> Callable[[Record], str]:
    """Where a chunk of a prompt spends its time, before prompts got cuts of their own and after."""

    def show(record: Record) -> str:
        rows = []
        for label in ("before", "after"):
            for run in record[label]:
                spent = {name: seen["us"] for name, seen in run["classes"].items()}
                shares = (f"{spent.get(name, 0.0) / 1e3:.1f}" for name in CLASSES)
                rate = run["tflop"] / (run["second_ms"] * 1e-3)
                rows.append((NAMES[run["shape"]], label, f"{run['second_ms']:.1f}", f"{rate:.0f}", *shares))
        return table(("", "", "second chunk of 2048, ms", "TFLOP/s", *CLASSES), rows)

    return show


def prompt_line(record: Record) -> str:
    """What prompts of the two sizes gained, in a sentence."""
    pairs = zip(record["before"], record["after"], strict=True)
    return ", ".join(f"{NAMES[a['shape']]} {a['second_ms'] / b['second_ms']:.2f}x" for a, b in pairs)


def left_over(record: Record) -> str:
    """Memory before and after a long run, in a sentence."""
    if "long" not in record:
        return ""
    run = record["long"]
    grown = (run["after"]["device_reserved"] - run["before"]["device_reserved"]) / 1e6
    host = (run["after"]["host_peak_kib"] - run["before"]["host_peak_kib"]) / 1024
    return (
        f"{run['rounds']:,} rounds of {NAMES[run['shape']]}: the device's memory grew by {grown:.0f} MB, the host's"
        f" peak by {host:.1f} MiB."
    )


def loading(record: Record) -> str:
    """Loading a large checkpoint, in a sentence."""
    if "load" not in record:
        return ""
    run = record["load"]
    over = (run["peak_after_bytes"] - run["stored_bytes"] - run["cache_bytes"]) / 2**30
    return (
        f"A {NAMES[run['shape']]} checkpoint ({run['stored_bytes'] / 1e9:.1f} GB, random numbers, its files in memory):"
        f" loaded in {run['load_s']:.1f} s, first token after {run['first_token_s']:.1f} s, kernels compiled before;"
        f" peak memory is weights + cache + {over:.2f} GiB."
    )


def beside_transformers(table: Table, record: Record) -> str:
    """Milliseconds of a plain token and of a round with drafts, beside Transformers on the same weights."""
    runs = [record[name] for name in record if name.startswith("transformers-")]
    rows = []
    for run in runs:
        for label, what in (("plain", "a token"), ("assisted", f"a round, k = {run['drafts']}")):
            theirs, ours = (statistics.median(run[f"{who}{label}_ms_a_token"]) for who in ("", "our_"))
            rows.append((f"{NAMES[run['shape']]}, {what}", f"{theirs:.0f}", f"{ours:.2f}", f"{theirs / ours:.0f}x"))
    if not rows:
        return ""
    told = f"Transformers {runs[0]['version']}, eager, same weights, batch 1, host included, medians of three:"
    return f"{told}\n\n{table(('', 'Transformers, ms', 'Paceline, ms', 'ratio'), rows)}"


def extras_line(record: Record) -> str:
    """The miniature on the GPU in a sentence."""
    e = record["embedded"]
    different = sum(sum(e[f"temperature {t}"]["different"].values()) for t in ("0", "1"))
    return (
        f"the embedded pair, trained on real text: {different} texts differ with drafting on or off, alone or 16 side"
        f" by side, greedy or sampled ({e['prompts']} prompts, {e['acceptance_length_0_16']:.2f} tokens a round,"
        f" {record['provenance']['machine']['gpu']})"
    )


def head_table(table: Table) -> Callable[[Record], str]:
    """Tokens a round of the embedded pair with each drafter."""

    def show(record: Record) -> str:
        found = record["summary"]["tokens_per_round"]
        rows = [(name, *(f"{found[name][t]:.3f}" for t in ("0", "1"))) for name in found]
        return table(("drafter: its head, its body", "tokens a round, temperature 0", "temperature 1"), rows)

    return show


def head_line(record: Record) -> str:
    """The cost of int8 in a sentence."""
    found = record["summary"]["tokens_per_round"]
    head, whole = (found[name]["0"] / found["dense bf16"]["0"] for name in ("dense int8", "dense int8, body int8"))
    return (
        f"an int8 head keeps {head:.1%} of the tokens a round at temperature 0, and the whole drafter in int8"
        f" {whole:.1%}, with equal texts ({record['summary']['prompts']} prompts, k = {record['summary']['k']})"
    )


def views(table: Table) -> dict[str, tuple[Callable[[Record], str], Callable[[Record], str]]]:
    """(table, sentence) of each schema."""
    return {
        "paceline-cuda-rounds/1": (rounds_table(table), rounds_line),
        "paceline-cuda-batches/1": (lambda record: batches_table(table, record), rounds_line),
        "paceline-cuda-beside/1": (lambda record: beside_table(table, record), rounds_line),
        "paceline-cuda-overlap/1": (lambda record: overlap_table(table, record), rounds_line),
        "paceline-cuda-kernels/1": (lambda record: kernels_table(table, record), rounds_line),
        "paceline-cuda-same-text/1": (same_table(table), same_line),
        "paceline-cuda-extras/1": (extras_table(table), extras_line),
        "paceline-cuda-prefill/1": (prompt_table(table), prompt_line),
        "paceline-draft-head/1": (head_table(table), head_line),
    }
