"""Writes the figures of benchmarks/results/*.json into README.md and docs/*.md, between markers.

`<!-- figures:NAME -->` ... `<!-- /figures -->` holds the table of results/NAME.json, `figures:NAME.line` one sentence
of it; SOURCES names the places called otherwise than their file. No figure is typed by hand: `--check` exits 1 when a
document says something else than the results.

    python benchmarks/readme_table.py
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import advisor_tables
import controller_tables
import gpu_tables
import instrument_tables
import sampling_tables

from paceline.bench.verdict import length_of

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- figures:([\w-]+?)(\.line)? -->)(.*?)(<!-- /figures -->)", re.DOTALL)
Record = dict[str, Any]
SOURCES = {"headline": "embedded_cpu", "transformers": "vs_transformers", "cuda_batches": "cuda_rounds",
           "cuda_kernels": "cuda_rounds", "cuda_beside": "cuda_rounds", "cuda_overlap": "cuda_rounds"}  # fmt: skip
# A second table of a record that already has one.
OTHER_VIEWS = {name: f"paceline-{name.replace('_', '-')}/1"
               for name in ("cuda_batches", "cuda_kernels", "cuda_beside", "cuda_overlap")}  # fmt: skip
SHOWN_ROWS = (1, 5)  # plain decoding, and verification with the usual four drafts
ARM_NAMES = {
    "paceline": "Paceline",
    "paceline_mtp": "Paceline with MTP",
    "transformers": "Transformers",
    "transformers_mtp": "Transformers with MTP",
}


def documents(root: Path) -> list[Path]:
    """The files that may hold figures."""
    return [path for path in (root / "README.md", *sorted((root / "docs").glob("**/*.md"))) if path.exists()]


def render(text: str, results: Path) -> str:
    """`text` with every marked place filled from `results`."""

    def fill(match: re.Match[str]) -> str:
        opening, name, line, _, closing = match.groups()
        body = figures(results / f"{SOURCES.get(name, name)}.json", bool(line), OTHER_VIEWS.get(name))
        return opening + (body if line else f"\n{body}\n") + closing

    return MARKED.sub(fill, text)


def figures(path: Path, line: bool, view: str | None = None) -> str:
    """The table of one result, or its sentence; `view` names another view than that of its schema."""
    if path.with_suffix("").is_dir():
        return _side_by_side(path.with_suffix(""))
    if not path.exists():
        return f"(not measured yet: {path.name})"
    record = json.loads(path.read_text(encoding="utf-8"))
    table, sentence = VIEWS[view or record["schema"]]
    return sentence(record) if line else f"{table(record)}\n\n{origin(record, path)}"


def _side_by_side(folder: Path) -> str:
    """The table of a folder of runs, one for each engine."""
    records = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    told = origin(records[0], folder).replace(
        f"`benchmarks/results/{folder.name}`", f"`benchmarks/results/{folder.name}/`"
    )
    return f"{instrument_tables.engines_table(table, records)}\n\n{told}"


def origin(record: Record, path: Path) -> str:
    """Where a result comes from: labels, machine, software, load, commit and file."""
    provenance = record["provenance"]
    machine, versions, git = provenance["machine"], provenance["versions"], provenance["git"]
    device = machine["gpu"] or "CPU only"
    software = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    loads = [provenance.get("load_before"), provenance.get("load_after")]
    busy = " and ".join(f"{load[0]:g}" for load in loads if load)
    parts = [
        "; ".join(labels(record)),
        f"{machine['cpu']}, {machine['cores_usable']} cores, {device}",
        software,
        f"load average before and after: {busy}" if busy else "",
        provenance["date_utc"][:10],
        f"commit {git['commit'][:9]}{' with changes' if git['changed'] else ''}" if git else "",
        "" if record.get("complete", True) else "**stopped early**",
        f"`benchmarks/results/{path.name}`",
    ]
    return f"<sub>{'. '.join(part for part in parts if part)}.</sub>"


def labels(record: Record) -> list[str]:
    """What is special about a result, but for the device, which `origin` names."""
    arms = record["arms"] if record["schema"].startswith("paceline-bench/") and "arms" in record else []
    engines = [record.get("engine", {}), *(arm["details"] for arm in arms)]
    targets = [engine.get("decisions", {}).get("target", "") for engine in engines]
    embedded = any("'embedded'" in target for target in targets)
    made = ["embedded miniature, trained for tests; real prompts"] if embedded else []
    return made + [label for label in record["labels"] if label != "CPU"]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def speed(ratio: float | None, interval: Sequence[float] | None) -> str:
    """A speed-up with its 95% interval."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def bench_table(record: Record) -> str:
    """A report of `paceline bench`: overall, by temperature and by category."""
    summary = record["summary"]
    blocks = [("all", summary)]
    blocks += [(f"temperature {float(name):g}", block) for name, block in summary["by_temperature"].items()]
    blocks += list(summary["by_category"].items())
    rows = [
        (name, speed(b["speedup"], b["speedup_ci95"]), number(b["acceptance_length"]),
         number(b["equal_outputs"], ".0%"), str(b["prompts"]), str(b["pairs"]))
        for name, b in blocks
    ]  # fmt: skip
    rows.append(("off against off (noise)", speed(summary["off_vs_off"], summary["off_vs_off_ci95"]), "", "", "", ""))
    shown = table(("", "speed-up (95%)", "tokens a round", "same text", "prompts", "pairs"), rows)
    rates = summary["tokens_per_s"]
    at = f"k = {length_of(record)}; {number(rates['off'], '.0f')} tokens/s off, {number(rates['on'], '.0f')} on."
    return f"{shown}\n\n{at}"


