"""What a checkpoint is, read from its config.json into frozen dataclasses.

Both spellings in use are understood: the classic keys (`global_head_dim`, `num_global_key_value_heads`) and
`per_layer_config`. Every key is either read, known to be without effect on text, or refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import CheckpointError, ConfigError

SLIDING, FULL = "sliding_attention", "full_attention"

# Keys that describe training, bookkeeping or other modalities: they cannot change the text of a text prompt.
WITHOUT_EFFECT = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "audio_config", "audio_token_id", "boa_token_id",
    "boa_token_index", "boi_token_id", "bos_token_id", "chunk_size_feed_forward", "dtype", "eoa_token_id",
    "eoa_token_index", "eoi_token_id", "id2label", "image_token_id", "initializer_range", "is_encoder_decoder",
    "label2id", "model_type", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type",
    "return_dict", "torch_dtype", "transformers_version", "use_cache", "video_token_id", "vision_config",
    "vision_soft_tokens_per_image",
})  # fmt: skip
TARGET_TYPES = {"gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"}
DRAFTER_TYPES = ("gemma4_assistant", "gemma4_unified_assistant")


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One decoder layer, every choice resolved. `rotated` counts the rotary pairs (j, j + head_dim/2) that turn."""

    window: int | None
    heads: int
    kv_heads: int
    head_dim: int
    k_eq_v: bool
    rope_theta: float
    rotated: int
    intermediate: int
    kv_layer: int

    @property
    def kind(self) -> str:
        """The name the checkpoint gives this kind of attention."""
        return FULL if self.window is None else SLIDING


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """The mixture of experts beside every dense MLP."""

    count: int
    active: int
    intermediate: int


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A Gemma 4 decoder: the target's, or the body of a drafter's."""

    vocab: int
    hidden: int
    layers: tuple[LayerConfig, ...]
    eps: float
    softcap: float | None
    max_positions: int
    ple_dim: int
    ple_vocab: int
    experts: ExpertsConfig | None
    eos_ids: tuple[int, ...]

    def owns_kv(self, index: int) -> bool:
        """Whether layer `index` computes keys and values of its own."""
        return self.layers[index].kv_layer == index

    @property
    def kv_owners(self) -> tuple[int, ...]:
        """The layers that hold a cache, in order."""
        return tuple(i for i in range(len(self.layers)) if self.owns_kv(i))

    def last_owner(self, kind: str) -> int:
        """The last layer of this kind with a cache: the one a drafter reads."""
        return max(i for i in self.kv_owners if self.layers[i].kind == kind)


@dataclass(frozen=True, kw_only=True)
class CentroidConfig:
    """The drafter's cheap head: score `count` clusters of tokens, look inside the best `active` only."""

    count: int
    active: int


@dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """An MTP assistant: four query-only layers over the target's keys and values."""

    text: TextConfig
    backbone_hidden: int
    centroids: CentroidConfig | None


class Keys:
    """Reads a mapping and remembers what was read, so that `finish` can refuse the rest."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where, self.read = data, where, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.data.get(key, default)

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; required without a default."""
        value = self.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ConfigError(f"{self.where}: {key} must be a positive integer, not {value!r}")
        return value

    def count(self, key: str) -> int:
        """An integer from 0 on; null and absent mean 0."""
        return self.size(key) if self.get(key) not in (None, 0) else 0

    def number(self, key: str, default: float) -> float:
        """A finite number; null and absent mean the default."""
        value = self.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"{self.where}: {key} must be a number, not {value!r}")
        return float(value)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ConfigError(f"{self.where}: {key} must be a token id or a list of them, not {value!r}")
        return tuple(ids)

    def table(self, key: str) -> dict[str, Any]:
        """A JSON object; null and absent mean an empty one."""
        value = self.get(key)
        if not isinstance(value, dict | None):
            raise ConfigError(f"{self.where}: {key} must be a JSON object, not {value!r}")
        return value or {}

    def only(self, key: str, supported: tuple[Any, ...], default: Any) -> Any:
        value = self.get(key, default)
        if value not in supported:
            choices = " or ".join(repr(s) for s in supported)
            raise ConfigError(f"{self.where}: {key} is {value!r}; Paceline supports {choices}")
        return value

    def finish(self) -> None:
        unknown = sorted(set(self.data) - self.read - WITHOUT_EFFECT)
        if unknown:
            raise ConfigError(f"{self.where}: unknown key {unknown[0]!r}; this version does not know what it changes")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or one clear sentence."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint folder needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def read_target(folder: Path) -> TextConfig:
    """The target's text configuration from `folder`/config.json, with or without its multimodal wrapper."""
    path = folder / "config.json"
    data = read_json(path)
    kind = data.get("model_type")
    if kind in DRAFTER_TYPES:
        raise CheckpointError(f"{folder} is a drafter ({kind}), not a target; give the checkpoint it drafts for")
    if kind in TARGET_TYPES:
        outer = Keys(data, str(path))
        text = outer.get("text_config")
        outer.only("tie_word_embeddings", (True,), True)
        eos = outer.get("eos_token_id")
        outer.finish()
        if not isinstance(text, dict):
            raise ConfigError(f"{path}: text_config is missing; Paceline runs the text part of the model")
        return parse_text({**text, **({"eos_token_id": eos} if eos is not None else {})}, f"{path} text_config")
    if kind in TARGET_TYPES.values():
        return parse_text(data, str(path))
    raise ConfigError(f"{path}: model_type {kind!r} is not a Gemma 4 text model")


