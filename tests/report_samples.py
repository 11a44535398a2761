"""Records of runs that never were, with everything a record can hold, for the tests of reports and comparisons."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from paceline.bench import stats
from paceline.bench.measurement import Failure, Measurement
from paceline.bench.record import SCHEMA

GAINS = {"chat": 1.35, "code": 1.9, "edit": 1.0, "maths": 1.6}
K_FACTOR = {0: 1.0, 1: 0.85, 3: 1.0, 5: 0.94}
LOAD_FACTOR = {1: 1.0, 4: 0.85, 16: 0.55}
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class World:
    """What a made-up engine does. gains: speed-up by category; pace_s: seconds per token without drafting."""

    gains: dict[str, float]
    prompts: int = 32
    ks: tuple[int, ...] = (3,)
    concurrencies: tuple[int, ...] = (1,)
    temperatures: tuple[float, ...] = (0.0,)
    told: bool = True
    pace_s: float = 0.02
    ttft_s: float = 0.08
    noise: float = 0.03
    drift: float = 0.0
    repeats: int = 1
    seed: int = 0
    same_texts: bool = True
    max_tokens: int = 128


def rows_of(world: World) -> list[Measurement]:
    """All measurements of a run in a world, in the order they would have come."""
    rng, rows, now = random.Random(world.seed), list[Measurement](), 0.0
    categories = list(world.gains)
    for repeat in range(world.repeats):
        for load in world.concurrencies:
            for i in range(world.prompts):
                for temperature in world.temperatures:
                    for arm, k in [("off", 0), *(("on", k) for k in world.ks), ("off2", 0)]:
                        cell = (f"p{i}", categories[i % len(categories)], temperature, repeat, load)
                        rows.append(_row(world, rng, cell, (arm, k, now, len(rows))))
                        now += rows[-1].seconds / load
    return rows


def _row(world: World, rng: random.Random, cell: Any, place: Any) -> Measurement:
    (prompt, category, temperature, repeat, load), (arm, k, now, order) = cell, place
    version = "" if world.same_texts else world.seed
    own = random.Random(f"{prompt} {temperature} {repeat if temperature else 0}{version}")
    tokens = own.randint(20, world.max_tokens)
    gain = world.gains[category] * K_FACTOR.get(k, 0.9) * LOAD_FACTOR.get(load, 0.8) if k else 1.0
    gain *= own.gauss(1.0, 0.1) if k else 1.0
    tpot_s = world.pace_s / gain * (1 + world.drift * order / 1000) * max(0.1, rng.gauss(1.0, world.noise))
    ttft_s = world.ttft_s * own.uniform(0.5, 2.5) * max(0.1, rng.gauss(1.0, world.noise))
    kept = [0.82 * 0.8**i for i in range(k)]
    rounds = round((tokens - 1) / (1 + sum(kept))) if k else 0
    accepted = [int(rounds * share) for share in kept]
    told = world.told and k > 0
    return Measurement(
        order=order, prompt_id=prompt, category=category, arm=arm, temperature=temperature, repeat=repeat, seed=order,
        seconds=ttft_s + tpot_s * (tokens - 1), ttft_s=ttft_s, tpot_s=tpot_s, prompt_tokens=40, tokens=tokens,
        rounds=rounds if told else 0, drafted=[rounds] * k if told else [], accepted=accepted if told else [],
        token_times_s=[ttft_s + tpot_s * i for i in range(tokens)], token_sha256=f"{prompt} {temperature} {version}",
        finish_reason="stop" if tokens < world.max_tokens else "length", k=k, concurrency=load, started_s=now,
        drafted_tokens=rounds * k if told else None, accepted_tokens=sum(accepted) if told else None,
    )  # fmt: skip


def record_of(rows: Sequence[Measurement], **more: Any) -> Record:
    """The record of these rows; `more` replaces or adds parts of it."""
    rows = list(rows)
    ids = sorted({row.prompt_id for row in rows})
    ks = sorted({row.k for row in rows if row.k})
    options = {
        "repeats": 1, "max_tokens": 128, "temperatures": sorted({row.temperature for row in rows}), "top_k": 64,
        "top_p": 0.95, "seed": 0, "warmup": 1, "concurrencies": sorted({row.concurrency for row in rows}),
        "alternate": False,
    }  # fmt: skip
    digest = hashlib.sha256(repr(ids).encode()).hexdigest()
    arms = [
        {"arm": "off", "k": 0, "engine": "made-up", "version": "1.0", "model": "m", "drafts": False, "why": "k = 0",
         "acceptance": "statistics", "details": {"command": ["serve", "--plain"]}},
        {"arm": "on", "k": 3, "engine": "made-up", "version": "1.0", "model": "m", "drafts": True, "why": "told",
         "acceptance": "statistics", "details": {"command": ["serve", "--draft"], "cache": {"prefix": False}}},
    ]  # fmt: skip
    return {
        "schema": SCHEMA, "complete": True, "failure": None,
        "plan": {"options": options, "ks": ks, "prompts": {"count": len(ids), "sha256": digest}},
        "provenance": provenance(), "labels": ["CPU", "synthetic"], "arms": arms, "summary": summary_of(rows),
        "failures": [], "steps": [], "measurements": [asdict(row) for row in rows],
    } | more  # fmt: skip


def provenance() -> Record:
    return {
        "command": ["paceline", "bench", "--k", "1,3,5"], "date_utc": "2026-11-24T12:00:00+00:00", "python": "3.11.7",
        "versions": {"paceline": "0.1.0", "torch": "2.13.0", "triton": None},
        "git": {"commit": "a" * 40, "changed": False},
        "machine": {"system": "Linux", "cpu": "A CPU", "cores": 8, "cores_usable": 8, "threads": {"torch": 8},
                    "memory_bytes": 2**34, "gpu": None},
        "load_before": [0.1, 0.1, 0.1], "load_after": [0.9, 0.5, 0.2],
    }  # fmt: skip


def summary_of(rows: list[Measurement]) -> Record:
    """Every key of a summary, by the sample's own arithmetic: reports are tested for what they show, not for that."""
    first = rows[0] if rows else None
    ks = sorted({row.k for row in rows if row.k})
    temperature, load = (first.temperature, min(row.concurrency for row in rows)) if first else (None, 1)

    def at(k: int, temperature: float | None, load: int) -> list[Measurement]:
        return [r for r in rows if r.k in (0, k) and (r.temperature, r.concurrency) == (temperature, load)]

    by_k = {str(k): block(at(k, temperature, load)) for k in ks}
    best = max(ks, key=lambda k: by_k[str(k)]["speedup"] or 0) if ks else 0
    loads = sorted({row.concurrency for row in rows})
    by_load = {}
    for own in loads:
        mine = at(best, temperature, own)
        speed = {arm: _throughput([r for r in mine if r.arm == arm], own) for arm in ("off", "on")}
        by_load[str(own)] = {**block(mine), "k": best, "tokens_per_s": speed, "worth_it": speed["on"] > speed["off"]}
    lost = [own for own in loads if (by_load[str(own)]["speedup"] or 0) < 1.02]
    head = at(best, temperature, load)
    return {
        **block(head), **_arms(head), "timed_pairs": len(stats.pair_up(head)), "temperature": temperature,
        "k": best if ks else None, "ks": ks, "k_chosen_here": len(ks) > 1, "concurrency": load, "over_long": 0,
        "by_k": by_k, "by_concurrency": by_load,
        "by_category": {c: block([r for r in head if r.category == c]) for c in sorted({r.category for r in rows})},
        "by_temperature": {str(t): block(at(best, t, load)) for t in sorted({row.temperature for row in rows})},
        "grid": [], "advice": {"k": best, "categories": {}, "off_from": min(lost, default=None)},
        "drift": {"ratio": 1.0, "ci95": [0.98, 1.02], "steady": True, "why": ""}, "counting": "statistics of each text",
        "failures": 0, "on_vs_on_equal_outputs": None,
    }  # fmt: skip


