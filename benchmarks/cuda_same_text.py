"""Same text on a GPU: drafting, draft length, batch, neighbours and graphs never change a token; a library matmul does.

For each size, full width and a few layers of random bf16 weights: 50 prompts of random tokens are continued by 512
tokens, plainly, then again in every other way, and compared token by token. Drafts come from the MTP drafter, and from
the known text with some guesses spoiled, so that rounds keep none, some and all of them.

    python benchmarks/cuda_same_text.py --out benchmarks/results/cuda_same_text.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.bench import record as files
from paceline.cache import KVCache, Storage
from paceline.device.build import Room, device_model, random_pair
from paceline.device.cache import PassCache
from paceline.device.drafters import MtpDraft, ScriptedDraft
from paceline.device.engine import DeviceEngine
from paceline.device.request import Request
from paceline.kernels.cuda import CudaOps
from paceline.kernels.gpu import matmul
from paceline.kernels.gpu.accept import Ending, Sequences
from paceline.kernels.reference import TorchOps
from paceline.models.gemma4 import Target
from paceline.models.plan import Plan
from paceline.models.random import fill_random
from paceline.shapes import SHAPES, drafter_config, shorten, target_config
from paceline.types import SamplingParams

PLACES = 16
SPOILED = 0.3
GREEDY = SamplingParams(max_tokens=512, ignore_eos=True)


@dataclass(eq=False)
class Scripted(Request):
    """A request whose drafts are known beforehand; script int64 [T]."""

    script: Tensor = field(default_factory=lambda: torch.empty(0))


class ScriptedEngine(DeviceEngine):
    """Seats each request's script with it."""

    def _begin(self, request: Request, place: int, hidden: Tensor) -> None:
        drafter = self.model.drafter
        if isinstance(request, Scripted) and isinstance(drafter, ScriptedDraft):
            drafter.script[place, : len(request.script)].copy_(request.script)
        super()._begin(request, place, hidden)


class Trial:
    """One size: its model, its prompts, and their plain texts."""

    def __init__(self, name: str, prompts: int, new: int, layers: int) -> None:
        self.name, self.new = name, new
        ops = CudaOps()
        config = shorten(target_config(name), layers)
        self.layers = len(config.layers)
        self.target, self.small = random_pair(config, drafter_config(name), ops)
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(8, 300, (prompts,), generator=generator).tolist()
        lengths[0] = 1300  # beyond every window
        vocab = config.vocab
        self.prompts = [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lengths]
        self.context = max(lengths) + new + 64
        self.plain: dict[str, list[list[int]]] = {}
        self.keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None

    def engine(self, places: int, drafts: str, graphs: bool = True) -> DeviceEngine:
        room = Room(places=places, context=self.context)
        draft: Any = None
        if drafts == "mtp":
            assert self.small is not None
            draft = MtpDraft(self.small, self.target, self.context + 16)
        elif drafts == "script":
            draft = ScriptedDraft(torch.zeros(places, self.context, dtype=torch.int64, device="cuda"))
        ends = torch.zeros(0, dtype=torch.int64, device="cuda")
        engine = ScriptedEngine(device_model(self.target, draft, room, Ending(ends)), graphs)
        engine.least_batch = places if places == PLACES else 1  # fewer graphs to capture as texts end
        return engine

    def params(self, law: str, index: int) -> SamplingParams:
        if law == "greedy":
            return SamplingParams(max_tokens=self.new, ignore_eos=True)
        return SamplingParams(
            temperature=1.0, top_k=64, top_p=0.95, seed=index + 1, max_tokens=self.new, ignore_eos=True
        )

    def write(
        self, engine: DeviceEngine, law: str, ks: list[int], which: range, new: int = 0
    ) -> tuple[list[list[int]], float]:
        """The texts of the prompts in `which`, with draft limits that go round `ks`, and drafts kept per round."""
        requests = []
        for i in which:
            script = torch.empty(0, dtype=torch.int64)
            if isinstance(engine.model.drafter, ScriptedDraft):
                script = self.script(law, i)
            params = replace(self.params(law, i), max_tokens=new or self.new)
            requests.append(Scripted(self.prompts[i], params, ks[i % len(ks)], False, script=script))
        for request in requests:
            engine.submit(request)
        while engine.busy:
            engine.step()
        rounds = [r for request in requests for r in list(request.rounds)[1:]]
        kept = sum(r.accepted for r in rounds) / max(1, len(rounds))
        return [[t for r in request.rounds for t in r.tokens] for request in requests], kept

    def script(self, law: str, index: int) -> Tensor:
        """The known text at its positions, some tokens spoiled."""
        text = torch.tensor(self.prompts[index] + self.plain[law][index])
        generator = torch.Generator().manual_seed(index)
        spoiled = torch.rand(len(text), generator=generator) < SPOILED
        return torch.where(spoiled, (text + 1) % self.target.config.vocab, text)

    def compare(self, law: str, texts: list[list[int]], which: range) -> int:
        """How many texts differ from the plain ones."""
        return sum(a != self.plain[law][i][: len(a)] for a, i in zip(texts, which, strict=True))


