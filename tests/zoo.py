"""The drafter zoo: honest, useless and hostile drafters, and the loop that writes a text with one of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from families import VOCAB

from paceline.cache import MAX_TENTATIVE, KVCache, Storage
from paceline.drafters import Drafter, MtpDraft, NgramDraft, NoDrafter
from paceline.kernels import Array, get_ops
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.sampling import Sampler
from paceline.speculate import speculate, start
from paceline.types import SamplingParams
from paceline.weights import load_drafter, load_target


@dataclass
class Model:
    """A tiny target with its own MTP drafter; `texts` are the plain texts written so far."""

    target: Target
    mtp: MtpDrafter
    texts: dict[tuple[SamplingParams, int], list[int]] = field(default_factory=dict)

    @classmethod
    def load(cls, target: Path, assistant: Path) -> Model:
        loaded = load_target(target, get_ops("cpu"))
        return cls(loaded, load_drafter(assistant, loaded.config, loaded.ops))

    def cache(self, tokens: int) -> KVCache:
        return KVCache(Storage(self.target.config, self.target.ops, tokens))

    def plain(self, prompt: list[int], params: SamplingParams, new: int) -> list[int]:
        """The prompt and `new` tokens without drafts, enough of them for a drafter to look past the end."""
        key = (params, new)
        if key not in self.texts:
            self.texts[key] = self.write(NoDrafter(), prompt, params, 0, new + MAX_TENTATIVE)[0]
        return self.texts[key]

    def write(
        self, drafter: Drafter, prompt: list[int], params: SamplingParams, k: int, new: int
    ) -> tuple[list[int], list[int]]:
        """The prompt and `new` tokens of rounds of k drafts, and how many drafts each round accepted."""
        cache = self.cache(2 * (len(prompt) + new))  # room for tests that break the rollback
        sampler, accepted = Sampler(self.target.ops, params), list[int]()
        ids = [*prompt, start(self.target, drafter, cache, sampler, prompt)]
        while len(ids) < len(prompt) + new:
            done = speculate(self.target, drafter, cache, sampler, ids[-1], k)
            ids += done.tokens
            accepted.append(done.accepted)
        return ids[: len(prompt) + new], accepted


class Scripted:
    """Knows the plain text, and where in it decoding stands; what it makes of that is up to its subclasses."""

    def __init__(self, text: list[int]) -> None:
        self.text, self.rounds = text, 0

    def begin(self, tokens: Sequence[int], cache: KVCache, sampler: Sampler) -> None:
        self.at = len(tokens)

    def observe(self, hidden: Array, tokens: Sequence[int]) -> None:
        self.at += len(tokens)
        self.rounds += 1

    def propose(self, k: int) -> list[int]:
        raise NotImplementedError

    def right(self, count: int) -> list[int]:
        """What plain decoding will write next."""
        return self.text[self.at : self.at + count]


class Oracle(Scripted):
    """Always right: every round is accepted whole."""

    def propose(self, k: int) -> list[int]:
        return self.right(k)


class Wrong(Scripted):
    """Never right: every round rolls everything back."""

    def propose(self, k: int) -> list[int]:
        return [(token + 1) % VOCAB for token in self.right(k)]


class RightThenWrong(Scripted):
    """Right for the first j guesses of a round, j going through 0 .. k: rollbacks of every length."""

    def propose(self, k: int) -> list[int]:
        good, draft = self.rounds % (k + 1), self.right(k)
        return draft[:good] + [(token + 7) % VOCAB for token in draft[good:]]


class TooShort(Scripted):
    """Right, but with fewer guesses than asked for, often none."""

    def propose(self, k: int) -> list[int]:
        return self.right(self.rounds % max(k, 1))


class Random(Scripted):
    """Any token at all."""

    def propose(self, k: int) -> list[int]:
        return random.Random(self.at).choices(range(VOCAB), k=k)


Maker = Callable[[Model, list[int]], Drafter]
ZOO: dict[str, Maker] = {
    "oracle": lambda model, text: Oracle(text),
    "wrong": lambda model, text: Wrong(text),
    "right-then-wrong": lambda model, text: RightThenWrong(text),
    "too-short": lambda model, text: TooShort(text),
    "random": lambda model, text: Random(text),
    "mtp": lambda model, text: MtpDraft(model.mtp, model.target),
    "ngram": lambda model, text: NgramDraft(shortest=1),
}
