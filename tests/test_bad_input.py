"""Every bad input is refused in one sentence that names what is at fault, and leaves nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import copy, edit_json, rewrite
from families import VOCAB, Pair
from safetensors.torch import load_file, save_file
from torch import Tensor

from paceline.errors import CheckpointError, ConfigError, PacelineError, PromptError, UsageError
from paceline.llm import LLM
from paceline.resolve import Options, resolve
from paceline.types import SamplingParams

pytestmark = pytest.mark.usefixtures("quiet_torch")

FAMILY = "e4b"  # one file a checkpoint, and a drafter with centroids


@pytest.fixture
def pair(pairs: dict[str, Pair]) -> Pair:
    return pairs[FAMILY]


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def refused(
    kind: type[PacelineError], match: str, target: Path, drafter: Path | str | None = None, **options: str
) -> None:
    """Loading is refused, in one line."""
    with pytest.raises(kind, match=match) as caught:
        LLM.from_pretrained(str(target), None if drafter is None else str(drafter), **options)
    assert "\n" not in str(caught.value)


# ---- files ----------------------------------------------------------------------------------------------------------

NORM = "model.norm.weight"
TENSORS: list[tuple[str, Callable[[dict[str, Tensor]], Any], str]] = [
    ("missing", lambda t: t.pop(NORM), rf"lacks 1 tensor\(s\), first {NORM}"),
    ("missing embedding", lambda t: t.pop("model.embed_tokens.weight"), "lacks the tensor model.embed_tokens.weight"),
    ("extra", lambda t: t.update(extra=torch.zeros(2)), r"model\.safetensors: extra has no place in this model"),
    ("shape", lambda t: t.update({NORM: torch.zeros(2)}), rf"safetensors: {NORM} has shape \[2\], .* asks for \[64\]"),
    ("no shape", lambda t: t.update({NORM: torch.zeros(())}), rf"{NORM} has shape \[\]"),
    ("dtype", lambda t: t.update({NORM: torch.zeros(64, dtype=torch.int8)}), rf"{NORM} is stored as I8"),
]


@pytest.mark.parametrize(("edit", "match"), [case[1:] for case in TENSORS], ids=[case[0] for case in TENSORS])
def test_wrong_tensors(pair: Pair, tmp_path: Path, edit: Callable[[dict[str, Tensor]], Any], match: str) -> None:
    target = copy(pair.target, tmp_path)
    edit_tensors(target, edit)
    refused(CheckpointError, match, target)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_weights(pair: Pair, tmp_path: Path, share: float) -> None:
    target = copy(pair.target, tmp_path)
    path = target / "model.safetensors"
    rewrite(path, path.read_bytes()[: int(share * path.stat().st_size)])
    refused(CheckpointError, r"model\.safetensors is damaged or no safetensors file .*; download it again", target)


def test_weights_that_are_something_else(pair: Pair, tmp_path: Path) -> None:
    target = copy(pair.target, tmp_path)
    rewrite(target / "model.safetensors", b"PK\x03\x04" + bytes(1000))
    refused(CheckpointError, "damaged or no safetensors file", target)
    (target / "model.safetensors").unlink()
    refused(CheckpointError, r"model\.safetensors is missing, and there is no .*index\.json", target)


def test_missing_shard(pairs: dict[str, Pair], tmp_path: Path) -> None:
    target = copy(pairs["26b-a4b"].target, tmp_path)
    shards = sorted(target.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    refused(CheckpointError, rf"{shards[1].name} is named by .*index\.json but missing", target)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[", '{"weight_map": 3}'])
def test_damaged_index(pairs: dict[str, Pair], tmp_path: Path, text: str) -> None:
    target = copy(pairs["26b-a4b"].target, tmp_path)
    rewrite(target / "model.safetensors.index.json", text.encode())
    refused(CheckpointError, r"index\.json.*download it again", target)


@pytest.mark.parametrize("text", [b"{", b"", b"[]", b"\xff\xfe"])
def test_damaged_config(pair: Pair, tmp_path: Path, text: bytes) -> None:
    target = copy(pair.target, tmp_path)
    rewrite(target / "config.json", text)
    refused(CheckpointError, r"config\.json (cannot be read as JSON|must hold a JSON object)", target)


# ---- configs --------------------------------------------------------------------------------------------------------

FULL = "full_attention"
CONFIGS: list[tuple[str, Any, str]] = [
    ("new_feature", 1, "unknown key 'new_feature'"),
    ("hidden_activation", "relu", "hidden_activation is 'relu'; Paceline supports 'gelu_pytorch_tanh'"),
    ("attention_bias", True, "attention_bias is True"),
    ("tie_word_embeddings", False, "tie_word_embeddings is False"),
    ("use_bidirectional_attention", "all", "use_bidirectional_attention is 'all'"),
    ("model_type", "llama", "model_type 'llama' is not a Gemma 4 text model"),
    ("vocab_size", -1, "vocab_size must be a positive integer, not -1"),
    ("vocab_size", None, "vocab_size must be a positive integer, not None"),
    ("hidden_size", True, "hidden_size must be a positive integer, not True"),
    ("sliding_window", 0, "sliding_window must be a positive integer"),
    ("max_position_embeddings", "x", "max_position_embeddings must be a positive integer"),
    ("num_attention_heads", 3, "3 attention heads cannot share 2 key/value heads"),
    ("layer_types", ["chunked"] * 12, "layer type 'chunked' is not supported"),
    ("layer_types", [FULL] * 2, "layer_types has 2 entries for 12 layers"),
    ("layer_types", 3, "layer_types must be a list"),
    ("num_kv_shared_layers", 12, "layer 0 shares keys and values"),
    ("num_kv_shared_layers", -1, "num_kv_shared_layers must be"),
    ("hidden_size_per_layer_input", "x", "hidden_size_per_layer_input must be"),
    ("global_head_dim", "x", "global_head_dim must be"),
    ("num_global_key_value_heads", "x", "num_global_key_value_heads must be"),
    ("rms_norm_eps", "x", "rms_norm_eps must be a number"),
    ("final_logit_softcapping", "x", "final_logit_softcapping must be a number"),
    ("rope_parameters", 3, "rope_parameters must be a JSON object"),
    ("rope_parameters", {FULL: 3}, "rope_parameters: full_attention must be a JSON object"),
    ("rope_parameters", {FULL: {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    ("rope_parameters", {FULL: {"rope_type": "default", "factor": 8}}, "unknown key 'factor'"),
    ("rope_parameters", {FULL: {"rope_theta": "x"}}, "rope_theta must be a number"),
    ("rope_parameters", {FULL: {"rope_type": "proportional", "partial_rotary_factor": 3}}, "are out of range"),
    ("per_layer_config", 3, "per_layer_config must name layers by number"),
    ("per_layer_config", {"x": {}}, "per_layer_config must name layers by number"),
    ("per_layer_config", {"5": {"sliding_window": 3}}, r"per_layer_config\.5: unknown key 'sliding_window'"),
    ("per_layer_config", {"5": {"head_dim": "x"}}, r"per_layer_config\.5: head_dim must be a positive integer"),
    ("per_layer_config", {"5": 3}, "per_layer_config: 5 must be a JSON object"),
    ("enable_moe_block", True, "num_experts must be a positive integer"),
    ("eos_token_id", "x", "eos_token_id must be a token id or a list of them"),
    ("eos_token_id", [1, -1], "eos_token_id must be a token id or a list of them"),
]


@pytest.mark.parametrize(("key", "value", "match"), CONFIGS, ids=[f"{key}={value}" for key, value, _ in CONFIGS])
def test_wrong_config(pair: Pair, tmp_path: Path, key: str, value: Any, match: str) -> None:
    target = copy(pair.target, tmp_path, lambda config: config.update({key: value}))
    refused(ConfigError, rf"target/config\.json.*{match}", target)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("eos_token_id", "x", "eos_token_id must be a token id"),
        ("suppress_tokens", [1, "x"], "suppress_tokens must be a token id"),
        ("suppress_tokens", [VOCAB], f"names token {VOCAB}, outside the vocabulary"),
        ("eos_token_id", VOCAB, f"names token {VOCAB}, outside the vocabulary"),
    ],
)
def test_wrong_generation_config(pair: Pair, tmp_path: Path, key: str, value: Any, match: str) -> None:
    target = copy(pair.target, tmp_path)
    edit_json(target / "generation_config.json", **{key: value})
    refused(ConfigError, rf"generation_config\.json.*{match}", target)


# ---- drafters -------------------------------------------------------------------------------------------------------

DRAFTERS: list[tuple[str, Any, str]] = [
    ("backbone_hidden_size", 32, "belongs to another target: its hidden size is 32, the target's 64"),
    ("vocab_size", 128, "its vocabulary is 128, the target's 256"),
    ("num_key_value_heads", 1, "its sliding_attention key/value heads is 1, the target's 2"),
    ("head_dim", 8, "its sliding_attention head size is 8, the target's 16"),
    ("global_head_dim", 16, "its full_attention head size is 16, the target's 32"),
    ("sliding_window", 16, "its sliding_attention window is 16, the target's 8"),
    ("layer_types", ["sliding_attention"] * 4, r"q_norm\.weight has shape \[32\]"),
    ("num_attention_heads", 2, r"assistant/model\.safetensors: .*q_proj\.weight has shape"),
    ("num_centroids", 7, "num_centroids 7 must divide vocab_size 256"),
    ("num_centroids", "x", "num_centroids must be a positive integer"),
    ("centroid_intermediate_top_k", 99, "top_k 99 fit it"),
    ("use_ordered_embeddings", "x", "use_ordered_embeddings is 'x'"),
    ("text_config", 3, "text_config is missing"),
    ("new_feature", 1, "unknown key 'new_feature'"),
]


@pytest.mark.parametrize(("key", "value", "match"), DRAFTERS, ids=[f"{key}={value}" for key, value, _ in DRAFTERS])
def test_wrong_drafter(pair: Pair, tmp_path: Path, key: str, value: Any, match: str) -> None:
    def edit(config: dict[str, Any]) -> None:
        inner = config["text_config"]
        (inner if key in inner and key != "text_config" else config)[key] = value

    refused(PacelineError, match, pair.target, copy(pair.assistant, tmp_path, edit))


def test_drafters_of_other_sizes(pairs: dict[str, Pair]) -> None:
    told_apart = [("e2b", "e4b"), ("e4b", "12b"), ("12b", "31b"), ("31b", "e2b"), ("26b-a4b", "12b")]
    for one, other in told_apart:
        refused(CheckpointError, "this drafter belongs to another target", pairs[one].target, pairs[other].assistant)


def test_target_and_drafter_the_wrong_way_round(pair: Pair) -> None:
    refused(CheckpointError, "assistant is a drafter .*, not a target", pair.assistant)
    refused(CheckpointError, "target is not an MTP drafter: its model_type is 'gemma4_text'", pair.target, pair.target)


@pytest.mark.parametrize(
    "edit", [lambda ordering: ordering.fill_(0), lambda ordering: ordering.add_(1), lambda ordering: ordering.neg_()]
)
def test_token_ordering_that_is_no_permutation(pair: Pair, tmp_path: Path, edit: Callable[[Tensor], Tensor]) -> None:
    assistant = copy(pair.assistant, tmp_path)
    edit_tensors(assistant, lambda tensors: edit(tensors["masked_embedding.token_ordering"]))
    refused(CheckpointError, "assistant: masked_embedding.token_ordering is not a permutation", pair.target, assistant)


def test_advised_draft_length(pair: Pair, tmp_path: Path) -> None:
    """More than the cache can take back is cut to what it can; what is no number is refused."""
    assistant = copy(pair.assistant, tmp_path)
    path = assistant / "generation_config.json"
    edit_json(path, num_assistant_tokens=99)
    assert resolve(Options(target=str(pair.target), drafter=str(assistant))).k == 15
    for value in (0, -1, "x", True):
        edit_json(path, num_assistant_tokens=value)
        refused(ConfigError, "num_assistant_tokens must be a positive integer", pair.target, assistant)


# ---- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"device": "cuda"}, "device 'cuda' cannot be used"),
        ({"dtype": "int4"}, "dtype 'int4' is not supported"),
        ({"backend": "magic"}, "unknown backend 'magic'"),
        ({"draft_position": "n+1"}, r"position is 'n' or 'n-1', not 'n\+1'"),
        ({"gpu": "yes"}, "no option 'gpu'"),
    ],
)
def test_unknown_options(pair: Pair, options: dict[str, str], match: str) -> None:
    refused(UsageError, match, pair.target, **options)


@pytest.fixture(scope="module")
def plain(pairs: dict[str, Pair]) -> LLM:
    """A model without drafter and without tokenizer."""
    return LLM.from_pretrained(str(pairs[FAMILY].target), None)


PROMPTS: list[tuple[Any, str]] = [
    ([], "the prompt is empty"),
    ("", "the prompt is empty"),
    (None, "not NoneType"),
    (3, "not int"),
    ((3, 4), "not tuple"),
    ("text", "no tokenizer.json; give token ids"),
    ([3, "x"], "no tokenizer.json; give token ids"),
    ([VOCAB], f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
    ([3, -1], "token id -1 is outside"),
    ([2**70], "is outside the vocabulary"),
    ([3] * 5000, "5000 prompt tokens and max_tokens 64 exceed the context of 4096"),
    ([3] * 4033, "exceed the context of 4096"),
]


@pytest.mark.parametrize(("prompt", "match"), PROMPTS, ids=[match for _, match in PROMPTS])
def test_wrong_prompts(plain: LLM, prompt: Any, match: str) -> None:
    with pytest.raises(PromptError, match=match):
        plain.stream(prompt)
    with pytest.raises(PromptError, match=match):
        plain.generate([prompt])


def test_a_bare_string_is_no_list_of_prompts(plain: LLM) -> None:
    with pytest.raises(PromptError, match=r"write \[prompt\]"):
        plain.generate("hello")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [-1, 16, 2.0, "4", True])
def test_wrong_draft_lengths(plain: LLM, k: Any) -> None:
    with pytest.raises(UsageError, match=f"must be 'auto' or a whole number from 0 to 15, not {k!r}"):
        plain.stream([3], k=k)


def test_requests_this_model_cannot_meet(plain: LLM) -> None:
    with pytest.raises(UsageError, match="k=2 needs a drafter"):
        plain.stream([3], k=2)
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        plain.stream([3], SamplingParams(stop=("x",)))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"max_tokens": 2.5}, "max_tokens must be a whole number"),  # never reached, so it would never end
        ({"top_k": "x"}, "top_k must be a whole number"),
        ({"stop": "abc"}, "stop must be a sequence of strings"),  # not three strings of one character
        ({"stop": (3,)}, "stop must be a sequence of strings"),
    ],
)
def test_parameters_of_a_wrong_type(values: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        SamplingParams(**values)
