"""Training at the smallest size: what it writes loads and generates, and it computes what inference computes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paceline.cache import KVCache, Storage
from paceline.errors import UsageError
from paceline.hub import EMBEDDED_PAIR
from paceline.kernels import get_ops
from paceline.llm import LLM
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.train import continuations, drafter, miniature, target
from paceline.train.batch import TrainOps
from paceline.train.data import Batches
from paceline.train.loop import Recipe
from paceline.types import SamplingParams
from paceline.weights import load_drafter, load_target

pytestmark = pytest.mark.skipif(not (EMBEDDED_PAIR / "target" / "tokenizer.json").is_file(), reason="no tokenizer here")

TOKENIZER = EMBEDDED_PAIR / "target"
CATEGORIES = ("chat", "code", "prose")
VOCAB, LENGTH, WINDOW = 4096, 40, 8
RECIPE = Recipe(minutes=0.02, batch=4, length=LENGTH)  # on a busy machine, too, some steps follow the clustering
SLIDING, FULL = "sliding_attention", "full_attention"
SMALL = {"head_dim": 16, "global_head_dim": 32, "sliding_window": WINDOW}
SMALL_TARGET: dict[str, Any] = {
    **SMALL, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 6, "num_kv_shared_layers": 2,
    "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL],
}  # fmt: skip


@dataclass
class Trained:
    """Folders of a corpus, a target, its continuations, and two drafters, the second trained on from the first."""

    corpus: Path
    target: Path
    continuations: Path
    drafter: Path
    second: Path
    losses: dict[str, float]
    acceptance: dict[str, list[float]]


def write_corpus(folder: Path) -> Path:
    """Documents of a few hundred different tokens, half of each its first half again."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, category in itertools.product(("train", "valid"), CATEGORIES):
        halves = [rng.integers(200, 500, size=30) for _ in range(20)]
        documents = [np.concatenate([[2], half, half]) for half in halves]
        starts = np.cumsum([0, *map(len, documents[:-1])])
        np.concatenate(documents).astype("<u2").tofile(folder / f"{split}.{category}.u16")
        starts.astype("<u4").tofile(folder / f"starts.{split}.{category}.u32")
    (folder / "corpus.json").write_text("{}")
    return folder


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Makes the miniature a good deal smaller still."""
    whole_target, whole_drafter = miniature.target_config, miniature.drafter_config

    def small_drafter(vocab: int) -> dict[str, Any]:
        data = {**whole_drafter(vocab), "backbone_hidden_size": SMALL_TARGET["hidden_size"]}
        data["text_config"] = {**data["text_config"], **SMALL, "hidden_size": 24, "intermediate_size": 24}
        return data

    patch.setattr(miniature, "target_config", lambda vocab: {**whole_target(vocab), **SMALL_TARGET})
    patch.setattr(miniature, "drafter_config", small_drafter)
    patch.setattr(continuations, "PROMPT_TOKENS", (4, 12))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    root, threads = tmp_path_factory.mktemp("train"), torch.get_num_threads()
    torch.set_num_threads(1)
    corpus = write_corpus(root / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        losses = target.train_target(corpus, TOKENIZER, root / "target", RECIPE)
        continuations.write_continuations(root / "target", corpus, root / "continuations", RECIPE)
        acceptance = drafter.train_drafter(root / "target", root / "continuations", root / "drafter", RECIPE)
        drafter.train_drafter(root / "target", corpus, root / "second", RECIPE, root / "drafter")
        folders = [root / name for name in ("target", "continuations", "drafter", "second")]
        yield Trained(corpus, *folders, losses, acceptance)
    torch.set_num_threads(threads)


@dataclass
class Engines:
    """The trained pair twice: as it is trained, and as it is run."""

    batch: drafter.BatchDrafter
    target: Target
    mtp: MtpDrafter

    def cache(self) -> KVCache:
        return KVCache(Storage(self.target.config, self.target.ops, 2 * LENGTH))


@pytest.fixture(scope="module")
def engines(trained: Trained) -> Engines:
    frozen = drafter.frozen_target(trained.target, TrainOps("cpu"))
    batch = drafter.build(frozen, seed=1)
    drafter.resume(batch, trained.drafter)
    loaded = load_target(trained.target, get_ops("cpu"))
    return Engines(batch, loaded, load_drafter(trained.drafter, loaded.config, loaded.ops))


def tokens(rows: int) -> Tensor:
    return torch.randint(200, 500, (rows, LENGTH), generator=torch.Generator().manual_seed(rows))


# ---- what training writes -------------------------------------------------------------------------------------------


def test_training_learns(trained: Trained) -> None:
    fresh = target.build(VOCAB, "cpu", RECIPE.seed)
    before = target.validate(fresh, Batches(trained.corpus, 1, LENGTH))
    assert set(trained.losses) == set(CATEGORIES)
    assert all(trained.losses[name] < before[name] for name in CATEGORIES)


def test_checkpoints_are_whole_and_say_how_they_were_made(trained: Trained) -> None:
    files = {"config.json", "generation_config.json", "model.safetensors", "training.json"}
    files |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    for folder in (trained.target, trained.drafter, trained.second):
        assert {path.name for path in folder.iterdir()} == files
        record = json.loads((folder / "training.json").read_text())
        assert record["steps"] >= 1
        assert record["tokens"] == record["steps"] * RECIPE.batch * RECIPE.length
    dtypes = {t.dtype for t in load_file(trained.drafter / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16, torch.int64}


@pytest.mark.parametrize("which", ["drafter", "second"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trained_pair_generates_the_same_text_with_drafts(trained: Trained, which: str, temperature: float) -> None:
    assert LLM.from_pretrained(str(trained.target), str(getattr(trained, which))).resolved.min_confidence == 0.4
    # Hardly trained, it is never that sure: without the bound it drafts all the same.
    llm = LLM.from_pretrained(str(trained.target), str(getattr(trained, which)), min_confidence=0.0)
    assert llm.resolved.k == miniature.DRAFTER_GENERATION["num_assistant_tokens"]
    params = SamplingParams(max_tokens=40, temperature=temperature, ignore_eos=True)
    prompts: list[Any] = [tokens(1)[0].tolist(), "A line of text."]
    plain, drafted = (llm.generate(prompts, params, k=k) for k in (0, 4))
    assert [d.token_ids for d in drafted] == [p.token_ids for p in plain]
    assert all(sum(d.stats.drafted) > 0 for d in drafted)


def test_continuations_are_a_corpus(trained: Trained) -> None:
    """Batches reads it, each document opens as a prompt of the corpus does, and held-out text stays as it was."""
    batches = Batches(trained.continuations, 4, 20)
    assert next(iter(batches)).shape == (4, 21)
    for name in CATEGORIES:
        ids = np.fromfile(trained.continuations / f"train.{name}.u16", "<u2")
        starts = np.fromfile(trained.continuations / f"starts.train.{name}.u32", "<u4")
        assert (ids[starts] == 2).all()
        assert starts[0] == 0
        held_out = [(f / f"valid.{name}.u16").read_bytes() for f in (trained.corpus, trained.continuations)]
        assert held_out[0] == held_out[1]


def test_acceptance_is_a_survival_curve(trained: Trained) -> None:
    for shares in trained.acceptance.values():
        assert len(shares) == drafter.STEPS
        assert shares == sorted(shares, reverse=True)
        assert 0.0 <= shares[-1] <= shares[0] <= 1.0


def test_going_on_from_a_drafter_keeps_its_clusters(trained: Trained) -> None:
    first, second = (load_file(f / "model.safetensors") for f in (trained.drafter, trained.second))
    name = "masked_embedding.token_ordering"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first["post_projection.weight"], second["post_projection.weight"])


# ---- the training backend computes what inference computes ----------------------------------------------------------


@torch.no_grad()
def test_batched_logits_are_the_engines(engines: Engines) -> None:
    """Down to rounding: a per-layer embedding scaled in fp32 instead of bf16 was off by 5e-4 here."""
    ids = tokens(3)
    hidden, _ = engines.batch.target.hidden(ids)
    ours = engines.batch.target.model.logits(hidden).view(3, LENGTH, VOCAB)
    for row in range(3):
        cache, parts = engines.cache(), []
        for start in range(0, LENGTH, 16):
            out = engines.target.forward(ids[row, start : start + 16].tolist(), cache)
            parts.append(torch.from_numpy(engines.target.logits(out)))
        torch.testing.assert_close(ours[row], torch.cat(parts), rtol=0, atol=3e-5)


@torch.no_grad()
@pytest.mark.parametrize("anchor", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 30])
def test_a_drafters_first_two_steps_are_the_engines(engines: Engines, anchor: int) -> None:
    """Trained at the position, over the keys and with the states that decoding will give it; second steps too."""
    ids = tokens(2)
    window = torch.cat([ids, ids[:, :1]], 1)
    states = [state for state, _ in engines.batch.unroll(engines.batch.anchors(window))]
    for row in range(2):
        text, cache = ids[row].tolist(), engines.cache()
        hidden = engines.target.prefill(text[:anchor], cache)
        rows = engines.mtp.rows(engines.target, cache, anchor)
        for step in range(2):
            embedded = engines.target.embed(engines.target.ops.indices([text[anchor + step]]))
            state, hidden = engines.mtp.step(embedded, hidden, rows, cache)
            torch.testing.assert_close(states[step][row, anchor], torch.from_numpy(state[0]), rtol=0, atol=3e-5)


@torch.no_grad()
def test_a_drafter_learns_to_guess_what_the_target_says_next(engines: Engines) -> None:
    """Step j at anchor n is taught the target's law after token n + j: the token the next verification chooses."""
    ids = tokens(2)
    anchors = engines.batch.anchors(torch.cat([ids, ids[:, :1]], 1))
    for step, (_, wanted) in enumerate(engines.batch.unroll(anchors)):
        usable = LENGTH - drafter.STEPS
        assert torch.equal(wanted[:, 1:usable], anchors.logits[:, 1 + step : usable + step])


