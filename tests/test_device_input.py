"""What the GPU engine refuses, and how it says so; nothing here needs a GPU, because what asks for one is replaced."""

from __future__ import annotations

import gc
import importlib.util
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import copy, edit_json
from families import Pair
from pretend import GB, pretend
from shell import COMMANDS, Shell
from test_bad_input import edit_tensors

from paceline import available
from paceline.calibration import cost_decisions
from paceline.config import TextConfig, read_target
from paceline.device import drafters, load, memory, request
from paceline.device.cache import BatchCache
from paceline.device.memory import CONTEXT, MARGIN_BYTES, Need, choose_room
from paceline.device.serve import DeviceServer
from paceline.errors import CheckpointError, PromptError, UsageError
from paceline.kernels.cuda import CudaOps
from paceline.llm import LLM
from paceline.models.gemma4 import Target
from paceline.models.plan import Plan
from paceline.resolve import Options, Resolved, resolve
from paceline.shapes import target_config
from paceline.types import SamplingParams
from paceline.weights import load_drafter, target_headers

pytestmark = pytest.mark.usefixtures("quiet_torch")
DEVICE_COMMANDS = ["generate", "chat", "bench", "explain"]


def dense(pairs: dict[str, Pair]) -> dict[str, str]:
    """The folders of a pair whose drafter has a dense head."""
    return {"target": str(pairs["12b"].target), "drafter": str(pairs["12b"].assistant)}


# ---- no GPU that serves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", DEVICE_COMMANDS)
def test_no_gpu(no_gpu: None, shell: Shell, command: str) -> None:
    wanted = "device 'cuda' cannot be used: there is no NVIDIA GPU, or its driver does not answer; use device 'cpu'"
    shell.refuses_in_one_line(wanted, *COMMANDS[command], "--device", "cuda")
    shell.refuses_in_one_line(wanted, *COMMANDS[command], "--backend", "cuda")
    shell.refuses_in_one_line("unknown device 'tpu'", *COMMANDS[command], "--device", "tpu")


def test_an_old_driver_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def warns() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 11040).", stacklevel=1)
        return False

    pretend(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", warns)
    with pytest.raises(UsageError, match=r"the NVIDIA driver is too old for CUDA 12\.8, which this PyTorch was built"):
        available.check_device()


def test_no_triton(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else real(name))
    with pytest.raises(UsageError, match=r"it needs Triton, which is not installed \(pip install triton\)"):
        available.check_device()
    assert not available.available()


def test_a_torch_without_cuda(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="this PyTorch has no CUDA"):
        available.check_device()


def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(7, 5))
    with pytest.raises(UsageError, match=r"NVIDIA Test has compute capability 7\.5, and Paceline needs 8\.0 or newer"):
        available.check_device()