def bench_line(record: Record) -> str:
    """The outcome of `paceline bench` in a sentence."""
    s = record["summary"]
    return (
        f"{speed(s['speedup'], s['speedup_ci95'])} on {s['prompts']} prompts at k = {length_of(record)}, with"
        f" {number(s['acceptance_length'])} tokens a round and the same text in {number(s['equal_outputs'], '.0%')}"
        f"{_at_once(s.get('by_concurrency', {}))}"
    )


def _at_once(blocks: Record) -> str:
    """What is left with several requests in flight."""
    more = [
        f"; with {count} requests at once {speed(block['speedup'], block['speedup_ci95'])}"
        for count, block in blocks.items()
        if count != "1"
    ]
    return "".join(more)


def peer_table(record: Record) -> str:
    """Paceline beside Transformers: tokens a second of the four arms, then the speed-ups."""
    s = record["summary"]
    arms = [
        (ARM_NAMES[arm], number(own["tokens_per_s"], ".1f"), number(own["tokens_per_round"]))
        for arm, own in s["arms"].items()
    ]
    ratios = [(_versus(name), speed(r["ratio"], r["ci95"])) for name, r in s["speedups"].items()]
    equal, gap = s["equal_texts"]["paceline_vs_transformers"], s["largest_gap_at_a_divergence"]
    note = f"Same tokens from both engines: {equal:.0%} of {s['prompts']} prompts."
    if gap is not None:
        note += f" Where they part, Transformers' two best logits differ by at most {gap:.1g}."
    left = f"Speed-ups are on the {s['prompts_with_equal_texts']} prompts that all four arms answered alike."
    threads = (
        f"Whole calls; k = {s['k']}; Transformers in float32 with its faster thread count, {s['transformers_threads']}."
    )
    first = table(("", "tokens/s", "tokens a round"), arms)
    return "\n\n".join([first, table(("", "speed-up (95%)"), ratios), f"{note} {left} {threads}"])


def _versus(name: str) -> str:
    fast, slow = name.split("_over_")
    return f"{ARM_NAMES[fast]} over {ARM_NAMES[slow]}"


def peer_line(record: Record) -> str:
    """The outcome beside Transformers in a sentence."""
    s = record["summary"]
    both = s["speedups"]["paceline_mtp_over_transformers_mtp"]
    equal = s["equal_texts"]["paceline_vs_transformers"]
    return (
        f"{speed(both['ratio'], both['ci95'])} of Transformers' speed, both with the drafter, and the same tokens on"
        f" {equal:.0%} of {s['prompts']} prompts"
    )


def memory_table(record: Record) -> str:
    """Peak memory and time of loading."""
    rows = [
        (f"{r['dtype']}, page cache {r['page_cache']}", f"{r['weights_bytes'] / 1e9:.2f} GB",
         f"{r['cache_bytes'] / 1e6:.1f} MB", f"{r['ratio']:.2f}", f"{r['load_s']:.1f} s",
         f"{r['load_gb_per_s']:.2f} GB/s")
        for r in record["summary"]["runs"]
    ]  # fmt: skip
    return table(("", "weights", "cache", "peak / (weights + cache)", "load", "speed"), rows)