@torch.no_grad()
def test_batched_head_picks_the_engines_token(engines: Engines) -> None:
    """The shares that training reports use the centroid head that ships."""
    state = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    scores, ids = engines.batch.model.logits(state)
    for row in range(20):
        ours, names = engines.mtp.logits(state[row : row + 1].numpy())
        assert names is not None
        assert ids is not None
        assert int(names[0, ours[0].argmax()]) == int(ids[row, scores[row].argmax()])


@torch.no_grad()
def test_continuations_are_what_the_engine_writes(trained: Trained, engines: Engines) -> None:
    model = drafter.frozen_target(trained.target, continuations.StepOps("cpu"))
    prompts, lengths = tokens(4), torch.tensor([3, 9, 17, 30])
    out = continuations.continue_batch(
        model, prompts, lengths, torch.ones(4, dtype=torch.bool), torch.Generator().manual_seed(0)
    )
    llm = LLM.from_pretrained(str(trained.target), None)
    for row, length in enumerate(lengths.tolist()):
        params = SamplingParams(max_tokens=LENGTH - length, ignore_eos=True)
        done = llm.generate([prompts[row, :length].tolist()], params)[0]
        assert out[row].tolist() == prompts[row, :length].tolist() + done.token_ids


# ---- small parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "count"), [(64, 1), (64, 8), (4096, 64)])
def test_balanced_clusters_are_a_permutation(points: int, count: int) -> None:
    clusters = drafter.balanced_clusters(torch.randn(points, 6, generator=torch.Generator().manual_seed(0)), count)
    assert clusters.shape == (count, points // count)
    assert torch.equal(clusters.flatten().sort().values, torch.arange(points))


def test_balanced_clusters_keep_neighbours_together() -> None:
    centres = 100 * torch.eye(4, 6)
    points = centres.repeat(16, 1) + torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    clusters = drafter.balanced_clusters(points, 4)
    assert {tuple(set((cluster % 4).tolist())) for cluster in clusters} == {(0,), (1,), (2,), (3,)}


def test_continued_documents_end_with_their_end_token() -> None:
    rows = torch.tensor([[2, 7, 106, 8, 106, 9], [2, 7, 8, 9, 9, 9]])
    cut = [d.tolist() for d in continuations.documents(rows, torch.tensor([3, 2]), frozenset({106, 1}))]
    assert cut == [[2, 7, 106, 8, 106], [2, 7, 8, 9, 9, 9]]  # an end token inside the prompt ends nothing


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"batch": 0}, {"length": 8}, {"lr": -1.0}])
def test_recipes_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be positive and length at least 16"):
        Recipe(**wrong)
