"""The shape of the embedded pair: E2B's features at about a seven-hundredth of its size, spelled as the hub does."""

from __future__ import annotations

from typing import Any

_SLIDING, _FULL = "sliding_attention", "full_attention"
_ROPE = {
    _FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    _SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
}
_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "bos_token_id": 2,
    "enable_moe_block": False,
    "eos_token_id": [1, 106, 50],
    "global_head_dim": 128,
    "head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "model_type": "gemma4_text",
    "moe_intermediate_size": None,
    "num_attention_heads": 2,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": _ROPE,
    "sliding_window": 128,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_cache": True,
}


def target_config(vocab: int) -> dict[str, Any]:
    """config.json of the target. Deep and thin, so that a 4-layer drafter is as cheap beside it as E2B's is."""
    return {
        **_COMMON,
        "architectures": ["Gemma4ForCausalLM"],
        "dtype": "bfloat16",
        "final_logit_softcapping": 30.0,
        "hidden_size": 256,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 128,
        "layer_types": ([_SLIDING] * 4 + [_FULL]) * 4,
        "num_hidden_layers": 20,
        "num_kv_shared_layers": 10,
        "use_double_wide_mlp": True,
        "vocab_size": vocab,
        "vocab_size_per_layer_input": vocab,
    }


def drafter_config(vocab: int) -> dict[str, Any]:
    """config.json of the MTP assistant, with the centroid head that E2B's and E4B's have."""
    text = {
        **_COMMON,
        "final_logit_softcapping": None,
        "hidden_size": 96,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 256,
        "layer_types": [_SLIDING] * 3 + [_FULL],
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": False,
        "vocab_size": vocab,
        "vocab_size_per_layer_input": 0,
    }
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "backbone_hidden_size": 256,
        "centroid_intermediate_top_k": 8,
        "dtype": "bfloat16",
        "model_type": "gemma4_assistant",
        "num_centroids": 64,
        "text_config": text,
        "tie_word_embeddings": True,
        "use_ordered_embeddings": True,
    }


TARGET_GENERATION: dict[str, Any] = {
    "bos_token_id": 2,
    "do_sample": True,
    "eos_token_id": [1, 106, 50],
    "pad_token_id": 0,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
}
DRAFTER_GENERATION: dict[str, Any] = {
    "assistant_confidence_threshold": 0.4,
    "bos_token_id": 2,
    "eos_token_id": [1, 106, 50],
    "is_assistant": True,
    "num_assistant_tokens": 5,
    "num_assistant_tokens_schedule": "constant",
    "pad_token_id": 0,
}
