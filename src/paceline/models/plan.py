"""Which tensor of a checkpoint goes where: filled while a model is built, used up while it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.kernels import Array, Matrix, Ops, Stack


@dataclass(frozen=True)
class Place:
    """A tensor's shape in the checkpoint, where it is put, and how it is read back for export.

    write(part, row) copies a part of the tensor that starts at index `row` of its first axis.
    """

    shape: tuple[int, ...]
    write: Callable[[Tensor, int], None]
    read: Callable[[], Tensor]


@dataclass
class Plan:
    """Builds a model's weights on one backend. `dtype_of` tells each tensor's stored dtype before it is loaded."""

    ops: Ops
    dtype_of: Callable[[str], torch.dtype]
    places: dict[str, Place] = field(default_factory=dict)
    matrices: list[Matrix] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    vectors: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.one: Array = self.ops.array(torch.ones(1))

    def matrix(self, parts: dict[str, int], cols: int, table: bool = False) -> Matrix:
        """One weight made of several tensors stacked: {name: rows}. Fusing them saves passes over the input."""
        first = next(iter(parts))
        weight = self.ops.matrix(sum(parts.values()), cols, self.dtype_of(first), table)
        self.matrices.append(weight)
        row = 0
        for name, rows in parts.items():
            self.places[name] = _matrix_place(weight, row, (rows, cols))
            row += rows
        return weight

    def vector(self, name: str, size: int, factor: float = 1.0) -> Array:
        """A norm weight or another small fp32 tensor [size], kept multiplied by `factor`."""
        array = self.ops.array(torch.zeros(size))
        self.vectors.append(array)
        self.places[name] = _array_place(self.ops, array, (size,), factor)
        return array

    def indices(self, name: str, size: int) -> Array:
        """An int64 tensor [size]."""
        array = self.ops.array(torch.zeros(size, dtype=torch.int64))
        self.places[name] = _array_place(self.ops, array, (size,))
        return array

    def stack(self, name: str, count: int, rows: int, cols: int) -> Stack:
        """`count` weights stored as one tensor [count, rows, cols]."""
        weights = self.ops.stack(count, rows, cols, self.dtype_of(name))
        self.stacks.append(weights)
        self.places[name] = Place((count, rows, cols), lambda tensor, start: weights.write(start, tensor), weights.read)
        return weights

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(m.nbytes for m in self.matrices) + sum(s.nbytes for s in self.stacks)


def _matrix_place(weight: Matrix, row: int, shape: tuple[int, int]) -> Place:
    return Place(shape, lambda tensor, start: weight.write(row + start, tensor), lambda: _rows(weight, row, shape[0]))


def _rows(weight: Matrix, row: int, rows: int) -> Tensor:
    tensor: Tensor = weight.tensor  # type: ignore[attr-defined]  # export runs on the reference backend
    return tensor.detach()[row : row + rows]


def _array_place(ops: Ops, array: Array, shape: tuple[int, ...], factor: float = 1.0) -> Place:
    def write(tensor: Tensor, start: int) -> None:
        array[start : start + len(tensor)] = ops.array(tensor if factor == 1.0 else tensor.float() * factor)

    def read() -> Tensor:
        return ops.tensor(array) if factor == 1.0 else ops.tensor(array) / factor

    return Place(shape, write, read)
