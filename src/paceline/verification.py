"""Which drafts a round keeps, where texts must follow the target's law but need not repeat a fixed choice.

Rows of probabilities: q [..., k, V] is the law that each draft was drawn from, given those before it; p [..., k+1, V]
is the target's law at the same places, and one further. Both are what temperature, top-k and top-p leave. The V
columns may be any ids that the two have in common; drafts are column numbers. Leading axes are independent rounds.

rejection  Leviathan et al. 2022 (arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318): test draft after draft.
block      Sun et al. 2024 (arXiv 2403.10444): keep the longest prefix that passes; never shorter on average.
coupled    the target's own choice with the drafter's noise (see `paceline.sampling`), for comparison.

Drafts that were not drawn but taken (argmax, n-grams) have the law `one_hot`: kept with probability p(x).

Whether one more draft is drawn may depend on all that is known by then, this round's earlier drafts included. Once
drawn it must be verified: leaving it out for what it turned out to be bends the law.

Noise is Philox4x32-10 with key = seed and counter = (id, position low, position high, purpose + 256 * step), where
`position` is that of the first token the round will emit and `step` counts the round's drafts. Keying draft j by its
own position instead would be wrong for "block": what a rejected draft was has decided how many are kept, and the next
round would draw the same place with the same noise. Purpose 0, step 0 and the token's own position is the coupled
choice, which `Ops.gumbel` computes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from paceline.errors import UsageError
from paceline.kernels.noise import philox_uniform
from paceline.kernels.reference import Words
from paceline.types import ACCEPT_MODES, AcceptMode

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Kind = TypeVar("Kind", bound=np.generic)

RULED_OUT = "a draft has probability 0 in q; q must be the law that the draft was drawn from"


class Purpose(IntEnum):
    """What a random number is for. Two purposes never share one."""

    CHOICE = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


class Noise(NamedTuple):
    """Uniforms in (0, 1) for one round: accept [..., k] and token [..., k+1, V]; row j of it serves when j are kept."""

    accept: Floats
    token: Floats


class Verdict(NamedTuple):
    """How many drafts stay [...], and the token (column) that follows them [...]."""

    kept: Ids
    token: Ids


class Odds(NamedTuple):
    """accept [..., k]: chance that draft j passes its test; token [..., k+1, V]: law of what follows j kept drafts."""

    accept: Floats
    token: Floats


# ---- the noise ------------------------------------------------------------------------------------------------------


def draft_uniforms(mode: AcceptMode, seed: Words, first: Words, step: int, ids: npt.NDArray[np.uint64]) -> Floats:
    """Uniforms [..., V] that draw the round's draft number `step` (from 0); its first token will sit at `first`."""
    if mode == "coupled":
        return philox_uniform(seed, np.asarray(first, dtype=np.uint64) + np.uint64(step), ids)
    return philox_uniform(seed, first, ids, word(Purpose.DRAFT, step))


def round_noise(mode: AcceptMode, seed: Words, first: Words, k: int, ids: npt.NDArray[np.uint64]) -> Noise:
    """The noise of a round of k drafts whose first token will sit at `first`, for columns that mean `ids` [V].

    `seed` and `first` are whole numbers, or uint64 arrays [..., 1, 1] for many rounds at once.
    """
    steps = np.arange(k + 1, dtype=np.uint64)[:, None]
    zero = np.zeros(1, dtype=np.uint64)
    accept = philox_uniform(seed, first, zero, word(Purpose.ACCEPT, steps[:k]))[..., 0]
    if mode == "coupled":
        return Noise(accept, philox_uniform(seed, np.asarray(first, dtype=np.uint64) + steps, ids))
    row = philox_uniform(seed, first, ids[None], word(Purpose.RESIDUAL, 0))  # [..., 1, V]
    return Noise(accept, np.broadcast_to(row, (*row.shape[:-2], k + 1, len(ids))))


def word(purpose: Purpose, step: Words) -> Words:
    """The counter's fourth word for a purpose in a step, or in many."""
    return step * 256 + int(purpose)


