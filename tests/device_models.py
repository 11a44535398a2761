"""Tiny models on both sides: the host's reference backend, and the device engine with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from gpu import DEVICE, HAVE_GPU
from torch import Tensor

from paceline.cache import KVCache, Storage
from paceline.config import FULL, SLIDING, DrafterConfig, TextConfig, parse_drafter, parse_text
from paceline.device import graphs
from paceline.device.build import Room, device_model
from paceline.device.drafters import DeviceDrafter, MtpDraft, ScriptedDraft
from paceline.device.engine import DeviceEngine
from paceline.drafters import Drafter, NoDrafter
from paceline.kernels import Ops
from paceline.kernels.cuda import CudaOps
from paceline.kernels.gpu import attention
from paceline.kernels.gpu.accept import Ending
from paceline.kernels.reference import TorchOps
from paceline.models.gemma4 import Target
from paceline.models.mtp import MtpDrafter
from paceline.models.plan import Plan
from paceline.models.random import fill_random
from paceline.sampling import Sampler
from paceline.speculate import speculate, start
from paceline.types import SamplingParams

VOCAB, CONTEXT, SEED = 64, 64, 3
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "max_position_embeddings": 1024,
}
SHARING = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "layer_types": [SLIDING, FULL, SLIDING],
    "num_kv_shared_layers": 1,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "final_logit_softcapping": 5.0,
}
EXPERTS = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "layer_types": [SLIDING, FULL],
    "num_attention_heads": 1,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
}


def drafter_config(target: dict[str, Any], **extra: Any) -> DrafterConfig:
    """A drafter of a sliding and a full layer, half as wide as its target."""
    k_is_v = target.get("attention_k_eq_v", False)
    layers = {"num_hidden_layers": 2, "layer_types": [SLIDING, FULL], "num_kv_shared_layers": 2}
    text = {**COMMON, **layers, "hidden_size": 16, "intermediate_size": 16, "attention_k_eq_v": k_is_v}
    return parse_drafter({"text_config": text, "backbone_hidden_size": 32, **extra}, "drafter")


CENTROIDS = {"use_ordered_embeddings": True, "num_centroids": 8, "centroid_intermediate_top_k": 2}
PAIRS = {
    "sharing": (parse_text(SHARING, "sharing"), drafter_config(SHARING, **CENTROIDS)),
    "experts": (parse_text(EXPERTS, "experts"), drafter_config(EXPERTS)),
}
Banned = tuple[int, ...]
PROMPTS = ([3, 17, 40], [9, 2, 33, 60, 21, 5, 44, 12, 50, 7], [28, 11, 63, 1, 36], [55, 8])
GREEDY = SamplingParams()
FREE = SamplingParams(temperature=1.3, seed=5)
CUT = SamplingParams(temperature=0.8, top_k=9, top_p=0.9, seed=2**64 - 3)
WIDE = SamplingParams(temperature=1.5, top_p=0.8, seed=8)


# ---- models on both sides -------------------------------------------------------------------------------------------


@dataclass
class Side:
    """A target and its drafter on one backend; `plans` know where their weights are."""

    target: Target
    drafter: MtpDrafter
    plans: tuple[Plan, Plan]

    @classmethod
    def build(cls, configs: tuple[TextConfig, DrafterConfig], ops: Ops) -> Side:
        plans = (Plan(ops, lambda name: torch.float32), Plan(ops, lambda name: torch.float32))
        return cls(Target(configs[0], plans[0]), MtpDrafter(configs[1], configs[0], plans[1]), plans)


class Recording:
    """A host drafter that remembers what it drafted."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter, self.drafts = drafter, list[list[int]]()
        self.begin, self.observe = drafter.begin, drafter.observe

    def propose(self, k: int) -> list[int]:
        self.drafts.append(self.drafter.propose(k))
        return self.drafts[-1]