def read_drafter(folder: Path) -> DrafterConfig:
    """An MTP assistant's configuration from `folder`/config.json."""
    path = folder / "config.json"
    data = read_json(path)
    if data.get("model_type") not in DRAFTER_TYPES:
        raise CheckpointError(f"{folder} is not an MTP drafter: its model_type is {data.get('model_type')!r}")
    return parse_drafter(data, str(path))


def parse_drafter(data: Mapping[str, Any], where: str) -> DrafterConfig:
    """The assistant a config describes."""
    keys = Keys(data, where)
    text_data = keys.get("text_config")
    if not isinstance(text_data, dict):
        raise ConfigError(f"{where}: text_config is missing")
    text = parse_text(text_data, f"{where} text_config", drafter=True)
    keys.only("tie_word_embeddings", (True,), True)
    keys.get("eos_token_id")
    count, active = keys.size("num_centroids", 2048), keys.size("centroid_intermediate_top_k", 32)
    centroids = None
    if keys.only("use_ordered_embeddings", (True, False), False):
        if text.vocab % count or active > count:
            raise ConfigError(
                f"{where}: num_centroids {count} must divide vocab_size {text.vocab}, top_k {active} fit it"
            )
        centroids = CentroidConfig(count=count, active=active)
    result = DrafterConfig(text=text, backbone_hidden=keys.size("backbone_hidden_size"), centroids=centroids)
    keys.finish()
    return result


