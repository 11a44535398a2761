"""Compiles Triton kernels for a GPU that is not there: wrappers are called on CPU tensors, nothing is launched.

Run in a process without TRITON_INTERPRET: kernels decide when they are defined whether they are interpreted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class _NoDevice:
    """A driver that knows its target and nothing else."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)  # Triton remembers a target for each device number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return divmod(self.target.arch, 10)


@contextmanager
def compile_only(capability: int = 90) -> Iterator[list[Any]]:
    """Every launch inside compiles instead; yields the list of compiled kernels (metadata, asm)."""
    from paceline.kernels.gpu import launch

    done: list[Any] = []
    real = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = real(self, *args, grid=grid, warmup=True, **kwargs)
        done.append(kernel)
        return kernel

    triton.runtime.driver.set_active(_NoDevice(capability))
    launch.pdl.cache_clear()
    JITFunction.run = run
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield done
    finally:
        JITFunction.run = real
        launch.pdl.cache_clear()