class RecordingOnDevice:
    """A device drafter that remembers what it drafted for the first place."""

    def __init__(self, drafter: DeviceDrafter) -> None:
        self.drafter, self.state, self.drafts = drafter, drafter.state, list[list[int]]()

    def propose(self, sequences: Any, cache: Any, choice: Any, k: int) -> Tensor:
        drafts = self.drafter.propose(sequences, cache, choice, k)
        self.drafts.append(drafts[:, 0].tolist())
        return drafts


@dataclass
class Both:
    """One pair of models with the same weights on the host and on the device."""

    host: Side
    device: Side
    texts: dict[tuple[tuple[int, ...], SamplingParams, Banned], list[int]] = field(default_factory=dict)

    def write(
        self,
        drafter: Drafter,
        prompt: list[int],
        params: SamplingParams,
        k: int,
        new: int,
        banned: Banned = (),
    ) -> list[int]:
        """`new` tokens after the prompt from the host's own rounds."""
        target = self.host.target
        sampler = Sampler(target.ops, params, banned)
        cache = KVCache(Storage(target.config, target.ops, len(prompt) + new + 16))
        text = [start(target, drafter, cache, sampler, prompt)]
        while len(text) < new:
            text += speculate(target, drafter, cache, sampler, text[-1], k).tokens
        return text[:new]

    def plain(self, prompt: list[int], params: SamplingParams, new: int, banned: Banned = ()) -> list[int]:
        """Plain decoding on the host, of which tests often want the same."""
        key = (tuple(prompt), params, banned)
        if len(self.texts.get(key, [])) < new:
            self.texts[key] = self.write(NoDrafter(), prompt, params, 0, max(new, 16), banned)
        return self.texts[key][:new]

    def engine(
        self, drafter: DeviceDrafter | None, places: int = 1, ends: tuple[int, ...] = (), banned: Banned = ()
    ) -> DeviceEngine:
        ending = Ending(torch.tensor(ends, dtype=torch.int64, device=DEVICE))
        room = Room(places=places, context=CONTEXT)
        return DeviceEngine(device_model(self.device.target, drafter, room, ending, banned), graphs=False)

    def mtp(self) -> MtpDraft:
        return MtpDraft(self.device.drafter, self.device.target, CONTEXT + 16)

    def script(self, *texts: tuple[list[int], list[int]]) -> ScriptedDraft:
        """Drafts from (prompt, text) for each place; text may hold wrong guesses. Short ones are filled up."""
        rows = [prompt + text for prompt, text in texts]
        return ScriptedDraft(torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows], device=DEVICE))


def make(configs: tuple[TextConfig, DrafterConfig]) -> Both:
    host = Side.build(configs, TorchOps())
    device = Side.build(configs, CudaOps(DEVICE, torch.float32))
    for seed, (theirs, ours) in enumerate(zip(host.plans, device.plans, strict=True)):
        fill_random(theirs, SEED + seed)
        for name, place in theirs.places.items():
            if name.endswith("post_attention_layernorm.weight"):
                place.write(3 * place.read(), 0)  # or a text would hang on its last token alone
            ours.places[name].write(place.read(), 0)
    return Both(host, device)


@contextmanager
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Under the interpreter: shorter chunks, one program where attention would start many, less start-up work."""
    if HAVE_GPU:
        yield
        return
    from triton.runtime import interpreter

    few = attention.Tiling(split=64, leaves=1, ahead=1)
    monkeypatch.setattr(attention, "TILINGS", {16: few, 32: few})
    monkeypatch.setattr(attention, "PROGRAMS", 1)
    monkeypatch.setattr(graphs, "CHUNKS", (4, 16))
    real, scopes = interpreter._patch_lang, dict[frozenset[int], Any]()

    def once(function: Any) -> Any:
        """Triton patches its language anew for each call of each function, which takes longer than most calls."""
        key = frozenset(id(v) for v in function.__globals__.values() if v is interpreter.tl or v is interpreter.tl.core)
        if key not in scopes:
            scopes[key] = real(function)
        return interpreter._LangPatchScope()

    monkeypatch.setattr(interpreter, "_patch_lang", once)
    yield
    for scope in reversed(scopes.values()):
        scope.restore()
