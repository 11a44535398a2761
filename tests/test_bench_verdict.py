"""A run in sentences: gains only where they are, advice, and every reason not to believe it told at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from report_samples import FULL, World, full_record, record_of, rows_of

from paceline.bench.stored import tidy
from paceline.bench.verdict import key_figures, notes, verdict

Record = dict[str, Any]


def two(chat: float, code: float, **more: Any) -> Record:
    """The record of a world with two categories."""
    return tidy(record_of(rows_of(World(gains={"chat": chat, "code": code}, **more))))


def told(record: Record) -> str:
    return " ".join(note.text for note in notes(record))


def test_each_category_has_its_number_and_advice_follows() -> None:
    record = tidy(full_record(replace(FULL, gains={"chat": 1.35, "code": 1.9, "maths": 1.6})))
    blocks = record["summary"]["by_category"]
    low, high = blocks["code"]["speedup_ci95"]
    speed, text = verdict(record)
    assert f"code gains {blocks['code']['speedup']:.2f}x [{low:.2f}, {high:.2f}], maths" in speed
    assert speed.index("code") < speed.index("maths") < speed.index("chat")
    assert "use k = 3" in speed
    assert speed.endswith("; at concurrency 16 turn it off.")
    assert text == "The text changed in 2 of 32 pairs: 1 defect and 1 rounding near-tie."


def test_what_could_be_noise_is_not_a_gain() -> None:
    [speed, text] = verdict(two(1.0, 1.0))
    assert "gains" not in speed
    assert "slows" not in speed
    assert speed.count("shows no difference beyond noise") == 2
    assert text == "The text stayed the same in all 32 pairs."


def test_a_gain_within_what_off_against_off_shows_is_noise() -> None:
    record = two(1.5, 1.5)
    assert "gains" in verdict(record)[0]
    record["summary"]["off_vs_off_ci95"] = [1.8, 1.9]
    assert "gains" not in verdict(record)[0]
    # Which of the two runs without drafting was the slower does not matter.
    record["summary"]["off_vs_off_ci95"] = [1 / 1.9, 1 / 1.8]
    assert "gains" not in verdict(record)[0]
    assert "within 1.90x is not called a difference" in told(record)


def test_a_loss_is_told_and_drafting_advised_against() -> None:
    record = two(0.7, 0.8, ks=(3, 5))
    [speed, _] = verdict(record)
    assert "slows down to 0." in speed
    assert speed.endswith("leave drafting off.")
    assert "use k" not in speed


def test_gain_and_loss_stand_side_by_side() -> None:
    speed = verdict(two(0.6, 1.9))[0]
    assert "code gains" in speed
    assert "chat slows down to" in speed


def test_too_few_prompts_are_not_a_gain() -> None:
    record = two(1.9, 1.9, prompts=4)
    assert "drafting has too few prompts to tell (1." in verdict(record)[0]
    assert "4 prompts is too little for an interval" in told(record)
    record = two(1.9, 1.9, prompts=8)
    assert "Too few prompts for an interval in chat and code." in told(record)


def test_many_categories_are_told_by_their_extremes_which_chance_may_have_ordered() -> None:
    gains = {f"c{i}": 1.5 for i in range(8)}
    speed = verdict(tidy(record_of(rows_of(World(gains=gains, prompts=64)))))[0]
    assert "drafting gains 1." in speed
    assert "an order that may be chance" in speed
    gains = {"fast": 3.0, "slow": 1.2, **{f"c{i}": 1.5 for i in range(4)}}
    speed = verdict(tidy(record_of(rows_of(World(gains=gains, prompts=60)))))[0]
    assert "in slow to" in speed
    assert "in fast" in speed
    assert "chance" not in speed


def test_one_draft_length_is_named_but_not_advised() -> None:
    speed = verdict(two(1.5, 1.9))[0]
    assert "measured at k = 3" in speed
    assert "use k" not in speed


def test_the_controllers_choice_is_called_auto_and_a_server_that_does_not_tell_is_not() -> None:
    record = two(1.5, 1.9)
    record["summary"]["k"] = None
    record["arms"] = [{"drafts": True, "k": None, "engine": "paceline"}]
    assert "measured at k = auto" in verdict(record)[0]
    record["arms"][0]["engine"] = "vllm"
    assert "measured at" not in verdict(record)[0]
    several = two(1.5, 1.9, ks=(1, 3))
    several["summary"]["by_k"]["None"] = several["summary"]["by_k"]["3"]
    assert "(auto does about as well)" in verdict(several)[0]


def test_lengths_that_do_about_as_well_are_named() -> None:
    record = two(1.5, 1.9, ks=(1, 3))
    record["summary"]["by_k"]["1"]["speedup"] = record["summary"]["by_k"]["3"]["speedup"]
    assert "use k = 3 (1 does about as well)" in verdict(record)[0]
    record["summary"]["by_k"]["1"]["speedup"] = 1.0
    assert "about as well" not in verdict(record)[0]


def test_off_from_a_load_that_is_not_the_last() -> None:
    record = two(1.5, 1.9, concurrencies=(1, 4, 16))
    record["summary"]["advice"]["off_from"] = 4
    assert "from concurrency 4 on turn it off" in verdict(record)[0]
    record["summary"]["advice"]["off_from"] = 1
    assert "turn it off" not in verdict(record)[0]


@pytest.mark.parametrize("key", ["unexplained", "defects", "near_ties"])
def test_changed_texts_are_counted_by_kind(key: str) -> None:
    record = two(1.5, 1.5)
    record["summary"]["equal_outputs"] = 15 / 16
    record["divergences"][key] = 2
    word = {"unexplained": "unexplained", "defects": "defects", "near_ties": "rounding near-ties"}[key]
    assert verdict(record)[1] == f"The text changed in 2 of 32 pairs: 2 {word}."


def test_changed_texts_that_nobody_examined_are_not_excused() -> None:
    record = two(1.5, 1.5)
    record["summary"]["equal_outputs"] = 0.5
    assert verdict(record)[1].endswith("whether by rounding or by a defect, nothing tells.")
    assert any(note.grave and "not the same work" in note.text for note in notes(record))


def test_sampled_texts_that_cannot_be_compared_are_not_called_changed() -> None:
    record = two(1.5, 1.5)
    record["summary"]["equal_outputs"] = 0.5
    record["divergences"] |= {"compared": 16, "not_compared": {"1.0": "other random numbers are drawn"}}
    assert verdict(record)[1] == "The text stayed the same in all 16 pairs."
    assert "Texts at temperature 1.0 were not compared: other random numbers are drawn." in told(record)
    assert not any(note.grave for note in notes(record))
    assert {what: much for what, much, _ in key_figures(record)}["Same text"] == "16 of 16"
    record["divergences"]["compared"] = 0
    assert verdict(record)[1] == "Whether the text stayed the same cannot be told."


def test_what_the_engine_does_by_itself_is_not_blamed_on_drafting() -> None:
    record = two(1.5, 1.5)
    record["divergences"] |= {"compared": 32, "differ": 2, "unexplained": 2, "noise": ["the plain run changes too"]}
    assert "The plain run changes too." in told(record)
    assert "nothing tells whether it was rounding" in told(record)
    by_rounding = [note for note in notes(record) if "rounding" in note.text]
    assert not any(note.grave for note in by_rounding)
    record["divergences"]["blamed"] = 2
    by_rounding = [note for note in notes(record) if "rounding" in note.text]
    assert all(note.grave for note in by_rounding)


def test_nothing_measured_is_said() -> None:
    record = tidy({"schema": "paceline-bench/2"})
    assert verdict(record) == ["Nothing can be said: no prompt was measured both with and without drafting."]
    assert key_figures(record) == []
    assert "stopped early (unknown reason)" in told(record)


def test_everything_that_speaks_against_it_is_told_the_gravest_first() -> None:
    record = tidy(full_record())
    record |= {"complete": False, "failure": "KeyboardInterrupt"}
    record["summary"] |= {
        "drift": {"ratio": 1.12, "ci95": [1.08, 1.15], "steady": False, "why": "the clock fell"}, "over_long": 2,
        "off_vs_off_ci95": [1.02, 1.05], "off_vs_off_equal_outputs": 0.9, "on_vs_on_equal_outputs": 0.9,
        "acceptance_length": None,
    }  # fmt: skip
    record["divergences"]["unexplained"] = 1
    record["provenance"]["load_before"] = [99.0, 1.0, 1.0]
    text = told(record)
    for says in (
        "stopped early (KeyboardInterrupt)", "1 request brought no text", "the server closed the connection",
        "prefix cache: the drafting server reused no prompt", "1 text changed in a way that rounding does not explain",
        "nothing tells whether it was rounding", "runs without drafting gave different texts",
        "runs with drafting gave different texts", "2 texts had more tokens than asked for", "leaves out 1",
        "drifted: a token took 1.12x [1.08, 1.15] as long at the end as at the start (the clock fell).",
        "busy at the start", "only time was measured", "the best of several looks a little better",
    ):  # fmt: skip
        assert says in text
    assert "acceptance: 82%" not in text
    assert "drafter's size" not in text
    grave = [note.grave for note in notes(record)]
    assert grave == sorted(grave, reverse=True)
    assert 0 < sum(grave) < len(grave)


def test_a_clean_run_has_nothing_against_it() -> None:
    assert notes(two(1.5, 1.9)) == []


def test_the_key_figures() -> None:
    figures = {what: much for what, much, _ in key_figures(tidy(full_record()))}
    assert figures["Same text"] == "30 of 32"
    assert figures["Tokens/s"].count("→") == 1
    assert set(figures) == {"Speed-up, all prompts", "Tokens/s", "Tokens per round", "Same text"}
    unknown = key_figures(two(1.5, 1.9, told=False))
    assert "Tokens per round" not in {what for what, _, _ in unknown}
