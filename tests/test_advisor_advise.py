"""Verdicts, reasons, changes and commands, and `paceline advise` on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from shell import Shell

from paceline import cli
from paceline.advisor.advise import CAUTION, FITS, NO_STEP, TOO_LARGE, Advice, Decision, Wish, advise
from paceline.advisor.commands import ENGINES, Setup, commands
from paceline.advisor.machines import Machine, find
from paceline.advisor.measured import of_file
from paceline.advisor.report import record
from paceline.errors import UsageError
from paceline.shapes import SHAPES

CARD = Machine(name="24 GB", kind="cuda", memory=24e9, bandwidth=936e9)


def row(advice: Advice, size: str, precision: str) -> Decision:
    return next(d for d in advice.decisions if (d.size, d.precision) == (size, precision))


def judged(machine: Machine, size: str, precision: str, **wish: int) -> Decision:
    return row(advise(machine, Wish(target=size, **wish)), size, precision)  # type: ignore[arg-type]


def test_31b_in_4_bits_on_24_gb_fits_at_32k_and_not_at_128k() -> None:
    short, long = (judged(CARD, "31b", "4.5 bit", context=n) for n in (32768, 131072))
    assert short.fits
    assert short.spare > 0
    assert long.verdict == TOO_LARGE
    assert "GB are missing" in long.reason
    assert 32768 <= short.longest < 131072
    assert f"a context of {short.longest} tokens fits" in long.change


@pytest.mark.parametrize("machine", ["rtx4090", "m4 pro", "gb10", "strix halo"])
def test_26b_alone_on_modest_hardware_is_flagged(machine: str) -> None:
    found = judged(find(machine), "26b-a4b", "4.5 bit")
    assert found.verdict == CAUTION
    assert "batch 4 to 8" in found.reason
    assert "--batch 4" in found.change
    assert "tokens/s together, predicted" in found.change


def test_26b_is_not_flagged_side_by_side_or_on_a_fast_machine() -> None:
    assert "experts" not in judged(find("gb10"), "26b-a4b", "4.5 bit", batch=4).reason
    assert judged(find("h100"), "26b-a4b", "bf16").verdict == FITS


@pytest.mark.parametrize("size", ["e2b", "e4b"])
def test_small_sizes_are_for_single_users_on_small_devices(size: str) -> None:
    small = judged(find("phone"), size, "4.5 bit")
    assert small.verdict == FITS
    assert "single user" in small.reason
    for large in (judged(find("h100"), size, "bf16"), judged(find("rtx 3060"), size, "4.5 bit", batch=8)):
        assert large.verdict == CAUTION
        assert "single users on small devices" in large.reason


def test_every_size_at_every_precision_has_a_verdict_and_a_reason() -> None:
    found = advise(CARD, Wish())
    assert len(found.decisions) == 3 * len(SHAPES)
    for decision in found.decisions:
        assert decision.reason
        assert decision.fits == (decision.spare >= 0)
        assert decision.fits == bool(decision.commands)
        assert decision.fits or decision.change


def test_the_recommended_one_is_the_largest_that_fits_and_is_fast_enough() -> None:
    def best(machine: str, **wish: int) -> tuple[str, str]:
        found = advise(find(machine), Wish(**wish)).best  # type: ignore[arg-type]
        assert found is not None
        return found.size, found.precision

    assert best("h100") == ("31b", "bf16")
    assert best("rtx4090") == ("31b", "4.5 bit")
    assert best("rtx 3060") == ("12b", "4.5 bit")
    assert best("phone") == ("e4b", "4.5 bit")
    slow = advise(Machine(name="slow", kind="any", memory=200e9, bandwidth=20e9), Wish()).best
    assert slow is not None
    assert slow.size != "31b"


def test_nothing_fits() -> None:
    found = advise(Machine(name="tiny", kind="any", memory=2e9, bandwidth=1e11), Wish())
    assert found.best is None
    assert {d.change for d in found.decisions} == {NO_STEP}


def test_steps_come_cheapest_first() -> None:
    assert "of the 16 texts" in judged(find("h100"), "31b", "bf16", batch=16).change
    assert judged(CARD, "12b", "bf16").change == "at 8 bit it fits"


def test_what_would_make_it_faster_fits_and_is_faster() -> None:
    found = advise(find("gb10"), Wish())
    for decision in found.decisions:
        if decision.faster:
            size, precision = decision.faster.split(":")[0].lower().split(" at ")
            other = row(found, size, precision)
            assert other.forecast is not None
            assert decision.forecast is not None
            assert other.fits
            assert other.forecast.rate.middle >= 1.25 * decision.forecast.rate.middle
            assert f"{other.forecast.rate.low:.0f} to {other.forecast.rate.high:.0f} tokens/s" in decision.faster
    assert row(found, "31b", "bf16").faster.startswith("31B at 8 bit: ")
    assert row(found, "e2b", "4.5 bit").faster == ""


def test_nothing_is_faster_than_its_ceiling() -> None:
    for machine in ("h100", "gb10", "phone"):
        for decision in advise(find(machine), Wish()).decisions:
            assert decision.forecast is not None
            assert 0 < (decision.forecast.of_ceiling or 0) < 1


def test_an_unknown_bandwidth_leaves_every_speed_out() -> None:
    found = advise(Machine(name="x", kind="any", memory=1e12), Wish(target="26b-a4b"))
    for decision in found.decisions:
        assert decision.forecast is None
        assert decision.faster == ""
        assert "(--batch 4)" in decision.change


def test_wishes_are_checked() -> None:
    for wrong, match in (({"target": "70b"}, "no size"), ({"output": 8192}, "output"), ({"batch": 0}, "batch")):
        with pytest.raises(UsageError, match=match):
            Wish(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="300000"):
        advise(CARD, Wish(context=300000))
    found = advise(find("h100"), Wish(context=200000))
    assert "at most 131072" in row(found, "e2b", "4.5 bit").reason


def setup(**chosen: object) -> Setup:
    base: dict[str, object] = {"size": "31b", "precision": "bf16", "k": 4, "batch": 1, "context": 8192, "kind": "cuda"}
    return Setup(**(base | chosen))  # type: ignore[arg-type]


def test_commands() -> None:
    found = commands(setup(int8_head=True))
    assert set(found) == set(ENGINES) - {"MLX"}
    assert found["Paceline"] == (
        "paceline chat --target google/gemma-4-31B-it --k 4 --device cuda --context 8192 --sequences 1"
        " --draft-weights int8-head"
    )
    assert '"num_speculative_tokens":4' in found["vLLM"]
    assert "--speculative-num-steps 4 --speculative-num-draft-tokens 5" in found["SGLang"]
    assert "--draft-block-size 5" in commands(setup(kind="apple"))["MLX"]
    assert "Paceline" not in commands(setup(precision="8 bit"))
    assert "vLLM" not in commands(setup(size="26b-a4b", precision="4.5 bit"))
    assert "Transformers" not in commands(setup(batch=2))
    assert "--speculative-num-steps 3" in commands(setup(batch=2))["SGLang"]
    mixture = commands(setup(size="26b-a4b"))["SGLang"]
    assert "--speculative" not in mixture
    assert "two GPUs" in mixture
    assert "OLLAMA_NUM_PARALLEL=2" in commands(setup(batch=2))["Ollama"]
    assert "OLLAMA_NUM_PARALLEL" not in found["Ollama"]
    assert "-c 16384 -np 2" in commands(setup(batch=2))["llama.cpp"]


@pytest.mark.parametrize("size", SHAPES)
def test_vllm_gets_valid_json_with_its_three_keys(size: str) -> None:
    command = commands(setup(size=size, k=3))["vLLM"]
    assert json.loads(command.split("'")[1]) == {
        "method": "mtp", "model": command.split()[2] + "-assistant", "num_speculative_tokens": 3
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["cuda", "apple", "any"])
def test_without_drafts_no_command_names_a_drafter(kind: str) -> None:
    for command in commands(setup(k=0, kind=kind)).values():
        assert "assistant" not in command
        assert "spec" not in command
        assert "<drafter" not in command


def test_paceline_commands_name_flags_that_exist() -> None:
    import typer

    chat = typer.main.get_command(cli.app).commands["chat"]  # type: ignore[attr-defined]
    known = {name for option in chat.params for name in option.opts}
    for chosen in ({"int8_head": True}, {"k": 0}, {"kind": "cpu"}):
        words = commands(setup(**chosen))["Paceline"].split()
        assert {word for word in words if word.startswith("--")} <= known


def test_the_record_is_json_and_says_what_it_is() -> None:
    found = json.loads(json.dumps(record(advise(CARD, Wish())), allow_nan=False))
    assert found["label"] == "predicted, not measured"
    assert found["decisions"][found["recommended"]]["size"] == "31b"
    assert found["calibration"]["provenance"]["gpu"]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["paceline", "advise", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--gpu", "rtx4090", "--json", "--explain")
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["machine"]["name"] == "RTX 4090"
    assert "Recommended: 31B at 4.5 bit" in err
    assert "predicted, not measured" in err
    assert "memory by class" in err
    monkeypatch.setenv("COLUMNS", "80")
    run(monkeypatch, "--gpu", "h100")
    assert "\u2026" not in capsys.readouterr().out  # nothing is cut off on a narrow terminal
    run(monkeypatch, "--gpu", "phone", "--target", "e2b")
    assert "Of 3 published speed-ups of E2B in other engines, 0 lie in the range" in capsys.readouterr().out
    run(monkeypatch, "--memory", "24GB", "--target", "E2B")
    out, err = capsys.readouterr()
    assert "bandwidth is unknown" in out
    assert not err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--gpu", "rtx4091"), "did you mean RTX 4090"),
        (("--memory", "24"), "memory needs a number and its unit"),
        (("--memory=-24GB",), "above zero"),
        (("--gpu", "h100", "--target", "70b"), "there is no size '70b'"),
        (("--gpu", "h100", "--category", "x"), "there is no category 'x'"),
        (("--gpu", "h100", "--bandwidth", "1008"), "bandwidth needs a number and its unit"),
        (("--gpu", "h100", "--memory", "24GB/s"), "memory needs a number and its unit"),
        (("--bandwidth", "1TB/s"), "--bandwidth alone says nothing of what fits"),
        (("--gpu", "h100", "--batch", "0"), "batch must lie in 1 .. 1024, not 0"),
        (("--gpu", "h100", "--batch=-1"), "batch must lie in 1 .. 1024, not -1"),
        (("--gpu", "h100", "--context", "0"), "2 tokens at least, not 0"),
        (("--gpu", "h100", "--context", "512"), "output must lie in 1 .. 511"),
        (("--gpu", "h100", "--target", "e2b", "--context", "200000"), "more than 131072, the most these sizes take"),
        (("--gpu", "h100", "--temperature", "3"), "temperature must lie in 0 .. 2"),
        (("--gpu", "m6 ultra"), "Apple M"),
    ],
)
def test_bad_input_is_one_sentence(shell: Shell, words: tuple[str, ...], wanted: str) -> None:
    shell.refuses_in_one_line(wanted, "advise", *words)


# ---- measured rounds ------------------------------------------------------------------------------------------------

MEASURED = {"rows": [{"batch": 1, "k": k, "context": 4096, "ms": 20.0 + k} for k in (0, 1, 2, 4)]}


def table(folder: Path) -> Path:
    path = folder / "rounds.json"
    path.write_text(json.dumps(MEASURED), "utf-8")
    return path


def test_measured_rounds_stand_for_the_predicted_ones_of_that_size_in_bf16(tmp_path: Path) -> None:
    machine, wish = find("h100"), Wish(target="31b")
    predicted, found = advise(machine, wish), advise(machine, wish, of_file(table(tmp_path), "31b", 1))
    first, second = (row(a, "31b", "bf16").forecast for a in (found, predicted))
    assert first is not None
    assert second is not None
    assert first.plain_s == pytest.approx(0.020)
    assert first.k <= 4  # the table knows no longer ones
    assert first.round_s == pytest.approx(0.020 + 1e-3 * first.k)
    assert second.plain_s != pytest.approx(0.020, rel=0.01)
    assert row(found, "31b", "8 bit") == row(predicted, "31b", "8 bit")
    blind = advise(Machine(name="x", kind="cuda", memory=1e12), wish, of_file(table(tmp_path), "31b", 1))
    assert blind.best is not None
    assert blind.best.precision == "bf16"
    assert json.loads(json.dumps(record(blind), allow_nan=False))["measured"] == {"31b": "rounds.json"}


def test_measured_rounds_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--gpu", "h100", "--target", "31b", "--cost", str(table(tmp_path)), "--explain")
    out = capsys.readouterr().out
    assert "31B at bf16 were measured (rounds.json)" in out
    assert "Rounds: round times of 31B at bf16 were measured (rounds.json); the others are predicted." in out


def test_measured_rounds_that_do_not_go(shell: Shell) -> None:
    path = table(shell.folder)
    shell.refuses_in_one_line("say with --target which", "advise", "--gpu", "h100", "--cost", path)
    words = ("advise", "--gpu", "h100", "--target", "31b", "--cost")
    shell.refuses_in_one_line("cannot read none.json", *words, "none.json")
    shell.refuses_in_one_line("rounds of at most 1 texts, not of --batch 4", *words, path, "--batch", "4")
    shell.refuses_in_one_line("knows no measured ones", *words, path, "--html", "a.html")