def _arms(rows: list[Measurement]) -> Record:
    arms = {arm: [row for row in rows if row.arm == arm] for arm in ("off", "on")}
    again = stats.pair_up(rows, "off", "off2")
    noise, noise_ci95 = stats.compare(again)
    survival = [sum(r.accepted[i] for r in arms["on"]) / sum(r.drafted[i] for r in arms["on"])
                for i in range(min((len(r.drafted) for r in arms["on"]), default=0))]  # fmt: skip
    return {
        "off_vs_off": noise, "off_vs_off_ci95": noise_ci95, "off_vs_off_equal_outputs": stats.equal_fraction(again),
        "tokens_per_s": {arm: _throughput(own, 1) if own else None for arm, own in arms.items()},
        "ttft_s": {arm: stats.spread(row.ttft_s for row in own) for arm, own in arms.items()},
        "tpot_s": {arm: stats.spread(row.tpot_s for row in own) for arm, own in arms.items()},
        "ended_naturally": sum(r.finish_reason == "stop" for r in rows) / len(rows) if rows else None,
        "survival_by_position": survival,
        "acceptance_by_position": [now / before for before, now in pairwise([1.0, *survival])],
    }  # fmt: skip


def block(rows: list[Measurement]) -> Record:
    pairs = stats.pair_up(rows)
    speedup, ci95 = stats.compare(pairs)
    rounds, accepted = sum(on.rounds for _, on in pairs), sum(sum(on.accepted) for _, on in pairs)
    return {
        "speedup": speedup, "speedup_ci95": ci95, "equal_outputs": stats.equal_fraction(pairs),
        "acceptance_length": 1 + accepted / rounds if rounds else None,
        "prompts": len({off.prompt_id for off, _ in pairs}), "pairs": len(pairs),
    }  # fmt: skip


