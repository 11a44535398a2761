"""The design of the experiment: every text in every arm once, in balance, and B A A B where one server fits."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest
from planted import prompts

from paceline.bench.plan import ArmKey, BenchOptions, Step, blocks, plan

SWEEP = BenchOptions(repeats=2, concurrencies=(1, 4), temperatures=(0.0, 1.0))


def texts(steps: list[Step]) -> Counter[tuple[object, ...]]:
    return Counter(
        (step.arm, step.concurrency, cell.prompt.id, cell.temperature, cell.repeat)
        for step in steps
        for cell in step.cells
    )


@pytest.mark.parametrize("alternate", [False, True])
def test_every_text_comes_once_in_every_arm(alternate: bool) -> None:
    options = BenchOptions(**{**vars_of(SWEEP), "alternate": alternate})
    counted = texts(plan(prompts(10), options, [2, 4]))
    arms = {arm for arm, *_ in counted}
    on_again = {ArmKey("on2", k) for k in (2, 4)} if alternate else set()
    assert arms == {ArmKey("off", 0), ArmKey("off2", 0), ArmKey("on", 2), ArmKey("on", 4), *on_again}
    assert set(counted.values()) == {1}
    assert len(counted) == len(arms) * 10 * 2 * 2 * 2


def vars_of(options: BenchOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def test_blocks_are_about_equal_and_long_enough_for_their_concurrency() -> None:
    made = prompts(50)
    for concurrency in (1, 2, 4, 8, 32):
        cut = list(blocks(made, concurrency))
        assert [p for block in cut for p in block] == made
        sizes = {len(block) for block in cut}
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(50, 1 if concurrency == 1 else 4 * concurrency)


def test_arms_of_a_block_stand_together_and_each_is_first_equally_often() -> None:
    steps = plan(prompts(60), BenchOptions(temperatures=(0.0,), concurrencies=(1,)), [2, 4, 8])
    groups = [list(group) for _, group in groupby(steps, key=lambda step: step.cells)]
    assert [len(group) for group in groups] == [5] * 60
    assert set(Counter(group[0].arm for group in groups).values()) == {12}
    assert len({tuple(step.arm for step in group) for group in groups}) > 20


def test_alternating_arms_come_forth_and_back_around_a_common_middle() -> None:
    steps = plan(prompts(6), BenchOptions(temperatures=(0.0,), alternate=True, repeats=2), [3])
    order = [arm.name for arm, _ in groupby(step.arm for step in steps)]
    assert order == ["on", "off", "off2", "on2"] * 2
    places = {name: [i for i, step in enumerate(steps) if step.arm.name == name] for name in order}
    off, on = (sorted(places[a] + places[b]) for a, b in (("off", "off2"), ("on", "on2")))
    assert sum(off) == sum(on)
    several = plan(prompts(6), BenchOptions(temperatures=(0.0,), alternate=True), [2, 4])
    assert [(arm.name, arm.k) for arm, _ in groupby(step.arm for step in several)] == [
        ("on", 2), ("on", 4), ("off", 0), ("off2", 0), ("on2", 4), ("on2", 2)
    ]  # fmt: skip


def test_the_order_of_prompts_is_random_but_the_same_for_a_seed() -> None:
    first, again, other = (
        [step.cells[0].prompt.id for step in plan(prompts(30), BenchOptions(seed=seed), [4])] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first != sorted(first)
