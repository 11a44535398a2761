"""Checkpoint folders in the hub's layout -> models. Strict at both ends: every tensor has a home, every home a tensor.

Shapes and names are checked from the files' headers before anything is loaded; tensors then stream in one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paceline.config import DrafterConfig, TextConfig, read_drafter, read_json, read_target
from paceline.errors import CheckpointError
from paceline.kernels import Ops
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter, check_pair
from paceline.models.plan import Plan

# Parts of the checkpoint that a text prompt never runs.
TOWERS = (
    "model.vision_tower.",
    "model.audio_tower.",
    "model.embed_vision.",
    "model.embed_audio.",
    "model.vision_embedder.",  # 12B
)
# Files are mapped, and mapped pages count as used memory until the file is closed: reopen it this often.
REOPEN_BYTES = 64 << 20
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}


@dataclass(frozen=True)
class Header:
    """What a safetensors header says of one tensor."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def load_target(folder: Path, ops: Ops) -> Target:
    """The target in `folder` on a backend. Raises CheckpointError or ConfigError with the file and key at fault."""
    config = read_target(folder)
    headers = read_headers(folder, lambda name: target_name(name, config))
    plan = Plan(ops, lambda name: _dtype(headers, name, folder))
    target = Target(config, plan)
    fill(plan, headers, folder)
    return target


def load_drafter(folder: Path, target: TextConfig, ops: Ops) -> MtpDrafter:
    """The MTP drafter in `folder`, refused if it does not belong to `target`."""
    config = read_drafter(folder)
    check_pair(config, target)
    headers = read_headers(folder, lambda name: None if name == "lm_head.weight" else name)
    plan = Plan(ops, lambda name: _dtype(headers, name, folder))
    drafter = MtpDrafter(config, target, plan)
    fill(plan, headers, folder)
    _check_ordering(drafter, config, folder)
    return drafter


def target_name(stored: str, config: TextConfig) -> str | None:
    """The canonical name of a stored tensor, or None where a rule says that text does not need it."""
    if stored.startswith(TOWERS) or stored == "lm_head.weight":  # the head is tied to the embedding
        return None
    name = stored.replace("model.language_model.", "model.", 1)
    shared = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight", name)
    # E2B's and E4B's files still carry the keys' and values' weights of layers that use another layer's.
    if shared and int(shared[1]) < len(config.layers) and not config.owns_kv(int(shared[1])):
        return None
    return name


def read_headers(folder: Path, rename: Callable[[str], str | None]) -> dict[str, Header]:
    """Canonical name -> header for every tensor that `rename` does not drop."""
    headers: dict[str, Header] = {}
    for file in shard_files(folder):
        with _open(file) as shard:
            for stored in shard.keys():  # noqa: SIM118  # not a dict
                name = rename(stored)
                if name is None:
                    continue
                part = shard.get_slice(stored)
                kind = part.get_dtype()
                if kind not in DTYPES:
                    raise CheckpointError(f"{file}: {stored} is stored as {kind}; Paceline reads {', '.join(DTYPES)}")
                headers[name] = Header(file, stored, tuple(part.get_shape()), DTYPES[kind])
    return headers


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or those its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not index.exists():
        if not single.exists():
            raise CheckpointError(f"{single} is missing, and there is no {index.name} either; download it again")
        return [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty; download it again")
    files = [folder / name for name in sorted(set(weight_map.values()))]
    absent = [file for file in files if not file.exists()]
    if absent:
        raise CheckpointError(f"{absent[0]} is named by {index.name} but missing; download it again")
    return files


def fill(plan: Plan, headers: dict[str, Header], folder: Path) -> None:
    """Loads every tensor into its place, after checking that names and shapes match exactly."""
    missing = sorted(set(plan.places) - set(headers))
    extra = sorted(set(headers) - set(plan.places))
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensor(s), first {missing[0]}; download it again")
    if extra:
        where = headers[extra[0]]
        raise CheckpointError(
            f"{where.file}: {where.stored_name} has no place in this model ({len(extra)} such tensors)"
        )
    for name, place in plan.places.items():
        if headers[name].shape != place.shape:
            found = f"{list(headers[name].shape)}, its config.json asks for {list(place.shape)}"
            raise CheckpointError(f"{headers[name].file}: {headers[name].stored_name} has shape {found}")
    for name, tensor in stream(headers):
        plan.places[name].write(tensor)


def stream(headers: dict[str, Header]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor once, file by file, never keeping more than about REOPEN_BYTES of a file mapped."""
    by_file: dict[Path, list[str]] = {}
    for name, header in headers.items():
        by_file.setdefault(header.file, []).append(name)
    for file, names in by_file.items():
        while names:
            mapped = 0
            with _open(file) as shard:
                while names and mapped < REOPEN_BYTES:
                    name = names.pop(0)
                    tensor = shard.get_tensor(headers[name].stored_name)
                    mapped += tensor.nbytes
                    yield name, tensor
                    del tensor


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error}); download it again") from None


def _dtype(headers: dict[str, Header], name: str, folder: Path) -> torch.dtype:
    if name not in headers:
        raise CheckpointError(f"{folder} lacks the tensor {name}; download it again")
    return headers[name].dtype


def _check_ordering(drafter: MtpDrafter, config: DrafterConfig, folder: Path) -> None:
    if config.centroids is None:
        return
    ids = drafter.ops.tensor(drafter.clusters).flatten().sort().values
    if not torch.equal(ids, torch.arange(config.text.vocab)):
        raise CheckpointError(f"{folder}: masked_embedding.token_ordering is not a permutation of the vocabulary")
