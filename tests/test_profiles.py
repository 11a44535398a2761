"""How engines are started: the shipped profiles, a user's own file, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from paceline.bench.adapters.engines import DIALECTS
from paceline.bench.profiles import Order, load_profile
from paceline.errors import UsageError

SHIPPED = ("vllm", "sglang", "llamacpp", "mlx", "ollama", "trtllm", "litert")


def order(engine: str, k: int, own: Path | None = None) -> Order:
    return Order(load_profile(engine, own), "org/target", "org/drafter", k, ("--seed", "7"))


@pytest.mark.parametrize("engine", SHIPPED)
def test_shipped_profiles_differ_between_the_arms_in_drafting_alone(engine: str) -> None:
    on, off = order(engine, 3), order(engine, 0)
    assert on.dialect is DIALECTS[engine]
    drafts = on.shown(8000) + on.fill(on.options, 8000)
    if engine not in ("ollama", "litert"):  # these take the drafter from the model
        assert "org/drafter" in drafts
        assert ("4" if engine == "mlx" else "3") in drafts  # mlx-vlm counts the round's own token too
    assert "org/drafter" not in off.shown(8000) + off.options
    shared = [part for part in off.arguments(8000) if part not in off.profile.off]
    assert [part for part in on.arguments(8000) if part in shared] == shared
    assert on.arguments(8000)[-2:] == ["--seed", "7"]


@pytest.mark.parametrize("engine", SHIPPED)
def test_shipped_profiles_listen_on_the_loopback_address_alone(engine: str) -> None:
    given = order(engine, 0)
    told = " ".join(given.arguments(8123)) + " ".join(given.environment(8123).values())
    assert "8123" in told
    assert "0.0.0.0" not in told
    if engine != "llamacpp":  # whose own default is the loopback address
        assert "127.0.0.1" in told


def test_the_command_of_vllm_is_the_documented_one() -> None:
    words = shlex.split(order("vllm", 4).shown(8000))
    spec = json.loads(words[words.index("--speculative-config") + 1])
    assert spec == {"method": "mtp", "model": "org/drafter", "num_speculative_tokens": 4}


def test_sglang_counts_the_bonus_token_among_its_draft_tokens() -> None:
    words = order("sglang", 3).arguments(8000)
    assert words[words.index("--speculative-num-steps") + 1] == "3"
    assert words[words.index("--speculative-num-draft-tokens") + 1] == "4"


def test_the_model_is_named_where_a_server_has_several() -> None:
    assert {engine for engine in SHIPPED if order(engine, 0).profile.model} == {"ollama", "litert"}


def test_an_own_file_changes_single_keys_and_adds_engines(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[vllm]\ncommand = ["my-vllm", "{target}", "{port}"]\n'
                   '[mine]\ndialect = "openai"\ncommand = ["serve", "--port={port}"]\n')  # fmt: skip
    changed = order("vllm", 2, own)
    assert changed.arguments(9)[:3] == ["my-vllm", "org/target", "9"]
    assert "--speculative-config" in changed.arguments(9)  # the rest of the shipped table stays
    assert order("mine", 0, own).arguments(9) == ["serve", "--port=9", "--seed", "7"]
    assert order("mine", 0, own).dialect.name == "openai"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[vllm\n", "is no TOML"),
        ("vllm = 3\n", "vllm must be a table"),
        ('[vllm]\ncomand = ["x"]\n', "[vllm] has no key 'comand'; keys: command"),
        ('[vllm]\ncommand = "x"\n', "command must be a list of strings, not 'x'"),
        ("[vllm]\nwait_s = 0\n", "wait_s must be a number of seconds, not 0"),
        ("[vllm]\nenv = { A = 1 }\n", "env must be a table of strings"),
        ("[vllm]\nhealth = 3\n", "health must be a string, not 3"),
        ('[vllm]\ndialect = "klingon"\n', "no engine 'klingon'; there are: vllm"),
    ],
)
def test_a_bad_file_is_refused_with_the_key_at_fault(tmp_path: Path, text: str, words: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_profile("vllm", own)
    assert words in str(caught.value)


def test_unknown_engines_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no profile for the engine 'tgi'; there are: vllm, sglang"):
        load_profile("tgi")
    with pytest.raises(UsageError, match="'lmstudio'; start it yourself and name it with --on and --off"):
        load_profile("lmstudio")
    with pytest.raises(UsageError, match=r"cannot read the profile .*missing.toml: No such file"):
        load_profile("vllm", tmp_path / "missing.toml")
    own = tmp_path / "own.toml"
    own.write_text('[mine]\ncommand = ["x"]\n')
    with pytest.raises(UsageError, match=r"the profile \[mine\] has no dialect; add it"):
        load_profile("mine", own)


def test_an_arm_that_drafts_needs_a_drafter() -> None:
    with pytest.raises(UsageError, match="--engine vllm needs --drafter"):
        Order(load_profile("vllm"), "T", None, 3)
    assert Order(load_profile("vllm"), "T", None, 0).arguments(1)
    assert Order(load_profile("litert"), "T", None, 3).arguments(1)
