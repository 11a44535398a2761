"""`paceline bench --shape` without a GPU: what it refuses, shows and keeps; what asks for a GPU is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import GB, pretend
from shell import Shell

from paceline.bench import shape_report
from paceline.bench.shape_options import ShapeOptions, from_flags
from paceline.cli import main
from paceline.errors import UsageError

ROW = {
    "batch": 1, "k": 4, "context": 170, "ms": 2.0, "bound_ms": 1.5, "bytes": 3e9, "share_of_bandwidth": 0.75,
    "distinct_experts": 12.5, "expected_tokens": 3.0, "tokens_per_s": 1234.5, "tokens_per_round": 2.9,
    "kernels": {"matmul": {"launches": 40, "us": 1500.0}, "gaps": {"launches": 0, "us": 500.0}},
}  # fmt: skip
SHAPE = ["bench", "--shape", "26b-a4b", "--out", "r.json"]
WRONG_SHAPES = [
    (["--batch", "65"], "batch must lie in 1 .. 64, not 65"),
    (["--batch", "1,two"], "--batch takes whole numbers with commas between them, not 'two'"),
    (["--draft-lengths", "0,16"], "k must lie in 0 .. 15, not 16"),
    (["--draft-lengths", ""], "--draft-lengths takes whole numbers"),
    (["--at-context", "0"], "context must lie in 1 .. 261120, not 0"),
    (["--acceptance", "1.2"], "numbers in [0, 1], not '1.2'"),
    (["--acceptance", "lucky"], "there is no acceptance profile 'lucky'"),
    (["--tokens", "5"], "tokens must lie in 16 .. 1000, not 5"),
    (["--skew", "1"], "skew must lie in [0, 1), not 1.0"),
    (["--skew", "nan"], "skew must lie in [0, 1), not nan"),
    (["--draft-weights", "int4"], "unknown draft weights 'int4'"),
    (["--device", "cpu"], "--shape runs on a GPU, not on device 'cpu'"),
    (["--prompts", "p.jsonl"], "--prompts does not go with --shape"),
    (["--k", "4"], "--k does not go with --shape"),
    (["--max-tokens", "4"], "--max-tokens does not go with --shape"),
    (["--context", "4"], "--context does not go with --shape"),
    (["--out", "no/such/r.json"], "cannot write no/such/r.json"),
]


@pytest.mark.parametrize(("words", "match"), WRONG_SHAPES)
def test_wrong_flags_of_a_shape(gpu: None, shell: Shell, words: list[str], match: str) -> None:
    shell.refuses_in_one_line(match, *SHAPE, *words)


def test_shapes_that_do_not_go(gpu: None, shell: Shell) -> None:
    shell.refuses_in_one_line("there is no published size '13b'; choose e2b,", "bench", "--shape", "13b")
    shell.refuses_in_one_line("skew is for sizes with experts", "bench", "--shape", "12b", "--skew", "0.5")
    words = ["bench", "--shape", "e2b", "--draft-weights", "int8-head"]
    shell.refuses_in_one_line("'int8-head' is for dense heads, and this drafter's has centroids", *words)
    with pytest.raises(UsageError, match="the drafter of e2b has centroids"):
        ShapeOptions(shape="e2b", int8_head=True)


@pytest.mark.parametrize("flag", ["--batch", "--draft-lengths", "--at-context", "--acceptance", "--tokens", "--skew"])
def test_flags_that_need_a_shape(shell: Shell, flag: str) -> None:
    shell.refuses_in_one_line(f"{flag} goes with --shape", "bench", flag, "1")
    shell.refuses_in_one_line("--profile goes with --shape", "bench", "--profile")


def test_a_shape_without_a_gpu(no_gpu: None, shell: Shell) -> None:
    shell.refuses_in_one_line("--shape runs on a GPU, and here is none that serves: there is no NVIDIA GPU", *SHAPE)


def test_a_shape_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    pretend(monkeypatch, free=24 * GB)
    shell.refuses_in_one_line("the weights take 51.31 GB, 1.07 GB must stay free to work in, and the GPU has", *SHAPE)


def test_flags_of_a_shape_become_options() -> None:
    flags = {
        "shape": "31b", "batch": ["1,2", "8"], "draft_lengths": "0, 4", "at_context": "170,8192", "acceptance": "0.9",
        "tokens": 0, "profile": True, "skew": 0.0, "draft_weights": "int8-head", "device": "auto",
    }  # fmt: skip
    options = from_flags(flags)
    assert (options.batches, options.ks, options.contexts) == ((1, 2, 8), (0, 4), (170, 8192))
    assert (options.kernels, options.int8, options.tokens) == (True, (True, False), 0)
    for shape, int8 in (("31b", (True, True)), ("e2b", (False, True))):
        assert from_flags({**flags, "shape": shape, "draft_weights": "int8"}).int8 == int8
    assert options.labels == ["random weights", "synthetic acceptance: 0.9"]


Rows = list[dict[str, Any]]


def run_with(monkeypatch: pytest.MonkeyPatch, rows: Rows, failure: BaseException | None = None) -> None:
    """Measuring a shape gives these rows, then fails if there is something to fail with."""
    from paceline.bench import shape

    def run_shape(options: ShapeOptions, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        for row in rows:
            show(row)
        if failure:
            raise failure
        head = shape_report.record_head(options)
        return {**head, "complete": True, "copy_bandwidth": 2e12, "rows": rows}

    monkeypatch.setattr(shape, "run_shape", run_shape)
    monkeypatch.setattr("sys.argv", ["paceline", *SHAPE, "--profile"])


def test_a_shape_is_measured(
    gpu: None,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_with(monkeypatch, [ROW, {**ROW, "k": 0, "distinct_experts": None, "tokens_per_s": None}])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    done = json.loads(out.splitlines()[-1])
    assert (done["shape"], done["copy_bandwidth"]) == ("26b-a4b", 2e12)
    assert done["labels"] == ["random weights", "synthetic acceptance: speed-bench"]
    assert done["rows"][0] == {
        "batch": 1, "k": 4, "context": 170, "ms": 2.0, "share_of_bandwidth": 0.75, "tokens_per_s": 1234.5,
    }  # fmt: skip
    assert "26b-a4b on NVIDIA Test; random weights, synthetic acceptance: speed-bench" in " ".join(err.split())
    assert "75.0%" in err  # matmul's share of the time
    assert "3.000 GB had to move in 2.000 ms: 1,500 GB/s, 75% of the 2,000 GB/s" in " ".join(err.split())
    kept = json.loads((shell.folder / "r.json").read_text())
    assert kept["complete"]
    assert len(kept["rows"]) == 2


@pytest.mark.parametrize(
    ("failure", "said"),
    [(torch.OutOfMemoryError("CUDA"), "UsageError: the GPU ran out of memory"), (RuntimeError("x"), "RuntimeError: x")],
)
def test_rows_outlive_a_failure(
    gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: BaseException, said: str
) -> None:
    run_with(monkeypatch, [ROW], failure)
    with pytest.raises((UsageError, RuntimeError)):
        shape_report.bench_shape(ShapeOptions(shape="26b-a4b"), tmp_path / "r.json")
    kept = json.loads((tmp_path / "r.json").read_text())
    assert not kept["complete"]
    assert kept["failure"].startswith(said)
    assert kept["rows"] == [ROW]
