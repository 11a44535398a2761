"""The pure parts of the drivers in benchmarks/."""

import sys
from itertools import islice
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paceline.bench import record
from paceline.bench.prompts import BenchPrompt
from paceline.config import read_target
from paceline.kernels import get_ops
from paceline.weights import load_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import common
import controller_cpu as cpu
import memory
import rows
import vs_transformers as peer


def test_records_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    head = common.head("test/1", ["CPU"], {"target": str(Path.home() / "model"), "n": 1, "none": None})
    common.write(
        out,
        {
            **head,
            "summary": {"ok": True},
            "folder": str(tmp_path),
            "pair": str(Path(record.__file__).parents[1] / "pair"),
        },
    )
    text = out.read_text("utf-8")
    assert str(tmp_path) not in text
    assert '"~/model"' in text
    assert '"<paceline>/pair"' in text
    assert '"none":null' in text


# ---- beside Transformers --------------------------------------------------------------------------------------------


class Fake:
    """Answers `tokens`, two a round when drafting."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def answer(self, ids: list[int], draft: bool) -> peer.Answer:
        return peer.Answer(self.tokens, (len(self.tokens) - 1) // (1 + draft), 4 * draft)


def measured(other: list[int], count: int = 6) -> list[peer.Row]:
    ours, theirs = Fake([1, 2, 3, 4, 5]), Fake(other)
    engines = dict(zip(peer.ARMS, (ours, ours, theirs, theirs), strict=True))
    prompts = [(BenchPrompt(f"p{i}", "c", "text"), [1, 2]) for i in range(count)]
    return list(peer.measure(engines, prompts, peer.Options()))


def with_seconds(rows: list[peer.Row], **seconds: float) -> list[peer.Row]:
    from dataclasses import replace

    return [replace(row, seconds=seconds[row.arm]) for row in rows]


def test_every_arm_meets_every_prompt_and_all_orders_occur() -> None:
    assert {(row.prompt_id, row.arm) for row in measured([1])} == {(f"p{i}", a) for i in range(6) for a in peer.ARMS}
    assert len(set(islice(peer.arm_orders(0), 24))) == 24


def test_rounds_that_stalled_are_left_out_and_no_others() -> None:
    assert common.without_stalls([]) == (0.0, 0.0)
    assert common.without_stalls([1.0, 2.5, 1.0, 4.0]) == (8.5, 0.0)
    assert common.without_stalls([1.0, 1.0, 2.0, 60.0]) == (4.0, 60.0)


def test_ratios_of_sums_and_tokens_a_round() -> None:
    rows = with_seconds(
        measured([1, 2, 3, 4, 5]), paceline=2.0, paceline_mtp=1.0, transformers=8.0, transformers_mtp=6.0
    )
    summary = peer.summarise(rows, k=4)
    assert summary["prompts_with_equal_texts"] == summary["prompts"] == 6
    assert summary["speedups"]["paceline_mtp_over_paceline"] == {"ratio": 2.0, "ci95": [2.0, 2.0]}
    assert summary["speedups"]["paceline_mtp_over_transformers_mtp"]["ratio"] == 6.0
    assert summary["arms"]["paceline"]["tokens_per_round"] == 1.0
    assert summary["arms"]["paceline_mtp"] == {
        "tokens_per_s": 5.0, "tokens_per_round": 2.0, "tokens": 30, "seconds": 6.0
    }  # fmt: skip


def test_texts_that_differ_are_counted_and_left_out_of_ratios() -> None:
    summary = peer.summarise(measured([1, 2, 9, 4, 5]), k=4)
    assert summary["equal_texts"] == {
        "paceline_vs_transformers": 0.0, "paceline_mtp_vs_plain": 1.0, "transformers_mtp_vs_plain": 1.0
    }  # fmt: skip
    assert summary["speedups"]["paceline_over_transformers"] == {"ratio": None, "ci95": None}


def test_a_divergence_is_told_with_its_gap() -> None:
    engine: Any = SimpleNamespace(logits_after=lambda ids: torch.tensor([0.0, 1.0, 3.0, 2.5]))
    [found] = peer.divergences(measured([1, 2, 9], count=1), {"p0": [1, 2]}, engine)
    assert found == {
        "prompt_id": "p0", "token": 2, "paceline": 3, "transformers": 9, "top2": [2, 3], "top2_logit_gap": 0.5
    }  # fmt: skip
    assert peer.first_difference([1, 2], [1, 2, 3]) == 2


# ---- memory ---------------------------------------------------------------------------------------------------------


def small(_layers: int) -> dict[str, Any]:
    sizes = {"vocab_size": 128, "vocab_size_per_layer_input": 128, "hidden_size": 32, "intermediate_size": 48}
    heads = {"head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 8}
    return {**CONFIG(10), **sizes, **heads}


CONFIG = memory.config


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_the_checkpoint_loads_and_its_bytes_are_counted(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "config", small)
    monkeypatch.setattr(memory, "SHARD_BYTES", 20_000)
    stored = memory.write_checkpoint(tmp_path, 5, dtype)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    target = load_target(tmp_path, get_ops("cpu"))
    assert target.config == read_target(tmp_path)
    # Panels are padded, and norms are kept in fp32.
    assert stored <= memory.weights_bytes(target) < 1.6 * stored
    assert float(np.abs(target.norm).max()) < 1


def test_shards_hold_every_tensor_once() -> None:
    pieces = memory.pieces(small(10), 2)
    groups = list(memory.shards(pieces, 5000))
    assert [piece for group in groups for piece in group] == pieces
    assert all(len(group) == 1 or sum(p.nbytes for p in group) <= 5000 for group in groups)
    assert all(piece.nbytes == 2 * prod(piece.shape) for piece in pieces)


def test_the_ratio_is_peak_above_imports_over_what_is_held() -> None:
    run = {"weights_bytes": 90, "cache_bytes": 10, "load_s": 2.0, "resident_bytes": {"imports": 50},
           "peak_bytes": {"loading": 150, "generating": 170}}  # fmt: skip
    done = memory.with_ratio(run, stored_bytes=4 * 10**9)
    assert (done["ratio"], done["ratio_loading"], done["load_gb_per_s"]) == (1.2, 1.0, 2.0)


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_of_the_kernel_keep_their_bits() -> None:
    made = rows.products(rows.Shape("odd", 40, 100))
    found = rows.bits(rows.Shape("odd", 40, 100), made)
    assert all(entry["equal"] for entry in found if entry["backend"].startswith("paceline"))
    assert rows.equal_rows(found, "paceline_f32") == {"equal": 15, "calls": 15, "greatest_difference": 0.0}


def test_a_row_that_depends_on_the_others_is_noticed() -> None:
    def product(start: int, stop: int) -> torch.Tensor:
        return torch.arange(start, stop, dtype=torch.float32)[:, None] + (stop - start) * 0.5

    assert rows.same_bits(product, 1) == (True, 0.0)
    assert rows.same_bits(product, 3) == (False, 1.0)


def test_the_best_time_counts() -> None:
    name, cold = rows.SHAPES[0].name, True
    taken = [rows.Timing(name, "torch_bf16", 2, cold, seconds) for seconds in (3e-3, 1e-3, 2e-3)]
    [cell] = rows.summarise([], taken, 1e9)["cells"]
    assert cell["microseconds"] == pytest.approx(1000)
    assert cell["weight_bytes_per_s"] == pytest.approx(256 * 4096 * 2 / 1e-3)


# ---- the controller on the CPU --------------------------------------------------------------------------------------

WRITTEN = ("auto", "heuristic", "threshold", *(f"k={k}" for k in cpu.STATIC))


def timed(workload: str, seconds: dict[str, float], thinking_s: float = 0.0, other: bool = False) -> list[cpu.Row]:
    """Six prompts by every arm; an arm takes what `seconds` says, else 1 s."""
    return [
        cpu.Row(workload, f"p{i}", 0.0, arm, 0, seconds.get(arm, 1.0), thinking_s, 50, 20, 40, 30,
                i + (other and arm == "auto"))
        for i in range(6) for arm in WRITTEN
    ]  # fmt: skip


def test_the_best_fixed_length_is_the_best_in_hindsight() -> None:
    found = cpu.summarise(timed("chat", {"k=0": 2.0, "k=3": 0.8, "auto": 0.5}))["workloads"]["chat"]
    assert found["best"] == "k=3"
    assert found["over_best"]["auto"] == {"ratio": pytest.approx(1.6), "ci95": pytest.approx([1.6, 1.6])}
    assert found["best_of_each"] == pytest.approx(1.0)  # k = 3 is the best of each
    assert found["over_plain"]["auto"]["ratio"] == 4.0
    assert (found["drafts_a_round"], found["tokens_a_round"], found["same_text"]) == (2.0, 2.5, True)


def test_the_best_length_of_each_kind_is_one_for_all_its_texts() -> None:
    """Two kinds of two texts each: one is quicker with k = 1, one with k = 3, and a text of the first is not."""
    taken = {0.0: ({"k=1": 2.0, "k=3": 3.0}, {"k=1": 3.0, "k=3": 2.9}), 1.0: ({"k=1": 4.0, "k=3": 3.0},) * 2}
    rows = [
        cpu.Row("mixed", f"p{t}{i}", t, arm, 0, s.get(arm, 9.0), 0.0, 50, 20, 40, 30, i)
        for t, texts in taken.items() for i, s in enumerate(texts) for arm in WRITTEN
    ]  # fmt: skip
    found = cpu.summarise(rows)["workloads"]["mixed"]
    assert found["best"] == "k=3"
    assert found["best_of_kinds"] == pytest.approx(11.9 / (5.0 + 6.0))
    assert found["best_of_each"] == pytest.approx(11.9 / (2.0 + 2.9 + 6.0))


def test_aims_are_judged_by_the_worst_workload() -> None:
    rows = [row for name in (*cpu.STATIONARY, "mixed") for row in timed(name, {}, 0.001)]
    aims = cpu.summarise(rows)["aims"]
    assert aims["stationary, over the best k"]["reached"]
    assert not aims["mixed, over the best k"]["reached"]
    assert aims["thinking, share of decoding"] == {"figure": pytest.approx(0.001), "aim": 0.01, "reached": True}
    slow = cpu.summarise([*rows[:-1], *timed("hopeless", {"auto": 1.2, "k=0": 0.9})])["aims"]
    assert slow["anywhere, over k = 0"]["workload"] == "hopeless"
    assert not slow["anywhere, over k = 0"]["reached"]


def test_an_arm_with_another_text_shows() -> None:
    assert not cpu.summarise(timed("chat", {}, other=True))["workloads"]["chat"]["same_text"]


def test_workloads_interleave_and_change() -> None:
    prompts = [BenchPrompt(f"{kind}{i}", kind, "x") for kind in cpu.KINDS for i in range(9)]
    made = cpu.workloads(prompts, 9, 0)
    assert {len(tasks) for name, tasks in made.items() if name != "mixed"} == {9}
    assert len(made["mixed"]) == 27  # all of the three kinds
    assert [task.prompt.category for task in made["changing"]] == ["chat"] * 3 + ["code"] * 3 + ["chat"] * 3
    assert len({(task.prompt.category, task.temperature) for task in made["mixed"]}) > 5
    assert all(task.hopeless for task in made["hopeless"])
