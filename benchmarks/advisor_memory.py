"""Puts the advisor's memory plan for the CPU beside measured peaks of resident memory.

The embedded pair: a fresh process loads it and writes a text, which is the baseline (libraries, compiled kernels), then
loads it again and again, keeps all, and writes a text with each; the growth of the peak for each is what a pair takes.
E2B's layout: the peaks that benchmarks/memory.py recorded, above their imports.

    python benchmarks/advisor_memory.py    (half a minute; no GPU)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import memory
import torch

import paceline
from paceline.advisor import cpu_memory
from paceline.config import parse_text, read_drafter, read_target
from paceline.device.memory import rope_bytes

PAIR = Path(paceline.__file__).parent / "assets" / "pair"
PAIRS, PROMPT, ANSWER, DRAFTS = 12, 64, 64, 5
Row = dict[str, Any]


def planned(folder: Path, tokens: int) -> float:
    """Bytes that a bf16 pair in this folder takes with a cache of so many tokens, its tokenizer counted in."""
    config = read_target(folder / "target")
    found = cpu_memory.arrays(config, read_drafter(folder / "assistant"), tokens)
    tokenizer = cpu_memory.TOKENIZER_SHARE * (folder / "target" / "tokenizer.json").stat().st_size
    return found.target + found.drafter + found.cache + rope_bytes(config, tokens) + tokenizer


def grow_here() -> Row:
    """The growth of this process for each pair that is loaded and used, after one was."""
    from paceline.llm import LLM
    from paceline.types import SamplingParams

    def another() -> LLM:
        llm = LLM.from_pretrained("embedded")
        params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
        llm.generate([[3 + i % 1000 for i in range(PROMPT)]], params, k=DRAFTS)
        return llm

    common.set_threads(1)
    kept, peaks = [another()], [memory.resident()[1]]
    for _ in range(PAIRS):
        kept.append(another())
        peaks.append(memory.resident()[1])
    return {"peaks": peaks, "peak_bytes": (peaks[-1] - peaks[0]) / (len(kept) - 1)}


def embedded_row() -> Row:
    """The embedded pair, measured in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--grow"], stdout=subprocess.PIPE, text=True, check=True)
    grown = json.loads(done.stdout.splitlines()[-1])
    return {"name": "embedded pair, each of 12 more", "planned_bytes": planned(PAIR, PROMPT + ANSWER + DRAFTS), **grown}


def recorded_rows() -> list[Row]:
    """Every run of benchmarks/memory.py, which has no drafter and no tokenizer."""
    record = json.loads((common.RESULTS / "memory.json").read_text(encoding="utf-8"))
    return [recorded_row(run) for run in record["measurements"]]


def recorded_row(run: Row) -> Row:
    """One run: the plan from its config, and its peak above the imports."""
    config = parse_text(memory.config(run["layers"]), "config.json")
    dtype = memory.DTYPES[run["dtype"]][1]
    tokens = memory.PROMPT_TOKENS + memory.NEW_TOKENS
    arrays = cpu_memory.arrays(config, None, tokens, dtype)
    whole = arrays.target + arrays.cache + rope_bytes(config, tokens) + cpu_memory.CODE_BYTES
    return {"name": f"E2B's layout, {run['dtype']}, page cache {run['page_cache']}", "planned_bytes": whole,
            "peak_bytes": run["peak_bytes"]["generating"] - run["resident_bytes"]["imports"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "advisor_memory.json")
    parser.add_argument("--grow", action="store_true", help="measure in this process and print one JSON line")
    options = parser.parse_args()
    if options.grow:
        with torch.no_grad():
            print(json.dumps(grow_here()))
        return
    rows = [embedded_row(), *recorded_rows()]
    labels = ["CPU", "planned beside measured", "E2B's layout with random weights"]
    head = common.head("paceline-advisor-memory/1", labels, {"pairs": PAIRS})
    errors = {row["name"]: row["planned_bytes"] / row["peak_bytes"] - 1 for row in rows}
    common.write(options.out, {**head, "rows": rows, "summary": {"errors": errors}})


if __name__ == "__main__":
    main()
