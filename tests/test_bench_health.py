"""Gates from both sides: a healthy run passes all, and each planted illness fails its own gate and no other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from divergence_texts import row

from paceline.bench.arms import Facts
from paceline.bench.health import gates
from paceline.bench.known_bad import KNOWN_BAD, Setting, known_bad
from paceline.bench.measurement import OFF, OFF_AGAIN, ON, Measurement, StepRecord
from paceline.bench.pairing import after_flag, command_of, mismatch, pair_of
from paceline.bench.plan import ArmKey

GATES = ["acceptance", "acceptance by context", "prefix cache", "method", "known trouble", "drafter", "draft length",
         "speed"]  # fmt: skip
Facts_ = dict[ArmKey, Facts]
Illness = Callable[[list[Measurement], Facts_], tuple[list[Measurement], Facts_]]
COMMAND = (
    "vllm serve google/gemma-4-31B-it --speculative-config"
    ' \'{"method":"mtp","model":"google/gemma-4-31B-it-assistant","num_speculative_tokens":4}\''
)


def healthy_rows(prompts: int = 30, seed: int = 1) -> list[Measurement]:
    """1.5 times as fast, 70% accepted whatever the length, half of each prompt from the prefix cache."""
    rng, rows = random.Random(seed), []
    for i in range(prompts):
        length = 100 * 2 ** (i % 6)
        for n, arm in enumerate((OFF, ON, OFF_AGAIN)):
            more = {"drafted_tokens": 80, "accepted_tokens": rng.randint(50, 62)} if arm == ON else {}
            more |= {"cached_tokens": length // 2, "ttft_s": 1e-4 * length, "started_s": 10.0 * i + n, "tokens": 80}
            seconds = rng.gauss(1.0, 0.02) / (1.5 if arm == ON else 1.0)
            rows.append(row(f"p{i}", arm, "text", prompt_tokens=length, seconds=seconds, **more))
    return rows


def healthy_facts(**more: Any) -> Facts_:
    off = Facts("vllm", "0.33.0", "google/gemma-4-31B-it", False, "counters", identity="a:1")
    on = replace(off, drafts=True, k=4, identity="a:2", details={"command": COMMAND})
    return {ArmKey(OFF, 0): off, ArmKey(ON, 4): replace(on, **more)}


def told(rows: Sequence[Measurement], facts: Facts_, steps: Sequence[StepRecord] = ()) -> dict[str, tuple[Any, str]]:
    return {gate["gate"]: (gate["ok"], gate["says"]) for gate in gates(rows, steps, facts)}


def on_rows(change: Callable[[Measurement], dict[str, Any]]) -> Illness:
    """An illness of the drafting arm's rows."""

    def plant(rows: list[Measurement], facts: Facts_) -> tuple[list[Measurement], Facts_]:
        return [replace(r, **change(r)) if r.arm == ON else r for r in rows], facts

    return plant


def on_facts(**more: Any) -> Illness:
    """An illness of what the drafting arm says of itself."""
    return lambda rows, facts: (rows, healthy_facts(**more))


def command(line: str, **more: Any) -> Illness:
    return on_facts(details={"command": line}, **more)


def only_one_k(rows: list[Measurement], facts: Facts_) -> tuple[list[Measurement], Facts_]:
    own = replace(facts[ArmKey(ON, 4)], k=1)
    return [replace(r, k=1) if r.arm == ON else r for r in rows], {ArmKey(ON, 1): own}


