"""Puts a model on the device: target, drafter, cache and places, from a checkpoint or from random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paceline.config import DrafterConfig, TextConfig
from paceline.device.cache import BatchCache
from paceline.device.drafters import DeviceDrafter, MtpDraft, quantize_drafter
from paceline.device.round import DeviceModel, Places
from paceline.kernels.cuda import CudaOps
from paceline.kernels.gpu.accept import Ending
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.models.plan import Plan
from paceline.models.random import fill_random


@dataclass(frozen=True, kw_only=True)
class Room:
    """What is set aside: `places` sequences at once, of at most `context` tokens each, `capacity` tokens together."""

    places: int = 1
    context: int = 4096
    capacity: int | None = None


def device_model(
    target: Target, drafter: DeviceDrafter | None, room: Room, ending: Ending, suppressed: tuple[int, ...] = ()
) -> DeviceModel:
    """A model with its cache and idle places on the target's device."""
    ops = target.ops
    assert isinstance(ops, CudaOps)
    cache = BatchCache(target.config, ops, room.places, room.context, room.capacity)
    places = Places.create(room.places, target.config.hidden, ops.dtype, ops.device)
    ids = torch.tensor(suppressed, dtype=torch.int32, device=ops.device) if suppressed else None
    return DeviceModel(target, drafter, cache, places, ending, ids)


def random_pair(
    target: TextConfig, drafter: DrafterConfig | None, ops: CudaOps, seed: int = 0
) -> tuple[Target, MtpDrafter | None]:
    """A target and its drafter with random weights, made on the device: for timing and for tests, never for text."""
    plan = Plan(ops, lambda name: ops.dtype)
    model = Target(target, plan)
    fill_random(plan, seed)
    if drafter is None:
        return model, None
    own = Plan(ops, lambda name: ops.dtype)
    small = MtpDrafter(drafter, target, own)
    fill_random(own, seed + 1)
    return model, small


def random_model(
    target: TextConfig,
    drafter: DrafterConfig | None,
    room: Room,
    survival: tuple[float, ...] | None = None,
    int8: tuple[bool, bool] = (False, False),
) -> DeviceModel:
    """A whole model of random weights. `survival` replaces the comparison of drafts by chance, for timing.

    int8: whether the drafter's (head, body) are kept in int8.
    """
    ops = CudaOps()
    model, small = random_pair(target, drafter, ops)
    if small:
        quantize_drafter(small, *int8)
    draft = MtpDraft(small, model, room.context + 16) if small else None
    ends = torch.zeros(0, dtype=torch.int64, device=ops.device)
    chance = None if survival is None else torch.tensor(survival, dtype=torch.float32, device=ops.device)
    return device_model(model, draft, room, Ending(ends, chance))
