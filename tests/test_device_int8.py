"""A drafter in int8: other guesses at most, the same text, and the bytes that are said."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from device_models import (
    CONTEXT,
    CUT,
    GREEDY,
    PAIRS,
    PROMPTS,
    Both,
    Recording,
    RecordingOnDevice,
    make,
    quick_interpreter,
    request,
    run,
)
from gpu import DEVICE

from paceline import roofline
from paceline.device.drafters import MtpDraft, quantize_drafter
from paceline.drafters import MtpDraft as HostMtpDraft
from paceline.kernels.cuda import CudaMatrix
from paceline.kernels.gpu.int8 import dequantised, quantize
from paceline.types import SamplingParams

PARTS = [("experts", (True, False)), ("experts", (False, True)), ("experts", (True, True)), ("sharing", (False, True))]


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch, quiet_torch: None) -> Iterator[None]:
    with quick_interpreter(monkeypatch):
        yield


def pair(name: str) -> Both:
    """A pair of this test's own, whose weights it may change."""
    torch.set_num_threads(1)
    with torch.no_grad():
        return make(PAIRS[name])


def texts(both: Both, params: SamplingParams) -> tuple[list[int], list[list[int]]]:
    """(text, drafts) of the device's own drafter, three a round."""
    device = RecordingOnDevice(both.mtp())
    (text,) = run(both.engine(device), request(PROMPTS[0], 5, 3, params))
    return text, device.drafts


@pytest.mark.parametrize(("name", "int8"), [("experts", (True, True)), ("sharing", (False, True))])
@pytest.mark.parametrize("params", [GREEDY, CUT])
def test_drafts_are_those_of_the_weights_it_stands_for(
    name: str, int8: tuple[bool, bool], params: SamplingParams
) -> None:
    both = pair(name)
    plain = both.plain(PROMPTS[0], params, 5)
    chosen = [both.host.drafter.head] * int8[0] + both.host.drafter.body
    for matrix in chosen:
        matrix.write(0, dequantised(quantize(matrix.tensor)))  # type: ignore[attr-defined]
    host = Recording(HostMtpDraft(both.host.drafter, both.host.target))
    quantize_drafter(both.device.drafter, *int8)
    assert both.write(host, PROMPTS[0], params, 3, 5) == plain
    text, drafts = texts(both, params)
    assert text == plain
    assert drafts[: len(host.drafts)] == host.drafts


@pytest.mark.parametrize("params", [GREEDY, CUT])
def test_spoiled_scales_spoil_drafts_only(params: SamplingParams) -> None:
    both = pair("experts")
    _, good = texts(both, params)
    quantize_drafter(both.device.drafter, True, True)
    generator = torch.Generator().manual_seed(1)
    for matrix in [both.device.drafter.head, *both.device.drafter.body]:
        assert isinstance(matrix, CudaMatrix)
        assert matrix.scales is not None
        matrix.scales *= torch.randn(matrix.rows, generator=generator).to(DEVICE)
    text, drafts = texts(both, params)
    assert drafts[0] != good[0]
    assert text == both.plain(PROMPTS[0], params, 5)


@pytest.mark.parametrize(("name", "int8"), PARTS)
def test_bytes_are_those_that_are_said(name: str, int8: tuple[bool, bool]) -> None:
    both, drafter = pair(name), PAIRS[name][1]
    plan = both.device.plans[1]
    before, wanted = plan.nbytes, sum(roofline.int8_saved(drafter, int8, 4))
    quantize_drafter(both.device.drafter, *int8)
    assert before - plan.nbytes == wanted > 0


def test_a_head_with_centroids_saves_nothing() -> None:
    assert roofline.int8_saved(PAIRS["sharing"][1], (True, False)) == (0, 0)


def test_the_stored_numbers_are_given_back() -> None:
    both = pair("experts")
    drafter = both.device.drafter
    held = [weakref.ref(m.tensor) for m in [drafter.head, *drafter.body]]  # type: ignore[attr-defined]
    quantize_drafter(drafter, True, True)
    MtpDraft(drafter, both.device.target, CONTEXT + 16)
    assert not any(ref() is not None for ref in held)


def test_a_quantised_weight_takes_no_new_numbers() -> None:
    matrix = CudaMatrix(4, 16, torch.float32, DEVICE)
    matrix.write(0, torch.ones(4, 16))
    matrix.quantize()
    numbers = matrix.tensor
    matrix.quantize()
    assert matrix.tensor is numbers
    with pytest.raises(AssertionError, match="is not written to"):
        matrix.write(0, torch.ones(4, 16))
