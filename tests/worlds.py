"""Toy worlds in which the law of a text can be computed exactly, honest and broken ways to play a round, and both ways
to find the law: `exact` adds up every case, `simulate` draws with the noise that the engine would use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paceline import verification as v


@dataclass(frozen=True)
class World:
    """p[m], q[m] [V^m, V]: the laws of the token after each of the V^m prefixes of length m."""

    p: list[Any]
    q: list[Any]

    @property
    def columns(self) -> int:
        return self.p[0].shape[1]

    @classmethod
    def make(cls, seed: int, columns: int, reach: int, floor: float = 0.0) -> World:
        """Random laws of prefixes up to length `reach`; the drafter's resemble the target's more or less."""
        rng = np.random.default_rng(seed)
        like = rng.uniform(0.2, 0.9)
        p, q = [], []
        for m in range(reach + 1):
            own, other = rng.dirichlet(np.full(columns, 0.7), (2, columns**m))
            p.append(floor / columns + (1 - floor) * own)
            q.append(floor / columns + (1 - floor) * (like * own + (1 - like) * other))
        return cls(p, q)

    def rows(self, which: str, paths: Any, start: int, stop: int) -> Any:
        """Laws [n, stop - start, V] after the first start .. stop - 1 tokens of paths [n, m]."""
        tables = getattr(self, which)
        found = [tables[m][index(paths[:, :m], self.columns)] for m in range(start, stop)]
        return np.stack(found, 1) if found else np.zeros((len(paths), 0, self.columns))

    def plain(self, tokens: int) -> Any:
        """The law [V^tokens] of plain sampling's first tokens."""
        law = np.ones(1)
        for m in range(tokens):
            law = (law[:, None] * self.p[m]).ravel()
        return law


def index(paths: Any, columns: int) -> Any:
    """paths [n, m] as numbers with m digits: [n]."""
    out = np.zeros(len(paths), dtype=np.int64)
    for m in range(paths.shape[1]):
        out = out * columns + paths[:, m]
    return out


def cut(laws: list[Any], top_p: float) -> list[Any]:
    """Top-p of every row."""
    out = []
    for rows in laws:
        order = np.argsort(-rows, axis=1, kind="stable")
        ranked = np.take_along_axis(rows, order, 1)
        kept = np.where(np.cumsum(ranked, 1) - ranked < top_p, ranked, 0.0)
        done = np.zeros_like(rows)
        np.put_along_axis(done, order, kept, 1)
        out.append(done / done.sum(1, keepdims=True))
    return out


# ---- controllers ----------------------------------------------------------------------------------------------------

More = Callable[[World, Any, int], Any]
"""more(world, paths [n, m + j], m): whether to draw a draft after each path, of which m tokens are text."""


def always(world: World, paths: Any, m: int) -> Any:
    return np.ones(len(paths), dtype=bool)


def confident(least: float) -> More:
    """As `MtpDraft` stops: the product of the drafter's greatest probabilities, the coming one's included."""

    def more(world: World, paths: Any, m: int) -> Any:
        return world.rows("q", paths, m, paths.shape[1] + 1).max(-1).prod(-1) >= least

    return more


def arbitrary(seed: int) -> More:
    """Any function at all of what is known before the draft is drawn."""

    def more(world: World, paths: Any, m: int) -> Any:
        rng = np.random.default_rng([seed, m, paths.shape[1]])
        return (rng.random(world.columns ** paths.shape[1]) < 0.6)[index(paths, world.columns)]

    return more


# ---- ways to play ---------------------------------------------------------------------------------------------------

Laws = Callable[[World, Any, int], tuple[Any, Any]]


def honest_laws(world: World, paths: Any, m: int) -> tuple[Any, Any]:
    """What verification is told: q [n, k, V] and p [n, k + 1, V]."""
    return world.rows("q", paths, m, paths.shape[1]), world.rows("p", paths, m, paths.shape[1] + 1)