def test_auto_says_why_it_is_the_cpu(no_gpu: None, pairs: dict[str, Pair]) -> None:
    decisions = {d.what: d for d in resolve(Options(**dense(pairs))).decisions}
    assert (decisions["device"].value, decisions["backend"].value) == ("cpu", "cpu")
    assert "no NVIDIA GPU" in decisions["device"].why
    assert "context" not in decisions


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"context": 0}, "context must be a whole number from 64 to 4096, not 0"),
        ({"context": 5000}, "context must be a whole number from 64 to 4096, not 5000"),
        ({"context": "many"}, "context must be a whole number"),
        ({"sequences": 0}, "sequences must be a whole number from 1 to 64, not 0"),
        ({"sequences": True}, "sequences must be a whole number"),
        ({"draft_weights": "int4"}, "unknown draft weights 'int4'; choose 'auto', 'stored', 'int8-head' or 'int8'"),
        ({"draft_weights": "int8", "drafter": None}, "draft_weights 'int8' needs an MTP drafter"),
        ({"drafter": "ngram"}, "the n-gram drafter runs on the CPU only"),
        ({"backend": "cpu"}, "backend 'cpu' does not run on device 'cuda'"),
        ({"min_confidence": 0.3}, "min_confidence is for the CPU engine"),
    ],
)
def test_options_of_the_gpu(gpu: None, pairs: dict[str, Pair], options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        resolve(Options(**{**dense(pairs), "device": "cuda", **options}))


def test_the_controller_chooses_unless_told(gpu: None, pairs: dict[str, Pair]) -> None:
    resolved = resolve(Options(**dense(pairs), device="cuda"))
    [k] = [decision for decision in resolved.decisions if decision.what == "k"]
    assert (resolved.auto, k.value) == (True, "auto")
    assert f"a fixed length would be {resolved.k}: num_assistant_tokens is {resolved.k}" in k.why
    [times] = cost_decisions(resolved)
    assert (times.what, times.value) == ("cost table", "predicted")
    alone = resolve(Options(**{**dense(pairs), "drafter": None}, device="cuda"))
    assert (alone.auto, alone.k, cost_decisions(alone)) == (False, 0, [])


def test_warming_up_captures_every_length_on_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[tuple[float, Any]]()
    monkeypatch.setattr(LLM, "generate", lambda self, prompts, params, k: written.append((params.temperature, k)))
    monkeypatch.setattr(gc, "freeze", lambda: None)
    resolved: Any = SimpleNamespace(k=5)
    for offered, lengths in (((0, 1, 2), [0, 1, 2, 5]), ((), [0, 5])):
        pilot = SimpleNamespace(offered=offered) if offered else None
        engine: Any = SimpleNamespace(pilot=pilot, model=SimpleNamespace(drafter=pilot))
        written.clear()
        LLM(resolved, DeviceServer(engine, frozenset(), cast(Any, "no grammar")), None).warm_up()
        assert written == [(temperature, k) for temperature in (0.0, 1.0) for k in lengths]


def test_a_centroid_head_has_nothing_to_halve(gpu: None, pairs: dict[str, Pair]) -> None:
    pair = pairs["e4b"]
    asked = {"target": str(pair.target), "drafter": str(pair.assistant)}
    with pytest.raises(UsageError, match="draft_weights 'int8-head' is for dense heads"):
        resolve(Options(**asked, draft_weights="int8-head"))
    assert resolve(Options(**asked, draft_weights="int8")).int8 == (False, True)


@pytest.mark.parametrize("command", DEVICE_COMMANDS)
def test_flags_of_the_gpu(gpu: None, shell: Shell, command: str) -> None:
    words = COMMANDS[command]
    shell.refuses_in_one_line("context must be", *words, "--context", "0")
    shell.refuses_in_one_line("sequences must be", *words, "--sequences", "0")
    shell.refuses_in_one_line("unknown draft weights 'int4'", *words, "--draft-weights", "int4")


@pytest.mark.parametrize("name", ["context", "sequences"])
def test_nothing_is_set_aside_on_the_cpu(pairs: dict[str, Pair], name: str) -> None:
    chosen: dict[str, Any] = {name: 64}
    with pytest.raises(UsageError, match=f"{name} is set aside on a GPU only"):
        resolve(Options(**dense(pairs), device="cpu", **chosen))


def test_what_explain_shows_of_a_gpu(gpu: None, pairs: dict[str, Pair]) -> None:
    resolved = resolve(Options(**dense(pairs), sequences=3, draft_weights="int8"))
    decisions = {d.what: (d.value, d.why) for d in resolved.decisions}
    assert decisions["device"] == ("cuda", "a GPU is there: NVIDIA Test")
    assert decisions["context"] == ("auto", "settled at load, by the memory that is free")
    assert decisions["sequences"] == ("3", "asked for")
    assert decisions["draft_weights"] == ("int8", "asked for")
    assert decisions["dtype"] == ("fp32, sums in fp32", "the target is stored in fp32")
    assert (resolved.dtype, resolved.int8, resolved.context) == (torch.float32, (True, True), None)


def test_a_drafters_confidence_is_not_followed_on_a_gpu(gpu: None, pairs: dict[str, Pair], tmp_path: Path) -> None:
    assistant = copy(pairs["12b"].assistant, tmp_path)
    edit_json(assistant / "generation_config.json", assistant_confidence_threshold=0.4)
    resolved = resolve(Options(target=str(pairs["12b"].target), drafter=str(assistant)))
    assert resolved.min_confidence == 0.0
    assert any(d.what == "min_confidence" and "the GPU drafts k tokens" in d.why for d in resolved.decisions)


# ---- dtypes ---------------------------------------------------------------------------------------------------------


def stored_as(dtype: torch.dtype, ending: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """An edit that stores matrices in `dtype`: those whose names end so."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        matrices = [name for name, tensor in tensors.items() if tensor.dim() > 1]
        chosen = [name for name in matrices if name.endswith(ending)]
        tensors.update({name: tensors[name].to(dtype) for name in chosen})

    return edit


def recast(folder: Path, to: Path, dtype: torch.dtype, ending: str = "") -> str:
    copied = copy(folder, to)
    edit_tensors(copied, stored_as(dtype, ending))
    return str(copied)


def test_weights_stay_as_stored(gpu: None, pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["12b"]
    narrow = recast(pair.target, tmp_path / "bf16", torch.bfloat16)
    mixed = recast(pair.target, tmp_path / "mixed", torch.bfloat16, "down_proj.weight")
    small = recast(pair.assistant, tmp_path / "small", torch.bfloat16)
    assert resolve(Options(target=narrow, drafter=small)).dtype == torch.bfloat16
    assert resolve(Options(target=str(pair.target), drafter=small)).dtype == torch.float32  # widened, so still exact
    found = resolve(Options(target=mixed, drafter=None))
    assert found.dtype == torch.float32
    assert any("bf16 matrices are widened" in d.why for d in found.decisions)
    with pytest.raises(CheckpointError, match="is stored in fp32, which the GPU engine would have to round to bf16"):
        resolve(Options(target=narrow, drafter=str(pair.assistant)))


def test_halves_run_on_the_cpu(gpu: None, pairs: dict[str, Pair], tmp_path: Path) -> None:
    half = recast(pairs["12b"].target, tmp_path, torch.float16)
    decisions = {d.what: d for d in resolve(Options(target=half, drafter=None)).decisions}
    assert decisions["device"].value == "cpu"
    assert decisions["device"].why == "the GPU engine has no fp16, in which model.safetensors is stored"
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* is stored in fp16, which the GPU engine would"):
        resolve(Options(target=half, drafter=None, device="cuda"))


# ---- memory ---------------------------------------------------------------------------------------------------------


def need(**chosen: Any) -> Need:
    return Need(config=target_config("31b"), **{"weights": 61 * GB, **chosen})


def test_room_is_as_large_as_fits() -> None:
    for free in (70 * GB, 80 * GB, 100 * GB):
        room = choose_room(need(), free)
        assert room.context == CONTEXT
        assert need().bytes(room.places, room.context) <= free - 61 * GB - MARGIN_BYTES
        assert room.places == 16 or need().bytes(2 * room.places, room.context) > free - 61 * GB - MARGIN_BYTES


@pytest.mark.parametrize("family", ["e4b", "12b"])
def test_bytes_are_those_of_the_cache(pairs: dict[str, Pair], family: str) -> None:
    config = read_target(pairs[family].target)
    cache = BatchCache(config, CudaOps("cpu", torch.float32), 3, 100)
    wanted = Need(config=config, weights=0, width=4).bytes(3, 100)
    assert wanted == cache.nbytes + memory.rope_bytes(config, 100)


@pytest.mark.parametrize("family", ["e4b", "12b", "26b-a4b"])
def test_weights_are_counted_from_the_headers(pairs: dict[str, Pair], family: str) -> None:
    config = read_target(pairs[family].target)
    plan = Plan(CudaOps("cpu", torch.float32), lambda name: torch.float32)
    Target(config, plan)
    vectors = sum(vector.nbytes for vector in plan.vectors)
    assert load.held_bytes(target_headers(pairs[family].target, config), 4) == plan.nbytes + vectors


@pytest.mark.parametrize(("family", "chosen"), [("e4b", "int8"), ("12b", "int8"), ("12b", "int8-head")])
def test_a_drafter_in_int8_is_counted_as_it_will_lie(
    gpu: None, pairs: dict[str, Pair], family: str, chosen: str
) -> None:
    pair = pairs[family]
    asked = {"target": str(pair.target), "drafter": str(pair.assistant)}
    stored, int8 = (resolve(Options(**asked, draft_weights=value)) for value in ("stored", chosen))
    ops = CudaOps("cpu", torch.float32)
    drafter = load_drafter(pair.assistant, read_target(pair.target), ops)
    matrices = [drafter.head, *drafter.body]
    before = sum(m.nbytes for m in matrices)
    drafters.quantize_drafter(drafter, *int8.int8)
    after = sum(m.nbytes for m in matrices)
    assert load._need(stored).weights - load._need(int8).weights == before - after > 0


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"the weights take 61\.00 GB, .* the GPU has 24\.00 GB free; use a smaller"):
        choose_room(need(), 24 * GB)


def test_fewer_sequences_that_would_fit() -> None:
    asked, free = need(places=32, context=16384), 80 * GB
    with pytest.raises(UsageError, match=r"(\d+) would fit, so ask for fewer") as caught:
        choose_room(asked, free)
    fit = int(str(caught.value).rsplit("; ", 1)[1].split()[0])
    assert choose_room(need(places=fit, context=16384), free).places == fit
    with pytest.raises(UsageError):
        choose_room(need(places=fit + 1, context=16384), free)


def test_a_shorter_context_that_would_fit() -> None:
    asked, free = need(context=262144), 70 * GB
    with pytest.raises(UsageError, match=r"one of \d+ tokens would fit, so ask for less") as caught:
        choose_room(asked, free)
    fit = int(str(caught.value).rsplit("one of ", 1)[1].split()[0])
    assert choose_room(need(context=fit), free).context == fit
    with pytest.raises(UsageError):
        choose_room(need(context=fit + 64), free)


class Weights:
    """Something a load holds when it fails."""


def test_out_of_memory_gives_back_what_it_took(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Weights]] = []
    alive: list[bool] = []

    def fails(resolved: Resolved, tokenizer: None) -> DeviceServer:
        weights = Weights()
        held.append(weakref.ref(weights))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(load, "_load", fails)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[0]() is not None))
    with pytest.raises(UsageError, match=r"the GPU ran out of memory, and has 80\.00 GB free without this; ask for"):
        load.load_server(SimpleNamespace(), None)  # type: ignore[arg-type]
    assert alive == [False]


def test_a_load_too_large_is_refused_before_reading(
    monkeypatch: pytest.MonkeyPatch,
    pairs: dict[str, Pair],
    shell: Shell,
) -> None:
    pretend(monkeypatch, free=MARGIN_BYTES + 1000)
    folders = dense(pairs)
    words = ["--target", folders["target"], "--drafter", folders["drafter"]]
    for command in ("generate", "chat", "bench"):
        shell.refuses_in_one_line("the weights take 0.00 GB", *COMMANDS[command], *words)


# ---- a loaded model -------------------------------------------------------------------------------------------------


def server(config: TextConfig) -> DeviceServer:
    """A server whose engine does not compute."""
    cache = SimpleNamespace(places=4, context=512, nbytes=1000)
    model = SimpleNamespace(drafter=object(), cache=cache, target=SimpleNamespace(config=config))
    return DeviceServer(SimpleNamespace(model=model, graphs=SimpleNamespace(bytes=77)), frozenset())  # type: ignore[arg-type]


def test_a_loaded_model_describes_its_gpu(gpu: None, pairs: dict[str, Pair]) -> None:
    llm = LLM(resolve(Options(**dense(pairs))), server(read_target(pairs["12b"].target)), None)
    about = llm.describe()
    facts = {"gpu": "NVIDIA Test", "places": 4, "context": 512, "cache_bytes": 1000, "graph_bytes": 77}
    assert about["labels"] == ["GPU"]
    assert {name: about[name] for name in facts} == facts


def test_prompts_beyond_the_context_are_refused_before_the_first_token(gpu: None, pairs: dict[str, Pair]) -> None:
    llm = LLM(resolve(Options(**dense(pairs))), server(read_target(pairs["12b"].target)), None)
    with pytest.raises(PromptError, match="500 prompt tokens and max_tokens 64 exceed the 512 tokens set aside"):
        llm.stream([3] * 500, SamplingParams(max_tokens=64), k=4)


@pytest.mark.parametrize(
    "values",
    [{"logprobs": 0}, {"logprobs": 1}, {"best_of": 2}, {"accept": "block", "temperature": 1.0}, {"accept": "rejection",
     "temperature": 1.0}, {"json_schema": "{}"}, {"regex": "a"}, {"grammar": "start: /a/"},
     {"logit_bias": dict.fromkeys(range(200), 1.0)}],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_every_parameter_is_served(
    gpu: None, pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """Every parameter of the CPU's engine; grammars where they can be compiled, and else they are refused by name."""
    monkeypatch.setattr(request, "MOST_BIASES", 199)
    own = server(read_target(pairs["12b"].target))
    llm, params = LLM(resolve(Options(**dense(pairs))), own, None), SamplingParams(**values)
    if params.structure:
        pytest.importorskip("llguidance")
        with pytest.raises(UsageError, match=f"{params.structure[0]} needs a tokenizer"):
            llm.generate([[3] * 9], params, k=4)
        own.structure = SimpleNamespace(constraint=lambda wish: wish.structure)  # type: ignore[assignment]
    asked = [llm.stream([3] * 9, text, k=4).job[0] for text in params.streams()]
    assert len(asked) == (params.best_of or 1)
    assert all(each.hosted or each.reported for each in asked)
