"""The command line refuses bad input in one line on stderr, with exit code 2, and leaves nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import copy, edit_json, rewrite
from families import Pair
from shell import COMMANDS, Shell

from paceline.hub import EMBEDDED_PAIR

pytestmark = pytest.mark.usefixtures("quiet_torch")

needs_target = pytest.mark.skipif(not (EMBEDDED_PAIR / "target" / "config.json").is_file(), reason="no embedded target")


@pytest.fixture
def pair(pairs: dict[str, Pair]) -> Pair:
    return pairs["e4b"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_bad_checkpoints(shell: Shell, pair: Pair, command: str, tmp_path: Path) -> None:
    words, target, other = COMMANDS[command], pair.target, copy(pair.target, tmp_path / "copy")
    edit_json(other / "config.json", new_feature=1)
    shell.refuses_in_one_line("neither a folder on this machine nor a hub name", *words, "--target", "/no/such/folder")
    shell.refuses_in_one_line("config.json: unknown key 'new_feature'", *words, "--target", other)
    shell.refuses_in_one_line("is a drafter", *words, "--target", pair.assistant)
    shell.refuses_in_one_line("is not an MTP drafter", *words, "--target", target, "--drafter", target)
    shell.refuses_in_one_line("unknown backend 'magic'", *words, "--target", target, "--backend", "magic")
    shell.refuses_in_one_line("'n' or 'n-1', not 'x'", *words, "--target", target, "--draft-position", "x")


@pytest.mark.parametrize("command", ["generate", "chat", "bench"])
def test_commands_refuse_damaged_weights(shell: Shell, pair: Pair, command: str, tmp_path: Path) -> None:
    target = copy(pair.target, tmp_path / "copy")
    path = target / "model.safetensors"
    rewrite(path, path.read_bytes()[:-100])
    shell.refuses_in_one_line("model.safetensors is damaged", *COMMANDS[command], "--target", target)


@pytest.mark.parametrize("command", ["generate", "chat", "bench"])
@pytest.mark.parametrize("k", ["-1", "16"])
def test_draft_lengths_are_refused_before_loading(shell: Shell, pair: Pair, command: str, k: str) -> None:
    wanted = f"draft length k must be 'auto' or a whole number from 0 to 15, not {k}"
    shell.refuses_in_one_line(wanted, *COMMANDS[command], "--target", pair.target, "--k", k)


FLAGS = [
    ("--temperature", "-1", "temperature must be 0"),
    ("--top-k", "-1", "top_k must be"),
    ("--top-p", "0", "top_p must lie"),
    ("--min-p", "1.5", "min_p must lie in [0, 1]"),
    ("--repetition-penalty", "0", "repetition_penalty must lie"),
    ("--presence-penalty", "3", "presence_penalty must lie"),
    ("--frequency-penalty", "-3", "frequency_penalty must lie"),
    ("--min-tokens", "999", "min_tokens must lie"),
    ("--seed", "-1", "seed must lie"),
    ("--max-tokens", "0", "max_tokens must be"),
    ("--stop", "", "stop strings must not be empty"),
    ("--accept", "typical", "accept must be one of coupled, rejection, block, not 'typical'"),
    ("--sampling", "best", "--sampling is 'flags' or 'model', not 'best'"),
    ("--json-schema", "none.json", "json_schema: cannot read none.json: No such file"),
    ("--grammar", ".", "grammar: cannot read .: Is a directory"),
    ("--regex", "a(", "regex cannot be used: "),
    ("--regex", "", "regex must be a string that is not empty"),
]


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(("flag", "value", "match"), FLAGS)
def test_flags_out_of_range(shell: Shell, command: str, flag: str, value: str, match: str) -> None:
    shell.refuses_in_one_line(match, *COMMANDS[command], flag, value)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_grammar_files_are_refused_before_loading(shell: Shell, command: str, tmp_path: Path) -> None:
    words = [*COMMANDS[command], "--target", "/no/such/folder"]
    (tmp_path / "s.json").write_text('{"type": "strin"}')
    (tmp_path / "g.lark").write_bytes(b"start: \xff")
    shell.refuses_in_one_line("json_schema cannot be used: Invalid type: strin", *words, "--json-schema", "s.json")
    shell.refuses_in_one_line("grammar: cannot read g.lark: it is not UTF-8 text", *words, "--grammar", "g.lark")
    shell.refuses_in_one_line(
        "json_schema and regex exclude each other", *words, "--json-schema", "s.json", "--regex", "a"
    )


@needs_target
def test_advice_that_is_not_there_is_refused(shell: Shell, tmp_path: Path) -> None:
    target = copy(EMBEDDED_PAIR / "target", tmp_path / "copy")
    edit_json(target / "generation_config.json", do_sample=False)
    err = shell.refuses("generate", "hi", "--target", target, "--drafter", "none", "--sampling", "model")
    assert err.splitlines()[-1].endswith("advises no sampling; leave --sampling out")


def test_flags_of_a_wrong_type_or_name(shell: Shell) -> None:
    assert "--k" in shell.refuses("generate", "hi", "--k", "four")
    assert "--nonsense" in shell.refuses("bench", "--nonsense")
    assert "prompt" in shell.refuses("generate")


def test_empty_prompts_on_the_command_line(shell: Shell) -> None:
    for text in ("", "  \n"):
        shell.refuses_in_one_line("the prompt is empty", "generate", text)
        shell.refuses_in_one_line("the prompt is empty", "generate", text, "--raw")


def test_text_for_a_checkpoint_without_tokenizer(shell: Shell, pair: Pair) -> None:
    for words in (["generate", "hello"], ["bench", "--out", "r.json"]):
        err = shell.refuses(*words, "--target", pair.target)
        assert err.splitlines()[-1].startswith("paceline: ")
        assert err.splitlines()[-1].endswith("has no tokenizer.json; give token ids instead of text")


def test_bench_refuses_prompt_files(shell: Shell, tmp_path: Path) -> None:
    shell.refuses_in_one_line("cannot read the prompt file nothing.jsonl", "bench", "--prompts", "nothing.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "category": "b", "prompt": "c"}\n{"id": "d"}\n')
    shell.refuses_in_one_line('bad.jsonl:2: the key "category" is missing', "bench", "--prompts", "bad.jsonl")
    shell.refuses_in_one_line("cannot take 0 of", "bench", "--sample", "0")


def test_bench_refuses_modes_and_temperatures_that_clash(shell: Shell) -> None:
    shell.refuses_in_one_line("--accept goes with --temperatures", "bench", "--accept", "block")
    both = ["--temperatures", "0,1", "--temperature", "1"]
    shell.refuses_in_one_line("--temperature does not go with --temperatures", "bench", *both)
    shell.refuses_in_one_line("--temperatures does not go with --shape", "bench", "--shape", "e2b", *both[:2])


@needs_target
@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--drafter", "none"], "k must be at least 1"),
        (["--drafter", "none", "--temperatures", "0,1"], "k must be at least 1"),
        (["--temperatures", "0,x"], "temperatures must be numbers with commas between, not 'x'"),
        (["--temperatures", "0,0"], "temperatures must differ"),
        (["--temperatures", "1", "--accept", "typical"], "accept must be one of coupled, rejection, block"),
        (["--temperatures", "1", "--html", "."], "cannot write .: it is a folder"),
        (["--drafter", "ngram", "--top-p", "7"], "top_p must lie in (0, 1], not 7.0"),
        (["--drafter", "ngram", "--repeats", "0"], "repeats must be at least 1"),
        (["--drafter", "ngram", "--max-tokens", "100000"], "exceed the context"),
        (["--drafter", "ngram", "--out", "no/such/r.json"], "cannot write no/such/r.json"),
        (["--drafter", "ngram", "--html", "."], "cannot write .: it is a folder"),
    ],
)
def test_bench_refuses_before_it_measures(shell: Shell, words: list[str], match: str) -> None:
    err = shell.refuses("bench", "--target", "embedded", "--out", "r.json", "--sample", "1", *words)
    assert match in err.splitlines()[-1]
