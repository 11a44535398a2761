"""The memory plan against the parts it is made of, and against sums worked out apart from this code."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paceline import roofline
from paceline.advisor import memory
from paceline.advisor.memory import PRECISIONS, Use, longest_context, plan
from paceline.device.memory import MARGIN_BYTES, Need
from paceline.shapes import SHAPES, drafter_config, target_config

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
    assert memory.drafter_bytes(drafter_config(size)) == pytest.approx(DRAFTER_FILE[size], abs=20_000)  # a header


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


def test_the_int8_head_is_a_copy_beside_dense_heads_only() -> None:
    with_copy = plan(target_config("31b"), drafter_config("31b"), 16, Use(int8_head=True))
    assert with_copy.draft_head == 262144 * (1024 + 4)
    assert plan(target_config("e2b"), drafter_config("e2b"), 16, Use(int8_head=True)).draft_head == 0
    without = plan(target_config("31b"), drafter_config("31b"), 16, Use(drafter=False, int8_head=True))
    assert without.drafter == without.draft_head == 0
