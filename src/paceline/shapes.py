"""The five published sizes as configurations without weights: for arithmetic, and for timing random weights.

A shape is spelled with the keys of the hub's config.json and goes through the same reader as a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from paceline.config import FULL, SLIDING, DrafterConfig, LayerConfig, TextConfig, parse_drafter, parse_text
from paceline.errors import UsageError

_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "eos_token_id": [1, 106],
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma4_text",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "tie_word_embeddings": True,
    "vocab_size": 262144,
}
# What the target and its drafter have in common, because the drafter reads the target's keys and values.
_ATTENTION: dict[str, dict[str, Any]] = {
    "e2b": {
        "attention_k_eq_v": False,
        "max_position_embeddings": 131072,
        "num_global_key_value_heads": None,
        "num_key_value_heads": 1,
        "sliding_window": 512,
    },
    "e4b": {
        "attention_k_eq_v": False,
        "max_position_embeddings": 131072,
        "num_global_key_value_heads": None,
        "num_key_value_heads": 2,
        "sliding_window": 512,
    },
    "12b": {
        "attention_k_eq_v": True,
        "max_position_embeddings": 262144,
        "model_type": "gemma4_unified_text",
        "num_global_key_value_heads": 1,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
        "use_bidirectional_attention": "vision",
    },
    "26b-a4b": {
        "attention_k_eq_v": True,
        "max_position_embeddings": 262144,
        "num_global_key_value_heads": 2,
        "num_key_value_heads": 8,
        "sliding_window": 1024,
        "use_bidirectional_attention": "vision",
    },
    "31b": {
        "attention_k_eq_v": True,
        "max_position_embeddings": 262144,
        "num_global_key_value_heads": 4,
        "num_key_value_heads": 16,
        "sliding_window": 1024,
        "use_bidirectional_attention": "vision",
    },
}
_TARGET: dict[str, dict[str, Any]] = {
    "e2b": {
        "hidden_size": 1536,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 6144,
        "layer_types": ([SLIDING] * 4 + [FULL]) * 7,
        "num_attention_heads": 8,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": 262144,
    },
    "e4b": {
        "hidden_size": 2560,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 10240,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 7,
        "num_attention_heads": 8,
        "num_kv_shared_layers": 18,
        "vocab_size_per_layer_input": 262144,
    },
    "12b": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 8,
        "num_attention_heads": 16,
        "num_kv_shared_layers": 0,
    },
    "26b-a4b": {
        "enable_moe_block": True,
        "hidden_size": 2816,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 5,
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_kv_shared_layers": 0,
        "top_k_experts": 8,
        "vocab_size_per_layer_input": 262144,
    },
    "31b": {
        "hidden_size": 5376,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 21504,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 10,
        "num_attention_heads": 32,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 262144,
    },
}
# hidden_size, intermediate_size and num_attention_heads of the drafters, and whether their head has centroids.
_DRAFTER = {
    "e2b": (256, 2048, 4, True),
    "e4b": (256, 2048, 4, True),
    "12b": (1024, 8192, 16, False),
    "26b-a4b": (1024, 8192, 16, False),
    "31b": (1024, 8192, 32, False),
}


@dataclass(frozen=True)
class Shape:
    """`target`: the text config of a target's config.json. `assistant`: the whole config.json of its drafter."""

    target: Mapping[str, Any]
    assistant: Mapping[str, Any]


def _target(name: str) -> dict[str, Any]:
    own = _TARGET[name]
    layers = {"final_logit_softcapping": 30.0, "num_hidden_layers": len(own["layer_types"])}
    return {**_COMMON, **_ATTENTION[name], **layers, **own}


def _assistant(name: str) -> dict[str, Any]:
    hidden, intermediate, heads, centroids = _DRAFTER[name]
    unified = _ATTENTION[name].get("model_type") == "gemma4_unified_text"
    text = {
        **_COMMON,
        **_ATTENTION[name],
        "final_logit_softcapping": None,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "layer_types": [SLIDING] * 3 + [FULL],
        "num_attention_heads": heads,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
        **({} if unified else {"hidden_size_per_layer_input": 0}),
    }
    return {
        "backbone_hidden_size": _TARGET[name]["hidden_size"],
        "centroid_intermediate_top_k": 32,
        "model_type": "gemma4_unified_assistant" if unified else "gemma4_assistant",
        "num_centroids": 2048,
        "text_config": text,
        "tie_word_embeddings": True,
        "use_ordered_embeddings": centroids,
    }


SHAPES: dict[str, Shape] = {name: Shape(_target(name), _assistant(name)) for name in _TARGET}


def target_config(name: str) -> TextConfig:
    """The target of that size; UsageError for a name that is not in SHAPES."""
    return parse_text(_shape(name).target, f"the shape {name}")


def drafter_config(name: str) -> DrafterConfig:
    """The MTP drafter of that size; UsageError for a name that is not in SHAPES."""
    return parse_drafter(_shape(name).assistant, f"the shape {name}'s drafter")


def size_of(config: TextConfig) -> str | None:
    """The published size whose layers, widths and vocabulary these are; None for any other model."""
    same = (name for name in SHAPES if (own := target_config(name)).layers == config.layers
            and (own.hidden, own.vocab, own.experts) == (config.hidden, config.vocab, config.experts))  # fmt: skip
    return next(same, None)


def _shape(name: str) -> Shape:
    if name not in SHAPES:
        raise UsageError(f"there is no published size {name!r}; choose {', '.join(SHAPES)}")
    return SHAPES[name]


def shorten(config: TextConfig, layers: int) -> TextConfig:
    """The same widths with fewer layers: as few whole periods of the sliding/full pattern as hold `layers` of them.

    Where layers share keys and values, owners and sharing layers keep their proportion, one period of each at least.
    Its drafter still fits, because that looks at widths alone. Raises UsageError below one layer.
    """
    if layers < 1:
        raise UsageError(f"a model has at least one layer, not {layers}")
    period = next(i for i, layer in enumerate(config.layers) if layer.window is None) + 1
    have, own = len(config.layers) // period, len(config.kv_owners) // period
    wanted = min(have, max(-(-layers // period), 1 if own == have else 2))
    owners = wanted if own == have else min(wanted - 1, max(1, round(wanted * own / have)))
    kept = config.layers[: owners * period] + config.layers[len(config.layers) - (wanted - owners) * period :]
    return replace(config, layers=tuple(_renumbered(kept, i, owners * period) for i in range(len(kept))))


def _renumbered(layers: tuple[LayerConfig, ...], index: int, owners: int) -> LayerConfig:
    """Layer `index`, reading its own keys and values or those of the last owner of its kind."""
    layer = layers[index]
    if index < owners:
        return replace(layer, kv_layer=index)
    return replace(layer, kv_layer=max(i for i in range(owners) if layers[i].kind == layer.kind))
