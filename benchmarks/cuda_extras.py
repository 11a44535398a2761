"""What a user of the GPU engine meets besides round times: time to first token, long runs, real text, Transformers.

    python benchmarks/cuda_extras.py --out benchmarks/results/cuda_extras.json --parts ttft,long,embedded,transformers

Sizes run with random weights; the embedded pair is the trained miniature, on its real prompts.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from paceline import roofline
from paceline.bench import record as files
from paceline.bench.prompts import load_prompts, sample
from paceline.bench.rounds import RoundTimer, Setting
from paceline.bench.shape import copy_bandwidth
from paceline.device.build import Room, random_model
from paceline.device.engine import DeviceEngine, Ticket
from paceline.device.request import Request
from paceline.kernels.cuda import CudaOps
from paceline.kernels.reference import TorchOps
from paceline.llm import LLM
from paceline.models.gemma4 import Target
from paceline.models.plan import Plan
from paceline.models.random import fill_random
from paceline.shapes import SHAPES, drafter_config, target_config
from paceline.types import SamplingParams

PROMPT = 4096


def matmul_rate(size: int = 8192) -> float:
    """FLOP per second of the library's bf16 matrix product on random data."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return 2 * size**3 / statistics.median(times[2:])


def ttft(sizes: list[str]) -> list[dict[str, Any]]:
    """Seconds from submitting a prompt of 4096 tokens to reading its first token."""
    rows, rate = [], matmul_rate()
    for name in sizes:
        config = target_config(name)
        engine = DeviceEngine(random_model(config, None, Room(places=1, context=PROMPT + 64)))
        prompt = torch.randint(0, config.vocab, (PROMPT,)).tolist()
        seconds = []
        for _ in range(4):
            request = Request(prompt, SamplingParams(max_tokens=1, ignore_eos=True), 0, False)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            engine.submit(request)
            while not request.rounds:
                engine.step()
            seconds.append(time.perf_counter() - begin)
            while engine.busy:
                engine.step()
        flops = roofline.prompt_flops(config, PROMPT)
        need = flops.total / (0.6 * rate)
        ratio = statistics.median(seconds[1:]) / need
        rows.append({"shape": name, "prompt": PROMPT, "first_s": seconds[0], "seconds": seconds[1:],
                     "flops": flops.total, "matmul_rate": rate, "ratio": ratio})  # fmt: skip
        print("ttft", rows[-1], flush=True)
        del engine
        clean()
    return rows


def long_run(name: str = "e2b", rounds: int = 10_000) -> dict[str, Any]:
    """Memory before and after many rounds."""
    model = random_model(target_config(name), drafter_config(name), Room(places=1, context=16384), (0.0,) * 15)
    timer = RoundTimer(DeviceEngine(model))
    setting = Setting(1, 4, 170)
    shape = timer.shape(setting)._replace(span=16384)
    timer.seat(setting)
    timer.engine.graphs.round(shape)

    def state() -> dict[str, float]:
        torch.cuda.synchronize()
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"device_reserved": torch.cuda.memory_reserved(), "device_free": torch.cuda.mem_get_info()[0],
                "host_peak_kib": own}  # fmt: skip

    before, begin = state(), time.perf_counter()
    tickets: list[Ticket] = []
    for i in range(rounds):
        if i % 8_000 == 0:
            timer.seat(setting)
        timer.engine.graphs.round(shape)
        tickets.append(Ticket(model.places.part(0, 1).outcome, {}, 4))
        if len(tickets) > 1:
            list(tickets.pop(0).read())
    after = state()
    row = {"shape": name, "rounds": rounds, "before": before, "after": after, "seconds": time.perf_counter() - begin}
    print("long", row, flush=True)
    return row