ILLNESSES: list[tuple[str, Illness, str]] = [
    ("acceptance", on_rows(lambda r: {"accepted_tokens": int(r.prompt_id[1:]) % 2}), "of the drafts were accepted"),
    ("acceptance by context", on_rows(lambda r: {"accepted_tokens": 8 if r.prompt_tokens > 1000 else 60}), "2400"),
    ("prefix cache", on_rows(lambda r: {"cached_tokens": r.prompt_tokens // 3}), "50%"),
    ("method", on_facts(method="none,ngram-mod"), "ngram-mod drafts here"),
    ("method", on_facts(method="draft-dflash"), "draft-dflash"),
    ("method", on_rows(lambda r: {"method": "eagle3"}), "eagle3"),
    ("method", command("llama-server -m gemma-4-31B.gguf -md mtp-gemma-4-31B.gguf", engine="llamacpp"), "--spec-type"),
    ("known trouble", on_facts(version="0.25.1"), "48848"),
    ("known trouble", on_facts(engine="transformers", version="5.23.0"), "5.22.2"),
    ("drafter", command(COMMAND.replace("31B-it-assistant", "26B-A4B-it-assistant")), "26b-a4b's"),
    ("draft length", only_one_k, "num_speculative_tokens"),
    ("speed", on_rows(lambda r: {"seconds": r.seconds * 2}), "do not pay"),
]


def test_a_healthy_run_passes_every_gate() -> None:
    found = told(healthy_rows(), healthy_facts())
    assert list(found) == GATES
    assert {name: ok for name, (ok, _) in found.items() if ok is not True} == {}
    assert "70%" in found["acceptance"][1]
    json.dumps(gates(healthy_rows(), [], healthy_facts()), allow_nan=False)


@pytest.mark.parametrize(("gate", "plant", "says"), ILLNESSES)
def test_each_illness_fails_its_own_gate_and_no_other(gate: str, plant: Illness, says: str) -> None:
    found = told(*plant(healthy_rows(), healthy_facts()))
    assert [name for name, (ok, _) in found.items() if ok is False] == [gate]
    assert says in found[gate][1]


def test_a_run_that_tells_nothing_is_not_called_healthy() -> None:
    bare = [
        replace(r, drafted_tokens=None, accepted_tokens=None, cached_tokens=None, prompt_tokens=0, k=None if r.k else 0)
        for r in healthy_rows()
    ]
    facts = {ArmKey(ON, None): Facts("openai", None, "m", None, "its API does not tell")}
    found = {name: ok for name, (ok, _) in told(bare, facts).items()}
    assert found == {**dict.fromkeys(GATES), "known trouble": True}
    assert set(told([], {}).values()) <= {(None, says) for _, says in told([], {}).values()} | {
        (True, "nothing is known against it")
    }


# ---- acceptance -----------------------------------------------------------------------------------------------------


def test_acceptance_from_counters_alone() -> None:
    rows = [replace(r, drafted_tokens=None, accepted_tokens=None) for r in healthy_rows()]
    steps = [StepRecord(ON, 4, 1, 1, 0, 80, 1.0, drafted=80, accepted=n % 2) for n in range(20)]
    ok, says = told(rows, healthy_facts(), steps)["acceptance"]
    assert ok is False
    assert says.startswith("0.6% (")
    good = [replace(step, accepted=50) for step in steps]
    assert told(rows, healthy_facts(), good)["acceptance"][0] is True


def test_few_drafts_prove_nothing() -> None:
    rows = [replace(r, drafted_tokens=5, accepted_tokens=0) for r in healthy_rows(2) if r.arm == ON]
    assert told(rows, healthy_facts())["acceptance"][0] is None
    many = [replace(r, drafted_tokens=500) for r in rows]
    assert told(many, healthy_facts())["acceptance"][0] is False


def test_a_low_rate_whose_interval_is_wide_is_not_known() -> None:
    rows = [replace(r, accepted_tokens=30 if r.prompt_id == "p0" else 0) for r in healthy_rows(12) if r.arm == ON]
    ok, says = told(rows, healthy_facts())["acceptance"]
    assert (ok, "too few to tell" in says) == (None, True)


def test_prompts_of_one_length_do_not_tell_of_context() -> None:
    rows = [replace(r, prompt_tokens=300) for r in healthy_rows()]
    assert told(rows, healthy_facts())["acceptance by context"][0] is None


def test_a_milder_decline_with_length_is_no_collapse() -> None:
    rows = [replace(r, accepted_tokens=40 if r.prompt_tokens > 1000 else 60) for r in healthy_rows() if r.arm == ON]
    assert told(rows, healthy_facts())["acceptance by context"][0] is True


def test_random_acceptance_is_seldom_called_a_collapse() -> None:
    """The negative control: no dependence on length, and much noise."""
    alarms = 0
    for seed in range(60):
        rng = random.Random(seed)
        rows = [replace(r, accepted_tokens=rng.randint(0, 60)) for r in healthy_rows(18, seed) if r.arm == ON]
        alarms += told(rows, healthy_facts())["acceptance by context"][0] is False
    assert alarms <= 3


# ---- the prefix cache by time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off", "on", "ok"), [(0.2, 1.0, False), (0.2, 0.25, True), (1.0, 1.0, True), (1.0, 0.2, True)]
)
def test_prefix_cache_by_time_to_first_token(off: float, on: float, ok: bool) -> None:
    rows = []
    for r in healthy_rows():
        r = replace(r, cached_tokens=None)
        again = on if r.arm == ON else off
        rows.append(replace(r, ttft_s=r.ttft_s * (off if r.arm == OFF_AGAIN else 1.0)))
        if r.arm == ON:
            rows.append(replace(r, temperature=1.0, started_s=r.started_s + 5, ttft_s=r.ttft_s * again))
    assert told(rows, healthy_facts())["prefix cache"][0] is ok


def test_prompts_read_once_do_not_tell_of_the_cache() -> None:
    rows = [replace(r, cached_tokens=None) for r in healthy_rows() if r.arm != OFF_AGAIN]
    assert told(rows, healthy_facts())["prefix cache"][0] is None


# ---- what runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mtp", "draft-mtp", "none,draft-mtp", "FROZEN_KV_MTP", "NEXTN"])
def test_names_of_mtp(name: str) -> None:
    assert told(healthy_rows(), healthy_facts(method=name, details={}))["method"][0] is True


def test_a_method_nobody_knows_is_not_known() -> None:
    assert told(healthy_rows(), healthy_facts(method="EAGLE", details={}))["method"][0] is None


def test_paceline_says_what_drafts() -> None:
    for drafter, ok in (("ngram (asked for)", False), ("/pair/assistant (the drafter of the embedded pair)", True)):
        facts = healthy_facts(engine="paceline", details={"decisions": {"drafter": drafter}})
        assert told(healthy_rows(), facts)["method"][0] is ok


def test_vllm_with_one_token_among_several_lengths_is_a_choice() -> None:
    facts = healthy_facts()
    facts[ArmKey(ON, 1)] = replace(facts[ArmKey(ON, 4)], k=1)
    assert told(healthy_rows(), facts)["draft length"][0] is True


def test_who_leaves_the_draft_length_to_its_controller_says_so() -> None:
    ok, says = told(healthy_rows(), healthy_facts(engine="paceline", k=None))["draft length"]
    assert (ok, "auto, which the controller chooses" in says) == (True, True)
    both = healthy_facts(engine="paceline") | {
        ArmKey(ON, None): healthy_facts(engine="paceline", k=None)[ArmKey(ON, 4)]
    }
    assert told(healthy_rows(), both)["draft length"][1].startswith("k = 4, auto")
    facts = healthy_facts(k=None)
    facts[ArmKey(ON, None)] = facts.pop(ArmKey(ON, 4))
    assert told(healthy_rows(), facts)["draft length"][0] is None  # a server that does not tell


def test_a_slow_draft_length_beside_a_fast_one_is_no_illness() -> None:
    rows = healthy_rows()
    rows += [replace(r, k=8, seconds=r.seconds * 3) for r in rows if r.arm == ON]
    assert told(rows, healthy_facts())["speed"] == (True, told(healthy_rows(), healthy_facts())["speed"][1])


def test_slow_with_bad_drafts_is_no_riddle() -> None:
    rows = [replace(r, seconds=2.0, accepted_tokens=20) if r.arm == ON else r for r in healthy_rows()]
    assert told(rows, healthy_facts())["speed"][0] is True


# ---- known trouble --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "bad"),
    [
        (Setting("sglang", "0.5.23", 5, 2, 0.0), True),
        (Setting("sglang", "0.5.23", 4, 2, 0.0), True),
        (Setting("sglang", "0.5.23", 3, 8, 0.0), False),
        (Setting("sglang", "0.5.23", 5, 1, 0.0), False),
        (Setting("sglang", None, None, 2, 0.0), None),
        (Setting("transformers", "5.22.2", 4, 1, 0.0), False),
        (Setting("transformers", "5.22.2", 4, 1, 1.0), True),
        (Setting("transformers", "5.18.0", 4, 1, 0.0), True),
        (Setting("transformers", "5.180.0", 4, 1, 0.0), False),
        (Setting("transformers", None, 4, 1, 0.0), None),
        (Setting("vllm", "0.32.0+cpu", 4, 1, 1.0), True),
        (Setting("vllm", "0.32.0", 4, 1, 1.0), False),
        (Setting("vllm", "0.32.0+cpu", 4, 1, 0.0), False),
        (Setting("vllm", "0.33.0", 4, 32, 1.0), False),
        (Setting("vllm", "0.2.50", 4, 1, 0.0), False),
        (Setting("paceline", "0.1.0", 15, 1, 1.0), False),
    ],
)
def test_known_trouble(setting: Setting, bad: bool | None) -> None:
    certain, possible = known_bad([setting])
    assert (bool(certain), bool(possible)) == (bad is True, bad is None)


def test_every_known_failure_has_its_source() -> None:
    assert all(entry.source.startswith("https://") and entry.what and entry.mend for entry in KNOWN_BAD)


def test_trouble_needs_the_concurrency_that_was_measured() -> None:
    facts = {ArmKey(ON, 5): Facts("sglang", "0.5.23", "m", True, "", k=5)}
    rows = [replace(r, k=5) for r in healthy_rows() if r.arm == ON]
    assert told(rows, facts)["known trouble"][0] is True
    assert told([replace(r, concurrency=2) for r in rows], facts)["known trouble"][0] is False


# ---- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        (COMMAND, ("google/gemma-4-31B-it", "google/gemma-4-31B-it-assistant")),
        ("llama-server -m a.gguf -md b.gguf --spec-type draft-mtp", ("a.gguf", "b.gguf")),
        ("python -m mlx_vlm.server --model /t --draft-model=/d", ("/t", "/d")),
        ("x --model-path T --speculative-draft-model-path D", ("T", "D")),
        ("x --speculative-config not-json --model T", ("T", None)),
        ("x 'half a quote --model T", ("T", None)),
        ("x --model", ("served", None)),
    ],
)
def test_pairs_are_read_from_command_lines(line: str, pair: tuple[str, str | None]) -> None:
    assert pair_of(Facts("x", None, "served", True, "", details={"command": line})) == pair
    assert command_of(Facts("x", None, "", True, "", details={"command": ["a", 1]})) == ["a", "1"]