def draw(law: Floats, uniforms: Floats) -> Ids:
    """One column [...] for each row of probabilities [..., V], which need not add up to 1: Gumbel-max."""
    possible = law > 0
    scores = np.log(law, where=possible, out=np.full(law.shape, -np.inf)) - np.log(-np.log(uniforms))
    best: Ids = np.argmax(np.where(possible, scores, -np.inf), axis=-1)
    return best


# ---- the laws -------------------------------------------------------------------------------------------------------


def one_hot(draft: Ids, columns: int) -> Floats:
    """The law [..., k, columns] of drafts [..., k] that could not have come out otherwise."""
    return np.asarray(draft[..., None] == np.arange(columns), dtype=np.float64)


def odds(mode: AcceptMode, draft: Ids, q: Floats, p: Floats) -> Odds:
    """Every chance that decides the round of drafts [..., k]. Raises UsageError for a draft that q rules out."""
    _check(mode, draft, q, p)
    if mode == "coupled":
        return _coupled(draft, q, p)
    ratio = _of(draft, p[..., :-1, :]) / _of(draft, q)
    weight = _prefix_weights(ratio) if mode == "block" else np.ones(p.shape[:-1])
    left = np.maximum(weight[..., :-1, None] * p[..., :-1, :] - q, 0.0)
    mass = left.sum(-1)
    accept = _block_accept(weight, mass) if mode == "block" else np.minimum(ratio, 1.0)
    return Odds(accept, _followers(left, mass, p))


def law(mode: AcceptMode, draft: Ids, q: Floats, p: Floats) -> Floats:
    """The exact law [..., k+1, V] of (kept, token) given the drafts: `verify`, with its noise integrated out."""
    chances = odds(mode, draft, q, p)
    return np.asarray(kept_law(mode, chances.accept)[..., None] * chances.token)


def kept_law(mode: AcceptMode, accept: Floats) -> Floats:
    """The law [..., k+1] of how many are kept, from the chances [..., k] that each passes."""
    sure = np.ones((*accept.shape[:-1], 1))
    if mode == "block":  # the last that passes
        later = np.cumprod(1.0 - accept[..., ::-1], axis=-1)[..., ::-1]
        return np.asarray(np.concatenate([sure, accept], -1) * np.concatenate([later, sure], -1))
    before = np.cumprod(accept, axis=-1)  # those before the first that fails
    return np.asarray(np.concatenate([sure, before], -1) * np.concatenate([1.0 - accept, sure], -1))


def verify(mode: AcceptMode, draft: Ids, q: Floats, p: Floats, noise: Noise) -> Verdict:
    """Keeps a prefix of the drafts [..., k] and draws the token after it, so that the whole follows the target's law.

    "coupled" needs the drafts drawn with noise.token's own rows, the other modes with noise independent of both parts.
    Raises UsageError for shapes that do not fit and for a draft that q rules out.
    """
    if mode == "coupled":
        _check(mode, draft, q, p)
        chosen = draw(p, noise.token)
        kept = _leading(draft == chosen[..., :-1])
        return Verdict(kept, _of(kept[..., None], chosen[..., None, :])[..., 0])
    chances = odds(mode, draft, q, p)
    passed = noise.accept < chances.accept
    kept = _last(passed) if mode == "block" else _leading(passed)
    return Verdict(kept, draw(_row(chances.token, kept), _row(noise.token, kept)))


def _prefix_weights(ratio: Floats) -> Floats:
    """w_0 = 1, w_j = min(w_(j-1) p_j(x_j) / q_j(x_j), 1): [..., k+1]. The chance to keep at least j drafts."""
    weights = [np.ones(ratio.shape[:-1])]
    for j in range(ratio.shape[-1]):
        weights.append(np.minimum(weights[-1] * ratio[..., j], 1.0))
    return np.stack(weights, axis=-1)


def _block_accept(weight: Floats, mass: Floats) -> Floats:
    """h_j = R_j / (R_j + 1 - w_j) with R_j the residual's mass after j drafts, and h_k = w_k: [..., k]."""
    inner = mass[..., 1:]
    total = inner + (1.0 - weight[..., 1:-1])
    # total is 0 only where w_j = 1 and both laws agree on the next token: then w_(j+1) = 1 too, and h_j is never asked.
    accept = np.divide(inner, total, out=np.ones_like(inner), where=total > 0)
    return np.concatenate([accept, weight[..., 1:][..., -1:]], axis=-1)


