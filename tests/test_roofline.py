"""The arithmetic of bytes and operations against published counts, and against counting one by one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_shapes import DRAFTERS, TARGETS

from paceline.config import DrafterConfig, TextConfig
from paceline.errors import UsageError
from paceline.roofline import (
    Round,
    distinct,
    draft_step,
    drafter_parameters,
    kv_held,
    kv_per_token,
    kv_read,
    parameters,
    pass_flops,
    prompt_flops,
    traffic,
)
from paceline.shapes import SHAPES, drafter_config, target_config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import performance_table  # noqa: E402

# Decimal gigabytes of bf16 weights that a decoded token reads, LM head and 8 of 128 experts included.
PER_TOKEN_GB = {"e2b": 4.56, "e4b": 9.29, "12b": 23.8, "26b-a4b": 7.65, "31b": 61.4}
WITHOUT_HEAD_GB = {"e2b": 3.75, "e4b": 7.95, "12b": 21.8, "26b-a4b": 6.17, "31b": 58.6}
KV_PER_TOKEN = {
    "e2b": (12_288, 6_144),
    "e4b": (40_960, 16_384),
    "12b": (327_680, 16_384),
    "26b-a4b": (204_800, 20_480),
    "31b": (819_200, 81_920),
}
KV_HELD_GIB = {
    "e2b": (0.05, 0.19),
    "e4b": (0.14, 0.52),
    "12b": (0.44, 0.81),
    "26b-a4b": (0.35, 0.82),
    "31b": (1.4, 3.3),
}
STEP_MB = {"e2b": 23.3, "e4b": 24.9, "12b": 846, "26b-a4b": 839, "31b": 939}
STEP_KV = {
    "e2b": (1.6e6, 2048),
    "e4b": (3.1e6, 4096),
    "12b": (25e6, 2048),
    "26b-a4b": (25e6, 4096),
    "31b": (50e6, 8192),
}
NAMES = list(SHAPES)


def pair(name: str) -> tuple[TextConfig, DrafterConfig]:
    return target_config(name), drafter_config(name)


def digits(value: float, published: float) -> bool:
    """Whether `value` rounds to the published figure, to as many digits as that has."""
    text = str(published)
    places = len(text.split(".")[1]) if "." in text else 0
    return abs(value - published) <= 0.5 * 10**-places * 1.001


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_counted_once(name: str) -> None:
    target, drafter = pair(name)
    assert parameters(target).total == TARGETS[name]
    assert drafter_parameters(drafter) == DRAFTERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_token(name: str) -> None:
    one = traffic(target_config(name), None, Round())
    assert digits((one.dense + one.experts + one.head) / 1e9, PER_TOKEN_GB[name])
    assert digits((one.dense + one.experts) / 1e9, WITHOUT_HEAD_GB[name])
    assert one.drafting == one.kv_read == 0


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values(name: str) -> None:
    target = target_config(name)
    assert kv_per_token(target) == KV_PER_TOKEN[name]
    for context, published in zip((8192, 32768), KV_HELD_GIB[name], strict=True):
        assert digits(kv_held(target, context) / 2**30, published)
    one = traffic(target, None, Round(batch=3, k=4, context=100))
    assert one.kv_write == 15 * sum(KV_PER_TOKEN[name])
    assert one.kv_read == 3 * kv_read(target, 100)


def test_layers_that_share_a_cache_read_it_again() -> None:
    e2b, big = target_config("e2b"), target_config("31b")
    window, head = 512 * 2 * 256 * 2, 2 * 512 * 2
    assert kv_held(e2b, 10_000) == 12 * window + 3 * head * 10_000
    assert kv_read(e2b, 10_000) == 28 * window + 7 * head * 10_000
    assert kv_read(big, 10_000) == kv_held(big, 10_000)
    assert kv_read(big, 10_000, 1) == kv_held(big, 10_000) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_draft_step(name: str) -> None:
    target, drafter = pair(name)
    body, head, kv = draft_step(drafter, Round(context=4000))
    ids = 4096 * 8 if drafter.centroids else 0  # the published figure leaves out the clusters' token ids
    assert digits((body + head - ids) / 1e6, STEP_MB[name])
    window, per_token = STEP_KV[name]
    assert kv == pytest.approx(window + 4000 * per_token, rel=0.03)
    drafted = traffic(target, drafter, Round(k=5, context=4000))
    assert (drafted.drafter, drafted.drafter_head, drafted.drafter_kv_read) == (5 * body, 5 * head, 5 * kv)
    assert drafted.drafting == pytest.approx(5 * (body + head + kv))


def test_a_batch_shares_weights_but_not_its_own_rows() -> None:
    target, drafter = pair("e2b")
    one, many = (traffic(target, drafter, Round(batch=b, k=2, context=300)) for b in (1, 16))
    assert (one.dense, one.head, one.drafter) == (many.dense, many.head, many.drafter)
    for name in ("lookups", "kv_read", "kv_write", "drafter_kv_read"):
        assert getattr(many, name) == 16 * getattr(one, name)
    assert one.drafter_head < many.drafter_head < 16 * one.drafter_head
    assert one.lookups == 2 * (3 * 35 * 256 + 5 * 1536)


def test_distinct_experts() -> None:
    published = {1: 8.0, 2: 15.5, 3: 22.5, 4: 29.1, 5: 35.3, 9: 56.4, 16: 82.4, 64: 125.9}
    assert all(digits(distinct(128, 8, rows), count) for rows, count in published.items())
    assert distinct(16, 16, 3) == 16
    target, drafter = pair("26b-a4b")
    uniform, forced = (traffic(target, drafter, Round(k=3, distinct_experts=d)) for d in (None, 20))
    assert forced.experts == 20 * parameters(target).expert * 2
    assert uniform.experts / forced.experts == pytest.approx(distinct(128, 8, 4) / 20)
    assert traffic(*pair("31b"), Round(k=3)).experts == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_total_is_all_classes_and_gives_a_time(name: str) -> None:
    round_ = Round(batch=8, k=4, context=1024)
    moved = traffic(*pair(name), round_)
    assert moved.total == pytest.approx(sum(vars(moved).values()))
    assert moved.seconds(2e12) == pytest.approx(moved.total / 2e12)
    half = traffic(*pair(name), Round(batch=8, k=4, context=1024, weight_bytes=1, kv_bytes=1))
    assert half.total == pytest.approx(moved.total / 2, rel=1e-3)  # the ids of a centroid head keep their size


@pytest.mark.parametrize("name", NAMES)
def test_operations_of_a_pass(name: str) -> None:
    target = target_config(name)
    own, one, five = parameters(target), pass_flops(target, 1, 2000), pass_flops(target, 5, 2000)
    active = own.dense + own.expert * (target.experts.active if target.experts else 0)
    assert one.linear == pytest.approx(2 * active, rel=1e-3)  # norms and scales are no matrices
    assert one.head == 2 * own.head
    assert one.attention == sum(4 * c.heads * c.head_dim * min(2000, c.window or 2000) for c in target.layers)
    assert five.total == pytest.approx(5 * one.total)


@pytest.mark.parametrize("tokens", [1, 7, 600, 1500])
@pytest.mark.parametrize("name", ["e2b", "26b-a4b"])
def test_operations_of_a_prompt_are_those_of_its_passes(name: str, tokens: int) -> None:
    target = target_config(name)
    prompt, whole = prompt_flops(target, tokens), [pass_flops(target, 1, n) for n in range(1, tokens + 1)]
    assert prompt.head == whole[-1].head
    if name == "26b-a4b":
        assert prompt.linear == sum(step.linear for step in whole)
        assert prompt.attention == sum(step.attention for step in whole)
        return
    owners, heads = target.layers[:15], 8
    owned = sum(4 * heads * c.head_dim * min(n, c.window or n) for c in owners for n in range(1, tokens))
    assert prompt.attention == owned + whole[-1].attention
    mlp, ple = 3 * 1536 * 6144, 2 * 256 * 1536
    weights = sum(18 * c.head_dim * 1536 + mlp + ple for c in owners) + 35 * 256 * 1536
    assert prompt.linear == 2 * weights * (tokens - 1) + whole[-1].linear


BAD = [({"batch": 0}, "batch must"), ({"k": -1}, "k must"), ({"context": -1}, "context must")]


@pytest.mark.parametrize(("wrong", "said"), BAD)
def test_a_round_that_cannot_be_is_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Round(**wrong)  # type: ignore[arg-type]


def test_the_document_says_what_the_arithmetic_says() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "performance_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}run: python benchmarks/performance_table.py"


def test_a_stale_document_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- roofline -->\n1.00\n<!-- /roofline -->\nafter\n")
    monkeypatch.setattr(performance_table, "DOCUMENT", document)
    for flags, code, stale in ((["--check"], 1, True), ([], 0, False), (["--check"], 0, False)):
        monkeypatch.setattr(sys, "argv", ["performance_table.py", *flags])
        with pytest.raises(SystemExit) as end:
            performance_table.main()
        assert end.value.code == code
        assert ("1.00\n<!-- /" in document.read_text()) == stale
    assert document.read_text().startswith("before\n<!-- roofline -->\n**Weights")
    assert document.read_text().endswith("<!-- /roofline -->\nafter\n")
    assert list(performance_table.NAMES) == NAMES
