"""Log-probabilities of chosen tokens on the device against NumPy's, and the bits of their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu import DEVICE, randn

from paceline.kernels.gpu.report import TILE, report
from paceline.processors import log_softmax

pytestmark = pytest.mark.usefixtures("quiet_torch")
VOCABS = (3, 64, TILE, 2 * TILE + 5)


def reported(logits: torch.Tensor, chosen: torch.Tensor, sequences: int) -> torch.Tensor:
    """[n] of rows of so many sequences; what else is in the buffer must stay."""
    out = torch.full((sequences, 16), 7.0, dtype=torch.float64, device=DEVICE)
    report(logits, chosen, out)
    each = len(logits) // sequences
    assert (out[:, each:] == 7.0).all()
    return out[:, :each].reshape(-1)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_it_is_log_softmax(vocab: int, scale: float) -> None:
    """Logits far apart too, of which most leave no mass."""
    logits = randn(6, vocab, seed=vocab, scale=scale)
    chosen = torch.randint(0, vocab, (6,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    expected = [log_softmax(row.cpu().numpy())[int(token)] for row, token in zip(logits, chosen, strict=True)]
    np.testing.assert_allclose(reported(logits, chosen, 2).cpu().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_row_has_the_bits_that_it_has_alone() -> None:
    logits, chosen = randn(12, VOCABS[-1], seed=3), torch.arange(12, device=DEVICE) * 100
    alone = torch.cat([reported(logits[r : r + 1].contiguous(), chosen[r : r + 1], 1) for r in range(12)])
    for sequences in (1, 3, 12):
        assert torch.equal(reported(logits, chosen, sequences), alone)


def test_one_sure_token_and_impossible_ones() -> None:
    logits = torch.full((2, TILE + 9), -torch.inf, device=DEVICE)
    logits[:, -1] = 5.0
    found = reported(logits, torch.tensor([TILE + 8, 0], device=DEVICE), 1)
    assert found.tolist() == [0.0, -np.inf]