def _followers(left: Floats, mass: Floats, p: Floats) -> Floats:
    """Normalised residuals, and the target's law after the last draft: [..., k+1, V]."""
    mass = np.broadcast_to(mass[..., None], left.shape)
    # Without mass the laws agree, and only a rounding error can ask for this row.
    rows = np.divide(left, mass, out=p[..., :-1, :].copy(), where=mass > 0)
    return np.concatenate([rows, p[..., -1:, :]], axis=-2)


def _coupled(draft: Ids, q: Floats, p: Floats) -> Odds:
    choice = coupled_choice(draft, q, p[..., :-1, :])
    other = choice * (1.0 - one_hot(draft, p.shape[-1]))
    return Odds(_of(draft, choice), _followers(other, other.sum(-1), p))


def coupled_choice(draft: Ids, q: Floats, p: Floats) -> Floats:
    """Law [..., k, V] of argmax(log p + G), given that argmax(log q + G) is the draft [..., k]. Takes V^2 memory.

    With Exponential(1) times E, the two are the least E/p and the least E/q. Integrating over all E but the ratio of
    both minima leaves p(b) times the integral of 1 / D(u)^2 from u(draft) to u(b), where u(i) = p(i) / (p(i) + q(i))
    and D(u) = sum of max(q u, p (1 - u)), which is linear between the u(i).
    """
    total = p + q
    knots = np.divide(p, total, out=np.zeros_like(p), where=total > 0)
    order = np.argsort(knots, axis=-1)
    at = np.take_along_axis(knots, order, -1)
    d = np.maximum(q[..., None, :] * at[..., None], p[..., None, :] * (1.0 - at[..., None])).sum(-1)
    pieces = np.diff(at, axis=-1) / (d[..., 1:] * d[..., :-1])
    area = np.concatenate([np.zeros((*p.shape[:-1], 1)), np.cumsum(pieces, -1)], -1)
    area = np.take_along_axis(area, np.argsort(order, axis=-1), -1)
    p_x, q_x = (_of(draft, law)[..., None] for law in (p, q))
    same = p_x / np.maximum(p * q_x, q * p_x).sum(-1, keepdims=True)
    other = p * np.maximum(area - _of(draft, area)[..., None], 0.0)
    return np.asarray(np.where(one_hot(draft, p.shape[-1]) > 0, same, other))


# ---- small parts ----------------------------------------------------------------------------------------------------


def _check(mode: AcceptMode, draft: Ids, q: Floats, p: Floats) -> None:
    if mode not in ACCEPT_MODES:
        raise UsageError(f"verification is one of {', '.join(ACCEPT_MODES)}, not {mode!r}")
    k, columns = draft.shape[-1], p.shape[-1]
    if q.shape != (*draft.shape, columns) or p.shape != (*draft.shape[:-1], k + 1, columns):
        raise UsageError(f"{k} drafts need laws q [{k}, V] and p [{k + 1}, V], not {list(q.shape)} and {list(p.shape)}")
    if not (_of(draft, q) > 0).all():
        raise UsageError(RULED_OUT)


def _of(index: Ids, values: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """values[..., index], one column of each row: [..., k] of [..., k, V]."""
    found: npt.NDArray[Kind] = np.take_along_axis(values, index[..., None], -1)[..., 0]
    return found


def _row(values: Floats, index: Ids) -> Floats:
    """values[..., index, :], one row of each matrix."""
    return np.asarray(np.take_along_axis(values, index[..., None, None], -2)[..., 0, :])


def _leading(passed: npt.NDArray[np.bool_]) -> Ids:
    """How many pass before the first that does not."""
    return np.asarray(np.cumprod(passed, axis=-1).sum(-1), dtype=np.int64)


def _last(passed: npt.NDArray[np.bool_]) -> Ids:
    """The number, from 1, of the last that passes; 0 if none."""
    numbers = np.arange(1, passed.shape[-1] + 1)
    return np.asarray((passed * numbers).max(axis=-1, initial=0), dtype=np.int64)