@dataclass(frozen=True)
class Play:
    """How a round goes. The defaults are right; each negative control breaks one of them."""

    mode: v.AcceptMode
    k: int = 2
    more: More = always
    greedy: bool = False  # drafts are argmax
    told: Laws | None = None  # the laws that verification is given
    odds: Callable[..., v.Odds] | None = None  # in place of verification.odds
    keep: Callable[[Any, Any], Any] | None = None  # keep(law, token): whether a drawn draft may stay
    noise: Callable[[v.Noise, Any, Play], v.Noise] | None = None  # bends the noise; sees the drafts' own [n, k, V]
    by_position: bool = False  # draft j's noise is keyed by its position

    def laws(self, world: World, paths: Any, m: int) -> tuple[Any, Any]:
        if self.told is not None:
            return self.told(world, paths, m)
        q, p = honest_laws(world, paths, m)
        return (v.one_hot(paths[:, m:], world.columns) if self.greedy else q), p

    def chances(self, paths: Any, m: int, laws: tuple[Any, Any]) -> v.Odds:
        return self.odds(paths[:, m:], *laws) if self.odds else v.odds(self.mode, paths[:, m:], *laws)

    def drafting(self, world: World, paths: Any) -> Any:
        """The law [n, V] that the next draft is drawn from."""
        row = world.rows("q", paths, paths.shape[1], paths.shape[1] + 1)[:, 0]
        return v.one_hot(row.argmax(1), world.columns) if self.greedy else row

    def stays(self, law: Any, token: Any) -> Any:
        return np.ones(len(token), dtype=bool) if self.keep is None else self.keep(law, token)


# ---- the exact law --------------------------------------------------------------------------------------------------


def drafts_of(world: World, m: int, play: Play) -> Iterator[tuple[Any, Any]]:
    """All texts of m tokens with all drafts that a round may put after them, and the drafts' probability."""
    paths = np.stack(np.unravel_index(np.arange(world.columns**m), (world.columns,) * m), 1) if m else np.zeros((1, 0))
    paths, weight = paths.astype(np.int64), np.ones(len(paths))
    for _ in range(play.k):
        go = play.more(world, paths, m)
        yield paths[~go], weight[~go]
        paths, weight = paths[go], weight[go]
        law = play.drafting(world, paths)
        row, token = np.nonzero(law > 0)
        stay = play.stays(law[row], token)
        yield paths[row[~stay]], (weight[row] * law[row, token])[~stay]
        row, token = row[stay], token[stay]
        paths, weight = np.column_stack([paths[row], token]), weight[row] * law[row, token]
    yield paths, weight


def exact(world: World, play: Play, tokens: int) -> tuple[Any, float]:
    """The law [V^tokens] of a text's first tokens, and how many drafts its first round keeps in the mean."""
    reach = [np.zeros(world.columns**m) for m in range(tokens + 1)]
    reach[0][0], kept = 1.0, 0.0
    for m in range(tokens):
        for paths, weight in drafts_of(world, m, play):
            chances = play.chances(paths, m, play.laws(world, paths, m))
            often = weight * reach[m][index(paths[:, :m], world.columns)]
            joint = v.kept_law(play.mode, chances.accept)[..., None] * chances.token * often[:, None, None]
            spread(reach, paths, m, joint)
            kept += float((joint.sum((0, 2)) * np.arange(joint.shape[1])).sum()) if m == 0 else 0.0
    return reach[tokens], kept


def spread(reach: list[Any], paths: Any, m: int, joint: Any) -> None:
    """Adds what a round emits, joint [n, kept, token], to the laws of longer texts, the longest being cut."""
    tokens, columns = len(reach) - 1, joint.shape[-1]
    for j in range(joint.shape[1]):
        if m + j >= tokens:
            np.add.at(reach[tokens], index(paths[:, :tokens], columns), joint[:, j].sum(-1))
        else:
            to = index(paths[:, : m + j], columns)[:, None] * columns + np.arange(columns)
            np.add.at(reach[m + j + 1], to, joint[:, j])


