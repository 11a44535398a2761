"""Acceptance and speed against temperature, for each way of accepting drafts: `paceline bench --temperatures`.

Rejection and block verification write other texts than plain decoding does, of the same law: a mode is compared with
plain decoding by seconds a token, and with another mode over the same prompts and seeds. Greedy texts are the same in
all modes, so temperature 0 is measured once and counts for each.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from paceline.bench import record as files
from paceline.bench.adapters.local import Engine
from paceline.bench.document import Document, Figure, Section
from paceline.bench.page import to_html
from paceline.bench.plan import check_prompts, derive_seed
from paceline.bench.plots import OFF, ON, THIRD, draw, legend_above, one_line, require_matplotlib
from paceline.bench.prompts import BenchPrompt
from paceline.bench.stats import Floats, ratio_interval
from paceline.errors import UsageError
from paceline.types import ACCEPT_MODES, AcceptMode, SamplingParams

SCHEMA = "paceline-temperatures/1"
PLAIN = "plain"
COLORS = {"coupled": ON, "rejection": OFF, "block": THIRD}
DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured: every prompt `repeats` times at every temperature, plainly and in every mode."""

    temperatures: tuple[float, ...] = (0.0, 0.3, 0.7, 1.0, 1.3)
    accept: tuple[AcceptMode, ...] = ACCEPT_MODES
    k: int = 4
    repeats: int = 1
    max_tokens: int = 96
    top_k: int = 64
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            (self.k >= 1, "k must be at least 1 (plain decoding is always measured beside it)", self.k),
            (self.repeats >= 1, "repeats must be at least 1", self.repeats),
            (len(self.temperatures) >= 1, "temperatures must name at least one", self.temperatures),
            (len(set(self.temperatures)) == len(self.temperatures), "temperatures must differ", self.temperatures),
            (len(set(self.accept)) == len(self.accept) >= 1, "accept must name modes, each once", self.accept),
        )
        for good, rule, value in checks:
            if not good:
                raise UsageError(f"{rule}, not {value!r}")
        for temperature, accept in itertools.product(self.temperatures, self.accept):
            self.params(temperature, accept, 0)

    def params(self, temperature: float, accept: AcceptMode, seed: int) -> SamplingParams:
        """The parameters of one text; raises UsageError for values out of range."""
        return SamplingParams(
            temperature=temperature, top_k=self.top_k, top_p=self.top_p, seed=seed, max_tokens=self.max_tokens,
            accept=accept,
        )  # fmt: skip

    def arms(self, temperature: float) -> list[str]:
        """Plain decoding and the modes that differ there."""
        return [PLAIN, *(self.accept if temperature else self.accept[:1])]


@dataclass(frozen=True, slots=True)
class Row:
    """One text. `accepted` of `drafted` drafts stayed, over `rounds` rounds; seconds of the whole call."""

    prompt_id: str
    category: str
    temperature: float
    arm: str
    repeat: int
    seed: int
    tokens: int
    seconds: float
    rounds: int
    drafted: int
    accepted: int


def settings_from_flags(flags: dict[str, Any], k: int) -> Settings:
    """What the command line's flags ask for; `k` is the drafter's own draft length."""
    modes: Any = tuple(flags["accept"] or ACCEPT_MODES)
    return Settings(
        temperatures=tuple(_number(word) for word in flags["temperatures"].split(",")), accept=modes,
        k=k if flags["k"] is None else flags["k"], repeats=flags["repeats"], max_tokens=flags["max_tokens"],
        top_k=flags["top_k"], top_p=flags["top_p"], seed=flags["seed"],
    )  # fmt: skip


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"temperatures must be numbers with commas between, not {word!r}")
    return value


def bench_temperatures(
    llm: Engine, prompts: list[BenchPrompt], settings: Settings, out: Path, html: Path | None
) -> dict[str, Any]:
    """Measures, writes `out` (JSON) and `html` if named (plots), shows a table on stderr, and returns the summary.

    An interrupted run keeps what it has in `out`, marked incomplete. Raises UsageError before measuring for files that
    cannot be written and for a missing matplotlib.
    """
    check_prompts(prompts)
    for path in (out, html):
        if path is not None:
            files.check_writable(path)
    if html is not None:
        require_matplotlib()
    record = _head(llm, settings)
    rows: list[Row] = []
    try:
        _collect(llm, prompts, settings, rows)
        record["complete"] = True
    finally:
        if rows:
            _finish(record, rows, settings, out)
    Console(stderr=True).print(table(record["summary"]))
    if html is not None:
        files.write_text(html, page(files.portable(record)))
    summary: dict[str, Any] = record["summary"]
    return summary


