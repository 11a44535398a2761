"""Texts that changed, and why: planted near ties, defects and noise, judged by fakes and by the embedded model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from bench_fakes import FakeEngine, make_prompts, run_fake
from divergence_texts import MAX_TOKENS, FakeArm, RealText, RealTexts, ask_of, row

from paceline.bench.arms import ArmError, Ask, Candidate, Facts
from paceline.bench.divergence import Settings, asks_of, changed, examine, exit_code, settings_of
from paceline.bench.judge import Judge
from paceline.bench.measurement import OFF, OFF_AGAIN, ON, ON_AGAIN, Measurement
from paceline.bench.plan import BenchOptions
from paceline.errors import UsageError

LIKELY = [(" cat", -0.7), (" dog", -0.9), (" hat", -4.0), (" emu", -9.0)]


@pytest.fixture(scope="module")
def real() -> Iterator[RealTexts]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield RealTexts(8)
    torch.set_num_threads(threads)


def look(rows: Sequence[Measurement], arm: FakeArm | None = None, **more: Any) -> dict[str, Any]:
    return asyncio.run(examine(rows, arm or FakeArm(), ask_of({}), **more))


def pair(off: str, on: str, **more: Any) -> list[Measurement]:
    return [row(arm=OFF, text=off), row(arm=ON, text=on, **more)]


def only(done: dict[str, Any]) -> dict[str, Any]:
    [found] = done["found"]
    return found


# ---- what counts as changed -----------------------------------------------------------------------------------------


def test_equal_texts_ask_nobody() -> None:
    arm = FakeArm()
    done = look(pair("the same", "the same"), arm)
    assert (done["compared"], done["differ"], done["blamed"], exit_code(done)) == (1, 0, 0, 0)
    assert arm.opened == arm.closed == 0


def test_equal_texts_of_other_ids_are_told_and_no_change() -> None:
    done = look(pair("the same", "the same", token_sha256="0" * 64))
    assert (done["differ"], done["other_ids"], exit_code(done)) == (0, 1, 0)


def test_other_finish_reason_with_the_same_text_is_told_and_no_change() -> None:
    done = look(pair("the same", "the same", finish_reason="length"))
    assert (done["differ"], done["other_endings"], exit_code(done)) == (0, 1, 0)


def test_texts_that_were_not_kept_differ_by_their_digests() -> None:
    rows = [row(arm=OFF, token_sha256="a"), row(arm=ON, token_sha256="b")]
    assert changed((rows[0], rows[1]))
    done = look(rows)
    assert only(done)["verdict"] == "unexplained"
    assert exit_code(done) == 1


def test_all_draft_lengths_and_both_halves_of_an_alternating_run_are_compared() -> None:
    rows = [row(arm=arm, text="a b", k=k) for arm, k in ((OFF, 0), (OFF_AGAIN, 0), (ON, 2), (ON, 4), (ON_AGAIN, 2))]
    done = look([*rows, row(arm=ON_AGAIN, text="a c", k=4)])
    assert (done["compared"], done["differ"]) == (4, 1)
    assert only(done)["k"] == 4


def test_rows_are_asked_again_as_they_were_asked() -> None:
    prompts, options = make_prompts(3), BenchOptions(max_tokens=20, temperatures=(0.5,), top_k=7)
    rows = run_fake(FakeEngine(), prompts, options)
    engine_asked = {(ask.prompt, ask.params) for ask in map(asks_of(prompts, options), rows)}
    fake = FakeEngine()
    run_fake(fake, prompts, options)
    assert engine_asked <= {(prompt, params) for prompt, params, _ in fake.calls}
    assert len(engine_asked) == 3


# ---- verdicts by the engine's own log-probabilities -----------------------------------------------------------------


def test_near_tie() -> None:
    arm = FakeArm({"I see the": LIKELY})
    done = look(pair("I see the cat there", "I see the dog there"), arm)
    found = only(done)
    assert found["verdict"] == "near-tie"
    assert found["gap_nats"] == pytest.approx(0.2)
    assert (found["at_char"], found["common"], found["off"], found["on"]) == (
        10,
        "I see the ",
        "cat there",
        "dog there",
    )
    assert (done["near_ties"], exit_code(done)) == (1, 0)
    assert (arm.asked, arm.opened, arm.closed) == (["I see the"], 1, 1)


@pytest.mark.parametrize(("token", "gap"), [("hat", 3.3), ("emu", 8.3), ("axe", None)])
def test_defect(token: str, gap: float | None) -> None:
    done = look(pair("I see the cat there", f"I see the {token} there"), FakeArm({"I see the": LIKELY}))
    assert only(done)["verdict"] == "defect"
    assert only(done)["gap_nats"] == (None if gap is None else pytest.approx(gap))
    assert exit_code(done) == 1


def test_the_limit_is_a_setting() -> None:
    rows, arm = pair("I see the cat there", "I see the dog there"), FakeArm({"I see the": LIKELY})
    assert look(rows, arm, settings=Settings(limit_nats=0.1))["defects"] == 1
    assert look(rows, arm, settings=Settings(limit_nats=0.3))["near_ties"] == 1


@pytest.mark.parametrize("wrong", [{"limit_nats": 0.0}, {"limit_nats": float("nan")}, {"likeliest": 1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)


def test_a_short_list_of_candidates_proves_nothing() -> None:
    done = look(pair("I see the cat", "I see the axe"), FakeArm({"I see the": LIKELY[:2]}))
    assert only(done)["verdict"] == "unexplained"
    assert "all near ties" in only(done)["why"]


def test_an_engine_that_answers_another_question_is_not_believed() -> None:
    done = look(pair("I see the axe", "I see the cat"), FakeArm({"I see the": LIKELY}))
    assert only(done)["verdict"] == "unexplained"
    assert "another model, template or tokenisation" in only(done)["why"]


def test_nobody_to_ask() -> None:
    done = look(pair("I see the cat", "I see the dog"))
    assert only(done)["verdict"] == "unexplained"
    assert exit_code(done) == 1


def test_an_engine_that_does_not_come_up_is_tried_once() -> None:
    class Broken(FakeArm):
        async def open(self) -> None:
            await super().open()
            raise ArmError("port 1 refused the connection")

    arm = Broken()
    rows = [r for i in range(3) for r in (row(f"p{i}", OFF, f"a {i}"), row(f"p{i}", ON, f"b {i}"))]
    done = look(rows, arm)
    assert done["unexplained"] == 3
    assert all("port 1 refused" in found["why"] for found in done["found"])
    assert (arm.opened, arm.closed) == (1, 1)


def test_a_question_that_fails_is_unexplained_and_the_next_is_asked() -> None:
    class Hiccup(FakeArm):
        async def next_tokens(self, ask: Ask, so_far: str, n: int) -> list[Candidate] | None:
            if so_far == "a":
                raise ArmError("HTTP 500")
            return await super().next_tokens(ask, so_far, n)

    rows = [*pair("a cat", "a dog"), row("q", OFF, "I see the cat"), row("q", ON, "I see the dog")]
    assert [f["verdict"] for f in look(rows, Hiccup({"I see the": LIKELY}))["found"]] == ["unexplained", "near-tie"]


def test_the_same_divergence_of_many_draft_lengths_is_asked_once() -> None:
    arm = FakeArm({"I see the": LIKELY})
    rows = [row(text="I see the cat"), *(row(arm=ON, text="I see the dog", k=k) for k in range(1, 9))]
    assert look(rows, arm)["near_ties"] == 8
    assert len(arm.asked) == 1


# ---- shapes ---------------------------------------------------------------------------------------------------------

LONG = "The quick brown fox jumps over the lazy dog and then it goes home to sleep."


@pytest.mark.parametrize(
    ("on", "more", "says"),
    [
        ("", {}, "empty"),
        (LONG + " More.", {"tokens": MAX_TOKENS + 1}, "49 tokens where 48"),
        (LONG[:30], {"finish_reason": "length", "tokens": 6}, "cut off at 6 of 48"),
    ],
)
def test_shapes_that_no_token_explains(on: str, more: dict[str, Any], says: str) -> None:
    done = look(pair(LONG, on, **more))
    assert only(done)["verdict"] == "defect"
    assert says in only(done)["why"]


@pytest.mark.parametrize(
    ("on", "says"),
    [
        (LONG[10:], "10 characters are missing"),
        (LONG[:10] + LONG, "10 characters come twice"),
        (LONG[:20] + LONG[4:], "16 characters come twice"),
        ("Well: " + LONG, "6 characters are added"),
        ("Something else altogether, of which nothing is the same.", None),
    ],
)
def test_dropped_and_repeated_parts_are_named(on: str, says: str | None) -> None:
    why = only(look(pair(LONG, on)))["why"]
    assert says in why if says else "characters" not in why


def test_too_many_tokens_are_counted_even_where_the_text_is_the_same() -> None:
    assert look(pair(LONG, LONG, tokens=MAX_TOKENS + 1))["over_long"] == 1


# ---- noise and sampling ---------------------------------------------------------------------------------------------


def run_of(texts: int, off: Sequence[int], on: Sequence[int], temperature: float = 0.0) -> list[Measurement]:
    """`texts` prompts; those in `off` differ off against off, those in `on` with drafting."""
    rows = []
    for i in range(texts):
        for arm, odd in ((OFF, False), (OFF_AGAIN, i in off), (ON, i in on)):
            rows.append(row(f"p{i}", arm, f"I see the {'axe' if odd else 'cat'}", temperature=temperature))
    return rows


def test_one_changed_token_in_a_hundred_replies_is_caught() -> None:
    arm = FakeArm({"I see the": LIKELY})
    done = look(run_of(100, off=[], on=[42]), arm)
    assert (done["compared"], done["differ"], done["defects"], exit_code(done)) == (100, 1, 1, 1)
    assert done["found"][0]["prompt_id"] == "p42"
    assert look(run_of(100, off=[], on=[]), arm)["differ"] == 0


def test_a_plain_run_that_does_not_repeat_itself_takes_the_blame() -> None:
    done = look(run_of(20, off=[1, 2, 3], on=[4, 5]), FakeArm({"I see the": LIKELY}))
    assert (done["differ"], done["unexplained"], done["blamed"], exit_code(done)) == (2, 2, 0, 0)
    assert "off against off, 3 of 20 texts differ" in done["noise"][0]
    assert "engine's noise" in done["found"][0]["why"]


def test_noise_does_not_hide_drafting_that_is_far_worse() -> None:
    done = look(run_of(60, off=[1], on=range(10, 40)), FakeArm({"I see the": LIKELY}))
    assert (done["defects"], exit_code(done)) == (30, 1)
    assert "significantly more" in done["noise"][0]


def test_sampled_texts_of_an_engine_without_seeds_are_not_compared() -> None:
    done = look(run_of(20, off=range(20), on=range(20), temperature=1.0))
    assert (done["compared"], done["differ"], exit_code(done)) == (0, 0, 0)
    assert "off against off" in done["not_compared"]["1.0"]


def test_sampled_texts_of_an_engine_whose_drafting_draws_otherwise_are_not_compared() -> None:
    rows = run_of(20, off=[], on=range(20), temperature=1.0)
    assert "other random numbers" in look(rows)["not_compared"]["1.0"]
    promised = look(rows, settings=Settings(same_samples=True))
    assert (promised["compared"], promised["differ"], exit_code(promised)) == (20, 20, 1)


def test_sampled_texts_need_a_second_plain_run() -> None:
    rows = [r for r in run_of(20, off=[], on=[3], temperature=1.0) if r.arm != OFF_AGAIN]
    assert "sampled twice" in look(rows)["not_compared"]["1.0"]


def test_a_sampled_token_that_may_come_is_unexplained_and_an_impossible_one_a_defect() -> None:
    rows = run_of(20, off=[], on=[3], temperature=1.0)
    likely, impossible = (FakeArm({"I see the": [*LIKELY, (" axe", logprob)]}) for logprob in (-5.0, -25.0))
    done = look(rows, likely)
    assert (only(done)["verdict"], exit_code(done)) == ("unexplained", 0)
    assert exit_code(look(rows, likely, settings=Settings(same_samples=True))) == 1
    done = look(rows, impossible)
    assert (only(done)["verdict"], exit_code(done)) == ("defect", 1)


def test_paceline_is_held_to_its_promise() -> None:
    """Equal bits: there a gap that rounding would explain elsewhere is a defect."""
    rows, arm = pair("I see the cat there", "I see the dog there"), FakeArm({"I see the": LIKELY})
    assert look(rows, arm, settings=settings_of(Facts("paceline", None, "m", False, "")))["defects"] == 1
    assert look(rows, arm, settings=settings_of(Facts("vllm", None, "m", False, "")))["near_ties"] == 1


def test_greedy_rows_are_judged_beside_sampled_ones() -> None:
    greedy = run_of(5, off=[], on=[2])
    sampled = run_of(5, off=range(5), on=range(5), temperature=0.7)
    done = look([*greedy, *sampled], FakeArm({"I see the": LIKELY}))
    assert (done["compared"], done["defects"], list(done["not_compared"])) == (5, 1, ["0.7"])


# ---- the embedded model as judge ------------------------------------------------------------------------------------


def judged(real: RealTexts, text: RealText, on: Measurement, **more: Any) -> dict[str, Any]:
    rows = [real.plain(text), on]
    return only(asyncio.run(examine(rows, FakeArm(), real.asks, real.judge, Settings(**more))))


def test_real_near_ties_are_found_with_their_gap(real: RealTexts) -> None:
    places = real.places(lambda text, i: text.gap(i, 1) < 0.25 and "\ufffd" not in text.text)[:6]
    assert len(places) >= 3
    for text, i in places:
        found = judged(real, text, real.forced(text, i, text.tops[i][1][0]))
        assert (found["verdict"], found["source"]) == ("near-tie", "Paceline's own model")
        assert found["gap_nats"] == pytest.approx(text.gap(i, 1), abs=1e-3)
        assert judged(real, text, real.forced(text, i, text.tops[i][1][0]), limit_nats=1e-6)["verdict"] == "defect"


def test_real_defects_are_found(real: RealTexts) -> None:
    for rank, least in ((1, 1.5), (9, 3.0)):
        places = real.places(lambda text, i: text.gap(i, rank) > least and "\ufffd" not in text.text)[::40][:4]  # noqa: B023
        assert len(places) >= 3
        for text, i in places:
            found = judged(real, text, real.forced(text, i, text.tops[i][rank][0]))
            assert found["verdict"] == "defect", found
            assert found["gap_nats"] is None or found["gap_nats"] > 0.5


def test_one_changed_token_in_a_hundred_real_replies_is_caught(real: RealTexts) -> None:
    text, i = real.places(lambda text, i: text.gap(i, 2) > 2.0 and "\ufffd" not in text.text)[0]
    rows = []
    for n in range(100):
        own = real.texts[n % len(real.texts)]
        rows += [replace(real.plain(own, arm), repeat=n) for arm in (OFF, OFF_AGAIN, ON)]
    at = next(n for n, r in enumerate(rows) if r.arm == ON and r.prompt_id == text.prompt_id)
    rows[at] = replace(real.forced(text, i, text.tops[i][2][0]), repeat=rows[at].repeat)
    done = asyncio.run(examine(rows, FakeArm(), real.asks, real.judge))
    assert (done["compared"], done["differ"], done["defects"], exit_code(done)) == (100, 1, 1, 1)


def test_a_text_that_ends_where_the_other_goes_on(real: RealTexts) -> None:
    """The end of the text is a candidate like any other."""
    text = next(t for t in real.texts if t.finish_reason == "length" and "\ufffd" not in t.text)
    place = 20
    assert real.llm.text is not None
    end = next(iter(sorted(real.llm.engine.end_ids)))
    cut = real.forced(text, place, end)
    assert text.text.startswith(cut.text)
    found = judged(real, text, cut)
    assert found["verdict"] == "defect"
    row_there = real.judge.row([*real.llm.encode(text.prompt), *text.ids[:place]])
    best_end = max(float(row_there[i]) for i in real.llm.engine.end_ids)
    assert found["gap_nats"] == pytest.approx(float(row_there.max()) - best_end, abs=1e-3)


def test_the_judge_speaks_where_the_engine_does_not_and_is_loaded_only_then(real: RealTexts) -> None:
    loaded = list[str]()

    def load() -> Any:
        loaded.append("now")
        return real.llm

    text = real.texts[0]
    same = [real.plain(text), real.plain(text, ON)]
    asyncio.run(examine(same, FakeArm(), real.asks, Judge(load, "embedded")))
    assert not loaded
    i = next(i for i in range(5, 40) if text.gap(i, 5) > 2)
    other = [real.plain(text), real.forced(text, i, text.tops[i][5][0])]
    assert asyncio.run(examine(other, FakeArm(), real.asks, Judge(load, "embedded")))["differ"] == 1
    assert loaded == ["now"]


def test_a_prompt_too_long_for_the_judge_is_unexplained(real: RealTexts) -> None:
    asks = ask_of({"p": "word " * 4000})
    done = asyncio.run(examine(pair("a cat", "a dog"), FakeArm(), asks, real.judge))
    assert only(done)["verdict"] == "unexplained"
    assert "exceed the context" in only(done)["why"]
