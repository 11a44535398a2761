"""The memory plan against the parts it is made of, and against sums worked out apart from this code."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import paceline
from paceline import roofline
from paceline.advisor import cpu_memory, memory
from paceline.advisor.memory import PRECISIONS, Use, longest_context, plan
from paceline.advisor.page import size_data
from paceline.config import DrafterConfig, TextConfig
from paceline.device.memory import MARGIN_BYTES, Need, held_bytes
from paceline.llm import LLM
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.models.plan import Plan
from paceline.shapes import SHAPES, drafter_config, target_config
from paceline.types import SamplingParams
from paceline.weights import Header

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import advisor_memory
import memory as memory_driver

GIB = 2**30
# GiB on a 24 GiB card, one text: weights with encoders, drafter in bf16, keys and values, at 32k and at 128k.
WORKED_OUT = {
    ("e2b", "bf16"): (9.9, 10.4), ("e4b", "bf16"): (15.6, 17.1), ("12b", "4.5 bit"): (7.9, 9.4),
    ("26b-a4b", "4.5 bit"): (15.1, 17.0), ("31b", "4.5 bit"): (20.5, 28.0),
}  # fmt: skip
# Parameters of a whole checkpoint, encoders of images and sound counted in.
WITH_ENCODERS = {
    "e2b": 5_123_178_979, "e4b": 7_996_157_418, "12b": 11_959_730_224, "26b-a4b": 25_805_936_206, "31b": 31_273_088_876,
}  # fmt: skip
DRAFTER_FILE = {"e2b": 157_565_344, "12b": 845_719_296}  # bytes of the published files


def compared(size: str, precision: str, context: int) -> float:
    """GiB of what the table above counts: no room to work in, no rotary tables, encoders included."""
    config, bits = target_config(size), PRECISIONS[precision]
    found = plan(config, drafter_config(size), bits, Use(context=context))
    encoders = (WITH_ENCODERS[size] - roofline.parameters(config).total) * bits / 8
    return (found.weights + found.kv_sliding + found.kv_full + encoders) / GIB


@pytest.mark.parametrize("case", WORKED_OUT, ids="-".join)
def test_sums_agree_with_those_worked_out_apart(case: tuple[str, str]) -> None:
    for context, wanted in zip((32768, 131072), WORKED_OUT[case], strict=True):
        assert compared(*case, context) == pytest.approx(wanted, rel=0.06)  # rings and pages keep one place idle


def test_that_tolerance_tells_precisions_apart() -> None:
    assert compared("31b", "8 bit", 32768) != pytest.approx(WORKED_OUT["31b", "4.5 bit"][0], rel=0.06)


@pytest.mark.parametrize("size", DRAFTER_FILE)
def test_drafters_take_what_their_files_take(size: str) -> None:
    drafter = drafter_config(size)
    stored = memory.drafter_bytes(drafter) - 2 * roofline.drafter_vectors(drafter)  # files keep norms in bf16 too
    assert stored == pytest.approx(DRAFTER_FILE[size], abs=20_000)  # a header


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize(("batch", "context"), [(1, 64), (1, 5000), (7, 40000)])
def test_the_plan_is_the_engines_own(size: str, batch: int, context: int) -> None:
    config = target_config(size)
    found = plan(config, drafter_config(size), 16, Use(batch=batch, context=context))
    cache = Need(config=config, weights=0).bytes(batch, context)
    assert found.kv_sliding + found.kv_full + found.rope == cache
    assert found.activations + found.graphs + found.margin == MARGIN_BYTES
    assert found.total == pytest.approx(found.weights + cache + MARGIN_BYTES)
    sliding, full = roofline.kv_per_token(config)
    assert found.kv_full == full * 64 * (batch * -(-context // 64) + 1)
    assert sliding > 0
    assert found.kv_sliding % sliding == 0


@pytest.mark.parametrize("size", ["e2b", "31b"])
def test_the_longest_context_fits_and_one_page_more_does_not(size: str) -> None:
    config, drafter, use = target_config(size), drafter_config(size), Use(batch=2)
    room = plan(config, drafter, 4.5, replace(use, context=20000)).total
    longest = longest_context(config, drafter, 4.5, use, room)
    assert longest == 20032 - 64 or longest == 20032
    assert memory.fits(plan(config, drafter, 4.5, replace(use, context=longest)), room) >= 0
    assert memory.fits(plan(config, drafter, 4.5, replace(use, context=longest + 65)), room) < 0
    assert longest_context(config, drafter, 4.5, use, 1e9) == 0
    assert longest_context(config, drafter, 4.5, use, 1e15) == config.max_positions


def test_the_int8_head_takes_the_place_of_dense_heads_only() -> None:
    def saved(size: str) -> float:
        stored, int8 = (plan(target_config(size), drafter_config(size), 16, Use(int8_head=on)) for on in (False, True))
        return stored.total - int8.total

    assert saved("31b") == 262144 * (1024 - 4)
    assert saved("e2b") == 0
    without = plan(target_config("31b"), drafter_config("31b"), 16, Use(drafter=False, int8_head=True))
    assert without.drafter == 0


# ---- weights, from the model's own files ----------------------------------------------------------------------------


def headers(plan: Plan) -> dict[str, Header]:
    """What a bf16 checkpoint of that model would say of its tensors."""
    integers = {"masked_embedding.token_ordering"}
    return {
        name: Header(Path("x"), name, place.shape, torch.int64 if name in integers else torch.bfloat16, 0)
        for name, place in plan.places.items()
    }


def built(config: TextConfig, drafter: DrafterConfig) -> tuple[Plan, Plan]:
    """Both models on a backend that stores nothing."""
    own, small = (cpu_memory.Counting().plan(torch.bfloat16) for _ in range(2))
    Target(config, own)
    MtpDrafter(drafter, config, small)
    return own, small


@pytest.mark.parametrize("size", SHAPES)
def test_weights_on_a_gpu_are_what_the_engine_counts_before_it_loads(size: str) -> None:
    config, drafter = target_config(size), drafter_config(size)
    own, small = built(config, drafter)
    found = plan(config, drafter, 16, Use())
    assert found.target == held_bytes(headers(own), 2)
    assert found.drafter == held_bytes(headers(small), 2)
    assert plan(config, drafter, 8, Use()).target < found.target < 2.0 * plan(config, drafter, 8, Use()).target


# ---- the CPU --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> LLM:
    """The embedded pair, after a text of 64 + 24 tokens with up to 5 drafts a round."""
    llm = LLM.from_pretrained("embedded")
    llm.generate([list(range(3, 67))], SamplingParams(max_tokens=24, ignore_eos=True), k=5)
    return llm


def test_the_embedded_pair_takes_what_is_planned_to_the_byte(pair: LLM) -> None:
    engine = pair.engine
    drafter: MtpDrafter = engine.drafter.model  # type: ignore[attr-defined]
    found = cpu_memory.arrays(engine.target.config, drafter.config, 64 + 24 + 5)
    assert found.target == memory_driver.weights_bytes(engine.target)
    assert found.drafter == memory_driver.weights_bytes(drafter)
    assert engine.storage is not None
    assert found.cache == engine.storage.nbytes
    assert cpu_memory.arrays(engine.target.config, drafter.config, 64 + 24 + 5 + 64).cache > engine.storage.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_cpu_plan_is_made_of_those_arrays(dtype: torch.dtype) -> None:
    config, drafter = target_config("e2b"), drafter_config("e2b")
    found = plan(config, drafter, 16, Use(context=5000, device="cpu"))
    arrays = cpu_memory.arrays(config, drafter, 5000 + 15)
    assert (found.target, found.drafter) == (arrays.target, arrays.drafter)
    assert found.kv_sliding + found.kv_full == arrays.cache
    assert plan(config, drafter, 16, Use(context=5000, batch=8, device="cpu")) == found  # one text after another
    assert cpu_memory.target_bytes(config, dtype) >= dtype.itemsize * roofline.parameters(config).total
    longest = longest_context(config, drafter, 16, Use(device="cpu"), found.total)
    assert 5000 - 64 <= longest <= 5000


def test_the_measured_peaks_are_within_3_percent_of_the_plan() -> None:
    folder = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
    record = json.loads((folder / "advisor_memory.json").read_text("utf-8"))
    assert any("embedded" in row["name"] for row in record["rows"])
    for row in record["rows"]:
        assert abs(row["planned_bytes"] / row["peak_bytes"] - 1) < 0.03, row["name"]
    assert advisor_memory.recorded_rows() == [row for row in record["rows"] if "embedded" not in row["name"]]


def test_the_embedded_pair_is_planned_from_its_files(pair: LLM) -> None:
    folder = Path(paceline.__file__).parent / "assets" / "pair"
    engine = pair.engine
    planned = advisor_memory.planned(folder, 64 + 24 + 5)
    arrays = memory_driver.weights_bytes(engine.target) + memory_driver.weights_bytes(engine.drafter.model)  # type: ignore[attr-defined]
    assert engine.storage is not None
    assert 1 < planned / (arrays + engine.storage.nbytes) < 1.1


@pytest.mark.parametrize("machine", ["cpu", "cuda"])
def test_the_pages_sums_are_the_plan(machine: str) -> None:
    from paceline.advisor.machines import Machine

    data = size_data("e4b", Machine(name="x", kind=machine, memory=1e12))["memory"]["bf16"]
    config, drafter = target_config("e4b"), drafter_config("e4b")
    for batch, context in ((1, 1), (3, 1000), (9, 70_000)):
        found = plan(config, drafter, 16, Use(batch=batch, context=context, device=machine))
        texts = batch if data["side_by_side"] else 1
        pages = texts * -(-(context + data["beyond"]) // 64) + data["spare_pages"]
        kv = pages * data["page"] + (texts + data["spare_rings"]) * data["ring"]
        rope = (context + 16) * data["rope_position"]
        assert data["weights"] + data["drafter"] + data["work"] + kv + rope == pytest.approx(found.total, rel=1e-9)