def _head(llm: Engine, settings: Settings) -> dict[str, Any]:
    engine = dict(llm.describe()) if hasattr(llm, "describe") else {}
    return {
        "schema": SCHEMA, "complete": False, "labels": list(engine.get("labels", [])), "options": asdict(settings),
        "engine": engine, "provenance": {**files.provenance(), "load_before": files.load_average()},
    }  # fmt: skip


def _collect(llm: Engine, prompts: list[BenchPrompt], settings: Settings, rows: list[Row]) -> None:
    total = len(prompts) * settings.repeats * sum(len(settings.arms(t)) for t in settings.temperatures)
    # A thread redrawing the bar would take time from what is being measured.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task("measuring", total=total)
        for row in measure(llm, prompts, settings):
            rows.append(row)
            progress.update(task, advance=1, refresh=True)


def _finish(record: dict[str, Any], rows: list[Row], settings: Settings, out: Path) -> None:
    record["provenance"]["load_after"] = files.load_average()
    record["summary"] = summarise(rows, settings)
    record["measurements"] = [asdict(row) for row in rows]
    files.write_record(out, record)


# ---- measuring ------------------------------------------------------------------------------------------------------


def measure(
    llm: Engine, prompts: list[BenchPrompt], settings: Settings, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Row]:
    """Every row as it is taken, the arms of a prompt in random order. Raises UsageError where nothing is drafted."""
    rng, drafted, texts = random.Random(f"arm order {settings.seed}"), 0, 0
    for repeat, prompt, temperature in itertools.product(range(settings.repeats), prompts, settings.temperatures):
        arms = settings.arms(temperature)
        rng.shuffle(arms)
        for arm in arms:
            row = _take(llm, prompt, settings, (temperature, arm, repeat), clock)
            drafted, texts = drafted + row.drafted, texts + (arm != PLAIN and row.tokens > 2)
            if texts >= 3 and not drafted:
                raise UsageError("no draft was made, so nothing was compared; load a drafter")
            yield row


def _take(
    llm: Engine, prompt: BenchPrompt, settings: Settings, cell: tuple[float, str, int], clock: Callable[[], float]
) -> Row:
    temperature, arm, repeat = cell
    seed = derive_seed(settings.seed, prompt.id, repeat)
    mode: Any = settings.accept[0] if arm == PLAIN else arm
    params, begin = settings.params(temperature, mode, seed), clock()
    [done] = llm.generate([prompt.prompt], params, k=0 if arm == PLAIN else settings.k)
    seconds, stats = clock() - begin, done.stats
    return Row(
        prompt.id, prompt.category, temperature, arm, repeat, seed, len(done.token_ids), seconds, stats.rounds,
        sum(stats.drafted), sum(stats.accepted),
    )  # fmt: skip


# ---- what it says ---------------------------------------------------------------------------------------------------


def summarise(rows: list[Row], settings: Settings) -> dict[str, Any]:
    """By temperature and mode: acceptance length, drafts a round and speed-up, with 95% intervals over prompts."""
    found: dict[str, Any] = {}
    for temperature in settings.temperatures:
        own = [row for row in rows if row.temperature == temperature]
        modes = {mode: _of(own, mode if temperature else settings.accept[0]) for mode in settings.accept}
        plain = _of(own, PLAIN)
        found[str(temperature)] = {
            "prompts": len({row.prompt_id for row in own}),
            "plain_tokens_per_s": _ratio(plain["tokens"], plain["seconds"])[0],
            "modes": {mode: _block(sums, plain) for mode, sums in modes.items()},
            "compared": _compared(modes) if temperature else {},
        }
    return {"k": settings.k, "by_temperature": found}


def _of(rows: list[Row], arm: str) -> dict[str, Floats]:
    """Sums of an arm by prompt: each [prompts], prompts in order of their ids."""
    ids = sorted({row.prompt_id for row in rows})
    place = {name: i for i, name in enumerate(ids)}
    sums = {name: np.zeros(len(ids)) for name in ("tokens", "seconds", "rounds", "drafted", "accepted")}
    for row in rows:
        if row.arm == arm:
            for name, values in sums.items():
                values[place[row.prompt_id]] += getattr(row, name)
    return sums


def _block(sums: dict[str, Floats], plain: dict[str, Floats]) -> dict[str, Any]:
    length, length_interval = _ratio(sums["rounds"] + sums["accepted"], sums["rounds"])
    # What plain decoding, at its speed on the same prompt, would need for as many tokens.
    needed = sums["tokens"] * np.divide(plain["seconds"], plain["tokens"], where=plain["tokens"] > 0,
                                        out=np.zeros(len(sums["tokens"])))  # fmt: skip
    speedup, speedup_interval = _ratio(needed, sums["seconds"])
    return {
        "acceptance_length": length, "acceptance_length_ci95": length_interval,
        "drafts_a_round": _ratio(sums["drafted"], sums["rounds"])[0],
        "speedup": speedup, "speedup_ci95": speedup_interval,
    }  # fmt: skip