def test_flags() -> None:
    assert after_flag(["a", "--m=1", "--m", "2"], ("--m",)) == "1"
    assert after_flag(["--m"], ("--m",)) is None


def test_pairs_by_config_files(tmp_path: Path) -> None:
    def folder(name: str, config: dict[str, Any]) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    target = folder("gemma-4-31B-it", {"text_config": {"hidden_size": 5376, "vocab_size": 262144}})
    good = folder("a", {"backbone_hidden_size": 5376, "text_config": {"hidden_size": 1024, "vocab_size": 262144}})
    other = folder("gemma-4-31B-it-assistant", {"backbone_hidden_size": 2816, "text_config": {"vocab_size": 262144}})
    cut = folder("c", {"backbone_hidden_size": 5376, "text_config": {"vocab_size": 4096}})
    assert mismatch(target, good)[0] is False
    assert mismatch(target, other) == (
        True,
        "the drafter's backbone_hidden_size is 2816, the target's hidden_size 5376",
    )
    assert "4096" in mismatch(target, cut)[1]
    (tmp_path / "a" / "config.json").write_text("{")
    assert mismatch(target, good)[0] is None


@pytest.mark.parametrize(
    ("target", "drafter", "wrong"),
    [
        ("google/gemma-4-E2B-it", "google/gemma-4-E2B-it-assistant", False),
        ("google/gemma-4-E2B-it", "google/gemma-4-E4B-it-assistant", True),
        ("gemma-4-26B-A4B-it-Q4.gguf", "mtp-gemma-4-26b-a4b.gguf", False),
        ("google/gemma-4-12B-it-qat-q4_0-unquantized", "google/gemma-4-12B-it-assistant", None),
        ("mine", "google/gemma-4-12B-it-assistant", None),
    ],
)
def test_pairs_by_name(target: str, drafter: str, wrong: bool | None) -> None:
    assert mismatch(target, drafter)[0] is wrong