def memory_line(record: Record) -> str:
    """The worst run in a sentence."""
    worst = max(record["summary"]["runs"], key=lambda run: run["ratio"])
    return f"peak memory {worst['ratio']:.2f} of weights and cache ({worst['weights_bytes'] / 1e9:.1f} GB of weights)"


def rows_table(record: Record) -> str:
    """Bits of a row, then microseconds of one row and of a verification's rows, cold."""
    s = record["summary"]
    equal = [
        (_kernel(b), f"{e['equal']} of {e['calls']}", f"{e['greatest_difference']:.1g}")
        for b, e in s["equal_rows"].items()
    ]
    first = table(("", "calls whose rows have the bits they have alone", "greatest difference"), equal)
    cells = {(c["shape"], c["rows"], c["backend"]): c for c in s["cells"] if c["cold"]}
    keys = dict.fromkeys((shape, n) for shape, n, _ in cells if n in SHOWN_ROWS)
    times = [
        (f"{shape}, {n} row{'s' * (n > 1)}", *(_time(cells[shape, n, backend]) for backend in s["equal_rows"]))
        for shape, n in keys
    ]
    second = table(("microseconds, cold caches", *map(_kernel, s["equal_rows"])), times)
    share = f"In brackets: weight bytes a second as a share of copying ({s['copy_bytes_per_s'] / 1e9:.0f} GB/s)."
    return "\n\n".join([first, second, share])


def _kernel(backend: str) -> str:
    engine, dtype = backend.rsplit("_", 1)
    return f"{ {'torch': 'PyTorch', 'paceline': 'Paceline'}[engine] } {dtype}"


def _time(cell: Record) -> str:
    return f"{cell['microseconds']:.0f} ({cell['share_of_copy']:.0%})"


def rows_line(record: Record) -> str:
    """The bits in a sentence."""
    e = record["summary"]["equal_rows"]
    ours, theirs = e["paceline_f32"], e["torch_f32"]
    return (
        f"rows keep their bits in {ours['equal']} of {ours['calls']} calls of Paceline's kernel and in"
        f" {theirs['equal']} of {theirs['calls']} of PyTorch's (float32)"
    )


def near_ties_table(record: Record) -> str:
    """For each limit, how many places it takes for near ties, and how many changes of the likeliest token it covers."""
    s = record["summary"]
    rows = [
        (f"{limit} nats", f"{share:.1%}", f"{s['flips_within'][limit]} of {s['flips']}")
        for limit, share in s["places_within"].items()
    ]
    return f"{table(('within', 'of all places', 'of those where the likeliest token changed'), rows)}\n\n{_spread(s)}"


def near_ties_line(record: Record) -> str:
    """The same in a sentence."""
    return _spread(record["summary"])


def _spread(s: dict[str, Any]) -> str:
    apart = s["rows_apart_nats"]
    return (
        f"The distance of the two likeliest logits moved by {apart['median']:.2g} in the median, {apart['p99']:.2g} at"
        f" the 99th percentile, {apart['most']:.2g} at most, over {s['places']} places."
    )


VIEWS: dict[str, tuple[Callable[[Record], str], Callable[[Record], str]]] = {
    "paceline-bench/1": (bench_table, bench_line),
    "paceline-bench/2": (bench_table, bench_line),
    "paceline-vs-transformers/1": (peer_table, peer_line),
    "paceline-memory/1": (memory_table, memory_line),
    "paceline-rows/1": (rows_table, rows_line),
    "paceline-near-ties/1": (near_ties_table, near_ties_line),
    **controller_tables.views(table, speed),
    **gpu_tables.views(table),
    **advisor_tables.views(table),
    **sampling_tables.views(table),
    **instrument_tables.views(table),
}


def stale(root: Path, results: Path) -> list[Path]:
    """The documents whose figures are not those of the results."""
    return [path for path in documents(root) if (text := path.read_text("utf-8")) != render(text, results)]


def main() -> None:
    """Rewrites the documents, or only says which are stale."""
    parser = argparse.ArgumentParser(description="Writes measured figures into the documents.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is stale")
    flags = parser.parse_args()
    for path in (old := stale(REPOSITORY, RESULTS)):
        if not flags.check:
            path.write_text(render(path.read_text("utf-8"), RESULTS), "utf-8")
        print(f"{path.relative_to(REPOSITORY)} {'is stale' if flags.check else 'rewritten'}", file=sys.stderr)
    sys.exit(bool(flags.check and old))


if __name__ == "__main__":
    main()
