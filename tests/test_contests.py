"""`paceline bench` against servers: whole runs over a replay, and every refusal before anything is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from replay import recording, replaying
from shell import Shell

from paceline import cli
from paceline.bench.contests import Attach, Start, checkpoints, dry_run_of, in_process, one_at_a_time, served
from paceline.errors import UsageError
from paceline.hub import EMBEDDED_PAIR

PROMPTS = "".join(
    json.dumps({"id": f"p{i}", "category": "tea", "messages": [{"role": "user", "content": f"Tea {i}?"}]}) + "\n"
    for i in range(2)
)
FAKE = Path(__file__).with_name("fake_engine.py")


def bench(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """`paceline bench` over two prompts, greedy, into report.json."""
    Path("prompts.jsonl").write_text(PROMPTS)
    fixed = ["bench", "--prompts", "prompts.jsonl", "--temperature", "0", "--max-tokens", "24"]
    paceline(monkeypatch, *fixed, *words)


def paceline(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """The command, which must succeed."""
    monkeypatch.setattr(sys, "argv", ["paceline", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def report() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path("report.json").read_text())
    return data


@pytest.mark.parametrize(("drafter", "ks", "arms"), [
    (True, None, [None]), (True, (2, None), [2, None]), (True, (5,), [5]), (False, None, [3]),
])  # fmt: skip
def test_the_engine_in_this_process_is_measured_as_it_runs_by_default(
    monkeypatch: pytest.MonkeyPatch, drafter: bool, ks: tuple[int | None, ...] | None, arms: list[int | None]
) -> None:
    """None is the controller's own choice, as it is for texts that name no draft length."""
    llm = SimpleNamespace(resolved=SimpleNamespace(auto=drafter, k=3))
    monkeypatch.setattr("paceline.terminal.load", lambda options, k: llm)
    ctx = SimpleNamespace(params={"engine": None, "target": "embedded", "drafter": "auto"})
    assert list(in_process(ctx, ks, (1,)).on) == arms  # type: ignore[arg-type]


def test_a_run_over_two_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with replaying(recording("llamacpp", "on")) as on, replaying(recording("llamacpp", "off")) as off:
        bench(monkeypatch, "--on", on.url, "--off", off.url, "--k", "4")
    done = report()
    assert done["complete"]
    assert {(arm["engine"], arm["drafts"]) for arm in done["arms"]} == {("llamacpp", True), ("llamacpp", False)}
    assert {(m["arm"], m["drafted_tokens"], m["accepted_tokens"], m["rounds"]) for m in done["measurements"]} == {
        ("on", 20, 9, 5), ("off", 0, 0, 0), ("off2", 0, 0, 0),
    }  # fmt: skip
    assert len({m["token_sha256"] for m in done["measurements"]}) == 1  # the same text in all arms


def test_swapped_arms_are_refused(shell: Shell) -> None:
    with replaying(recording("vllm", "on")) as on, replaying(recording("vllm", "off")) as off:
        shell.refuses_in_one_line("must not draft, but vllm drafts", "bench", "--on", off.url, "--off", on.url)


def test_two_arms_that_both_lack_a_drafter_are_refused(shell: Shell) -> None:
    with replaying(recording("llamacpp", "off")) as one, replaying(recording("llamacpp", "off")) as other:
        why = "must draft, but llamacpp does not draft: its /slots page says speculative: false"
        shell.refuses_in_one_line(why, "bench", "--on", one.url, "--off", other.url)


