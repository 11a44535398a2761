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
from paceline.advisor.memory import PRECISIONS, Use
from paceline.advisor.priors import SMALL, prior
from paceline.advisor.report import LABEL, describe, sources
from paceline.bench.record import check_writable, write_text
from paceline.cache import MAX_TENTATIVE, PAGE
from paceline.config import DrafterConfig, TextConfig
from paceline.device.memory import MARGIN_BYTES, Need, rope_bytes
from paceline.shapes import drafter_config, target_config

Json = dict[str, Any]


def html(advice: Advice) -> str:
    """The whole page; it asks nothing of any network."""
    page = files("paceline.advisor").joinpath("page.html").read_text(encoding="utf-8")
    # A script ends at "</script" wherever that stands, in strings too.
    data = json.dumps(page_data(advice), allow_nan=False).replace("</", "<\\/")
    return page.replace("{{data}}", data)


def write(advice: Advice, path: Path) -> None:
    """Writes the page whole or not at all. Raises UsageError where it cannot be written."""
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
        "size": name, "name": HUB[name], "small": name in SMALL, "layers": len(config.layers),
        "max_positions": config.max_positions, **_target(config), **_memory(config, drafter),
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
        "id_bytes": roofline.ID_BYTES, "scale_bytes": speed.SCALE_BYTES, "weight_bytes": speed.DRAFTER_BYTES,
    }  # fmt: skip


def _memory(config: TextConfig, drafter: DrafterConfig) -> Json:
    """Bytes by class, as sums over pages, rings and positions."""
    need, (_, full) = Need(config=config, weights=0), roofline.kv_per_token(config)
    held = {name: memory.plan(config, drafter, bits, Use()) for name, bits in PRECISIONS.items()}
    some = held["bf16"]
    return {
        "weights": {name: found.target for name, found in held.items()}, "drafter": some.drafter,
        "int8_head": memory.head_bytes(drafter), "full_token": full,
        "ring": need.bytes(1, PAGE) - need.bytes(0, PAGE) - PAGE * full,
        "rope_position": rope_bytes(config, 1) - rope_bytes(config, 0),
        "work": max(some.activations + some.graphs, MARGIN_BYTES),
    }  # fmt: skip
