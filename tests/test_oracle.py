"""Paceline against Transformers, on tiny random checkpoints of all five Gemma 4 shapes."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import DRAFTS, KV, NEW, PROMPT, WINDOW, F, Oracle, Pair, S
from torch import Tensor

from paceline.cache import KVCache, Storage
from paceline.config import read_drafter, read_target
from paceline.drafters import Drafter, MtpDraft, NoDrafter
from paceline.kernels import get_ops
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.sampling import Sampler
from paceline.speculate import speculate, start
from paceline.types import SamplingParams
from paceline.weights import load_drafter, load_target

pytestmark = pytest.mark.usefixtures("quiet_torch")

TOLERANCE = 1e-4
HIDDEN_TOLERANCE = 3e-4  # the target's states after its final norm: about 3 in the mean, up to 15
BACKENDS = ("reference", "cpu")
START, STEPS = len(PROMPT), 30  # prompt and decoded tokens of the logit comparisons: windows wrap several times


@dataclass
class Case:
    """One family on one backend, with what Transformers says about it."""

    pair: Pair
    oracle: Oracle
    target: Target
    drafter: MtpDrafter

    def cache(self) -> KVCache:
        return KVCache(Storage(self.target.config, self.target.ops, START + NEW + DRAFTS + 1))

    def tensor(self, array: Any) -> Tensor:
        return self.target.ops.tensor(array)

    def logits(self, hidden: Any) -> Tensor:
        return self.tensor(self.target.logits(hidden))


@pytest.fixture(scope="session")
def made(pairs: dict[str, Pair]) -> dict[str, tuple[Pair, Oracle]]:
    return {name: (pair, Oracle.load(pair)) for name, pair in pairs.items()}


@pytest.fixture(scope="session", params=families.FAMILIES)
def family(request: pytest.FixtureRequest, made: dict[str, tuple[Pair, Oracle]]) -> tuple[Pair, Oracle]:
    return made[request.param]


@pytest.fixture(scope="session", params=BACKENDS)
def case(family: tuple[Pair, Oracle], request: pytest.FixtureRequest) -> Case:
    pair, oracle = family
    ops = get_ops(request.param)
    target = load_target(pair.target, ops)
    return Case(pair, oracle, target, load_drafter(pair.assistant, target.config, ops))


def close(ours: Tensor, theirs: Tensor, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


# ---- the target -----------------------------------------------------------------------------------------------------


def test_prefill_and_hidden_states(case: Case) -> None:
    ids = case.pair.text[: START + STEPS]
    cache, chunks = case.cache(), []
    for at in range(0, len(ids), 16):
        chunks.append(case.tensor(case.target.forward(ids[at : at + 16], cache)))
    hidden = torch.cat(chunks)
    close(hidden, case.oracle.hidden_states(ids), HIDDEN_TOLERANCE)
    close(case.logits(case.target.ops.array(hidden)), case.oracle.prefill_logits(ids))


def test_decoding_one_token_at_a_time(case: Case) -> None:
    ids = case.pair.text[: START + STEPS]
    cache = case.cache()
    rows = [case.logits(case.target.prefill(ids[:START], cache))]
    rows += [case.logits(case.target.forward([token], cache)) for token in ids[START:]]
    close(torch.cat(rows), case.oracle.decode_logits(ids, START))


def test_logits_after_rollbacks(case: Case) -> None:
    """Wrong tokens that were taken back leave no trace, also where the ring has wrapped."""
    if case.target.ops.name == "reference":
        pytest.skip("taking back is the cache's work, the same on both backends")
    ids, cache = case.pair.text[: START + STEPS], case.cache()
    rows = [case.logits(case.target.prefill(ids[:START], cache))]
    for at in range(START, len(ids), 3):  # STEPS is a multiple of 3
        wrong = [5] * (DRAFTS + at % 3)
        hidden = case.target.forward(ids[at : at + 3] + wrong, cache)
        rows.append(case.logits(hidden)[:3])
        cache.rollback(len(wrong))
    close(torch.cat(rows), case.oracle.decode_logits(ids, START))


# ---- the drafter ----------------------------------------------------------------------------------------------------


@dataclass
class Draft:
    """One draft step: the tokens that were scored, their logits, and the state for the step after."""

    ids: Tensor
    logits: Tensor
    hidden: Tensor


def our_draft(case: Case, token: int, hidden: Tensor, position: int, cache: KVCache) -> Draft:
    ops = case.target.ops
    embedded = case.target.embed(ops.array(torch.tensor([token])))
    rows = case.drafter.rows(case.target, cache, position)
    y, state = case.drafter.step(embedded, ops.array(hidden[None]), rows, cache)
    logits, ids = case.drafter.logits(y)
    every = torch.arange(case.target.config.vocab)
    return Draft(every if ids is None else case.tensor(ids)[0], case.tensor(logits)[0], case.tensor(state)[0])


def visible(kv: KV, n: int) -> KV:
    """What a drafter attends after n processed tokens: all of them, or the last window."""
    full, sliding = kv[F], kv[S]
    first = max(0, n - WINDOW)
    return {F: (full[0][:, :, :n], full[1][:, :, :n]), S: (sliding[0][:, :, first:n], sliding[1][:, :, first:n])}


def compare_drafts(case: Case, n: int, position: int) -> None:
    """A round of drafts after n processed tokens, each fed with what Transformers computed one step before."""
    ids = case.pair.text
    cache = case.cache()
    case.target.prefill(ids[:n], cache)
    hidden = case.oracle.hidden_states(ids[:n])[-1]
    everything = case.oracle.shared_kv(ids[:n])
    kv = visible(everything, n)
    token = ids[n]
    for _ in range(DRAFTS):
        ours = our_draft(case, token, hidden, position, cache)
        logits, following = case.oracle.draft(token, hidden, position, kv)
        close(ours.logits, logits[ours.ids])
        close(ours.hidden, following)
        # Transformers fills the tokens of unselected clusters with less than any selected one has.
        assert (logits > logits.min()).sum() >= len(ours.ids) - 1
        assert int(ours.ids[ours.logits.argmax()]) == int(logits.argmax())
        token, hidden = int(logits.argmax()), following


@pytest.mark.parametrize("n", [3, WINDOW, START + 17])
def test_drafter_steps(case: Case, n: int) -> None:
    for position in (n, n - 1):  # the two conventions in use for the constant position
        compare_drafts(case, n, position)


# ---- whole texts ----------------------------------------------------------------------------------------------------


def write(case: Case, drafter: Drafter, new: int) -> tuple[list[int], list[int]]:
    """PROMPT and `new` greedy tokens, and how many drafts each round accepted."""
    cache, sampler = case.cache(), Sampler(case.target.ops, SamplingParams())
    ids, accepted = [*PROMPT, start(case.target, drafter, cache, sampler, PROMPT)], []
    while len(ids) < START + new:
        done = speculate(case.target, drafter, cache, sampler, ids[-1], DRAFTS)
        ids += done.tokens
        accepted.append(done.accepted)
    return ids[: START + new], accepted


def rounds_by_transformers(case: Case, count: int) -> list[int]:
    """How many drafts of its assistant the first rounds accept, given clean keys and values at position n.

    Its own loop is no measure: after a rejection it leaves rejected tokens' keys and values in view.
    """
    text, oracle = case.pair.text, case.oracle
    states, kv, n, accepted = oracle.hidden_states(text), oracle.shared_kv(text), START, list[int]()
    for _ in range(count):
        token, hidden, good = text[n], states[n - 1], 0
        for k in range(DRAFTS):
            logits, hidden = oracle.draft(token, hidden, n, visible(kv, n))
            token = int(logits.argmax())
            if token != text[n + 1 + k]:
                break
            good += 1
        accepted.append(good)
        n += good + 1
    return accepted


def test_greedy_text_is_the_same(case: Case) -> None:
    new = NEW if case.target.ops.name == "cpu" else 20  # the torch twin is slow by design
    assert write(case, NoDrafter(), new)[0] == case.pair.text[: START + new]
    assert write(case, MtpDraft(case.drafter, case.target, "n-1"), new)[0] == case.pair.text[: START + new]
    ids, accepted = write(case, MtpDraft(case.drafter, case.target, "n"), new)
    assert ids == case.pair.text[: START + new]
    if new == NEW:
        assert {0, DRAFTS} < set(accepted)  # rounds without, with some, with only accepted drafts
        assert accepted[:20] == rounds_by_transformers(case, 20)


def test_transformers_agrees_with_itself(family: tuple[Pair, Oracle]) -> None:
    """Its assisted text is its plain text; Paceline's texts are compared with the plain one."""
    pair, oracle = family
    assert oracle.greedy(30, assisted=True) == pair.text[: START + 30]


