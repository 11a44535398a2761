"""The five published sizes: parameter counts to the last one, and short models of full width."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from paceline.config import FULL, SLIDING
from paceline.errors import UsageError
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter, check_pair
from paceline.models.plan import Plan
from paceline.shapes import SHAPES, drafter_config, shorten, size_of, target_config

# Text models without towers and without the key/value weights that sharing layers do not use; drafters with their
# token_ordering. Counted from the published configurations with Transformers.
TARGETS = {
    "e2b": 4_628_569_379,
    "e4b": 7_463_013_418,
    "12b": 11_907_350_320,
    "26b-a4b": 25_233_141_790,
    "31b": 30_697_345_340,
}
DRAFTERS = {
    "e2b": 77_731_332 + 262_144,
    "e4b": 78_517_764 + 262_144,
    "12b": 422_856_964,
    "26b-a4b": 419_711_236,
    "31b": 469_518_596,
}
KV_LAYERS = {"e2b": (13, 14), "e4b": (22, 23), "12b": (46, 47), "26b-a4b": (28, 29), "31b": (58, 59)}


@dataclass
class Size:
    """A weight of which only the size is known."""

    rows: int
    cols: int

    def read(self) -> torch.Tensor:
        raise AssertionError("nothing is held here")

    write = read


class CountingOps:
    """Enough of a backend to build a model on: it allocates no matrix."""

    def matrix(self, rows: int, cols: int, dtype: torch.dtype, table: bool = False) -> Size:
        return Size(rows, cols)

    def stack(self, count: int, rows: int, cols: int, dtype: torch.dtype) -> Size:
        return Size(count * rows, cols)

    def array(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def empty_plan() -> Plan:
    return Plan(CountingOps(), lambda _name: torch.bfloat16)  # type: ignore[arg-type]


def parameters(plan: Plan) -> int:
    return sum(math.prod(place.shape) for place in plan.places.values())


def test_there_are_five() -> None:
    assert list(SHAPES) == list(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_the_target_has_as_many_parameters_as_published(name: str) -> None:
    plan = empty_plan()
    Target(target_config(name), plan)
    assert parameters(plan) == TARGETS[name]


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_drafter_has_as_many_parameters_as_published(name: str) -> None:
    plan, target = empty_plan(), target_config(name)
    drafter = MtpDrafter(drafter_config(name), target, plan)
    assert parameters(plan) == DRAFTERS[name]
    assert len(plan.places) == (50 if drafter.config.centroids else 48)
    sliding, full = KV_LAYERS[name]
    assert drafter.kv_layers == [sliding, sliding, sliding, full]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layers", [1, 5, 6, 7, 12, 20, 30, 1000])
def test_a_short_model_keeps_widths_and_whole_periods(name: str, layers: int) -> None:
    whole = target_config(name)
    short = shorten(whole, layers)
    assert (short.hidden, short.vocab, short.experts, short.ple_dim) == (
        whole.hidden, whole.vocab, whole.experts, whole.ple_dim,
    )  # fmt: skip
    assert min(layers, len(whole.layers)) <= len(short.layers) <= len(whole.layers)
    kinds = [layer.kind for layer in short.layers]
    assert kinds == [layer.kind for layer in whole.layers][: len(kinds)]
    assert kinds[-1] == FULL
    check_pair(drafter_config(name), short)
    assert {short.layers[i].kind for i in short.kv_owners} == {SLIDING, FULL}
    assert (len(short.kv_owners) < len(short.layers)) == (len(whole.kv_owners) < len(whole.layers))


def test_a_short_model_shares_as_the_whole_one() -> None:
    short = shorten(target_config("e2b"), 15)
    assert [layer.kv_layer for layer in short.layers] == [0, 1, 2, 3, 4, *[3, 3, 3, 3, 4] * 2]
    assert [layer.intermediate for layer in short.layers] == [6144] * 5 + [12288] * 10
    assert len(shorten(target_config("e2b"), 1).layers) == 10
    assert len(shorten(target_config("31b"), 1).layers) == 6
    for name in SHAPES:
        assert shorten(target_config(name), 60) == target_config(name)


def test_a_short_model_can_be_built() -> None:
    plan, short = empty_plan(), shorten(target_config("e4b"), 12)
    target = Target(short, plan)
    assert (len(target.layers), target.last_owner) == (12, 5)
    assert MtpDrafter(drafter_config("e4b"), short, empty_plan()).kv_layers == [4, 4, 4, 5]


def test_a_size_is_known_by_its_layers() -> None:
    assert [size_of(target_config(name)) for name in SHAPES] == list(SHAPES)
    assert size_of(shorten(target_config("31b"), 12)) is None
    assert size_of(replace(target_config("e4b"), vocab=4096)) is None


def test_bad_input_is_one_sentence() -> None:
    for read in (target_config, drafter_config):
        with pytest.raises(UsageError, match="'27b'; choose e2b, e4b, 12b, 26b-a4b, 31b"):
            read("27b")
    with pytest.raises(UsageError, match="at least one layer, not 0"):
        shorten(target_config("31b"), 0)
