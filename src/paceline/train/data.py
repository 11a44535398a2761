"""Training data: cleaned documents to flat streams of 16-bit ids on disk, and batches from them.

A folder holds, for each split (train, valid) and category (chat, code, prose), `<split>.<category>.u16`
(little-endian ids, documents end to end) and `starts.<split>.<category>.u32` (where each begins), and
`corpus.json` (what went in, and the digest of the tokenizer).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from paceline.errors import ConfigError, PromptError
from paceline.train.documents import CATEGORIES, Document, clean, read_documents
from paceline.train.tokenizer import load_tokenizer, tokenizer_sha256

__all__ = ["DEFAULT_WEIGHTS", "Batches", "encode_corpus"]

BOS, EOS = 2, 1
HOLD_OUT = 100  # one document in this many goes to the validation split
ENCODE_BATCH = 512
DEFAULT_WEIGHTS = {"chat": 0.5, "code": 0.25, "prose": 0.25}
# Long documents would otherwise be seen by their first window alone. Chats are short, and must keep their opening.
MIDDLE_START = 1 / 3
SPLITS = ("train", "valid")


def encode_corpus(
    sources: list[Path], tokenizer_dir: Path, out: Path, most_tokens: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Clean and encode `sources` into the folder `out`; returns what corpus.json holds.

    `most_tokens` caps the training tokens of a category (whole documents, in an order that depends on their
    content alone, so a capped corpus is a random sample of the full one).
    Raises PromptError for a malformed row or when nothing is left, ConfigError when ids do not fit in 16 bits.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    if tokenizer.get_vocab_size() > 65536:
        raise ConfigError(f"{tokenizer_dir} has {tokenizer.get_vocab_size()} ids; a corpus holds at most 65536")
    kept = _by_category(clean(chain.from_iterable(map(read_documents, sources))))
    if not kept:
        raise PromptError(f"no usable document in {', '.join(map(str, sources))}; see the limits in documents.py")
    out.mkdir(parents=True, exist_ok=True)
    tally = _Tally()
    for category, documents in sorted(kept.items()):
        streams = {split: _Stream() for split in SPLITS}
        cap = (most_tokens or {}).get(category)
        for document, ids in _encode(tokenizer, documents):
            split = "valid" if int.from_bytes(document.digest[:8], "little") % HOLD_OUT == 0 else "train"
            if split == "valid" or cap is None or streams["train"].tokens + len(ids) <= cap:
                streams[split].add(ids)
                tally.add(document, split, len(ids))
        for split, stream in streams.items():
            stream.write(out, f"{split}.{category}")
    summary = {"tokenizer_sha256": tokenizer_sha256(tokenizer_dir), **tally.summary()}
    (out / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _by_category(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Sorted by digest: neighbours in a stream are then unrelated, whatever order the files had."""
    kept: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        kept[document.category].append(document)
    return {category: sorted(documents, key=lambda document: document.digest) for category, documents in kept.items()}


