"""Acceptance from whatever an engine tells: with answers, by counters, as sums, without rounds, beyond the end."""

from __future__ import annotations

import pytest
from bench_rows import row, step
from planted import Machine, simulate

from paceline.bench.accepted import acceptance_by_position, acceptance_length, counting, survival_by_position
from paceline.bench.plan import BenchOptions
from paceline.bench.summary import summarise
from paceline.types import Stats


def test_acceptance_by_hand() -> None:
    # Ten rounds of 2 drafts: 8 accept the first, 4 of those the second; then two rounds cut to 1 draft, both accepted.
    on = [
        row(arm="on", rounds=10, drafted=[10, 10], accepted=[8, 4], tokens=23),
        row(arm="on", rounds=2, drafted=[2], accepted=[2], tokens=5),
    ]
    assert acceptance_length(on) == pytest.approx(1 + 14 / 12)
    assert survival_by_position(on) == pytest.approx([10 / 12, 4 / 10])
    assert acceptance_by_position(on) == pytest.approx([10 / 12, 0.4 / (10 / 12)])
    assert acceptance_by_position([row(arm="on", rounds=3, drafted=[3, 3], accepted=[0, 0])]) == [0.0]
    assert acceptance_length([]) is None


def test_acceptance_where_drafts_end_early() -> None:
    """Ten rounds draft, and in six of them a second draft was not worth making: of four second ones two are kept."""
    stats = Stats()
    for drafted, accepted in [(2, 2)] * 2 + [(2, 1)] * 2 + [(1, 1)] * 2 + [(1, 0)] * 4 + [(0, 0)]:
        stats.count_round(drafted, accepted)
    told = {"rounds": stats.rounds, "drafted": stats.drafted, "accepted": stats.accepted}
    assert acceptance_by_position([row(arm="on", **told, judged=stats.judged)]) == pytest.approx([0.6, 0.5])
    # Without what was judged, the rates divided say that nearly all second drafts would be kept.
    assert acceptance_by_position([row(arm="on", **told)]) == pytest.approx([0.6, 0.5 / 0.6])
    assert acceptance_by_position([row(arm="on", **told, judged=stats.judged), row(arm="on", **told)])[1] > 0.8


def test_the_same_from_rows_counters_and_sums() -> None:
    # Two texts of 11 and 21 tokens, 12 rounds in all, 18 accepted: 30 tokens after the first ones, 2.5 a round.
    told = [
        row(arm="on", tokens=11, rounds=4, drafted=[4, 4], accepted=[4, 2], drafted_tokens=8, accepted_tokens=6),
        row(arm="on", tokens=21, rounds=8, drafted=[8, 8], accepted=[8, 4], drafted_tokens=16, accepted_tokens=12),
    ]
    silent = [row(arm="on", tokens=11), row(arm="on", tokens=21)]
    counted = step(texts=2, tokens=32, drafted=24, accepted=18, rounds=12, accepted_by_position=(12, 6))
    sums = [row(arm="on", tokens=11, drafted_tokens=8, accepted_tokens=6),
            row(arm="on", tokens=21, drafted_tokens=16, accepted_tokens=12)]  # fmt: skip
    for rows, steps in ((told, []), (silent, [counted]), (sums, [])):
        assert acceptance_length(rows, steps) == pytest.approx(2.5)
    assert survival_by_position(told) == survival_by_position(silent, [counted]) == [1.0, 0.5]
    assert survival_by_position(sums) == acceptance_by_position(sums) == []
    assert counting(told) == "told with each answer"
    assert counting(silent, [counted]) == "differences of the engine's counters over each step"
    assert "those are tokens - texts - accepted drafts" in str(counting(sums))
    assert (acceptance_length(silent), counting(silent)) == (None, None)


def test_drafts_accepted_beyond_the_end_of_a_text_do_not_count() -> None:
    # As measured of one model and prompts: 83 tokens in 5 texts; one engine counts 60 drafts in 18 rounds, the other 73
    # in 20, which makes more tokens than there are.
    exact = step(texts=5, tokens=83, drafted=72, accepted=60, rounds=18)
    beyond = step(texts=5, tokens=83, drafted=80, accepted=73, rounds=20)
    assert acceptance_length([row(arm="on")], [exact]) == pytest.approx(78 / 18)
    assert acceptance_length([row(arm="on")], [beyond]) == pytest.approx(78 / 20)
    assert "15 of 73 accepted drafts lie beyond" in str(counting([row(arm="on")], [beyond]))


def test_steps_with_a_failed_request_are_left_out() -> None:
    good = step(texts=2, tokens=32, drafted=24, accepted=18, rounds=12)
    bad = step(texts=1, failed=1, tokens=10, drafted=900, accepted=900, rounds=300)
    assert acceptance_length([row(arm="on")], [good, bad]) == pytest.approx(2.5)
    assert acceptance_length([row(arm="on")], [bad]) is None


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("tells", [True, False])
def test_planted_acceptance_is_found_at_every_position(concurrency: int, tells: bool) -> None:
    options = BenchOptions(temperatures=(0.0,), concurrencies=(concurrency,), warmup=1)
    rows, steps = simulate(Machine(accept=0.6, tokens=120, lengths=0.2), 32, options, tells)
    summary = summarise(rows, steps)
    # A bonus token, and 0.6 + 0.6^2 + 0.6^3 + 0.6^4 drafts; the ends of texts cut a little.
    assert summary["acceptance_length"] == pytest.approx(1 + 0.6 + 0.36 + 0.216 + 0.1296, rel=0.04)
    assert summary["acceptance_by_position"] == pytest.approx([0.6] * 4, abs=0.06)
    assert ("counters" in summary["counting"]) == (concurrency > 1 and not tells)
    wrong = simulate(Machine(accept=0.8, tokens=120, lengths=0.2), 32, options, tells)
    assert summarise(*wrong)["acceptance_length"] > 3
