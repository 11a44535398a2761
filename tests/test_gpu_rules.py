"""Rules on the device against `paceline.processors`, bit by bit, and what a sequence's history becomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gpu import DEVICE, randn
from torch import Tensor

from paceline.kernels import reference
from paceline.kernels.gpu import rules
from paceline.kernels.gpu.accept import COLUMNS, COUNT
from paceline.kernels.gpu.rules import Ruling, begin_history, neutral_rules, remember, reshape, rules_of
from paceline.processors import Context
from paceline.types import SamplingParams

VOCAB = 1500  # two tiles, the last not full
ENDS = (7, 1033)
PROMPT, TEXT = [3, 3, 900, 41], [5, 900, 5, 1499, 5]
PARAMS = {
    "repetition": SamplingParams(repetition_penalty=1.7),
    "counts": SamplingParams(presence_penalty=0.9, frequency_penalty=-0.35),
    "bias": SamplingParams(logit_bias={0: 3.5, 1030: -100.0, 1499: 0.1}),
    "least": SamplingParams(min_tokens=7, max_tokens=20),
    "all": SamplingParams(
        repetition_penalty=0.8,
        presence_penalty=-1.1,
        frequency_penalty=0.7,
        logit_bias={5: 1.0, 7: 9.0},
        min_tokens=6,
        max_tokens=9,
    ),
    "none": SamplingParams(),
}


def ruling_of(params: list[SamplingParams], text: list[int] = TEXT, stops: bool = True) -> Ruling:
    """Sequences that read PROMPT and wrote `text`."""
    history = torch.zeros(len(params), VOCAB, dtype=torch.int32, device=DEVICE)
    for row in history:
        begin_history(row, torch.tensor(PROMPT, device=DEVICE))
        row.index_add_(0, torch.tensor(text, device=DEVICE), torch.ones(len(text), dtype=torch.int32, device=DEVICE))
    remaining = torch.tensor([p.max_tokens - len(text) for p in params], dtype=torch.int32, device=DEVICE)
    on = torch.full_like(remaining, int(stops))
    return Ruling(rules_of(params, DEVICE), history, remaining, on, torch.tensor(ENDS, device=DEVICE))


def on_host(row: np.ndarray, params: SamplingParams, draft: list[int]) -> np.ndarray:
    context = Context(params, PROMPT, ENDS, VOCAB)
    context.extend(TEXT)
    return reference.reshape(row[None], context.rules, draft)[0]


def drafts_of(batch: int, k: int) -> Tensor:
    """Drafts [k, B]: some were read, some written, one twice."""
    words = torch.tensor([5, 41, 77, 77, 900])
    return torch.stack([words.roll(b)[:k] for b in range(batch)], 1).contiguous().to(DEVICE)


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("k", [0, 4])
def test_rows_become_what_the_host_makes_of_them(name: str, k: int) -> None:
    params = [PARAMS[name], PARAMS["none"], PARAMS["all"]]
    logits, drafts = randn(len(params) * (k + 1), VOCAB, scale=4.0), drafts_of(len(params), k)
    expected = np.stack([
        on_host(row.numpy(), params[r // (k + 1)], drafts[: r % (k + 1), r // (k + 1)].tolist())
        for r, row in enumerate(logits.cpu())
    ])  # fmt: skip
    reshape(logits, None, ruling_of(params), drafts if k else None)
    assert np.array_equal(logits.cpu().numpy(), expected)


def test_a_drafters_columns_stand_for_ids() -> None:
    params = [PARAMS["all"], PARAMS["repetition"]]
    logits, drafts = randn(2, 200, scale=4.0), drafts_of(2, 2)
    ids = torch.stack([torch.randperm(VOCAB, generator=torch.Generator().manual_seed(b))[:200] for b in range(2)])
    expected = []
    for b in range(2):
        row = np.full(VOCAB, -np.inf, np.float32)
        row[ids[b].numpy()] = logits[b].cpu().numpy()
        expected.append(on_host(row, params[b], drafts[:, b].tolist())[ids[b].numpy()])
    reshape(logits, ids.to(DEVICE), ruling_of(params), drafts, first=2)
    assert np.array_equal(logits.cpu().numpy(), np.stack(expected))


def test_a_text_that_does_not_stop_has_no_end_to_hold_back() -> None:
    logits = randn(1, VOCAB)
    before = logits.clone()
    reshape(logits, None, ruling_of([PARAMS["least"]], stops=False), None)
    assert torch.equal(logits, before)


def test_other_rules_give_other_rows() -> None:
    """Else the comparisons above would show nothing."""
    rows = []
    for params in PARAMS.values():
        logits = randn(1, VOCAB, scale=4.0)
        reshape(logits, None, ruling_of([params]), None)
        rows.append(logits)
    assert all(not torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i])


def test_histories_count_what_rounds_emit() -> None:
    history = ruling_of([PARAMS["none"]] * 3).history
    before = history.clone()
    outcome = torch.zeros(3, COLUMNS, dtype=torch.int64, device=DEVICE)
    outcome[:, :16] = 11  # what stands behind the count is of an earlier round
    outcome[0, :4] = torch.tensor([5, 900, 5, 8])
    outcome[:, COUNT] = torch.tensor([4, 0, 16])
    remember(history, outcome)
    added = (history - before).cpu()
    assert {i: n for i, n in enumerate(added[0].tolist()) if n} == {5: 2, 8: 1, 900: 1}
    assert not added[1].any()
    assert added[2].nonzero().flatten().tolist() == [11]
    assert added[2, 11] == 16


def test_neutral_rules_change_no_bit() -> None:
    logits = randn(2, VOCAB, scale=50.0)
    logits[0, :4] = torch.tensor([float("-inf"), 0.0, -0.0, 1e-38])
    before = logits.clone()
    reshape(logits, None, ruling_of([PARAMS["none"]] * 2)._replace(rules=neutral_rules(2, DEVICE)), None)
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32))


def test_as_many_biases_as_there_is_room_for() -> None:
    many = dict.fromkeys(range(rules.MOST_BIASES), 0.5)
    own = rules_of([replace(PARAMS["none"], logit_bias=many)], "cpu")
    assert own.biases.tolist() == [rules.MOST_BIASES]
    assert own.bias_ids[0].tolist() == list(many)