def _encode(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[tuple[Document, NDArray[np.uint16]]]:
    """Each document with its ids [n]; `encode_batch` uses every core that RAYON_NUM_THREADS allows."""
    for begin in range(0, len(documents), ENCODE_BATCH):
        batch = documents[begin : begin + ENCODE_BATCH]
        encodings = tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids if document.category == "chat" else [BOS, *encoding.ids, EOS]
            yield document, np.array(ids, dtype="<u2")


class _Stream:
    """Documents end to end, in memory until written."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.uint16]] = []
        self.starts: list[int] = []
        self.tokens = 0

    def add(self, ids: NDArray[np.uint16]) -> None:
        self.parts.append(ids)
        self.starts.append(self.tokens)
        self.tokens += len(ids)

    def write(self, out: Path, name: str) -> None:
        (out / f"{name}.u16").write_bytes(b"".join(part.tobytes() for part in self.parts))
        (out / f"starts.{name}.u32").write_bytes(np.array(self.starts, dtype="<u4").tobytes())


class _Tally:
    """Counts for corpus.json."""

    def __init__(self) -> None:
        self.sources: dict[str, dict[str, Any]] = {}
        self.categories: dict[str, dict[str, dict[str, int]]] = {}

    def add(self, document: Document, split: str, tokens: int) -> None:
        size = {"documents": 1, "tokens": tokens, "bytes": len(document.text.encode())}
        empty = {"license": document.license, "category": document.category, **dict.fromkeys(size, 0)}
        source = self.sources.setdefault(document.source, empty)
        if document.license not in source["license"].split("; "):
            source["license"] += f"; {document.license}"
        category = self.categories.setdefault(document.category, {})
        for counts in (source, category.setdefault(split, dict.fromkeys(size, 0))):
            for key, value in size.items():
                counts[key] += value

    def summary(self) -> dict[str, Any]:
        return {"categories": self.categories, "sources": dict(sorted(self.sources.items()))}


@dataclass(frozen=True, slots=True)
class _Category:
    """One stream in memory: ids [tokens] uint16, and the documents' starts [documents] that leave a full window."""

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]

    def windows(self, begins: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """[len(begins), width] ids; each window opens with <bos>, also where it begins inside a document."""
        rows: NDArray[np.int64] = self.ids[begins[:, None] + np.arange(width)].astype(np.int64)
        rows[:, 0] = BOS
        return rows


class Batches:
    """An endless iterator of int64 tensors [batch, length + 1]: inputs are `[:, :-1]`, targets `[:, 1:]`.

    Each row's category is drawn by `weights` (chat, code, prose; they need not add up to 1). A row begins at a
    random document and runs on into the next ones; a third of the code and prose rows begin anywhere instead.
    Equal arguments give equal batches. Iterating again starts over.
    Raises ConfigError when a weighted category is missing from `folder` or shorter than one window.
    """

    def __init__(
        self, folder: Path, batch: int, length: int, weights: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        weights = DEFAULT_WEIGHTS if weights is None else weights
        self.folder, self.batch, self.width, self.seed = folder, batch, length + 1, seed
        self.names = [name for name in CATEGORIES if weights.get(name, 0.0) > 0.0]
        if not self.names or not set(weights) <= set(CATEGORIES):
            raise ConfigError(f"weights {dict(weights)} must give a positive share to some of {', '.join(CATEGORIES)}")
        shares = np.array([weights[name] for name in self.names])
        self.shares = shares / shares.sum()
        self.train = [self._load("train", name) for name in self.names]

    def _load(self, split: str, category: str) -> _Category:
        path = self.folder / f"{split}.{category}.u16"
        if not path.is_file():
            raise ConfigError(f"{path} is missing; run encode_corpus with a source of category {category}")
        ids = np.fromfile(path, dtype="<u2")
        starts = np.fromfile(self.folder / f"starts.{split}.{category}.u32", dtype="<u4").astype(np.int64)
        starts = starts[starts <= len(ids) - self.width]
        if not len(starts):
            raise ConfigError(f"{path} has {len(ids)} tokens, less than a window of {self.width}; shorten the window")
        return _Category(ids, starts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        rng = np.random.default_rng(self.seed)
        while True:
            yield torch.from_numpy(self._draw(rng))

    def _draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        rows = np.empty((self.batch, self.width), dtype=np.int64)
        chosen = rng.choice(len(self.names), size=self.batch, p=self.shares)
        for index, category in enumerate(self.train):
            mine = np.flatnonzero(chosen == index)
            begins = rng.choice(category.starts, size=len(mine))
            if self.names[index] != "chat":
                anywhere = rng.integers(0, len(category.ids) - self.width + 1, size=len(mine))
                begins = np.where(rng.random(len(mine)) < MIDDLE_START, anywhere, begins)
            rows[mine] = category.windows(begins, self.width)
        return rows

    def valid(self, category: str, rows: int) -> torch.Tensor:
        """int64 [at most rows, length + 1]: windows at documents spread evenly over the held-out stream.

        The same for every seed; fewer than `rows` only when there are fewer held-out documents.
        """
        held_out = self._load("valid", category)
        picks = np.unique(np.linspace(0, len(held_out.starts) - 1, rows).astype(np.int64))
        return torch.from_numpy(held_out.windows(held_out.starts[picks], self.width))
