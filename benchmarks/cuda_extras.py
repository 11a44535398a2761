"""What a user of the GPU engine meets besides round times: time to first token, long runs, real text, Transformers.

    python benchmarks/cuda_extras.py --out benchmarks/results/cuda_extras.json --parts ttft,long,embedded

Sizes run with random weights; the embedded pair is the trained miniature, on its real prompts.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
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
from paceline.kernels.reference import TorchOps
from paceline.llm import LLM
from paceline.models.gemma4 import Target
from paceline.models.plan import Plan
from paceline.models.random import fill_random
from paceline.shapes import SHAPES, drafter_config, target_config
from paceline.types import SamplingParams

PROMPT = 4096
CONTEXT, DRAFTS = 170, 4  # beside Transformers


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


def transformers_row(name: str, new: int = 16) -> dict[str, Any]:
    """Milliseconds a token of Transformers' generate beside ours, same random weights, greedy, one prompt.

    With drafts nothing is accepted, here or there: a round brings one token.
    """
    import transformers as tf

    config = tf.AutoConfig.for_model(**{"model_type": "gemma4_text", **SHAPES[name].target})
    with torch.device("cuda"):
        theirs = tf.Gemma4ForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    row = {"shape": name, "version": tf.__version__, "missing": fill_theirs(theirs, name), "drafts": DRAFTS}
    row["plain_ms_a_token"] = call_ms(theirs, new, {})
    try:
        row["assisted_ms_a_token"] = call_ms(theirs, new, {"assistant_model": assistant_of(tf, name)})
    except Exception as problem:
        row["assisted_problem"] = repr(problem)[:300]
    del theirs
    clean()
    row |= our_ms(name)
    print("transformers", row, flush=True)
    return row


class Into:
    """A place of a weight in somebody else's model, as `fill_random` fills them."""

    def __init__(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        self.tensor, self.shape = tensor.view(shape), shape

    def write(self, values: torch.Tensor, start: int) -> None:
        """Rows from `start` on."""
        self.tensor[start : start + len(values)].copy_(values)


def fill_theirs(model: Any, name: str) -> list[str]:
    """Gives a model of Transformers the very weights that ours has at seed 0; the names that got none."""
    plan, state = Plan(TorchOps("meta"), lambda _: torch.bfloat16), model.state_dict()
    Target(target_config(name), plan)
    places = {key: Into(state[key], tuple(place.shape)) for key, place in plan.places.items()}
    like = next(iter(state.values()))
    held = [SimpleNamespace(tensor=like)]  # where the numbers are made
    fill_random(SimpleNamespace(places=places, dtype_of=lambda _: torch.bfloat16, matrices=held), 0)  # type: ignore[arg-type]
    return [key for key in state if key not in places and key != "lm_head.weight"]


def assistant_of(tf: Any, name: str) -> Any:
    """Transformers' drafter of a size, with random weights, drafting DRAFTS tokens a round."""
    raw = dict(SHAPES[name].assistant)
    raw["text_config"] = raw["text_config"] | {"vocab_size_per_layer_input": 0}
    config = tf.AutoConfig.for_model(**raw)
    with torch.device("cuda"):
        found = tf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    found.generation_config.num_assistant_tokens = DRAFTS
    return found


def call_ms(model: Any, new: int, more: dict[str, Any]) -> list[float]:
    """Milliseconds a token of three calls."""
    prompt, times = torch.randint(0, 262144, (1, CONTEXT), device="cuda"), []
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        out = model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, **more)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / (out.shape[1] - CONTEXT) * 1e3)
    return times


def our_ms(name: str) -> dict[str, Any]:
    """Milliseconds a token of our engine, host included, plain and with drafts of which none is kept."""
    room = Room(places=1, context=1024)
    engine = DeviceEngine(random_model(target_config(name), drafter_config(name), room, (0.0,) * 15))
    found: dict[str, Any] = {}
    for label, k in (("our_plain_ms_a_token", 0), ("our_assisted_ms_a_token", DRAFTS)):
        found[label] = [ours_once(engine, k) for _ in range(4)][1:]
    return found


def ours_once(engine: DeviceEngine, k: int, new: int = 128) -> float:
    """Milliseconds a token of one text, its prompt included."""
    prompt = torch.randint(0, 262144, (CONTEXT,)).tolist()
    request = Request(prompt, SamplingParams(max_tokens=new, ignore_eos=True), k, False)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    engine.submit(request)
    while engine.busy:
        engine.step()
    return (time.perf_counter() - begin) / new * 1e3


def load(name: str = "31b") -> dict[str, Any]:
    """A random checkpoint in the hub's layout, in memory's file system, loaded: seconds, and peak memory on the device.

    The files are in memory already when the clock starts, as they are on a warm disk.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as room:
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
    """Shards of at most 4 GB with an index, written side by side."""
    plan = Plan(TorchOps("meta"), lambda _: torch.bfloat16)
    Target(target_config(name), plan)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for key, place in plan.places.items():
        if sum(2 * math.prod(shape) for shape in (*shards[-1].values(), place.shape)) > 4 << 30:
            shards.append({})
        shards[-1][key] = tuple(place.shape)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    index = {key: file for file, shard in zip(names, shards, strict=True) for key in shard}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with ProcessPoolExecutor(6, get_context("spawn")) as pool:
        list(pool.map(write_shard, [folder / file for file in names], shards))


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random numbers that repeat every 16 million: to be read, not to be multiplied."""
    torch.set_num_threads(2)
    numbers = torch.randn(1 << 24).mul_(0.02).bfloat16()
    tensors = {}
    for key, shape in shapes.items():
        size = math.prod(shape)
        tensors[key] = numbers.repeat(-(-size // len(numbers)))[:size].clone().view(shape)
    save_file(tensors, path)


def clean() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="embedded,ttft,long,transformers-e2b,transformers-26b-a4b,load")
    options = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "embedded": embedded, "ttft": lambda: ttft(["e2b", "26b-a4b", "31b"]), "long": long_run,
        "load": load, **{f"transformers-{name}": partial(transformers_row, name) for name in ("e2b", "26b-a4b")},
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
        files.write_record(options.out, result)


if __name__ == "__main__":
    with torch.no_grad():
        main()