def distance(world: World, play: Play, tokens: int, target: World | None = None) -> float:
    """The greatest difference between the law of a text and that of plain sampling."""
    return float(np.abs(exact(world, play, tokens)[0] - (target or world).plain(tokens)).max())


# ---- the drawn law --------------------------------------------------------------------------------------------------


def simulate(world: World, play: Play, tokens: int, seeds: Any) -> Any:
    """How often each text comes out, [V^tokens], one text for each seed."""
    text = np.zeros((len(seeds), tokens + play.k + 1), dtype=np.int64)
    length = np.zeros(len(seeds), dtype=np.int64)
    for m in range(tokens):
        at = np.flatnonzero(length == m)  # rounds only ever go forward
        for rows, paths, noise in drafted(world, text[at, :m], play, seeds[at]):
            kept, token = settle(world, paths, m, play, noise)
            text[at[rows], : paths.shape[1]] = paths
            text[at[rows], m + kept] = token
            length[at[rows]] = m + kept + 1
    return np.bincount(index(text[:, :tokens], world.columns), minlength=world.columns**tokens)


def drafted(world: World, paths: Any, play: Play, seeds: Any) -> Iterator[tuple[Any, Any, v.Noise]]:
    """Which rows, their texts with drafts, and the noise to verify them with; a group for each draft length."""
    rows, m, ids = np.arange(len(paths)), paths.shape[1], np.arange(world.columns, dtype=np.uint64)
    own = np.zeros((len(paths), 0, world.columns))

    def group(rows: Any, paths: Any, own: Any) -> tuple[Any, Any, v.Noise]:
        count = paths.shape[1] - m
        noise = v.round_noise(play.mode, seeds[rows][:, None, None], m, count, ids)
        return rows, paths, play.noise(noise, own, play) if play.noise else noise

    for step in range(play.k):
        go = play.more(world, paths, m)
        yield group(rows[~go], paths[~go], own[~go])
        rows, paths, own = rows[go], paths[go], own[go]
        first, number = (m + step, 0) if play.by_position else (m, step)
        uniforms = v.draft_uniforms(play.mode, seeds[rows][:, None], first, number, ids)
        law = play.drafting(world, paths)
        token = v.draw(law, uniforms)
        stay = play.stays(law, token)
        yield group(rows[~stay], paths[~stay], own[~stay])
        rows, paths = rows[stay], np.column_stack([paths[stay], token[stay]])
        own = np.concatenate([own[stay], uniforms[stay][:, None]], 1)
    yield group(rows, paths, own)


def settle(world: World, paths: Any, m: int, play: Play, noise: v.Noise) -> v.Verdict:
    """The verdict on the drafts after the first m tokens, by `verify` or by the broken odds."""
    laws = play.laws(world, paths, m)
    if play.odds is None:
        return v.verify(play.mode, paths[:, m:], *laws, noise)
    chances, n = play.odds(paths[:, m:], *laws), np.arange(len(paths))
    kept = np.cumprod(noise.accept < chances.accept, axis=1).sum(1)
    return v.Verdict(kept, v.draw(chances.token[n, kept], noise.token[n, kept]))


def g_test(counts: Any, law: Any) -> float:
    """p-value of the counts under the law, by the likelihood ratio; 0 where the impossible happened."""
    from scipy.stats import chi2

    possible = law > 0
    if counts[~possible].any():
        return 0.0
    seen, expected = counts[possible], law[possible] * counts.sum()
    terms = np.where(seen > 0, seen * np.log(np.maximum(seen, 1) / expected), 0.0)
    return float(chi2.sf(2 * terms.sum(), possible.sum() - 1))


# ---- wrong ways -----------------------------------------------------------------------------------------------------


def typical(draft: Any, q: Any, p: Any) -> v.Odds:
    """Typical acceptance (Cai et al. 2024, Medusa): a draft stays where p(x) > min(0.3, 0.6 exp(-entropy))."""
    laws = p[:, :-1]
    entropy = -np.where(laws > 0, laws * np.log(np.maximum(laws, 1e-300)), 0.0).sum(-1)
    chance = np.take_along_axis(laws, draft[..., None], -1)[..., 0]
    return v.Odds((chance > np.minimum(0.3, 0.6 * np.exp(-entropy))).astype(float), p)


