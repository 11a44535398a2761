"""The judge's rows are the model's own, its tokens spell the texts they came from, and it keeps nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from paceline.bench.arms import Ask
from paceline.bench.judge import Judge, JudgeTrail
from paceline.bench.trail import follow
from paceline.engine import Engine
from paceline.errors import CheckpointError, PromptError, UsageError
from paceline.llm import LLM
from paceline.types import SamplingParams

TEXTS = ("The cat sat.", "  two  spaces\n\n\ttab", "def f(x):\n    return x", "café, naïve, 北京, 🎉", "x")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.from_pretrained("embedded")


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_spell_the_text(judge: Judge, text: str) -> None:
    assert b"".join(map(judge.spells, judge.encode(text))) == text.encode()


def test_rows_are_those_that_generation_reports(judge: Judge) -> None:
    ids = judge.llm.encode("Why is the sky")
    [done] = judge.llm.generate([ids], SamplingParams(max_tokens=1, logprobs=5), k=0)
    assert done.logprobs is not None
    row = judge.row(ids)
    assert [(i, pytest.approx(float(row[i]))) for i in np.argsort(-row)[:5].tolist()] == list(done.logprobs[0].top)
    assert np.exp(row).sum() == pytest.approx(1.0)


def test_suppressed_tokens_are_no_candidates(judge: Judge) -> None:
    ids, engine = judge.llm.encode("Why is the sky"), judge.llm.engine
    best = int(judge.row(ids).argmax())
    assert isinstance(engine, Engine)
    engine.suppress = (best,)
    try:
        row = judge.row(ids)
    finally:
        engine.suppress = ()
    assert row[best] == -np.inf
    assert np.exp(row).sum() == pytest.approx(1.0)


def test_questions_leave_the_engine_as_it_was(judge: Judge) -> None:
    engine = judge.llm.engine
    assert isinstance(engine, Engine)
    before = engine.storage
    judge.row(list(range(10, 300)))
    assert engine.storage is before


def test_too_long_a_question_is_refused(judge: Judge) -> None:
    with pytest.raises(PromptError, match="exceed the context of 2048"):
        judge.row([5] * 2049)


@pytest.mark.parametrize(
    ("off", "on", "rests"),
    [("the cat sat", "the cat ran", (b" sat", b" ran")), ("the cat", "the cat sat", (b"", b" sat"))],
)
def test_the_trail_begins_at_the_last_token_that_both_share(
    judge: Judge, off: str, on: str, rests: tuple[bytes, bytes]
) -> None:
    trail = JudgeTrail(judge, Ask("Hello", SamplingParams()), (off, on))
    assert trail.rests == rests
    prompt = judge.llm.encode("Hello")
    assert trail.ids == prompt + judge.encode("the cat")


def test_the_trail_goes_into_characters(judge: Judge) -> None:
    """The pieces of single bytes are tokens: the second byte of two letters is what was chosen between."""
    assert judge.llm.text is not None
    piece = judge.llm.text.tokenizer.token_to_id
    split = [c for c in map(chr, range(0xC0, 0x100)) if judge.encode(c)[0] == piece("<0xC3>")]
    off, on = f"x{split[0]}y", f"x{split[1]}y"
    trail = JudgeTrail(judge, Ask("Hello", SamplingParams()), (off, on))
    assert trail.ids[-1] == piece("<0xC3>")
    assert trail.rests == (off.encode()[2:], on.encode()[2:])
    told = asyncio.run(follow(trail, 20))
    row = judge.row(trail.ids)
    assert told is not None
    assert told.gaps[1] == pytest.approx(float(row.max() - row[judge.encode(split[1])[1]]))


def test_bytes_that_made_no_character_are_not_read_as_that_character(judge: Judge) -> None:
    trail = JudgeTrail(judge, Ask("Hello", SamplingParams()), ("ab \ufffd\ufffd c", "ab \ufffd\ufffd d"))
    assert trail.rests[0].lstrip() == "\ufffd\ufffd c".encode()


def test_what_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Judge.from_pretrained(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Judge.from_pretrained(str(tmp_path))


def test_a_model_without_tokenizer_is_no_judge(judge: Judge) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        Judge.of(LLM(judge.llm.resolved, judge.llm.engine, None))
    assert Judge.of(judge.llm).llm is judge.llm
