"""Tensors stream in parts; whatever the size of a part, the same bytes arrive at the same rows."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paceline import weights
from paceline.errors import CheckpointError
from paceline.kernels import get_ops
from paceline.models.plan import Plan

TENSORS = {
    "matrix": torch.arange(200 * 7, dtype=torch.float32).view(200, 7).bfloat16(),
    "norm": torch.arange(150, dtype=torch.float32),
    "ids": torch.arange(90),
    "experts": torch.arange(5 * 3 * 4, dtype=torch.float32).view(5, 3, 4),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("size", [1, 100, 1000, 1 << 20])
def test_parts_join_to_the_tensors(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PART_BYTES", size)
    headers = weights.read_headers(folder, lambda name: name)
    found = {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items()}
    for name, row, part in weights.stream(headers):
        found[name][row : row + len(part)] = part
        assert part.nbytes <= max(size, headers[name].row_bytes)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_places_take_parts(folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PART_BYTES", 100)
    ops = get_ops(backend)
    headers = weights.read_headers(folder, lambda name: name)
    plan = Plan(ops, lambda name: headers[name].dtype)
    matrix, norm, ids = plan.matrix({"matrix": 200}, 7), plan.vector("norm", 150), plan.indices("ids", 90)
    experts = plan.stack("experts", 5, 3, 4)
    weights.fill(plan, headers, folder)
    rows = ops.tensor(ops.embed(matrix, ops.indices(range(200)), 1.0))
    assert torch.equal(rows, TENSORS["matrix"].float())
    assert torch.equal(ops.tensor(norm), TENSORS["norm"])
    assert torch.equal(ops.tensor(ids), TENSORS["ids"])
    for i, expert in enumerate(experts):
        assert torch.equal(ops.tensor(ops.embed(expert, ops.indices(range(3)), 1.0)), TENSORS["experts"][i])


def test_a_file_cut_short_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    headers = weights.read_headers(folder, lambda name: name)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        weights.read_headers(folder, lambda name: name)
    with pytest.raises(CheckpointError, match="ends inside"):
        list(weights.stream(headers))
