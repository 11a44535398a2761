"""Rules and masks on both backends, bit by bit: rows of the whole vocabulary, and parts of a row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_kernels import both, rand

from paceline.kernels import Rules, get_ops

pytestmark = pytest.mark.usefixtures("quiet_torch")


def odd_rules(rng: np.random.Generator, vocab: int) -> Rules:
    """Any of them on or off; tokens seen and biased may be the same ones."""
    seen, biased = (rng.permutation(vocab)[: rng.integers(0, vocab + 1)] for _ in range(2))
    on = rng.random(3) < 0.7
    return Rules(
        vocab, (biased, rng.normal(size=len(biased)).astype(np.float32)), rng.permutation(vocab)[:2], seen,
        rng.integers(0, 4, len(seen)), int(rng.integers(-1, 6)),
        (float(rng.uniform(0.5, 2)) if on[0] else 1.0, float(on[1] * rng.normal()), float(on[2] * rng.normal())),
    )  # fmt: skip


@pytest.mark.parametrize("vocab", [1, 2, 33, 700])
def test_rules_have_the_same_bits_on_both_backends(vocab: int) -> None:
    """Over drafts that were seen and that were not, of which some come twice; rows and parts of a row."""
    rng, changed = np.random.default_rng(vocab), 0
    for case in range(60):
        rules, rows = odd_rules(rng, vocab), int(rng.integers(1, 5))
        draft = rng.integers(0, vocab, rng.integers(rows - 1, rows + 3)).tolist()
        x = rand(rows, vocab, seed=case, scale=3)
        (reshaped,) = both("reshape", x, None, rules, draft, rtol=0, atol=0)
        changed += not torch.equal(reshaped, x)
        ids = torch.from_numpy(rng.permutation(vocab)[None, : rng.integers(1, vocab + 1)])
        (part,) = both("reshape", x[-1:, ids[0]], ids, rules, draft, rtol=0, atol=0)
        assert torch.equal(part, reshaped[-1:, ids[0]])
    assert changed > 30


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 300])
def test_masks_let_through_what_their_bits_say(vocab: int) -> None:
    rng, x = np.random.default_rng(vocab), rand(3, vocab)
    bits = rng.integers(0, 2**32, (3, -(-vocab // 32)), dtype=np.uint32)
    bits[1], bits[2] = 0, 2**32 - 1
    (masked,) = both("permit", x, None, bits, rtol=0, atol=0)
    allowed = [[int(row[i // 32]) >> i % 32 & 1 for i in range(vocab)] for row in bits]
    assert torch.equal(masked, torch.where(torch.tensor(allowed) > 0, x, -math.inf))
    ids = torch.from_numpy(rng.permutation(vocab)[None, : rng.integers(1, vocab + 1)])
    (part,) = both("permit", x[:1, ids[0]], ids, bits[:1], rtol=0, atol=0)
    assert torch.equal(part, masked[:1, ids[0]])


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_part_without_a_token_is_none(name: str) -> None:
    """Rows of the whole vocabulary are rows all the same; one token that is left makes a part a row."""
    ops, bits = get_ops(name), np.zeros((1, 2), np.uint32)
    x, ids = ops.array(rand(1, 3)), ops.indices([40, 7, 63])[None]
    assert ops.permit(x, ids, bits) is None
    assert ops.host(ops.permit(ops.array(rand(1, 64)), None, bits)).max() == -np.inf
    bits[0, 1] = 1 << 40 % 32
    left = ops.host(ops.permit(x, ids, bits))
    assert left.tolist() == [[ops.host(x)[0, 0], -np.inf, -np.inf]]
    bits[0, 1] = 1 << 30
    assert ops.permit(x, ids, bits) is None
