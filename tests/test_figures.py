"""The figures in the README and the docs are those of the result files."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme_table  # noqa: E402

from paceline.bench import record as files  # noqa: E402

BLOCK = {"speedup": 1.5, "speedup_ci95": [1.4, 1.625], "equal_outputs": 1.0, "acceptance_length": 2.25,
         "prompts": 6, "pairs": 12}  # fmt: skip
MEMORY = {"dtype": "bf16", "page_cache": "warm", "stored_bytes": 10**9, "weights_bytes": 2 * 10**9,
          "cache_bytes": 10**6, "ratio": 1.04, "load_s": 3.0, "load_gb_per_s": 0.7}  # fmt: skip
CELL = {"shape": "a", "rows": 1, "microseconds": 12.3, "weight_bytes_per_s": 1e9, "share_of_copy": 0.5}
EQUAL = {"equal": 15, "calls": 15, "greatest_difference": 0.0}
KERNELS = ("torch_f32", "paceline_f32")
OVER = {arm: {"ratio": 1.1, "ci95": [1.0, 1.2]} for arm in ("auto", "heuristic", "threshold")}
SUMMARIES: dict[str, dict[str, Any]] = {
    "paceline-bench/1": {
        **BLOCK, "k": 4, "off_vs_off": 1.01, "off_vs_off_ci95": None, "tokens_per_s": {"off": 100.0, "on": 150.0},
        "by_category": {"maths": BLOCK}, "by_temperature": {"0.0": BLOCK},
    },
    "paceline-vs-transformers/1": {
        "k": 4, "prompts": 6, "prompts_with_equal_texts": 5, "transformers_threads": 1,
        "equal_texts": {"paceline_vs_transformers": 5 / 6}, "largest_gap_at_a_divergence": 1e-5,
        "arms": {"paceline": {"tokens_per_s": 10.0, "tokens_per_round": 1.0}},
        "speedups": {"paceline_mtp_over_transformers_mtp": {"ratio": 8.0, "ci95": None}},
    },
    "paceline-memory/1": {"runs": [MEMORY]},
    "paceline-controller-cpu/1": {
        "workloads": {"chat": {"best": "k=3", "over_best": OVER, "over_plain": OVER, "thinking_share": 0.012,
                               "best_of_each": 1.04, "best_of_kinds": 1.03, "same_text": True}},
        "aims": {"one": {"reached": True}},
    },
    "paceline-controller-sim/1": {
        "all": {"stationary": {"figure": -0.01}, "mixed": {"figure": 0.07}, "plain": {"figure": -0.011},
                "changing: rounds": {"figure": 55, "within": 8, "changes": 9, "aim": 50}},
        "recorded": {"all": {"texts": 24, "best": "k=1", "auto": 1.07, "auto_over_plain": 1.08,
                             "best_k_of_each_text": 1.06, "clairvoyant": 1.46}},
    },
    "paceline-controller-gpu/1": {},
    "paceline-rows/1": {
        "equal_rows": dict.fromkeys(KERNELS, EQUAL), "copy_bytes_per_s": 2e9,
        "cells": [{**CELL, "backend": kernel, "cold": cold} for kernel in KERNELS for cold in (True, False)],
    },
    "paceline-near-ties/1": {
        "places": 200, "rows_apart_nats": {"median": 0.0625, "p99": 0.25, "most": 0.375}, "flips": 3,
        "places_within": {"0.25": 0.031, "0.5": 0.08}, "flips_within": {"0.25": 2, "0.5": 3},
    },
}  # fmt: skip
EXPECTED = {
    "paceline-bench/1": "| maths | 1.50x (1.40 to 1.62) | 2.25 | 100% | 6 | 12 |",
    "paceline-vs-transformers/1": "| Paceline with MTP over Transformers with MTP | 8.00x |",
    "paceline-memory/1": "| bf16, page cache warm | 2.00 GB | 1.0 MB | 1.04 | 3.0 s | 0.70 GB/s |",
    "paceline-controller-cpu/1": "| chat | k=3 | 1.10x (1.00 to 1.20) | 1.10x (1.00 to 1.20) |",
    "paceline-controller-sim/1": "| all | 24 | k=1 | 1.07x | 1.08x | 1.06x | 1.46x |",
    "paceline-controller-gpu/1": "| 31B | chat | k=8 |" + 3 * " 1.10x (1.00 to 1.20) |" + " 1.25x",
    "paceline-rows/1": "| a, 1 row | 12 (50%) | 12 (50%) |",
    "paceline-near-ties/1": "| 0.25 nats | 3.1% | 2 of 3 |",
}


CHAT = {"best": "k=8", "over_best": OVER["auto"], "over_plain": OVER["auto"], "heuristic": OVER["auto"],
        "best_of_each": 1.25, "drafts_a_round": 7.5, "thinking_share": 0.004, "stalled_share": 0.01,
        "stalled_share_auto": 0.02}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {  # what lies beside the summary
    "paceline-controller-gpu/1": {"sizes": {"31b": {"summary": {"chat": CHAT}, "aims": {"one": {"reached": True}}}}},
}


def write(folder: Path, schema: str, **more: Any) -> None:
    provenance = {**files.provenance(), "load_before": [0.5, 0.4, 0.3], "load_after": None}
    labels = ["CPU", "synthetic: made up"]
    data = {"schema": schema, "labels": labels, "provenance": provenance, "summary": SUMMARIES[schema]}
    data |= MORE.get(schema, {}) | more
    files.write_record(folder / "some_result.json", data)


@pytest.mark.parametrize("schema", SUMMARIES)
def test_a_result_is_filled_in_and_named(schema: str, tmp_path: Path) -> None:
    write(tmp_path, schema)
    text = (
        "<!-- figures:some_result -->stale figure<!-- /figures --> <!-- figures:some_result.line --><!-- /figures -->"
    )
    filled = readme_table.render(text, tmp_path)
    assert EXPECTED[schema] in filled
    assert "CPU only" in filled or files.machine()["gpu"]
    assert "synthetic: made up" in filled
    assert ("at most 1.0% of a workload's time, 2.0% of auto's" in filled) is (schema == "paceline-controller-gpu/1")
    assert "`benchmarks/results/some_result.json`" in filled
    assert "stale figure" not in filled
    assert "\n" not in filled.split("<!-- figures:some_result.line -->")[1]
    assert readme_table.render(filled, tmp_path) == filled


def test_an_early_end_and_a_missing_result_show(tmp_path: Path) -> None:
    write(tmp_path, "paceline-bench/1", complete=False)
    assert "**stopped early**" in readme_table.figures(tmp_path / "some_result.json", line=False)
    assert "not measured yet" in readme_table.figures(tmp_path / "other.json", line=True)


def test_the_embedded_pair_is_named(tmp_path: Path) -> None:
    write(tmp_path, "paceline-bench/1", engine={"decisions": {"target": "somewhere (asked for as 'embedded')"}})
    assert "embedded miniature" in readme_table.figures(tmp_path / "some_result.json", line=False)


def test_a_stale_document_is_found(tmp_path: Path) -> None:
    write(tmp_path, "paceline-memory/1")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- figures:some_result.line -->1.00<!-- /figures -->\n")
    assert readme_table.stale(tmp_path, tmp_path) == [readme]
    readme.write_text(readme_table.render(readme.read_text(), tmp_path))
    assert readme_table.stale(tmp_path, tmp_path) == []


def test_the_documents_say_what_was_measured() -> None:
    if not any(readme_table.MARKED.search(path.read_text("utf-8")) for path in readme_table.documents(ROOT)):
        pytest.skip("no figures in README.md or docs yet")
    stale = [str(path.relative_to(ROOT)) for path in readme_table.stale(ROOT, readme_table.RESULTS)]
    assert stale == [], "run: python benchmarks/readme_table.py"