def _ratio(numerator: Floats, denominator: Floats) -> tuple[float | None, list[float] | None]:
    if not denominator.sum() > 0:
        return None, None
    interval = ratio_interval(numerator, denominator)
    return float(numerator.sum() / denominator.sum()), None if interval is None else interval.tolist()


def _compared(modes: dict[AcceptMode, dict[str, Floats]]) -> dict[str, Any]:
    """Ratios of acceptance lengths of two modes, with 95% intervals: percentiles over resampled prompts."""
    found = {}
    for first, second in itertools.permutations(modes, 2):
        if (first, second) in (("block", "rejection"), ("rejection", "coupled"), ("coupled", "rejection")):
            ratio, interval = _length_ratio(modes[first], modes[second])
            found[f"{first} over {second}"] = {"ratio": ratio, "ci95": interval}
    return found


def _length_ratio(first: dict[str, Floats], second: dict[str, Floats]) -> tuple[float | None, list[float] | None]:
    clusters = len(first["rounds"])
    picked = np.random.default_rng(0).integers(clusters, size=(DRAWS, clusters))
    both = [np.stack([sums["rounds"] + sums["accepted"], sums["rounds"]]) for sums in (first, second)]
    if not all(sums[1].sum() > 0 for sums in both):
        return None, None
    (a, b), (c, d) = (sums[:, picked].sum(-1) for sums in both)
    whole = [float(sums[0].sum() / sums[1].sum()) for sums in both]
    if (b * d == 0).any():
        return whole[0] / whole[1], None
    return whole[0] / whole[1], np.quantile(a / b / (c / d), [0.025, 0.975]).tolist()


# ---- showing it -----------------------------------------------------------------------------------------------------


def table(summary: dict[str, Any]) -> Table:
    """Temperatures down, modes across."""
    shown = Table("temperature", "accept", "tokens a round (95%)", "drafts a round", "speed-up (95%)")
    for temperature, part in summary["by_temperature"].items():
        for mode, block in part["modes"].items():
            cells = [_shown(block[key], block[f"{key}_ci95"]) for key in ("acceptance_length", "speedup")]
            drafts = "-" if block["drafts_a_round"] is None else f"{block['drafts_a_round']:.2f}"
            shown.add_row(temperature, mode, cells[0], drafts, cells[1])
    return shown


def _shown(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def figure(summary: dict[str, Any], key: str, label: str) -> Figure:
    """A line for each mode against temperature, its intervals as bars."""
    points = summary["by_temperature"]
    modes = list(next(iter(points.values()))["modes"])

    def paint(axes: Any) -> None:
        one_line(axes)
        for i, mode in enumerate(modes):
            blocks = [(float(t) + 0.012 * (i - 1), part["modes"][mode]) for t, part in points.items()]
            known = [(x, block[key], block[f"{key}_ci95"] or [block[key]] * 2) for x, block in blocks if block[key]]
            axes.plot([x for x, _, _ in known], [y for _, y, _ in known], "o-", color=COLORS[mode], label=mode)
            for x, _, (low, high) in known:
                axes.plot([x, x], [low, high], color=COLORS[mode], linewidth=1.5)
        axes.set_xlabel("temperature")
        axes.set_ylabel(label)
        legend_above(axes, columns=3)

    says = f"{label} against temperature, for the modes {', '.join(modes)}"
    svg = draw(f"{key.replace('_', '-')}-by-temperature", says, [2.8], paint)
    return Figure(label[:1].upper() + label[1:], svg, "Bars are 95% intervals over prompts.", says)


def page(record: dict[str, Any]) -> str:
    """A page of its own with both pictures, and where the figures come from."""
    summary, origin = record["summary"], record["provenance"]
    facts = [("CPU", str(origin["machine"]["cpu"])), ("Load", str(origin["load_after"])),
             ("Date", origin["date_utc"]), ("Command", " ".join(origin["command"]))]  # fmt: skip
    pictures = [("acceptance_length", "tokens a round"), ("speedup", "times as fast as plain decoding")]
    return to_html(Document(
        title="Acceptance by temperature",
        verdict=[f"What drafts bring at each temperature, by how they are accepted; k = {summary['k']}."],
        labels=[str(label) for label in record["labels"]],
        figures=lambda: [figure(summary, key, label) for key, label in pictures],
        sections=[Section("Machine and command", facts=facts)],
    ))  # fmt: skip