@pytest.mark.slow
def test_transformers_agrees_with_itself_over_the_whole_text(family: tuple[Pair, Oracle]) -> None:
    pair, oracle = family
    assert oracle.greedy(NEW, assisted=True) == pair.text


# ---- the newer spelling of config.json ------------------------------------------------------------------------------


def respelled(folder: Path, to: Path) -> Path:
    copied = Path(shutil.copytree(folder, to / folder.name, copy_function=os.link))
    families.per_layer_spelling(copied)
    return copied


@pytest.mark.parametrize(("part", "read"), [("target", read_target), ("assistant", read_drafter)])
def test_both_spellings_mean_the_same(
    family: tuple[Pair, Oracle], part: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = getattr(family[0], part)
    assert read(respelled(folder, tmp_path)) == read(folder)


def test_newer_spelling_loads(family: tuple[Pair, Oracle], tmp_path: Path) -> None:
    pair, oracle = family
    ops = get_ops("cpu")
    target = load_target(respelled(pair.target, tmp_path), ops)
    drafter = load_drafter(respelled(pair.assistant, tmp_path), target.config, ops)
    case = Case(pair, oracle, target, drafter)
    hidden = target.prefill(PROMPT, case.cache())
    close(case.logits(hidden), oracle.prefill_logits(PROMPT)[-1:])
    compare_drafts(case, START, START)