def parse_text(data: Mapping[str, Any], where: str, drafter: bool = False) -> TextConfig:
    """The decoder of a text config. A drafter's layers own no keys and values; a target's first ones do."""
    keys = Keys(data, where)
    keys.only("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    keys.only("attention_bias", (False,), False)
    keys.only("tie_word_embeddings", (True,), True)
    # "vision" lets image tokens see each other; a text prompt has none.
    keys.only("use_bidirectional_attention", (None, "vision"), None)
    kinds = _layer_kinds(keys)
    # The unified models have no per-layer embeddings and no such key; elsewhere an absent key means 256.
    absent = 256 if data.get("model_type") == "gemma4_text" else 0
    ple_dim = keys.count("hidden_size_per_layer_input") if "hidden_size_per_layer_input" in data else absent
    result = TextConfig(
        vocab=keys.size("vocab_size"),
        hidden=keys.size("hidden_size"),
        layers=_layers(keys, kinds, drafter),
        eps=keys.number("rms_norm_eps", 1e-6),
        softcap=keys.number("final_logit_softcapping", 0.0) or None,
        max_positions=keys.size("max_position_embeddings", 131072),
        ple_dim=ple_dim,
        ple_vocab=keys.size("vocab_size_per_layer_input", 262144) if ple_dim else 0,
        experts=_experts(keys),
        eos_ids=keys.ids("eos_token_id"),
    )
    keys.get("vocab_size_per_layer_input")
    keys.finish()
    return result


def _layer_kinds(keys: Keys) -> list[str]:
    count = keys.size("num_hidden_layers")
    # Transformers' default when the list is absent: five sliding layers, then a full one.
    kinds = keys.get("layer_types") or [FULL if (i + 1) % 6 == 0 or i + 1 == count else SLIDING for i in range(count)]
    if not isinstance(kinds, list):
        raise ConfigError(f"{keys.where}: layer_types must be a list, not {kinds!r}")
    wrong = next((k for k in kinds if k not in (SLIDING, FULL)), None)
    if wrong is not None:
        raise ConfigError(f"{keys.where}: layer type {wrong!r} is not supported")
    if len(kinds) != count:
        raise ConfigError(f"{keys.where}: layer_types has {len(kinds)} entries for {count} layers")
    return kinds


def _layers(keys: Keys, kinds: list[str], drafter: bool) -> tuple[LayerConfig, ...]:
    shared = keys.count("num_kv_shared_layers")
    first_shared = len(kinds) - (0 if drafter else shared)
    heads, window = keys.size("num_attention_heads"), keys.size("sliding_window")
    intermediate = keys.size("intermediate_size")
    wide = 2 if keys.get("use_double_wide_mlp", False) else 1
    k_eq_v = bool(keys.get("attention_k_eq_v", False))
    geometry, rope = _geometry(keys, kinds, k_eq_v), {kind: _rope(keys, kind) for kind in (SLIDING, FULL)}
    layers = []
    for i, kind in enumerate(kinds):
        kv_heads, head_dim = geometry(i)
        theta, fraction = rope[kind]
        if heads % kv_heads:
            raise ConfigError(f"{keys.where}: {heads} attention heads cannot share {kv_heads} key/value heads")
        layers.append(
            LayerConfig(
                window=window if kind == SLIDING else None,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                k_eq_v=k_eq_v and kind == FULL,
                rope_theta=theta,
                rotated=int(fraction * head_dim // 2),
                intermediate=intermediate * (wide if i >= first_shared else 1),
                kv_layer=_owner(keys.where, kinds, i, first_shared),
            )
        )
    return tuple(layers)


def _owner(where: str, kinds: list[str], index: int, first_shared: int) -> int:
    if index < first_shared:
        return index
    owners = [j for j in range(first_shared) if kinds[j] == kinds[index]]
    if not owners:
        raise ConfigError(
            f"{where}: layer {index} shares keys and values, but no earlier {kinds[index]} layer owns any"
        )
    return owners[-1]


def _geometry(keys: Keys, kinds: list[str], k_eq_v: bool) -> Callable[[int], tuple[int, int]]:
    """(key/value heads, head size) of a layer, from either spelling."""
    kv_heads, head_dim = keys.size("num_key_value_heads"), keys.size("head_dim")
    full_dim, full_kv = keys.size("global_head_dim", 512), keys.count("num_global_key_value_heads")
    full = {"head_dim": full_dim, "num_key_value_heads": full_kv if k_eq_v and full_kv else kv_heads}
    overrides: dict[int, dict[str, int]] = {i: full for i, kind in enumerate(kinds) if kind == FULL}
    spelled = keys.get("per_layer_config")
    if spelled is not None:
        overrides = {i: _override(keys.where, i, o) for i, o in _items(keys.where, spelled)}

    def of(index: int) -> tuple[int, int]:
        own = overrides.get(index, {})
        return own.get("num_key_value_heads", kv_heads), own.get("head_dim", head_dim)

    return of


def _items(where: str, spelled: Any) -> list[tuple[int, Any]]:
    try:
        return [(int(i), o) for i, o in (spelled.items() if isinstance(spelled, dict) else enumerate(spelled))]
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: per_layer_config must name layers by number, not {spelled!r}") from None


def _override(where: str, index: int, override: Any) -> dict[str, int]:
    outer = Keys({str(index): override}, f"{where} per_layer_config")
    keys = Keys(outer.table(str(index)), f"{outer.where}.{index}")
    sizes = {key: keys.size(key) for key in ("head_dim", "num_key_value_heads") if key in keys.data}
    keys.finish()
    return sizes


def _rope(keys: Keys, kind: str) -> tuple[float, float]:
    """(theta, share of each head that turns). "Proportional" rope divides exponents by the whole head size."""
    default = {
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    }
    table = Keys(keys.table("rope_parameters"), f"{keys.where} rope_parameters")
    rope = Keys(table.table(kind) or default[kind], f"{keys.where} rope_parameters.{kind}")
    rope_type = rope.only("rope_type", ("default", "proportional"), "default")
    theta, factor = rope.number("rope_theta", 1e4), rope.number("partial_rotary_factor", 1.0)
    if theta <= 0 or not 0 <= factor <= 1:
        raise ConfigError(f"{rope.where}: rope_theta {theta} and partial_rotary_factor {factor} are out of range")
    if rope_type == "default" and factor != 1.0:
        raise ConfigError(f"{rope.where}: partial_rotary_factor {factor} needs rope_type 'proportional'")
    rope.finish()
    return theta, factor


def _experts(keys: Keys) -> ExpertsConfig | None:
    enabled = keys.get("enable_moe_block", False)
    # expert_intermediate_size: an older name of moe_intermediate_size, in E2B's and E4B's files, where it is null.
    for key in ("num_experts", "top_k_experts", "moe_intermediate_size", "expert_intermediate_size"):
        keys.get(key)
    if not enabled:
        return None
    return ExpertsConfig(
        count=keys.size("num_experts"),
        active=keys.size("top_k_experts"),
        intermediate=keys.size("moe_intermediate_size"),
    )
