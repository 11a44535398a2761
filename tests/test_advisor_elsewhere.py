"""Estimates for other engines: what they are made of, and that they are called estimates."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from paceline import roofline
from paceline.advisor.advise import Wish, advise
from paceline.advisor.commands import ENGINES as COMMANDS
from paceline.advisor.elsewhere import ENCODERS, ENGINES, Estimate, estimates
from paceline.advisor.machines import Machine, find
from paceline.advisor.memory import Use
from paceline.advisor.report import record, show
from paceline.shapes import SHAPES, target_config

WHOLE = {"e2b": 5_123_178_979, "e4b": 7_996_157_418, "12b": 11_959_730_224, "26b-a4b": 25_805_936_206,
         "31b": 31_273_088_876}  # fmt: skip
GB24 = Machine(name="24 GB", kind="cuda", memory=24 * 2**30)


def by_engine(size: str, precision: str, **use: int) -> dict[str, Estimate]:
    return {found.engine: found for found in estimates(size, precision, Use(**use), GB24)}


@pytest.mark.parametrize("size", SHAPES)
def test_encoders_complete_the_published_checkpoints(size: str) -> None:
    assert roofline.parameters(target_config(size)).total + ENCODERS[size] == WHOLE[size]


def test_every_other_engine_with_a_command_has_an_estimate_and_its_reasons() -> None:
    assert set(ENGINES) == set(COMMANDS) - {"Paceline"}
    for found in by_engine("12b", "bf16").values():
        assert found.basis
        assert found.bytes > 2 * WHOLE["12b"]


def test_31b_in_4_bits_on_24_gib_as_its_users_have_it() -> None:
    for engine in ("llama.cpp", "Ollama"):
        assert by_engine("31b", "4.5 bit", context=16384)[engine].fits
        assert not by_engine("31b", "4.5 bit", context=131072)[engine].fits


def test_vllm_allows_itself_less_than_the_card() -> None:
    found = by_engine("12b", "8 bit")["vLLM"]
    assert found.room == pytest.approx(0.9 * GB24.memory)
    longer = by_engine("12b", "8 bit", context=40_000)["vLLM"]
    assert longer.bytes - found.bytes == (40_000 - 8192) * roofline.kv_per_token(target_config("12b"))[1]


def test_llama_cpp_keeps_windows_and_a_pass() -> None:
    sliding, full = roofline.kv_per_token(target_config("31b"))
    one, two = (by_engine("31b", "4.5 bit", batch=n, context=8192)["llama.cpp"].bytes for n in (1, 2))
    assert two - one == 1024 * sliding + 8192 * full


def test_explain_and_the_record_call_them_estimates() -> None:
    found, out = advise(find("h100"), Wish(target="12b")), io.StringIO()
    show(found, Console(file=out, width=200), explain=True)
    assert "elsewhere: estimates" in out.getvalue()
    assert "MLX" not in out.getvalue().split("elsewhere: estimates")[1].split("12B at bf16:")[0]
    rows = record(found)["decisions"]
    assert {e["engine"] for e in rows[0]["elsewhere_estimated"]} == set(ENGINES)
