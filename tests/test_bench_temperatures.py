"""Acceptance by temperature, from engines whose acceptance is planted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import FakeEngine, make_prompts

from paceline.bench.temperatures import PLAIN, Settings, bench_temperatures, measure, page, summarise
from paceline.errors import UsageError
from paceline.types import ACCEPT_MODES, Completion, Prompt, SamplingParams

KEPT = {"coupled": 0.5, "rejection": 0.6, "block": 0.7}  # the chance that a draft stays, at temperature 1


class Planted(FakeEngine):
    """Keeps drafts by mode and temperature; a round takes a millisecond, and a fifth of one for each draft."""

    def complete(self, prompt: Prompt, params: SamplingParams, k: int) -> Completion:
        done = super().complete(prompt, params, 0)
        chance = 0.8 if not params.temperature else KEPT[params.accept] / max(params.temperature, 1.0)
        rng, written = random.Random(f"{prompt}{params}"), 1
        done.stats.rounds = 0
        while written < len(done.token_ids):
            kept = 0
            while k and kept < k and rng.random() < chance:
                kept += 1
            done.stats.count_round(k if self.drafts else 0, kept)
            written += 1 + kept
            self.now += 0.001 * (1 + 0.2 * k)
        return done


SETTINGS = Settings(temperatures=(0.0, 1.0, 1.3), k=3, max_tokens=60, repeats=2)


def taken(engine: Planted, settings: Settings = SETTINGS, prompts: int = 12) -> list[Any]:
    return list(measure(engine, make_prompts(prompts), settings, engine.clock))


def test_every_cell_is_measured_with_equal_seeds() -> None:
    engine = Planted()
    rows = taken(engine)
    assert len(rows) == 12 * 2 * (2 + 4 + 4) == len(engine.calls)
    assert {row.arm for row in rows if row.temperature} == {PLAIN, *ACCEPT_MODES}
    assert {row.arm for row in rows if not row.temperature} == {PLAIN, "coupled"}
    seeds = {(row.prompt_id, row.repeat): row.seed for row in rows}
    assert all(row.seed == seeds[row.prompt_id, row.repeat] for row in rows)
    assert len(set(seeds.values())) == 24
    assert {k for _, _, k in engine.calls} == {0, 3}
    assert len({tuple(r.arm for r in rows[i : i + 4]) for i in range(2, len(rows), 10)}) > 6  # orders are shuffled


def test_lengths_and_their_order_come_out_as_planted() -> None:
    summary = summarise(taken(Planted(), prompts=40), SETTINGS)
    here = summary["by_temperature"]["1.0"]
    for mode, chance in KEPT.items():
        block = here["modes"][mode]
        planted = sum(chance**j for j in range(4))
        low, high = block["acceptance_length_ci95"]
        assert low < planted < high, mode
        assert high - low < 0.3
        assert block["drafts_a_round"] == 3
    lengths = [here["modes"][mode]["acceptance_length"] for mode in ("coupled", "rejection", "block")]
    assert lengths == sorted(lengths)
    for name, (first, second) in {"block over rejection": (2, 1), "coupled over rejection": (0, 1)}.items():
        compared = here["compared"][name]
        assert compared["ratio"] == pytest.approx(lengths[first] / lengths[second])
        assert compared["ci95"][0] < compared["ratio"] < compared["ci95"][1]
    assert (
        here["compared"]["block over rejection"]["ci95"][0] > 1 > here["compared"]["coupled over rejection"]["ci95"][1]
    )
    hot = summary["by_temperature"]["1.3"]["modes"]["block"]
    assert hot["acceptance_length"] < lengths[2]


def test_speed_is_by_the_token_and_greedy_counts_for_every_mode() -> None:
    summary = summarise(taken(Planted(), prompts=40), SETTINGS)
    cold = summary["by_temperature"]["0.0"]
    assert cold["modes"]["coupled"] == cold["modes"]["rejection"] == cold["modes"]["block"]
    assert cold["compared"] == {}
    block = summary["by_temperature"]["1.0"]["modes"]["block"]
    assert 0.7 < block["speedup"] < block["acceptance_length"]
    assert block["speedup_ci95"][0] < block["speedup"] < block["speedup_ci95"][1]


def test_few_prompts_give_no_interval() -> None:
    block = summarise(taken(Planted(), prompts=4), SETTINGS)["by_temperature"]["1.0"]["modes"]["block"]
    assert block["acceptance_length"] > 1
    assert block["acceptance_length_ci95"] is None


def test_the_files_hold_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, html = tmp_path / "t.json", tmp_path / "t.html"
    summary = bench_temperatures(Planted(), make_prompts(6), SETTINGS, out, html)
    record = json.loads(out.read_text())
    assert record["complete"]
    assert record["summary"] == summary
    assert len(record["measurements"]) == 6 * 2 * 10
    text = html.read_text()
    assert text.count("<figure") == 2
    assert "tokens a round" in text
    assert page(record) == text


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    engine = Planted()
    engine.fails_at = (30, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bench_temperatures(engine, make_prompts(6), SETTINGS, tmp_path / "t.json", None)
    record = json.loads((tmp_path / "t.json").read_text())
    assert not record["complete"]
    assert len(record["measurements"]) == 30


def test_what_would_measure_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no draft was made"):
        taken(Planted(drafts=False))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"k": 0}, "k must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"temperatures": ()}, "temperatures must name at least one"),
        ({"temperatures": (1.0, 1.0)}, "temperatures must differ"),
        ({"temperatures": (-1.0,)}, "temperature must be 0"),
        ({"accept": ()}, "accept must name modes"),
        ({"accept": ("block", "block")}, "accept must name modes"),
        ({"accept": ("typical",)}, "accept must be one of"),
        ({"top_p": 0.0}, "top_p must lie"),
    ]
    for values, match in wrong:
        with pytest.raises(UsageError, match=match):
            Settings(**values)
    with pytest.raises(UsageError, match="there are no prompts"):
        bench_temperatures(Planted(), [], SETTINGS, tmp_path / "t.json", None)
    assert not list(tmp_path.iterdir())
