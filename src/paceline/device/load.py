"""Loads a checkpoint pair onto a GPU, after checking that there is one and that it all fits."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from paceline.available import check_device
from paceline.cache import MAX_TENTATIVE
from paceline.config import read_drafter, read_target
from paceline.device.build import device_model
from paceline.device.drafters import MtpDraft, quantize_drafter
from paceline.device.engine import DeviceEngine
from paceline.device.memory import Need, choose_room, held_bytes, within_memory
from paceline.device.pilot import first_pilot
from paceline.device.serve import DeviceServer
from paceline.kernels.cuda import CudaOps
from paceline.kernels.gpu.accept import Ending
from paceline.resolve import Resolved
from paceline.roofline import int8_saved
from paceline.structure import Ids, Structure
from paceline.weights import drafter_headers, load_drafter, load_target, target_headers

SMALLER = "ask for a shorter context or fewer sequences"


def load_server(resolved: Resolved, tokenizer: Tokenizer | None) -> DeviceServer:
    """The pair on the device, with room for its sequences. A load that fails gives back what it took.

    tokenizer: what grammars are compiled for.
    """
    check_device()
    return within_memory(lambda: _load(resolved, tokenizer), SMALLER)


def _load(resolved: Resolved, tokenizer: Tokenizer | None) -> DeviceServer:
    room = choose_room(_need(resolved), torch.cuda.mem_get_info()[0])
    ops = CudaOps(dtype=resolved.dtype or torch.bfloat16)
    target = load_target(resolved.target, ops)
    draft = None
    if isinstance(resolved.drafter, Path):
        back = int(resolved.draft_position == "n-1")
        small = load_drafter(resolved.drafter, target.config, ops)
        quantize_drafter(small, *resolved.int8)
        draft = MtpDraft(small, target, room.context + MAX_TENTATIVE, back)
    end_ids = frozenset(resolved.generation.eos_ids or target.config.eos_ids)
    ending = Ending(torch.tensor(sorted(end_ids), dtype=torch.int64, device=ops.device))
    model = device_model(target, draft, room, ending, resolved.generation.suppress)
    pilot = first_pilot(target.config, small.config) if draft else None
    structure = Structure(tokenizer, Ids(target.config.vocab, end_ids, resolved.generation.suppress))
    return DeviceServer(DeviceEngine(model, pilot=pilot), end_ids, structure)


def _need(resolved: Resolved) -> Need:
    """What the pair takes, from the headers of its files."""
    config, width = read_target(resolved.target), (resolved.dtype or torch.bfloat16).itemsize
    weights = held_bytes(target_headers(resolved.target, config), width)
    if isinstance(resolved.drafter, Path):
        weights += held_bytes(drafter_headers(resolved.drafter), width)
        weights -= round(sum(int8_saved(read_drafter(resolved.drafter), resolved.int8, width)))
    return Need(
        config=config, weights=weights, width=width, places=resolved.sequences, context=resolved.context
    )  # fmt: skip