def check(trial: Trial) -> list[dict[str, Any]]:
    """Every way of writing the same texts."""
    few = range(4)
    engines: dict[tuple[str, int, bool], DeviceEngine] = {}
    rows: list[dict[str, Any]] = []

    def run(law: str, drafts: str, ks: list[int], places: int, which: range, new: int = 0, graphs: bool = True) -> None:
        key, begin = (drafts, places, graphs), time.perf_counter()
        engines[key] = engines.get(key) or trial.engine(places, drafts, graphs)
        texts, kept = trial.write(engines[key], law, ks, which, new)
        row = {
            "law": law, "drafts": drafts, "k": ks, "places": places, "graphs": graphs, "texts": len(texts),
            "tokens": sum(map(len, texts)), "different": trial.compare(law, texts, which),
            "kept_per_round": round(kept, 3), "seconds": round(time.perf_counter() - begin, 2),
        }  # fmt: skip
        rows.append(row)
        trial.keep(rows)  # the time may run out
        print(trial.name, *row.values(), flush=True)

    for law in ("greedy", "sampled"):
        plain = engines.setdefault(("none", PLACES, True), trial.engine(PLACES, "none"))
        everyone = range(len(trial.prompts)) if law == "greedy" else range(16)
        trial.plain[law] = trial.write(plain, law, [0], everyone)[0]
        rows.append({"law": law, "plain": True, "texts": len(everyone),
                     "distinct_texts": len({tuple(t) for t in trial.plain[law]}),
                     "distinct_tokens": len({x for t in trial.plain[law] for x in t})})  # fmt: skip
        print(trial.name, rows[-1], flush=True)
        run(law, "none", [0], 1, few[:2])  # alone
        run(law, "script", [4], PLACES, everyone)
        run(law, "script", list(range(16)), PLACES, everyone)  # different limits side by side
        for k in range(1, 16) if law == "greedy" else (1, 9, 15):
            run(law, "script", [k], PLACES, range(16), new=min(96, trial.new))
        run(law, "script", [0, 5], 5, range(10))
        run(law, "mtp", [4], PLACES, range(16), new=min(96, trial.new))
        run(law, "script", [3, 15], 1, few)
    run("greedy", "script", [4], 2, range(2), new=min(64, trial.new), graphs=False)
    return rows


def logits_rows(trial: Trial) -> dict[str, Any]:
    """Logits of rows computed one by one and k + 1 at a time, beside other sequences: how many differ in any bit."""
    model = trial.engine(8, "none").model
    sequences, k, length = model.places.sequences, 7, 256
    for place in range(8):
        model.cache.reserve(place, trial.context)
    script = torch.randint(0, 1000, (8, 16), generator=torch.Generator().manual_seed(3)).cuda()

    def rows(batch: int, at: int, count: int) -> Tensor:
        own = Sequences(*(t[:batch].clone() for t in sequences))
        own.length.fill_(length + at)
        own.last.copy_(script[:batch, at])
        drafts = script[:batch, at + 1 : at + count].T.contiguous() if count > 1 else None
        cache = PassCache(model.cache, model.cache.tables[:batch], model.cache.rings[:batch], 1024)
        return trial.target.logits(model.verify(own, drafts, cache)[1]).view(batch, count, -1)

    together = rows(8, 0, k + 1).clone()
    alone = torch.stack([rows(1, i, 1)[0, 0] for i in range(k + 1)])
    pairs = torch.stack([rows(3, i, 2)[0, 0] for i in range(k)])
    different = int((together[0] != alone).any(1).sum()) + int((pairs != alone[:k]).any(1).sum())
    return {"rows": 2 * k + 1, "different": different}


