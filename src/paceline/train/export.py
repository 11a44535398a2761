"""Writes a trained model as the hub lays it out, with how it was made beside it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from paceline.models.plan import Plan

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export(plan: Plan, folder: Path, config: dict[str, Any], generation: dict[str, Any]) -> None:
    """model.safetensors in bf16 (integers as they are), config.json and generation_config.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _stored(place.read(), place.shape) for name, place in plan.places.items()}
    scratch = folder / "model.safetensors.part"
    save_file(tensors, scratch, metadata={"format": "pt"})
    os.replace(scratch, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)


def _stored(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = tensor.detach().cpu().reshape(shape)
    return (tensor.bfloat16() if tensor.is_floating_point() else tensor).contiguous()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer's files, so that the checkpoint stands alone."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)


def provenance() -> dict[str, Any]:
    """The command, versions and machine of a training run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "command": ["paceline", *sys.argv[1:]],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
    }


def write_json(path: Path, data: Any) -> None:
    """Indented JSON, replaced in one move."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(scratch, path)
