"""The arms of `paceline bench` from its flags: servers that run already, or that it starts itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.bench.adapters.dialect import Wish
from paceline.bench.adapters.engines import named
from paceline.bench.adapters.http import HttpArm
from paceline.bench.adapters.wire import STALL_S, identity_of
from paceline.bench.harness import Contest
from paceline.bench.profiles import Order, load_profile
from paceline.bench.servers import ServedArm
from paceline.errors import UsageError

SHOWN_PORT = 8000


@dataclass(frozen=True, slots=True)
class Attach:
    """Servers that run: URLs with drafting on and off. engine: None finds it out. trusted: see `harness.Contest`."""

    on: str
    off: str
    engine: str | None = None
    model: str | None = None
    k: int | None = None
    trusted: bool = False
    stall_s: float = STALL_S


@dataclass(frozen=True, slots=True)
class Start:
    """Servers to start: an engine with a profile, its checkpoints, and arguments added to both command lines."""

    engine: str
    target: str
    drafter: str | None = None
    engine_args: str = ""
    profile: Path | None = None
    model: str | None = None
    trusted: bool = False

    def order(self, k: int) -> Order:
        """What to start for a draft length, 0 for none. Raises UsageError."""
        try:
            extra = tuple(shlex.split(self.engine_args))
        except ValueError as error:
            raise UsageError(f"--engine-args cannot be read: {error}; check its quotes") from None
        return Order(load_profile(self.engine, self.profile), self.target, self.drafter, k, extra)


def attached(wanted: Attach) -> Contest:
    """The arms of servers that run. Raises UsageError for URLs that are none, or the same server."""
    dialect = named(wanted.engine) if wanted.engine else None
    by_request = dialect is not None and dialect.more(0) != dialect.more(1)
    if identity_of(wanted.on) == identity_of(wanted.off) and not by_request:
        raise UsageError(
            f"--on {wanted.on} and --off {wanted.off} are the same server; start a second one without its drafter"
        )
    off = HttpArm(wanted.off, Wish(wanted.model, None, False), dialect, wanted.stall_s)
    on = HttpArm(wanted.on, Wish(wanted.model, wanted.k, True), dialect, wanted.stall_s)
    return Contest(off, {wanted.k: on}, trusted=wanted.trusted)


def started(wanted: Start, ks: Sequence[int]) -> Contest:
    """The arms of servers to start, one of them up at a time. Raises UsageError."""
    check_lengths(ks)
    off = ServedArm(wanted.order(0), wanted.model)
    on = {k: ServedArm(wanted.order(k), wanted.model) for k in ks}
    return Contest(off, on, alone=True, trusted=wanted.trusted)


def dry_run(wanted: Start, ks: Sequence[int]) -> str:
    """The command lines that `started` would run, one for each arm."""
    check_lengths(ks)
    lines = [f"# drafting off\n{wanted.order(0).shown(SHOWN_PORT)}"]
    lines += [f"# drafting on, k = {k}\n{wanted.order(k).shown(SHOWN_PORT)}" for k in ks]
    return "\n".join(lines)


def check_lengths(ks: Sequence[int]) -> None:
    """Raises UsageError for draft lengths that draft nothing, or twice the same."""
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise UsageError(f"k must be at least 1 and each named once (off is always measured beside it), not {list(ks)}")