def embedded(count: int = 48) -> dict[str, Any]:
    """The trained miniature on real prompts: same text with drafting on and off, alone and side by side."""
    llm = LLM.from_pretrained("embedded", device="cuda", context=1024, sequences=16)
    prompts = [p.prompt for p in sample(load_prompts(None), count, 0)]
    found: dict[str, Any] = {"prompts": count, "k": llm.resolved.k}
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, top_k=64, top_p=0.95, seed=7, max_tokens=200)
        texts, times = {}, {}
        k_on = llm.resolved.k
        for arm, k, side in (("off", 0, 1), ("on", k_on, 1), ("off_16", 0, 16), ("on_16", k_on, 16)):
            own = prompts if side == 16 else prompts[: count // 2]
            llm.generate(own[:2], params, k)
            begin = time.perf_counter()
            done = llm.generate(own, params, k) if side == 16 else [llm.generate([p], params, k)[0] for p in own]
            times[arm] = time.perf_counter() - begin
            texts[arm] = [c.token_ids for c in done]
            if k:
                found[f"acceptance_length_{temperature:g}_{side}"] = statistics.mean(
                    c.stats.acceptance_length for c in done
                )
        plain = texts["off_16"]
        found[f"temperature {temperature:g}"] = {
            "seconds": times, "tokens": {arm: sum(map(len, t)) for arm, t in texts.items()},
            "different": {arm: sum(a != b for a, b in zip(t, plain, strict=False)) for arm, t in texts.items()},
        }  # fmt: skip
    print("embedded", found, flush=True)
    return found


def transformers_rows(sizes: list[str], new: int = 16) -> list[dict[str, Any]]:
    """Milliseconds a token of Transformers' generate beside ours, same random weights, greedy, one prompt."""
    import transformers as tf

    rows = []
    for name in sizes:
        ops = CudaOps()
        plan = Plan(ops, lambda _: torch.bfloat16)
        Target(target_config(name), plan)
        fill_random(plan, 0)
        config = tf.AutoConfig.for_model(**{"model_type": "gemma4_text", **SHAPES[name].target})
        with torch.device("cuda"):
            theirs = tf.Gemma4ForCausalLM._from_config(config, dtype=torch.bfloat16)
        state = theirs.state_dict()
        missing = [key for key in state if key not in plan.places and key != "lm_head.weight"]
        for key, place in plan.places.items():
            state[key].copy_(place.read().reshape(state[key].shape))
        theirs.eval()
        prompt = torch.randint(0, 262144, (1, 170), device="cuda")
        times = []
        for _ in range(3):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            out = theirs.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - begin) / (out.shape[1] - 170) * 1e3)
        rows.append({"shape": name, "version": tf.__version__, "plain_ms_a_token": times, "missing": missing})
        print("transformers", rows[-1], flush=True)
        del theirs, plan, state
        clean()
    return rows


def load(name: str = "12b") -> dict[str, Any]:
    """A random checkpoint in the hub's layout, written to disk and loaded: seconds, and peak memory on the device."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        (folder / "config.json").write_text(json.dumps(dict(SHAPES[name].target)), encoding="utf-8")
        write_random(name, folder)
        clean()
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        llm = LLM.from_pretrained(str(folder), drafter=None, device="cuda", context=4096, sequences=1)
        loaded = time.perf_counter() - begin
        peak = torch.cuda.max_memory_allocated()
        llm.generate([[5] * 170], SamplingParams(max_tokens=2, ignore_eos=True), 0)
        first = time.perf_counter() - begin
        cache = llm.engine.engine.model.cache.nbytes  # type: ignore[union-attr]
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    row = {"shape": name, "stored_bytes": stored, "cache_bytes": cache, "peak_bytes": peak, "load_s": loaded,
           "first_token_s": first, "peak_after_bytes": torch.cuda.max_memory_allocated()}  # fmt: skip
    print("load", row, flush=True)
    return row


def write_random(name: str, folder: Path) -> None:
    """Shards of at most 4 GB with an index, made on the device tensor by tensor."""
    plan = Plan(TorchOps("meta"), lambda _: torch.bfloat16)
    Target(target_config(name), plan)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for key, place in plan.places.items():
        tensor = torch.randn(place.shape, device="cuda", dtype=torch.bfloat16).mul_(0.02).cpu()
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > 4 << 30:
            shards.append({})
        shards[-1][key] = tensor
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    index = {key: file for file, shard in zip(names, shards, strict=True) for key in shard}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    for file, shard in zip(names, shards, strict=True):
        save_file(shard, folder / file)
        shard.clear()


def clean() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="embedded,ttft,long,transformers")
    options = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "embedded": embedded, "ttft": lambda: ttft(["e2b", "26b-a4b", "31b"]), "long": long_run,
        "transformers": lambda: transformers_rows(["e2b", "26b-a4b"]), "load": load,
    }  # fmt: skip
    result: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    result |= {
        "schema": "paceline-cuda-extras/1", "provenance": files.provenance(), "copy_bandwidth": copy_bandwidth(),
        "labels": ["random weights, except the embedded miniature"],
    }  # fmt: skip
    for name in options.parts.split(","):
        try:
            result[name] = parts[name]()
        except Exception:  # one part that fails must not lose the others
            traceback.print_exc()
        clean()
        options.out.write_text(json.dumps(result))


if __name__ == "__main__":
    with torch.no_grad():
        main()
