"""The arms of `paceline bench` from its flags: servers that run, servers that it starts, or engines in this process."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.bench.adapters.local import check_lengths, local_contest
from paceline.bench.arms import Arm
from paceline.bench.harness import Contest
from paceline.errors import UsageError
from paceline.hub import EMBEDDED, EMBEDDED_PAIR, find_drafter

if TYPE_CHECKING:
    import typer

    from paceline.bench.profiles import Order

SHOWN_PORT = 8000
DEFAULT_K = 4  # where neither the user nor a running server says
TRANSFORMERS = "transformers"
BY_REQUEST = "ollama"  # takes the draft length with each request, so that one server is both arms
STARTING = ("engine_args", "engine_profile", "dry_run")
REACHING = ("model", "trust_arms", "stall")
OURS = ("draft_position", "min_confidence", "backend", "device", "context", "sequences", "draft_weights")


@dataclass(frozen=True, slots=True)
class Attach:
    """Servers that run: URLs with drafting on and off. engine: None finds it out. trusted: see `harness.Contest`."""

    on: str
    off: str
    engine: str | None = None
    model: str | None = None
    trusted: bool = False
    stall_s: float = 120.0


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
    stall_s: float = 120.0

    def order(self, k: int) -> Order:
        """What to start for a draft length, 0 for none. Raises UsageError."""
        from paceline.bench.profiles import Order, load_profile

        try:
            extra = tuple(shlex.split(self.engine_args))
        except ValueError as error:
            raise UsageError(f"--engine-args cannot be read: {error}; check its quotes") from None
        return Order(load_profile(self.engine, self.profile), self.target, self.drafter, k, extra)


Wanted = Attach | Start
Lengths = Sequence[int | None]  # None stands for "auto"


def attached(wanted: Attach, k: int | None = None) -> Contest:
    """The arms of servers that run. Raises UsageError for URLs that are none, or the same server."""
    from paceline.bench.adapters.dialect import Wish
    from paceline.bench.adapters.engines import named
    from paceline.bench.adapters.http import HttpArm
    from paceline.bench.adapters.wire import identity_of

    dialect = named(wanted.engine) if wanted.engine else None
    if identity_of(wanted.on) == identity_of(wanted.off) and wanted.engine != BY_REQUEST:
        raise UsageError(
            f"--on {wanted.on} and --off {wanted.off} are the same server; start a second one without its drafter,"
            f" or say --engine {BY_REQUEST} where it is one"
        )
    off = HttpArm(wanted.off, Wish(wanted.model, None, False), dialect, wanted.stall_s)
    on = HttpArm(wanted.on, Wish(wanted.model, k, True), dialect, wanted.stall_s)
    return Contest(off, {k: on}, alone=one_at_a_time(wanted), trusted=wanted.trusted)


def started(wanted: Start, ks: Sequence[int]) -> Contest:
    """The arms of servers to start, one of them up at a time. Raises UsageError."""
    from paceline.bench.servers import ServedArm

    check_lengths(ks)
    off = ServedArm(wanted.order(0), wanted.model, wanted.stall_s)
    on: dict[int | None, Arm] = {k: ServedArm(wanted.order(k), wanted.model, wanted.stall_s) for k in ks}
    return Contest(off, on, alone=True, trusted=wanted.trusted)


def served(wanted: Wanted, ks: Lengths | None) -> Contest:
    """The arms of whichever servers are wanted; ks: draft lengths, None where the user names none."""
    lengths = numbers_of(ks)
    if isinstance(wanted, Start):
        return started(wanted, lengths)
    if ks is not None and len(ks) != 1:
        raise UsageError("a server that runs drafts one length; give one --k, or none, with --on")
    return attached(wanted, lengths[0] if ks else None)


def numbers_of(ks: Lengths | None) -> list[int]:
    """Draft lengths of engines that have no "auto". Raises UsageError for it."""
    numbers = [k for k in ks or (DEFAULT_K,) if k is not None]
    if ks is not None and len(numbers) < len(ks):
        raise UsageError("--k auto is Paceline's own controller; give this engine a number")
    return numbers


def dry_run_of(wanted: Wanted | None, ks: Lengths | None) -> str:
    """The command lines that a run would start, one for each arm. Raises UsageError where it starts none."""
    if not isinstance(wanted, Start):
        raise UsageError("--dry-run shows the servers that --engine starts; name an engine")
    lengths = numbers_of(ks)
    check_lengths(lengths)
    lines = [f"# drafting off\n{wanted.order(0).shown(SHOWN_PORT)}"]
    return "\n".join(lines + [f"# drafting on, k = {k}\n{wanted.order(k).shown(SHOWN_PORT)}" for k in lengths])


def one_at_a_time(wanted: Wanted | None) -> bool:
    """Whether arms take turns in whole passes: only one is up, or changing over loads the model again."""
    return isinstance(wanted, Start) or (wanted is not None and wanted.engine == BY_REQUEST)


def wanted_servers(ctx: typer.Context) -> Wanted | None:
    """Which servers the flags ask for; None for an engine in this process. Raises UsageError for flags at odds."""
    given: dict[str, Any] = ctx.params
    on, off, engine = given["on"], given["off"], given["engine"]
    if (on is None) != (off is None):
        raise UsageError("--on and --off go together: a server that drafts, and one that does not")
    if (on or engine) and engine != TRANSFORMERS and importlib.util.find_spec("httpx2") is None:
        raise UsageError("measuring servers needs httpx2: pip install 'paceline[bench]'")
    if on is not None:
        _refuse(ctx, (*STARTING, *OURS, "target", "drafter"), "--on and --off, whose servers run already")
        return Attach(on, off, engine, given["model"], given["trust_arms"], given["stall"])
    if engine is None or engine == TRANSFORMERS:
        where = "an engine in this process" if engine is None else "--engine transformers, which runs in this process"
        _refuse(ctx, (*STARTING, *REACHING, *(OURS if engine else ())), where)
        return None
    _refuse(ctx, OURS, "--engine, whose server has its own; see --engine-args")
    target, drafter = checkpoints(given["target"], given["drafter"])
    return Start(
        engine,
        target,
        drafter,
        given["engine_args"],
        given["engine_profile"],
        given["model"],
        given["trust_arms"],
        given["stall"],
    )


def checkpoints(target: str, drafter: str) -> tuple[str, str | None]:
    """Folders or names for an engine of others; "auto" finds the drafter as for Paceline itself."""
    if drafter == "auto":
        found = find_drafter(target)
        drafter = found.name if found else ""
    return str(EMBEDDED_PAIR / "target") if target == EMBEDDED else target, drafter or None


def in_process(ctx: typer.Context, ks: Lengths | None, concurrencies: tuple[int, ...]) -> Contest:
    """The arms of an engine in this process. Raises UsageError for more than one request in flight."""
    if concurrencies != (1,):
        raise UsageError("the engine in this process answers one request at a time; leave out --concurrency")
    if ctx.params["engine"] == TRANSFORMERS:
        from paceline.bench.adapters.hf import transformers_contest

        target, drafter = checkpoints(ctx.params["target"], ctx.params["drafter"])
        if drafter is None:
            raise UsageError("--engine transformers needs --drafter: the checkpoint that drafts")
        return transformers_contest(target, drafter, numbers_of(ks))
    from paceline.flags import options_of
    from paceline.terminal import load

    numbers = [k for k in ks or () if k is not None]
    llm = load(options_of(ctx), max(numbers, default=None))
    return local_contest(llm, ks or (None if llm.resolved.auto else llm.resolved.k,))


def _refuse(ctx: typer.Context, names: Sequence[str], where: str) -> None:
    """Refuses flags that would do nothing."""
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if option.name in names and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{option.opts[0]} does nothing with {where}; leave it out")