def oracle(trial: Trial) -> dict[str, Any]:
    """Relative distance (Frobenius) of the device's logits from the reference backend's in fp32, by stored dtype.

    In bf16 the device rounds what feeds each matmul, and keys and values; with random weights that flips experts whose
    scores nearly tie, so a mixture of experts is judged by fp32.
    """
    return {str(dtype)[6:]: oracle_in(trial, dtype) for dtype in (torch.float32, torch.bfloat16)}


def oracle_in(trial: Trial, dtype: torch.dtype) -> dict[str, float]:
    """After a prompt, and of a verification's rows, both with weights of this dtype."""
    config, tokens = trial.target.config, trial.prompts[0][:72]
    plan = Plan(TorchOps("cuda"), lambda name: dtype)
    reference = Target(config, plan)
    fill_random(plan, 0)
    with_cache = KVCache(Storage(config, plan.ops, 128))
    hidden = [reference.forward(tokens[i : i + 8], with_cache) for i in range(0, 72, 8)]
    expected = reference.logits(torch.cat(hidden)[63:])
    target, _ = random_pair(config, None, CudaOps(dtype=dtype))
    ends = torch.zeros(0, dtype=torch.int64, device="cuda")
    engine = DeviceEngine(device_model(target, None, Room(places=1, context=192), Ending(ends)))
    engine.model.cache.reserve(0, 128)
    after_prompt = target.logits(engine.graphs.prompt(tokens[:64], engine.model.cache.where(0)))
    own = Sequences(*(t[:1].clone() for t in engine.model.places.sequences))
    own.length.fill_(64)
    own.last.fill_(tokens[64])
    drafts = torch.tensor(tokens[65:72], device="cuda")[:, None].contiguous()
    cache = PassCache(engine.model.cache, *engine.model.cache.where(0), 128)
    verified = target.logits(engine.model.verify(own, drafts, cache)[1])
    return {"prompt": distance(after_prompt, expected[:1]), "verification": distance(verified, expected[1:])}


def distance(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


@contextmanager
def library_matmul() -> Iterator[None]:
    """The negative control: matmuls whose arithmetic the library picks by row count."""
    linear, gated = matmul.linear, matmul.gated

    def other_gated(x: Tensor, weight: Tensor, **_: Any) -> Tensor:
        gate, up = F.linear(x, weight).chunk(2, -1)
        return F.gelu(gate, approximate="tanh") * up

    matmul.linear = lambda x, weight, **_: F.linear(x, weight).float()[None]
    matmul.gated = other_gated
    try:
        yield
    finally:
        matmul.linear, matmul.gated = linear, gated


def control(trial: Trial) -> dict[str, Any]:
    """How many texts the library's matmul changes when drafts are verified: it must be able to."""
    kept = dict(trial.plain)
    with library_matmul():
        some = range(16)
        trial.plain["greedy"] = trial.write(trial.engine(PLACES, "none"), "greedy", [0], some)[0]
        texts, _ = trial.write(trial.engine(PLACES, "script"), "greedy", [7], some)
        found = {"texts": len(texts), "different": trial.compare("greedy", texts, some), "logits": logits_rows(trial)}
    trial.plain = kept
    return found


STEPS: dict[str, Callable[[Trial], Any]] = {
    "logits": logits_rows, "oracle": oracle, "library_control": control, "checks": check,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", default="logits,oracle,library_control,checks", help="the others' results are kept")
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {"sizes": {}}
    result |= {
        "schema": "paceline-cuda-same-text/1", "labels": ["random weights", "full width, fewer layers"],
        "options": {key: str(value) for key, value in vars(options).items()},
        "provenance": files.provenance() | {"load_before": None, "load_after": None},
    }  # fmt: skip
    for name in options.sizes.split(","):
        trial = Trial(name, options.prompts, options.new, options.layers)
        own = result["sizes"].setdefault(name, {})
        own["layers"] = trial.layers

        def keep(rows: list[dict[str, Any]], own: dict[str, Any] = own) -> None:
            own["checks"] = rows
            files.write_record(options.out, result)

        trial.keep = keep
        # Each step is kept as soon as it is done: the time may run out.
        for label in options.steps.split(","):
            own[label] = STEPS[label](trial)
            own.setdefault("provenance", {})[label] = files.provenance()
            print(name, label, own[label] if label != "checks" else "", flush=True)
            files.write_record(options.out, result)
        del trial
        torch.cuda.empty_cache()


if __name__ == "__main__":
    with torch.no_grad():
        main()
