"""Runs side by side: intervals that cover planted truths, pairing only where it is allowed, and honest refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import FULL, World, record_of, rows_of
from shell import Shell

from paceline import cli
from paceline.bench.compare import Comparison, Side, compare_runs, draft_lengths, load_sides
from paceline.bench.compare_report import document_of, headline
from paceline.bench.markdown import to_markdown
from paceline.bench.page import to_html
from paceline.bench.ratios import Ratio, ratio_of, ratio_of_ratios, sums_of
from paceline.bench.stats import ratio_interval
from paceline.bench.stored import tidy
from paceline.errors import UsageError

SIMULATIONS = 400
A = World(gains={"chat": 1.3, "code": 1.9}, ks=(3,), prompts=24)


def side(label: str, world: World, **more: Any) -> Side:
    rows = rows_of(world)
    return Side(label, tidy(record_of(rows, **more)), rows)


def both(first: World, other: World, **more: Any) -> Comparison:
    return compare_runs([side("a", first), side("b", other, **more)])


def draws(rng: np.random.Generator, prompts: int, value: float) -> tuple[np.ndarray, np.ndarray]:
    """[prompts, SIMULATIONS] tokens and seconds whose true quotient is `value`; each prompt has a pace of its own."""
    tokens = np.exp(rng.normal(0, 0.5, (prompts, SIMULATIONS)))
    return tokens, tokens / value * np.exp(rng.normal(-0.02, 0.2, (prompts, SIMULATIONS)))


def covers(interval: np.ndarray | None, truth: float) -> float:
    assert interval is not None
    return float(np.mean((interval[0] <= truth) & (truth <= interval[1])))


@pytest.mark.parametrize("truth", [1.0, 1.3, 0.7])
def test_unpaired_interval_covers_the_planted_ratio(truth: float) -> None:
    rng = np.random.default_rng(3)
    bottom, top = draws(rng, 24, 50.0), draws(rng, 40, 50.0 * truth)
    assert 0.92 <= covers(ratio_of_ratios(top, bottom, draws=1000), truth) <= 0.98


def test_forgetting_the_first_runs_own_chance_is_caught() -> None:
    rng = np.random.default_rng(3)
    bottom, top = draws(rng, 24, 50.0), draws(rng, 40, 50.0)
    alone = ratio_interval(*top, draws=1000)
    assert alone is not None
    assert covers(alone / (bottom[0].sum(0) / bottom[1].sum(0)), 1.0) < 0.85


def test_prompts_in_common_make_the_unpaired_interval_wider_never_narrower() -> None:
    rng = np.random.default_rng(5)
    tokens, seconds = draws(rng, 24, 50.0)
    again = seconds * rng.normal(1.0, 0.02, seconds.shape)
    assert covers(ratio_of_ratios((tokens, again), (tokens, seconds), draws=500), 1.0) == 1.0


def test_paired_runs_tell_a_small_difference_that_unpaired_ones_cannot() -> None:
    first, other = sums_of(rows_of(A)), sums_of(rows_of(replace(A, seed=1, pace_s=0.019)))
    paired, unpaired = (ratio_of("ttft_s", first, other, same) for same in (True, False))
    assert (paired.paired, unpaired.paired) == (24, 0)
    assert width(paired) < width(unpaired) / 3
    speed = ratio_of("tokens_per_s", first, other, True)
    assert speed.ratio == pytest.approx(1.05, abs=0.03)
    assert speed.paired == 24
    assert speed.ci95 is not None
    assert speed.ci95[0] > 1.0


def width(ratio: Ratio) -> float:
    assert ratio.ci95 is not None
    return ratio.ci95[1] - ratio.ci95[0]


def test_texts_of_other_lengths_are_not_paired_for_tokens_per_second() -> None:
    found = both(A, replace(A, seed=1, same_texts=False))
    values = found.cells[0].values
    assert values["tokens_per_s"].paired == 0
    assert values["ttft_s"].paired == values["tpot_s"].paired == 24
    assert found.cells[0].same_text == 0.0


def test_texts_of_other_lengths_in_some_prompts_leave_the_others_paired() -> None:
    rows = rows_of(replace(A, seed=1))
    longer = [replace(row, tokens=row.tokens + 1) if row.prompt_id in ("p1", "p2") else row for row in rows]
    assert ratio_of("tokens_per_s", sums_of(rows_of(A)), sums_of(longer), True).paired == 22
    most = [replace(row, tokens=row.tokens + 1) if row.prompt_id != "p1" else row for row in rows]
    assert ratio_of("tokens_per_s", sums_of(rows_of(A)), sums_of(most), True).paired == 0


def test_other_prompts_are_never_paired_and_warned_of() -> None:
    other = side("b", replace(A, seed=1))
    other.record["plan"]["prompts"]["sha256"] = "0" * 64
    found = compare_runs([side("a", A), other])
    assert {value.paired for cell in found.cells for value in cell.values.values()} == {0}
    assert any("have measured different prompts" in warning for warning in found.warnings)
    assert found.cells[0].same_text is None


def test_cells_are_aligned_by_category_temperature_load_and_length() -> None:
    found = both(FULL, replace(FULL, seed=1, ks=(3, 5, 7), concurrencies=(1, 16), temperatures=(1.0, 0.5)))
    assert {cell.temperature for cell in found.cells} == {1.0}
    assert {cell.concurrency for cell in found.cells} == {1, 16}
    assert {cell.k for cell in found.cells} == {(0, 0), (3, 3), (5, 5)}
    assert {cell.category for cell in found.cells} == {None, "chat", "code", "edit", "maths"}
    assert len(found.cells) == 2 * 5 * 3
    text = " ".join(found.warnings)
    assert "measured temperature 0.0 and 0.5" in text
    assert "measured requests at once 4" in text
    on = next(cell for cell in found.cells if cell.arm == "on" and cell.category == "code")
    own = [row for row in rows_of(FULL) if (row.category, row.k) == ("code", 3)]
    rows = [row for row in own if (row.temperature, row.concurrency) == (1.0, 1)]
    assert on.values["tokens_per_s"].first == pytest.approx(sum(r.tokens for r in rows) / sum(r.seconds for r in rows))


def test_runs_without_a_common_length_stand_at_their_own_best() -> None:
    first, other = side("a", replace(A, ks=(1, 3))), side("b", replace(A, ks=(5,), seed=1))
    assert draft_lengths(first, other, (0.0, 1)) == [(3, 5)]
    assert any("k = 5 of b stands beside k = 3 of a" in w for w in compare_runs([first, other]).warnings)


def test_a_run_that_never_drafted_is_compared_without() -> None:
    rows = [row for row in rows_of(A) if row.arm != "on"]
    found = compare_runs([side("a", A), Side("b", tidy(record_of(rows)), rows)])
    assert {cell.arm for cell in found.cells} == {"off"}
    assert "with it" not in document_of(found).verdict[0]


def test_verdict_calls_noise_noise_and_differences_by_their_name() -> None:
    [same] = document_of(both(A, replace(A, seed=1))).verdict
    assert same.count("no difference beyond noise (") == 2
    assert "as fast" not in same
    [faster] = document_of(both(A, replace(A, seed=1, pace_s=0.016))).verdict
    assert re.search(r"b is 1\.2\dx \[1\.\d\d, 1\.\d\d\] as fast without drafting", faster)
    [few] = document_of(both(replace(A, prompts=4), replace(A, seed=1, prompts=4))).verdict
    assert "too few prompts to tell" in few


def test_the_headline_is_at_the_first_runs_best_length() -> None:
    found = both(replace(A, ks=(1, 3, 5)), replace(A, ks=(1, 3, 5), seed=1))
    head = headline(found, "b", "on")
    assert head is not None
    assert head.k == (3, 3)


def test_what_else_differs_is_warned_of() -> None:
    other = side("b", replace(A, seed=1))
    other.record["provenance"]["machine"] |= {"gpu": "H100"}
    other.record["plan"]["options"] |= {"max_tokens": 64, "seed": 9, "alternate": True}
    other.record["complete"] = False
    text = " ".join(compare_runs([side("a", A), other]).warnings)
    for says in ("different machines", "gpu differ", "limits of tokens: 64 and 128", "seeds: 9 and 0",
                 "orders of the arms: True and False", "b: The run stopped early"):  # fmt: skip
        assert says in text
    assert compare_runs([side("a", A), side("b", A)]).warnings == []


def test_unknown_acceptance_is_no_number() -> None:
    cell = both(replace(A, told=False), replace(A, seed=1)).cells[1]
    assert cell.values["acceptance_length"].first is None
    assert cell.values["acceptance_length"].ratio is None
    assert cell.values["acceptance_length"].other == pytest.approx(2.97, abs=0.1)


def test_drafts_accepted_beyond_the_end_of_a_text_do_not_count() -> None:
    rows = [row for row in rows_of(A) if row.arm == "on"]
    beyond = [replace(row, accepted=[row.rounds] * 3) for row in rows]
    most = sum(row.tokens - 1 for row in rows) / sum(row.rounds for row in rows)
    assert sums_of(beyond).value("acceptance_length") == pytest.approx(most)
    assert sums_of(rows).value("acceptance_length") == pytest.approx(most, abs=0.2)


def test_every_run_has_its_place_on_page_and_in_markdown() -> None:
    evil = "<script>alert(1)</script> $x^$ _"
    worlds = (A, replace(A, seed=1), replace(A, seed=2, ks=(5,)), replace(A, seed=3), replace(A, seed=4))
    names = ("a", evil, "_c", "d", "e")
    document = document_of(compare_runs([side(n, w) for n, w in zip(names, worlds, strict=True)]))
    page, text = to_html(document), to_markdown(document)
    assert "<script" not in page
    assert "<script" not in text
    assert page.count("<svg") == 2
    assert len(document.verdict) == 4
    assert document.tables[0].title == "The runs"
    assert len(document.tables[0].rows) == 5


def write(folder: Path, name: str, record: Any) -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(record))
    return name


def test_command_writes_all_and_ends_with_json(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for i, folder in enumerate(("x", "y")):
        write(tmp_path, f"{folder}/r.json", record_of(rows_of(replace(A, seed=i))))
    words = ["paceline", "compare", "x/r.json", "y/r.json", "--html", "c.html", "--markdown", "c.md"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = shell.capsys.readouterr()
    assert done.value.code == 0
    data = json.loads(out.splitlines()[-1])
    assert [run["label"] for run in data["runs"]] == ["x/r", "y/r"]
    assert len(data["cells"]) == 6
    assert "Beside x/r" in err
    assert "<h1>" in (tmp_path / "c.html").read_text()
    assert (tmp_path / "c.md").read_text().startswith("### Beside x/r")


def test_what_cannot_be_compared_is_refused(shell: Shell, tmp_path: Path) -> None:
    good = record_of(rows_of(A))
    write(tmp_path, "a.json", good)
    write(tmp_path, "empty.json", record_of([]))
    write(tmp_path, "shape.json", {"schema": "paceline-cuda-rounds/1"})
    write(tmp_path, "warm.json", record_of(rows_of(replace(A, temperatures=(0.7,)))))
    for says, other in (
        ("name two or more", ()),
        ("a.json is named twice", ("./a.json",)),
        ("empty.json holds no measurements", ("empty.json",)),
        ("shape.json has the schema 'paceline-cuda-rounds/1'", ("shape.json",)),
        ("cannot read gone.json", ("gone.json",)),
        ("a and warm share no temperature", ("warm.json",)),
        ("cannot write no/c.html", ("a.json", "--html", "no/c.html")),
    ):
        shell.refuses_in_one_line(says, "compare", "a.json", *other)


def test_labels_take_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    for name in ("x/r.json", "y/r.json", "z.json"):
        write(tmp_path, name, record_of(rows_of(A)))
    labels = [one.label for one in load_sides([tmp_path / name for name in ("x/r.json", "y/r.json")])]
    assert labels == ["x/r", "y/r"]
    assert [one.label for one in load_sides([tmp_path / "x/r.json", tmp_path / "z.json"])] == ["r", "z"]


def test_two_runs_that_share_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="share no temperature and number of requests"):
        both(A, replace(A, concurrencies=(8,)))
