"""Made-up traces, for tests and for comparing policies where no recorded trace exists. Every one says it is made up.

Each token of a text has a difficulty: an AR(1) process, since hard passages last, plus noise of its own. The logit of
a draft's acceptance is the workload's level, less the difficulty of the token it stands for, less a slope for each
draft before it. One uniform number a token decides acceptance at any depth. The drafter's margin is that logit with
noise, softened to be positive.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from paceline.control.logistic import Floats
from paceline.control.trace import Row, Trace
from paceline.errors import UsageError

KEPT = 0.9  # AR(1): how much of a token's difficulty the next one inherits
PASSAGE, TOKEN, REQUEST = 1.6, 1.0, 0.3  # standard deviations in logits: lasting, of one token, of a whole request
SLOPE = 0.08  # logits lost with each draft
HEARING = 0.7  # noise of the margin


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of text: mean logit of acceptance, and how much its difficulty varies (1 is ordinary, 0 not at all)."""

    level: float
    varies: float = 1.0


KINDS = {
    "chat": Kind(1.7),
    "code": Kind(2.9),
    "hopeless": Kind(-4.0, 0.3),
    "perfect": Kind(12.0, 0.0),
}
WORKLOADS: dict[str, tuple[tuple[str, ...], ...]] = {
    **{name: ((name,),) for name in KINDS},
    "mixed": (("code",), ("chat",), ("hopeless",)),
    "chat to code": (("chat", "code", "chat", "code"),),
    "changing": (("code", "hopeless", "code", "hopeless"),),
}
"""Requests in turn, each a sequence of kinds that it passes through in equal parts."""
LONG = ("chat to code", "changing")  # one request, long enough for each part to be settled in


def generate(workload: str, tokens: int = 12_000, k_max: int = 8, seed: int = 0, request_tokens: int = 400) -> Trace:
    """A synthetic trace of so many tokens with a row for each; those of LONG are one request that changes midway.

    Raises UsageError for an unknown workload.
    """
    if workload not in WORKLOADS:
        raise UsageError(f"there is no synthetic workload {workload!r}; choose {', '.join(WORKLOADS)}")
    noise = np.random.default_rng((seed, zlib.crc32(workload.encode())))
    turns = WORKLOADS[workload]
    length = tokens if workload in LONG else min(request_tokens, tokens)
    rows: list[Row] = []
    for i in range(max(1, tokens // length)):
        rows += _request(f"{workload}-{i}", turns[i % len(turns)], length, k_max, noise)
    return Trace(rows, True, f"synthetic: {workload}, {len(rows)} tokens, seed {seed}")


def _request(name: str, kinds: tuple[str, ...], length: int, k_max: int, noise: np.random.Generator) -> list[Row]:
    count = length + k_max
    kind_of = [kinds[min(i * len(kinds) // length, len(kinds) - 1)] for i in range(count)]
    level = np.array([KINDS[kind].level for kind in kind_of])
    varies = np.array([KINDS[kind].varies for kind in kind_of])
    difficulty = PASSAGE * _lasting(noise.standard_normal(count)) + TOKEN * noise.standard_normal(count)
    token_logit = level - varies * (difficulty + REQUEST * noise.standard_normal())
    reach = np.arange(length)[:, None] + np.arange(k_max)  # [length, k_max]: the token each draft stands for
    logits = token_logit[reach] - SLOPE * np.arange(k_max)
    law = 1.0 / (1.0 + np.exp(-logits))
    kept = np.cumprod(noise.random(count)[reach] < law, axis=1).sum(axis=1)
    heard = logits + HEARING * noise.standard_normal(logits.shape)
    margins, confidences = np.log1p(np.exp(heard)), 1.0 / (1.0 + np.exp(-heard))
    return [
        Row(
            request=name, category=kind_of[p], drafted=k_max, accepted=int(kept[p]), context=128 + p, position=p,
            margins=tuple(np.round(margins[p], 3).tolist()), law=tuple(np.round(law[p], 4).tolist()),
            confidences=tuple(np.round(confidences[p], 4).tolist()),
        )
        for p in range(length)
    ]  # fmt: skip


def _lasting(shocks: Floats) -> Floats:
    """AR(1) with unit variance."""
    state, out = float(shocks[0]), np.empty_like(shocks)
    for i, shock in enumerate(shocks):
        state = KEPT * state + (1 - KEPT**2) ** 0.5 * float(shock)
        out[i] = state
    return out
