"""Random weights: reproducible, of the right scale, made in parts, and good enough to run a model on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from paceline.cache import KVCache, Storage
from paceline.config import DrafterConfig, TextConfig, parse_drafter, parse_text
from paceline.kernels import Ops, get_ops
from paceline.models import random
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.models.plan import Plan
from paceline.models.random import device_of, fill_random
from paceline.shapes import SHAPES, shorten

pytestmark = pytest.mark.usefixtures("quiet_torch")

VOCAB = 256
SMALL: dict[str, Any] = {
    "global_head_dim": 32, "head_dim": 16, "hidden_size": 64, "intermediate_size": 96, "sliding_window": 8,
    "vocab_size": VOCAB,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "e2b": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB},
    "26b-a4b": {"moe_intermediate_size": 24, "num_experts": 8, "top_k_experts": 2},
    "31b": {},
}


def configs(name: str) -> tuple[TextConfig, DrafterConfig]:
    """A published shape with everything but its layers made small."""
    shape = SHAPES[name]
    body = {**shape.assistant["text_config"], **SMALL, "hidden_size": 48}
    head = {"backbone_hidden_size": 64, "num_centroids": 16, "centroid_intermediate_top_k": 4}
    target = parse_text({**shape.target, **SMALL, **EXTRA[name]}, name)
    return target, parse_drafter({**shape.assistant, **head, "text_config": body}, name)


def build(name: str, backend: str = "reference", seed: int = 0) -> tuple[Target, MtpDrafter, tuple[Plan, Plan]]:
    """A tiny target and drafter with random bf16 weights, and their plans."""
    ops: Ops = get_ops(backend)
    target_config, drafter_config = configs(name)
    plans = (Plan(ops, lambda _name: torch.bfloat16), Plan(ops, lambda _name: torch.bfloat16))
    target, drafter = Target(target_config, plans[0]), MtpDrafter(drafter_config, target_config, plans[1])
    for plan in plans:
        fill_random(plan, seed)
    return target, drafter, plans


def values(plans: tuple[Plan, Plan]) -> dict[str, torch.Tensor]:
    """Every tensor by name."""
    models = zip(("target", "drafter"), plans, strict=True)
    return {f"{model} {name}": place.read().clone() for model, plan in models for name, place in plan.places.items()}


def run(target: Target, drafter: MtpDrafter) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after a prompt of 20 tokens, and a draft step's scores."""
    cache = KVCache(Storage(target.config, target.ops, 64))
    hidden = target.prefill(list(range(3, 23)), cache)
    rows = drafter.rows(target, cache, cache.length)
    state, _ = drafter.step(target.embed(target.ops.indices([5])), hidden, rows, cache)
    scores, _ = drafter.logits(state)
    return target.ops.tensor(target.logits(hidden)), target.ops.tensor(scores)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", EXTRA)
def test_a_model_of_random_weights_runs(name: str, backend: str) -> None:
    target, drafter, _ = build(name, backend)
    for logits in run(target, drafter):
        assert logits.isfinite().all()
        assert 0.1 < logits.std() < 10


@pytest.mark.parametrize("name", EXTRA)
def test_equal_seeds_give_equal_weights(name: str) -> None:
    first, again, other = (values(build(name, seed=seed)[2]) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    same = {key for key in first if torch.equal(first[key], other[key])}
    assert same == {key for key in first if key.endswith(random.ONES)}


def test_both_backends_get_the_same_weights() -> None:
    ours, theirs = (run(*build("e2b", backend)[:2]) for backend in ("cpu", "reference"))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", EXTRA)
def test_every_weight_has_its_scale(name: str) -> None:
    for key, value in values(build(name)[2]).items():
        if key.endswith("token_ordering"):
            assert torch.equal(value.sort().values, torch.arange(VOCAB))
        elif key.endswith(random.ONES):
            assert (value == 1).all(), key
        elif value.ndim == 1:
            value = value.abs() if key.endswith(random.FINAL_NORM) else value
            assert abs(value.mean() - 1) < 0.6 * len(value) ** -0.5, key  # six standard deviations
            assert 0.03 < value.std() < 0.2, key
        else:
            scale = value.float().std() * value.shape[-1] ** 0.5
            assert value.dtype == torch.bfloat16
            assert 0.9 < scale < 1.1, key


@pytest.mark.parametrize("name", EXTRA)
def test_the_head_does_not_name_the_token_just_read(name: str) -> None:
    plan = Plan(get_ops("reference"), lambda _name: torch.bfloat16)
    target = Target(shorten(configs(name)[0], 1), plan)
    fill_random(plan, 0)
    standing = {"as filled": _own_logits(target)}
    target.norm.abs_()
    standing["positive"] = _own_logits(target)
    assert abs(standing["as filled"]) < 0.8 < 1.2 < standing["positive"]


def _own_logits(target: Target) -> float:
    """How far the logit of the token just read lies above the mean, in standard deviations, over 64 tokens."""
    chance = torch.Generator().manual_seed(3)
    cache, order = KVCache(Storage(target.config, target.ops, 64)), torch.randperm(VOCAB, generator=chance).tolist()
    own = []
    for start in range(0, 64, 16):
        tokens = order[start : start + 16]
        logits = target.logits(target.forward(tokens, cache))
        own.append(((logits - logits.mean(1, True)) / logits.std(1, keepdim=True))[range(16), tokens])
    return float(torch.cat(own).mean())


def test_no_part_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, parts = get_ops("reference"), list[int]()
    plan = Plan(ops, lambda _name: torch.bfloat16)
    Target(configs("26b-a4b")[0], plan)
    for name, place in plan.places.items():
        plan.places[name] = replace(place, write=lambda tensor, start: parts.append(tensor.numel()))
    monkeypatch.setattr(random, "PART_ELEMENTS", 4000)
    fill_random(plan, 0)
    assert sum(parts) == sum(math.prod(place.shape) for place in plan.places.values())
    assert max(parts) <= 4000  # every row and every expert is smaller than that here
    assert 8 * 24 * 64 not in parts  # a whole stack of experts is not


def test_values_are_made_where_the_model_is() -> None:
    reference, cpu = (Plan(get_ops(name), lambda _name: torch.bfloat16) for name in ("reference", "cpu"))
    for plan in (reference, cpu):
        assert device_of(plan).type == "cpu"
        plan.matrix({"a": 3}, 5)
    reference.matrices[0].tensor = torch.empty(3, 5, device="meta")  # type: ignore[attr-defined]
    assert device_of(reference).type == "meta"
    assert device_of(cpu).type == "cpu"
