"""Random weights for timing a model without its checkpoint: the right sizes, sane activations, meaningless text."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paceline.models.plan import Place, Plan

# Tensors are made and put in place part by part: a whole one beside the model, and in fp32, could be the one too many.
PART_ELEMENTS = 64 << 20
ONES = ("layer_scalar", "router.scale", "router.per_expert_scale")
# The residual stream holds the embedding it began with, and the head is tied to that: with positive weights here, the
# likeliest next token would be the last one again, and rows of equal tokens would all choose the same experts.
FINAL_NORM = "model.norm.weight"


def fill_random(plan: Plan, seed: int) -> None:
    """Fills every weight of `plan` in the dtypes it was built with; equal seeds and devices give equal weights.

    Matrices are normal with standard deviation 1/sqrt(columns), so that a row of unit size keeps its size; norms lie
    around 1, scales are 1, and a centroid head's clusters are a random permutation. Different tokens then choose
    experts almost independently. Values are made where the model is: on its device, or in the host's memory.
    """
    generator = torch.Generator(device_of(plan)).manual_seed(seed)
    for name, place in plan.places.items():
        if len(place.shape) == 1:
            place.write(_vector(name, place.shape[0], generator), 0)
        else:
            _fill_matrix(place, plan.dtype_of(name), generator)


def device_of(plan: Plan) -> torch.device:
    """Where the model lies: its first matrix's device, or the host's memory where a backend holds no tensors."""
    held = (getattr(weight, "tensor", None) for weight in plan.matrices)
    return next((tensor.device for tensor in held if isinstance(tensor, Tensor)), torch.device("cpu"))


def _fill_matrix(place: Place, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Parts along the first axis, which is rows, or experts where they are stored as one tensor."""
    entries, *inner = place.shape
    step = max(1, PART_ELEMENTS // math.prod(inner))
    for start in range(0, entries, step):
        part = torch.empty(min(step, entries - start), *inner, dtype=dtype, device=generator.device)
        place.write(part.normal_(std=inner[-1] ** -0.5, generator=generator), start)


def _vector(name: str, size: int, generator: torch.Generator) -> Tensor:
    if name.endswith("token_ordering"):
        return torch.randperm(size, generator=generator, device=generator.device)
    if name.endswith(ONES):
        return torch.ones(size, device=generator.device)
    norm = 1 + 0.1 * torch.randn(size, generator=generator, device=generator.device)
    if name == FINAL_NORM:
        norm *= 2 * torch.randint(0, 2, (size,), generator=generator, device=generator.device) - 1
    return norm