def no_residual(draft: Any, q: Any, p: Any) -> v.Odds:
    """After a rejection the target's whole law, not what the drafter left of it."""
    return v.odds("rejection", draft, q, p)._replace(token=p)


def shared_gumbel(draft: Any, q: Any, p: Any) -> v.Odds:
    """The residual drawn with the noise that drew the draft, its law given the draft written out."""
    odds = v.odds("rejection", draft, q, p)
    given = v.coupled_choice(draft, q, odds.token[:, :-1])
    return odds._replace(token=np.concatenate([given / given.sum(-1, keepdims=True), p[:, -1:]], 1))


def shared_rows(noise: v.Noise, own: Any, play: Play) -> v.Noise:
    """What `shared_gumbel` computes, drawn."""
    return v.Noise(noise.accept, np.concatenate([own, noise.token[:, -1:]], 1))


def shared_accept(noise: v.Noise, own: Any, play: Play) -> v.Noise:
    """The test's number is one that drew the draft."""
    return v.Noise(own[..., 0], noise.token)


def told_uncut(raw: World) -> Laws:
    """Drafts come from top-p of q, but verification is told q itself."""

    def told(world: World, paths: Any, m: int) -> tuple[Any, Any]:
        return honest_laws(replace(world, q=raw.q), paths, m)

    return told


def p_uncut(raw: World) -> Laws:
    """Top-p on q, and p left as it was."""

    def told(world: World, paths: Any, m: int) -> tuple[Any, Any]:
        return honest_laws(replace(world, p=raw.p), paths, m)

    return told


@dataclass(frozen=True)
class Control:
    """A wrong way to play, the world it is played in, and the world whose law it misses."""

    play: Play
    world: World
    target: World


def controls(seed: int = 11) -> dict[str, Control]:
    """Mistakes that somebody made, by name. `drawn` below holds those of the noise alone."""
    raw = World.make(seed, 3, 4, floor=0.1)
    both, only_q = World(cut(raw.p, 0.7), cut(raw.q, 0.7)), replace(raw, q=cut(raw.q, 0.7))
    plays = {
        "argmax drafts verified as if sampled, rejection": Play("rejection", greedy=True, told=honest_laws),
        "argmax drafts verified as if sampled, block": Play("block", greedy=True, told=honest_laws),
        "typical acceptance": Play("rejection", odds=typical),
        "no residual": Play("rejection", odds=no_residual),
        "controller drops what was drawn, rejection": Play("rejection", keep=unlikely_goes),
        "controller drops what was drawn, block": Play("block", keep=unlikely_goes),
        "residual shares the draft's noise": Play("rejection", odds=shared_gumbel),
    }
    made = {name: Control(play, raw, raw) for name, play in plays.items()}
    made["top-p on q, p uncut"] = Control(Play("rejection", told=p_uncut(raw)), both, both)
    made["q uncut, drafts cut"] = Control(Play("rejection", told=told_uncut(raw)), only_q, raw)
    return made


def unlikely_goes(law: Any, token: Any) -> Any:
    """A look at the drawn draft: only likely ones may be verified."""
    return np.take_along_axis(law, token[:, None], 1)[:, 0] >= 0.3


def drawn(seed: int = 11) -> dict[str, Control]:
    """Mistakes that only drawing shows: each number is uniform, but two of them are not independent."""
    raw = World.make(seed, 3, 4, floor=0.1)
    plays = {
        "residual shares the draft's noise, drawn": Play("rejection", noise=shared_rows),
        "test shares the draft's noise, rejection": Play("rejection", noise=shared_accept),
        "test shares the draft's noise, block": Play("block", noise=shared_accept),
        "block: drafts' noise keyed by position": Play("block", by_position=True),
    }
    return {name: Control(play, raw, raw) for name, play in plays.items()}