def _throughput(rows: list[Measurement], load: int) -> float:
    seconds = sum(row.seconds for row in rows)
    return load * sum(row.tokens for row in rows) / seconds if seconds else 0.0


FULL = World(gains=GAINS, ks=(1, 3, 5), concurrencies=(1, 4, 16), temperatures=(0.0, 1.0))


def full_record(world: World = FULL) -> Record:
    """Everything at once: sweeps, divergences, gates, prices, failures."""
    found = [
        {"prompt_id": "p3", "category": "code", "k": 3, "temperature": 0.0, "repeat": 0, "concurrency": 1,
         "at_char": 412, "common": "and so the list is sorted in place, which\n    is what we want",
         "off": " because it saves memory.",
         "on": " since it saves memory.", "gap_nats": 0.013, "verdict": "near-tie",
         "source": "the engine's log-probabilities",
         "why": "the two likeliest tokens lay 0.013 nats apart"},
        {"prompt_id": "p9", "category": "chat", "k": 3, "temperature": 0.0, "repeat": 0, "concurrency": 16,
         "at_char": 90, "common": "The capital of France is", "off": " Paris.", "on": " Berlin.", "gap_nats": 4.2,
         "verdict": "defect",
         "source": "the engine's log-probabilities", "why": "plain decoding was not in doubt here"},
    ]  # fmt: skip
    rows = rows_of(world)
    record = record_of(rows)
    record["divergences"] = {"compared": 32, "differ": 2, "near_ties": 1, "defects": 1, "unexplained": 0,
                             "limit_nats": 0.05, "found": found}  # fmt: skip
    record["health"] = [
        {"gate": "acceptance", "ok": True, "says": "82% of first drafts are accepted"},
        {"gate": "prefix cache", "ok": False, "says": "the drafting server reused no prompt, the plain one 40%"},
        {"gate": "drafter's size", "ok": None, "says": "the engine does not tell which drafter it loaded"},
    ]
    record["prices"] = {"price_per_hour": 2.5, "watts": 350.0, "currency": "USD"}
    record["summary"] |= {"cost_per_million_tokens": {"off": 13.9, "on": 9.1},
                          "tokens_per_joule": {"off": 0.143, "on": 0.22}, "equal_outputs": 0.9375}  # fmt: skip
    failure = Failure("p7", "on", 3, 0.0, 0, 4, 31.5, "the server closed the connection after 12 events")
    record["failures"] = [asdict(failure)]
    return record
