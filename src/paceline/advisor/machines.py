"""Machines by name, by figures, or the one at hand: memory, bandwidth and arithmetic, each with where it comes from."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from paceline.errors import UsageError

UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*([kmgt]i?b)?\s*(/s|ps)?\s*", re.IGNORECASE)
HERE = "this machine's CPU"
SIZE = re.compile(r"\d+gb")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """memory: bytes. bandwidth: bytes a second, None where unknown. flops: dense bf16 operations a second, or None.

    usable: the share of the memory a model may take, below 1 where a system shares it.
    """

    name: str
    kind: str
    memory: float
    bandwidth: float | None = None
    flops: float | None = None
    usable: float = 1.0
    source: str = "given by hand"

    @property
    def room(self) -> float:
        """Bytes that a model and its caches may take."""
        return self.memory * self.usable


@cache
def table() -> tuple[tuple[Machine, tuple[str, ...]], ...]:
    """Every known machine with its names, all of them plain (`plain`)."""
    text = files("paceline.advisor").joinpath("machines.json").read_text(encoding="utf-8")
    return tuple((_machine(row), tuple(plain(n) for n in (row["name"], *row["aliases"])))
                 for row in json.loads(text)["machines"])  # fmt: skip


def _machine(row: dict[str, object]) -> Machine:
    def number(key: str, unit: float) -> float | None:
        value = row[key]
        return float(value) * unit if isinstance(value, int | float) else None

    return Machine(
        name=str(row["name"]), kind=str(row["kind"]), memory=number("memory_gb", 1e9) or 0.0,
        bandwidth=number("bandwidth_gbs", 1e9), flops=number("bf16_tflops", 1e12),
        usable=number("usable", 1.0) or 1.0, source=str(row["source"]),
    )  # fmt: skip


def plain(name: str) -> str:
    """A name in the letters and digits that tell machines apart: "NVIDIA GeForce RTX 4090" is "rtx4090"."""
    text = re.sub(r"nvidia|geforce|instinct|\bamd\b", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", text)


def find(name: str) -> Machine:
    """The machine of this name, loosely spelled. Raises UsageError, which offers the nearest names."""
    wanted = plain(name)
    for machine, names in table():
        if wanted in names or f"rtx{wanted}" in names:
            return machine
    raise UsageError(f"there is no machine {name!r} in the table; {_nearest(wanted)}, or give --memory and --bandwidth")


def _nearest(wanted: str) -> str:
    """The names most like the wanted one; a suffix like a memory size counts little."""
    known = {alias: machine.name for machine, names in table() for alias in names}
    close = difflib.get_close_matches(wanted, known, n=6, cutoff=0.4)
    found = list(dict.fromkeys(known[alias] for alias in close))[:3]
    return f"did you mean {', '.join(found)}" if found else "examples are RTX 4090, H100 SXM, Apple M4 Pro"


def memory_bytes(text: str) -> float:
    """Bytes of "24GB" (powers of ten) or "24GiB" (of two). Raises UsageError without a unit, or below zero."""
    return _quantity(text, "memory", "24GB", rate=False)


def bandwidth_bytes(text: str) -> float:
    """Bytes a second of "1008GB/s". Raises UsageError without a unit, or below zero."""
    return _quantity(text, "bandwidth", "1008GB/s", rate=True)


def _quantity(text: str, what: str, example: str, rate: bool) -> float:
    match = QUANTITY.fullmatch(text)
    if match is None or match[2] is None or bool(match[3]) != rate:
        raise UsageError(f"{what} needs a number and its unit, as in {example}, not {text!r}")
    value = float(match[1]) * UNITS[match[2].lower()]
    if value <= 0:
        raise UsageError(f"{what} must be above zero, not {text!r}")
    return value


def choose(gpu: str | None, memory: str | None, bandwidth: str | None) -> Machine:
    """The machine asked for: a name, figures, a name with figures in its stead, or without any the one at hand."""
    held = None if memory is None else memory_bytes(memory)
    speed = None if bandwidth is None else bandwidth_bytes(bandwidth)
    if gpu is None and speed is not None and held is None:
        raise UsageError("--bandwidth alone says nothing of what fits; give --memory too, or name a machine with --gpu")
    if gpu is None and held is not None:
        return Machine(name="as given", kind="any", memory=held, bandwidth=speed)
    base = find(gpu) if gpu is not None else detect()
    if held is None and speed is None:
        return base
    return replace(
        base, memory=held or base.memory, bandwidth=speed or base.bandwidth, source=f"{base.source}; figures by hand"
    )


def detect() -> Machine:
    """The NVIDIA GPU here as PyTorch sees it, else this machine's own memory, whose bandwidth is unknown."""
    from paceline.available import obstacle

    if not obstacle():
        import torch

        free, held = torch.cuda.mem_get_info()
        return seen(torch.cuda.get_device_name(), float(held), float(free))
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if held <= 0:
        raise UsageError("this system does not tell its memory; give --memory and --bandwidth")
    return Machine(name=HERE, kind="cpu", memory=float(held), usable=0.75,
                   source="memory as the system tells it; that a quarter stays with it is an assumption")  # fmt: skip


def seen(name: str, held: float, free: float) -> Machine:
    """A GPU that PyTorch names so, with its real memory in bytes; bandwidth from the table where the name is known."""
    known = _by_full_name(name, held)
    source = f"memory as the driver tells it, {free / 1e9:.1f} GB of it free now"
    if known is None:
        return Machine(name=name, kind="cuda", memory=held, source=source)
    return replace(known, memory=held, source=f"{source}; else {known.source}")


def _by_full_name(name: str, held: float) -> Machine | None:
    """The row of that name, memory sizes in it ignored; of several the one whose memory is nearest."""
    wanted = SIZE.sub("", plain(name))
    rows = [m for m, names in table() if any(SIZE.sub("", n) == wanted for n in names)]
    return min(rows, key=lambda m: abs(m.memory - held), default=None)
