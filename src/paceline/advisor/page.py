"""Advice as one page that works offline: the model's constants and byte counts as JSON, and a script that draws them.

The script in page.html repeats the arithmetic of `speed`, `forecast` and `memory` in the browser, so that sliders
answer at once; a test evaluates both on a grid and compares them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from paceline import roofline
from paceline.advisor import advise, memory, speed
from paceline.advisor.advise import Advice
from paceline.advisor.commands import HUB, Setup, commands
from paceline.advisor.forecast import WORTH_IT
from paceline.advisor.machines import Machine
from paceline.advisor.memory import PRECISIONS, Plan, Use
from paceline.advisor.priors import SMALL, prior
from paceline.advisor.report import LABEL, beside_published, describe, sources
from paceline.bench.record import check_writable, write_text
from paceline.cache import MAX_TENTATIVE, PAGE
from paceline.config import DrafterConfig, TextConfig
from paceline.errors import UsageError
from paceline.shapes import drafter_config, target_config

Json = dict[str, Any]


def html(advice: Advice) -> str:
    """The whole page; it asks nothing of any network."""
    page = files("paceline.advisor").joinpath("page.html").read_text(encoding="utf-8")
    # A script ends at "</script" wherever that stands, in strings too.
    data = json.dumps(page_data(advice), allow_nan=False).replace("</", "<\\/")
    return page.replace("{{data}}", data)


def write(advice: Advice, path: Path) -> None:
    """Writes the page whole or not at all. Raises UsageError where it cannot be written, or rounds were measured."""
    if advice.found.rounds:
        raise UsageError("--html draws predicted rounds and knows no measured ones; leave out --html or --cost")
    check_writable(path)
    write_text(path, html(advice))


def page_data(advice: Advice) -> Json:
    """Everything the page computes with, in bytes, seconds and operations."""
    wish = advice.wish
    priors = {str(small).lower(): prior(wish.category, wish.temperature, small) for small in (False, True)}
    return {
        "label": LABEL, "machine": {**asdict(advice.machine), "room": advice.machine.room,
                                    "words": describe(advice.machine)},
        "wish": asdict(wish), "costs": speed.as_record(speed.fitted()), "sources": sources(advice),
        "overlap": speed.OVERLAP, "worth_it": WORTH_IT, "comfort": advise.COMFORT, "modest": advise.MODEST,
        "small_device": advise.SMALL_DEVICE, "cautions": advise.CAUTIONS, "page": PAGE, "tentative": MAX_TENTATIVE,
        "priors": {name: {end: getattr(p, end).conditional for end in ("low", "middle", "high")}
                   for name, p in priors.items()},
        "precisions": PRECISIONS, "sizes": [size_data(name, advice.machine) for name in wish.sizes],
        "commands": [{"size": d.size, "precision": d.precision, "commands": d.commands or _commands(advice, d)}
                     for d in advice.decisions],
    }  # fmt: skip


def _commands(advice: Advice, decision: advise.Decision) -> dict[str, str]:
    """How to run what does not fit as asked: moved sliders may make it fit."""
    k = decision.forecast.k if decision.forecast else 4
    return commands(Setup(size=decision.size, precision=decision.precision, k=k, batch=advice.wish.batch,
                          context=advice.wish.context, kind=advice.machine.kind))  # fmt: skip


def size_data(name: str, machine: Machine) -> Json:
    """One size: what its rounds read and compute, and what it takes."""
    config, drafter = target_config(name), drafter_config(name)
    return {
        "size": name, "name": HUB[name], "published": beside_published(name), "small": name in SMALL,
        "layers": len(config.layers),
        "max_positions": config.max_positions, **_target(config),
        "int8_saved": roofline.int8_saved(drafter, (True, False))[0],
        "memory": {precision: _memory(config, drafter, bits, machine.kind) for precision, bits in PRECISIONS.items()},
        "draft": _draft(drafter), "int8_allowed": machine.kind in ("cuda", "any") and not drafter.centroids,
    }  # fmt: skip


def _target(config: TextConfig) -> Json:
    own, row, layers = roofline.parameters(config), roofline.pass_flops(config, 1, 0), range(len(config.layers))
    prompt = [roofline.prompt_flops(config, n).linear for n in (1, 2)]
    last = max(config.kv_owners)
    seen = [(roofline.attention_flops(config, i), config.layers[i].window, i <= last) for i in layers]
    return {
        "dense": own.dense, "expert": own.expert, "head": own.head, "table": own.table, "experts": own.experts,
        "active": config.experts.active if config.experts else 0,
        "lookup": config.hidden + len(config.layers) * config.ple_dim,
        "reads": _reads(config), "kv_written": sum(roofline.kv_per_token(config)),
        "row_flops": row.linear + row.head, "head_flops": row.head, "attention": _counted(seen),
        "prompt_linear": [prompt[1] - prompt[0], 2 * prompt[0] - prompt[1]],
    }  # fmt: skip


def _reads(config: TextConfig) -> list[list[Any]]:
    """[bytes of a token, window, layers] of the keys and values that a pass reads."""
    return _counted((2 * 2 * layer.kv_heads * layer.head_dim, layer.window) for layer in config.layers)


def _counted(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Equal rows once, each with how often it came."""
    return [[*row, count] for row, count in Counter(rows).items()]


def _draft(drafter: DrafterConfig) -> Json:
    text, centroids = drafter.text, drafter.centroids
    return {
        "body": roofline.drafter_body(drafter), "vocab": text.vocab, "hidden": text.hidden, "reads": _reads(text),
        "clusters": centroids.count if centroids else 0, "active": centroids.active if centroids else 0,
        "id_bytes": roofline.ID_BYTES, "scale_bytes": roofline.SCALE_BYTES, "weight_bytes": speed.DRAFTER_BYTES,
    }  # fmt: skip


def _memory(config: TextConfig, drafter: DrafterConfig, bits: float, device: str) -> Json:
    """A plan's bytes as sums over pages, rings and positions, read off three plans."""
    beyond = memory.DRAFTS if device == "cpu" and bits == PRECISIONS["bf16"] else 0

    def plan(batch: int, pages: int) -> Plan:
        return memory.plan(config, drafter, bits, Use(batch=batch, context=pages * PAGE - beyond, device=device))

    one, longer, two = plan(1, 1), plan(1, 2), plan(2, 1)
    page, side_by_side = longer.kv_full - one.kv_full, two.kv_full > one.kv_full
    ring = two.kv_sliding - one.kv_sliding if side_by_side else one.kv_sliding
    return {
        "weights": one.target, "drafter": one.drafter, "work": one.activations + one.graphs + one.margin + one.program,
        "page": page, "spare_pages": round(one.kv_full / page) - 1, "ring": ring, "beyond": beyond,
        "spare_rings": round(one.kv_sliding / ring) - 1, "side_by_side": side_by_side,
        "rope_position": (longer.rope - one.rope) / PAGE,
    }  # fmt: skip
