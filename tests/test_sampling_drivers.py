"""The drivers that compare sampled texts: their statistics, that they go on where they stopped, and what they break."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import acceptance_by_temperature as temperatures
import processors
import readme_table
import sampling_end_to_end as driver
import sampling_tables

from paceline import verification
from paceline.drafters import MtpDraft
from paceline.kernels import get_ops
from paceline.rejection import Rejection
from paceline.sampling import Sampler
from paceline.types import ACCEPT_MODES, SamplingParams


@dataclass
class Event:
    token_id: int


class FakeLLM:
    """Texts of the law (.5, .3, .2) for each token; `bent` modes have another, and `uncoupled` texts depend on k."""

    def __init__(self, bent: tuple[str, ...] = (), uncoupled: bool = False, stop_after: int = 10**9) -> None:
        self.bent, self.uncoupled, self.left, self.calls = bent, uncoupled, stop_after, list[SamplingParams]()

    def stream(self, prompt: str, params: SamplingParams, k: int) -> Iterator[Event]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.calls.append(params)
        drafts = k if params.accept != "coupled" or self.uncoupled else 0
        rng = np.random.default_rng([params.seed, drafts])
        wrong = k and (params.accept in self.bent or Rejection.draw is driver.argmax or MtpDraft.propose is driver.peek)
        law = (0.8, 0.1, 0.1) if wrong else (0.5, 0.3, 0.2)
        return (Event(int(token)) for token in rng.choice(3, 9, p=law))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "CHUNK", 500)
    monkeypatch.setattr(driver, "PROMPTS", ("a", "b"))


def drawn(llm: Any, out: Path, each: int = 2000) -> dict[str, Any]:
    record = driver.opening(out, {"texts": each})
    driver.Run(record, out).draw(llm, each)
    return dict(record["summary"])


def test_honest_engines_pass_and_broken_ones_are_caught(small: None, tmp_path: Path) -> None:
    summary = drawn(FakeLLM(), tmp_path / "r.json", 3000)
    assert summary["pass"]
    assert summary["coupled_equal"] == 1.0
    assert max(summary["controls_least_p"].values()) < driver.CAUGHT
    bent = drawn(FakeLLM(bent=("block",)), tmp_path / "b.json", 3000)
    assert not bent["pass"]
    assert bent["least_p_holm"]["block"] < driver.CAUGHT < driver.FINE < bent["least_p_holm"]["rejection"]
    assert not drawn(FakeLLM(uncoupled=True), tmp_path / "u.json", 500)["pass"]
    assert Rejection.draw is not driver.argmax
    assert MtpDraft.propose is not driver.peek


def test_a_control_that_slips_through_is_no_pass(small: None, tmp_path: Path) -> None:
    assert not drawn(FakeLLM(), tmp_path / "r.json", 20)["pass"]  # too few texts to catch anything


def test_a_run_goes_on_where_it_stopped(small: None, tmp_path: Path) -> None:
    whole = FakeLLM()
    drawn(whole, tmp_path / "whole.json")
    first, second, out = FakeLLM(stop_after=9000), FakeLLM(), tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        drawn(first, out)
    kept = json.loads(out.read_text())
    assert not kept["complete"]
    assert kept["summary"]["texts_an_arm"] == 1000
    drawn(second, out)
    assert 0 < len(second.calls) < len(whole.calls)
    found, wanted = (json.loads((tmp_path / name).read_text()) for name in ("r.json", "whole.json"))
    assert found["arms"] == wanted["arms"]
    assert found["coupled"] == wanted["coupled"]
    assert driver.opening(out, {"texts": 1})["arms"] == {}  # another run begins anew


def test_every_text_has_a_seed_of_its_own(small: None, tmp_path: Path) -> None:
    llm = FakeLLM()
    drawn(llm, tmp_path / "r.json", 500)
    seeds = [params.seed for params in llm.calls if params.accept != "coupled"]
    assert len(set(seeds)) == len(seeds) == 2 * 500 * 5
    assert not set(seeds) & {params.seed for params in llm.calls if params.accept == "coupled"}


def test_p_values_of_equal_laws_are_uniform_and_of_others_small() -> None:
    from scipy.stats import kstest

    rng, law = np.random.default_rng(2), np.random.default_rng(1).dirichlet(np.ones(60))
    equal = [rng.multinomial(600, law, 2) for _ in range(100)]
    for test in (driver.g_test, driver.permutation):
        assert kstest([test(table) for table in equal], "uniform").pvalue > 1e-3
    other = 0.8 * law + 0.2 * np.eye(60)[7]
    table = np.stack([rng.multinomial(600, law), rng.multinomial(600, other)])
    assert driver.g_test(table) < driver.CAUGHT
    assert driver.permutation(table) == 1 / (1 + driver.SHUFFLES)


def test_the_judge_adds_up_what_each_mode_keeps() -> None:
    """And leaves the verdict as it is; the first call of a text is no round."""
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet(np.ones(5), 4), rng.dirichlet(np.ones(5), 3)
    draft, noise = np.array([1, 0, 3]), verification.round_noise("rejection", 1, 2, 3, np.arange(5, dtype=np.uint64))
    honest, wanted = verification.verify, verification.verify("rejection", draft, q, p, noise)
    with temperatures.Judge() as judge:
        first = verification.round_noise("rejection", 1, 1, 0, np.arange(5, dtype=np.uint64))
        verification.verify("rejection", draft[:0], q[:0], p[:1], first)
        assert judge.rounds == 0
        assert verification.verify("rejection", draft, q, p, noise) == wanted
    assert verification.verify is honest
    assert judge.rounds == 1
    for mode in ACCEPT_MODES:
        law = verification.law(mode, draft, q, p).sum(-1)
        assert judge.kept[mode] == pytest.approx(float(law @ np.arange(4)))


def test_the_judge_sees_every_round_of_the_engine() -> None:
    """Whose tests of drafts are compiled, and so pass `verification` by; the verdicts stay the same."""
    rows = get_ops("cpu").array(torch.randn(3, 40, generator=torch.Generator().manual_seed(1)))

    def write() -> list[list[int]]:
        sampler = Sampler(get_ops("cpu"), SamplingParams(temperature=1.0, top_k=8, accept="block"))
        sampler.begin([1], 40)
        found = []
        for position in range(20):
            draft = [sampler.guess(rows[:1], None, position, []), 5]
            found.append(sampler.verify(rows, position, draft))
        return found

    wanted = write()
    with temperatures.Judge() as judge:
        assert write() == wanted
    assert judge.rounds == 19
    assert write() == wanted
    assert judge.rounds == 19


def test_the_documents_tables_are_the_records() -> None:
    told = {"value": 1.5, "ci95": [1.25, 1.75]}
    length = {"acceptance_length": 1.634, "acceptance_length_ci95": None}
    kept = {"coupled over rejection": {"ratio": 0.951, "ci95": [0.89, 1.02]}}
    record = {
        "same_rounds": {"as served": {"1.0": dict.fromkeys((*ACCEPT_MODES, *sampling_tables.RATIOS), told)}},
        "options": {"k": 5, "top_k": 64, "top_p": 0.95, "prompts": 60, "max_tokens": 96},
        "summary": {"whole_texts_at_1": {**dict.fromkeys(ACCEPT_MODES, length), "compared": kept}},
    }
    table, line = readme_table.VIEWS[temperatures.SCHEMA]
    assert f"| 1 | {' | '.join(['1.50 (1.25 to 1.75)'] * 5)} |" in table(record)
    assert "coupled 1.63, rejection 1.63, block 1.63; coupled keeps 95% (89% to 102%)" in line(record)
    summary = {"coupled_texts": 2000, "coupled_equal": 1.0, "texts_an_arm": 20000, "least_p_holm": {"block": 0.25},
               "controls_least_p": {"peeking": 1e-9}}  # fmt: skip
    table, line = readme_table.VIEWS[driver.SCHEMA]
    assert "| coupled: texts that are equal, drafting or not | 100% of 1,000 |" in table({"summary": summary})
    assert "| peeking: least p (must be caught) | 1e-09 |" in table({"summary": summary})
    assert "20,000 texts a mode do not differ (p = 0.25)" in line({"summary": summary})
    shares = {name: {"rules": {"share": 0.01}, "choosing": {"share": share}, "llguidance": {"share": 0.0}}
              for name, share in {"greedy": 0.02, "top-k, top-p": 0.07}.items()}  # fmt: skip
    table, line = readme_table.VIEWS["paceline-processors/2"]
    large = {"round_bytes": 5e9, "copy_bytes_per_s": 5e10, "least_round_ms": 100.0,
             "ways": {"greedy": {"choosing_ms": 1.0, "share_at_most": 1 / 101}}}  # fmt: skip
    shown = table({"summary": shares, "at_e2b_size": large, "options": {"k": 3}})
    assert "| greedy | 2.0% | 1.0% | 0.0% | 1.0 (1.0%) |" in shown
    assert "| top-k, top-p | 7.0% | 1.0% | 0.0% |  |" in shown
    assert "5.0 GB at 50 GB/s, the bandwidth of a copy: 100 ms" in shown
    assert "takes 5.0% of a text's CPU time more" in line({"summary": shares})


def test_the_clock_counts_what_a_method_calls_once() -> None:
    honest = Sampler.verify
    ops = get_ops("cpu")
    rows = ops.array(torch.zeros(3, 50))
    spent = {}
    for part in ("choosing", "rules", "choosing"):  # the first compiles
        with processors.clocked(part) as clock:
            sampler = Sampler(ops, SamplingParams(temperature=1.0, logit_bias={3: 1.0}))
            sampler.begin([1], 50)
            start = processors.time.process_time()
            for position in range(200):
                sampler.verify(rows, position, [1, 2])  # calls _ruled
            whole = processors.time.process_time() - start
        assert 0 < clock.spent <= whole
        assert Sampler.verify is honest
        spent[part] = clock.spent
    assert spent["rules"] < spent["choosing"]
    row = {part: {"own_s": own, "text_s": 2.0, "round_s": [9.0]}
           for part, own in {"rules": 0.1, "choosing": 0.5, "llguidance": 0.05}.items()}  # fmt: skip

    def rounds(*seconds: float) -> dict[str, Any]:
        return row | {"choosing": row["choosing"] | {"round_s": list(seconds)}}

    told = processors.summarise({"greedy": [rounds(0.5)] * 6, "way": [rounds(0.6, 0.6)] * 6})
    assert told["way"]["rules"] == {"share": pytest.approx(0.05), "ci95": pytest.approx([0.05, 0.05])}
    assert told["way"]["quickest_round_ms"] == pytest.approx(600.0)
    assert told["way"]["over_greedy"] == pytest.approx(0.2)