def test_an_arm_that_does_not_tell_needs_trust(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with replaying(recording("litert", "on")) as on, replaying(recording("litert", "on")) as off:
        words = ("--on", on.url, "--off", off.url)
        shell.refuses_in_one_line("add --trust-arms", "bench", "--temperature", "0", *words)
        bench(monkeypatch, *words, "--trust-arms")
    assert all(m["drafted_tokens"] is None for m in report()["measurements"])


def test_one_server_for_both_arms_is_refused(shell: Shell) -> None:
    with replaying(recording("vllm", "on")) as server:
        other = server.url.replace("127.0.0.1", "localhost")
        shell.refuses_in_one_line("are the same server", "bench", "--on", server.url, "--off", other)


def test_servers_out_of_reach_or_without_the_model_are_refused(shell: Shell) -> None:
    with replaying(recording("vllm", "on")) as on, replaying(recording("vllm", "off")) as off:
        shell.refuses_in_one_line("cannot reach http://127.0.0.1:9", "bench", "--on", on.url, "--off", "127.0.0.1:9")
        words = ("bench", "--on", on.url, "--off", off.url, "--model", "gemma-9")
        shell.refuses_in_one_line("does not serve 'gemma-9'; it has: /models/target", *words)


ONE, TWO = "http://127.0.0.1:1", "http://127.0.0.1:2"
AT_ODDS = [
    (("--on", ONE), "--on and --off go together"),
    (("--on", ONE, "--off", TWO, "--engine-args", "-x"), "--engine-args does nothing with --on and --off"),
    (("--on", ONE, "--off", TWO, "--target", "x"), "--target does nothing with --on and --off"),
    (("--on", ONE, "--off", TWO, "--engine", "tgi"), "no engine 'tgi'; there are: vllm"),
    (("--on", ONE, "--off", TWO, "--k", "2,4"), "a server that runs drafts one length"),
    (("--on", "ftp://x", "--off", TWO), "'ftp://x' is no server's address"),
    (("--engine", "vllm", "--device", "cpu"), "--device does nothing with --engine"),
    (("--engine", "tgi"), "no profile for the engine 'tgi'"),
    (("--engine", "vllm", "--k", "0"), "k must be at least 1"),
    (("--engine", "vllm", "--k", "3,3"), "k must be at least 1 and each named once"),
    (("--engine", "vllm", "--engine-args", "'a"), "--engine-args cannot be read: No closing quotation"),
    (("--engine", "transformers", "--engine-args", "x"), "--engine-args does nothing with --engine transformers"),
    (("--engine", "transformers", "--drafter", "x", "--concurrency", "2"), "answers one request at a time"),
    (("--model", "x"), "--model does nothing with an engine in this process"),
    (("--dry-run",), "--dry-run does nothing with an engine in this process"),
]


@pytest.mark.parametrize(("words", "why"), AT_ODDS, ids=[why[:40] for _, why in AT_ODDS])
def test_flags_at_odds_are_refused(shell: Shell, words: tuple[str, ...], why: str) -> None:
    shell.refuses_in_one_line(why, "bench", *words)


def test_dry_run_shows_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "T", "--drafter", "D", "--k", "2,4", "--engine-args", "--tp 2", "--dry-run"]
    paceline(monkeypatch, "bench", "--engine", "sglang", *words)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# drafting off", "# drafting on, k = 2", "# drafting on, k = 4",
    ]  # fmt: skip
    commands = [line for line in lines if not line.startswith("#")]
    assert all(command.endswith("--tp 2") for command in commands)
    assert ["--speculative-num-steps" in command for command in commands] == [False, True, True]


def test_a_started_engine_is_measured_one_arm_at_a_time_and_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).with_name("played_engine.py")
    Path("own.toml").write_text(
        f'[llamacpp]\ncommand = ["{sys.executable}", "{source}", "{{port}}"]\non = ["llamacpp", "on"]\n'
        'off = ["llamacpp", "off"]\n'
    )
    bench(monkeypatch, "--engine", "llamacpp", "--target", "T", "--drafter", "D", "--engine-profile", "own.toml")
    done = report()
    assert [step["arm"] for step in done["steps"]] == ["on", "on", "off", "off", "off2", "off2", "on2", "on2"]
    assert all("played_engine.py" in arm["details"]["command"] for arm in done["arms"])
    assert {m["drafted_tokens"] for m in done["measurements"] if m["arm"] == "on"} == {20}


def test_a_server_that_dies_ends_the_run_with_its_last_words(shell: Shell, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(f'[vllm]\ncommand = ["{sys.executable}", "{FAKE}", "dies", "{{port}}"]\n')
    words = ("--target", "T", "--drafter", "D", "--engine-profile", own, "--temperature", "0")
    shell.refuses_in_one_line("ended with exit code 3 before it was up; it said: loading weights", "bench",
                              "--engine", "vllm", *words)  # fmt: skip


def test_checkpoints_for_engines_of_others(tmp_path: Path) -> None:
    assert checkpoints("embedded", "auto") == (str(EMBEDDED_PAIR / "target"), str(EMBEDDED_PAIR / "assistant"))
    assert checkpoints("google/gemma-4-E4B-it", "auto")[1] == "google/gemma-4-E4B-it-assistant"
    assert checkpoints("t.gguf", "a.gguf") == ("t.gguf", "a.gguf")
    assert checkpoints(str(tmp_path), "auto")[1] is None


def test_ollama_may_be_one_server_for_both_arms() -> None:
    contest = served(Attach(ONE, ONE, "ollama"), (4,))
    assert list(contest.on) == [4]
    assert contest.alone  # changing over loads the model again: whole passes, and a warm-up before each
    assert one_at_a_time(Attach(ONE, ONE, "ollama"))
    assert not one_at_a_time(Attach(ONE, TWO, "vllm"))
    with pytest.raises(UsageError, match="are the same server"):
        served(Attach(ONE, ONE, "vllm"), None)
    with pytest.raises(UsageError, match="--dry-run shows"):
        dry_run_of(Attach(ONE, TWO), None)
    assert served(Start("litert", "T"), None).alone
