"""Checkpoint folders in the hub's layout -> models. Strict at both ends: every tensor has a home, every home a tensor.

Shapes and names are checked from the files' headers before anything is loaded; tensors then stream in part by part.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

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
# Files are read, not mapped: every mapped page costs a fault and counts as used memory, which for a single table of
# several gigabytes doubles it. Parts of this size stay in the last cache between reading and rearranging.
PART_BYTES = 16 << 20
PART_ROWS = 64  # parts of whole panels are rearranged fastest
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}


@dataclass(frozen=True)
class Header:
    """What a safetensors header says of one tensor; `offset` is where its bytes start in the file."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return self.dtype.itemsize * prod(self.shape[1:])


def load_target(folder: Path, ops: Ops) -> Target:
    """The target in `folder` on a backend. Raises CheckpointError or ConfigError with the file and key at fault."""
    config = read_target(folder)
    headers = target_headers(folder, config)
    plan = Plan(ops, lambda name: _dtype(headers, name, folder))
    target = Target(config, plan)
    fill(plan, headers, folder)
    return target


def load_drafter(folder: Path, target: TextConfig, ops: Ops) -> MtpDrafter:
    """The MTP drafter in `folder`, refused if it does not belong to `target`."""
    config = read_drafter(folder)
    check_pair(config, target)
    headers = drafter_headers(folder)
    plan = Plan(ops, lambda name: _dtype(headers, name, folder))
    drafter = MtpDrafter(config, target, plan)
    fill(plan, headers, folder)
    _check_ordering(drafter, config, folder)
    return drafter


def target_headers(folder: Path, config: TextConfig) -> dict[str, Header]:
    """The headers of all that a target's text needs, by canonical name."""
    return read_headers(folder, lambda name: target_name(name, config))


def drafter_headers(folder: Path) -> dict[str, Header]:
    """The headers of a drafter, by canonical name."""
    return read_headers(folder, lambda name: None if name == "lm_head.weight" else name)


def matrix_dtypes(headers: dict[str, Header]) -> dict[torch.dtype, Header]:
    """Every dtype that some matrix is stored in, with one that is. Vectors do not count: all backends hold fp32."""
    return {header.dtype: header for header in headers.values() if len(header.shape) > 1}


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
        stored, begin = _header(file)
        for stored_name, entry in stored.items():
            name = rename(stored_name)
            if name is None:
                continue
            kind = entry["dtype"]
            if kind not in DTYPES:
                raise CheckpointError(f"{file}: {stored_name} is stored as {kind}; Paceline reads {', '.join(DTYPES)}")
            shape, offset = tuple(entry["shape"]), begin + entry["data_offsets"][0]
            headers[name] = Header(file, stored_name, shape, DTYPES[kind], offset)
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
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map names something that is no file; download it again")
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
    for name, row, part in stream(headers):
        plan.places[name].write(part, row)


def stream(headers: dict[str, Header]) -> Iterator[tuple[str, int, Tensor]]:
    """Every tensor in parts along its first axis: (name, first row, rows). A part is overwritten by the next."""
    largest = max((header.row_bytes for header in headers.values()), default=0)
    buffer = torch.empty(max(PART_BYTES, largest), dtype=torch.uint8)
    in_order = sorted(headers.items(), key=lambda item: (item[1].file, item[1].offset))
    for file, group in itertools.groupby(in_order, key=lambda item: item[1].file):
        with file.open("rb") as data:
            for name, header in group:
                for row, count in _parts(header):
                    data.seek(header.offset + row * header.row_bytes)
                    room = buffer[: count * header.row_bytes]
                    if data.readinto(room.numpy().data) < len(room):
                        raise CheckpointError(f"{file} ends inside {header.stored_name}; download it again")
                    yield name, row, room.view(header.dtype).view(count, *header.shape[1:])


def _parts(header: Header) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the parts a tensor is read in."""
    rows = max(1, PART_BYTES // header.row_bytes)
    rows -= rows % PART_ROWS if rows > PART_ROWS else 0
    for start in range(0, header.shape[0], rows):
        yield start, min(rows, header.shape[0] - start)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """A file's header, once safetensors has found it to fit the file, and the offset at which the data begin."""
    try:
        with safe_open(file, framework="pt"), file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(length))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error}); download it again") from None
    header.pop("__metadata__", None)
    return header, 8 + length


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
