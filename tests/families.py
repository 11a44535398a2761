"""Tiny Gemma 4 checkpoints, one pair of target and drafter per published size, made and run by Transformers.

They are the outside oracle: nothing here imports Paceline. Weights are random but not degenerate. Norms, layer scalars
and router scales differ from one, so leaving any of them out shows in the logits. The drafter's head is fitted to the
target's own greedy text, so that rounds with none, some and all drafts accepted occur.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

S, F = "sliding_attention", "full_attention"
WINDOW = 8
VOCAB = 256
EOS = [1, 106, 50]  # what the published generation configs hold
HIDDEN, DRAFTER_HIDDEN = 64, 48
DRAFTS = 4
PROMPT = random.Random(0).sample([i for i in range(3, VOCAB) if i not in EOS], 40)
NEW = 200
SEEDS = {"26b-a4b": 10}  # chosen for greedy texts that wander; any other seed is as right
PLAIN = ("e4b", "31b")  # saved as text-only checkpoints; the others with the towers the hub's files carry

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()

ROPE = {
    S: {"rope_type": "default", "rope_theta": 10000.0},
    F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": WINDOW,
    "max_position_embeddings": 4096,
    "rope_parameters": ROPE,
}
PLE = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
NO_PLE = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCAB}
K_IS_V = {"attention_k_eq_v": True, "use_bidirectional_attention": "vision"}
MOE = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24}

# Per size: layer pattern, key/value heads of sliding layers, of full layers (None: the same), and what sets it apart.
SHAPES: dict[str, tuple[list[str], int, int | None, dict[str, Any]]] = {
    "e2b": ([S, S, F, S, S, F, S, S, F], 1, None, {**PLE, "num_kv_shared_layers": 4, "use_double_wide_mlp": True}),
    "e4b": ([S, S, S, S, S, F] * 2, 2, None, {**PLE, "num_kv_shared_layers": 5}),
    "12b": ([S, S, S, S, S, F], 4, 1, K_IS_V),
    "26b-a4b": ([S, S, F, S, S, F], 4, 2, {**NO_PLE, **K_IS_V, **MOE}),
    "31b": ([S, S, S, S, S, F], 4, 2, {**NO_PLE, **K_IS_V}),
}
FAMILIES = tuple(SHAPES)
CENTROIDS = ("e2b", "e4b")


@dataclass(frozen=True)
class Pair:
    """The two checkpoint folders of one family, and the target's greedy text after PROMPT (prompt included)."""

    name: str
    target: Path
    assistant: Path
    text: list[int]


# ---- configs --------------------------------------------------------------------------------------------------------


def text_config(name: str) -> Any:
    """The target's text config."""
    layers, heads, global_heads, extra = SHAPES[name]
    kind = tf.Gemma4UnifiedTextConfig if name == "12b" else tf.Gemma4TextConfig
    return kind(
        **COMMON,
        **extra,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=len(layers),
        layer_types=list(layers),
        num_key_value_heads=heads,
        num_global_key_value_heads=global_heads,
        final_logit_softcapping=30.0,
    )


def assistant_config(name: str) -> Any:
    """The drafter's config: three sliding layers and a full one, all of them over the target's keys and values."""
    _, heads, global_heads, extra = SHAPES[name]
    unified = name == "12b"
    shape = {} if unified else {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    text = (tf.Gemma4UnifiedTextConfig if unified else tf.Gemma4TextConfig)(
        **COMMON,
        **shape,
        hidden_size=DRAFTER_HIDDEN,
        intermediate_size=64,
        num_hidden_layers=4,
        num_kv_shared_layers=4,
        layer_types=[S, S, S, F],
        num_key_value_heads=heads,
        num_global_key_value_heads=global_heads,
        attention_k_eq_v=extra.get("attention_k_eq_v", False),
    )
    head = {"num_centroids": 16, "centroid_intermediate_top_k": 4}
    return (tf.Gemma4UnifiedAssistantConfig if unified else tf.Gemma4AssistantConfig)(
        text_config=text, backbone_hidden_size=HIDDEN, use_ordered_embeddings=name in CENTROIDS, **head
    )


def vision_config() -> Any:
    return tf.Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        position_embedding_size=16,
        patch_size=4,
    )


def make_target(name: str) -> Any:
    """The target model, in the class whose file layout the published checkpoint of that size has."""
    text = text_config(name)
    if name in PLAIN:
        return tf.Gemma4ForCausalLM(text)
    if name != "12b":
        return tf.Gemma4ForConditionalGeneration(
            tf.Gemma4Config(text_config=text, vision_config=vision_config(), audio_config=None)
        )
    vision = tf.Gemma4UnifiedVisionConfig(
        patch_size=2, pooling_kernel_size=2, mm_embed_dim=HIDDEN, mm_posemb_size=4, output_proj_dims=HIDDEN
    )
    audio = tf.Gemma4UnifiedAudioConfig(audio_embed_dim=8)
    return tf.Gemma4UnifiedForConditionalGeneration(
        tf.Gemma4UnifiedConfig(text_config=text, vision_config=vision, audio_config=audio)
    )


def make_assistant(name: str) -> Any:
    kind = tf.Gemma4UnifiedAssistantForCausalLM if name == "12b" else tf.Gemma4AssistantForCausalLM
    return kind(assistant_config(name))


# ---- weights --------------------------------------------------------------------------------------------------------


def _uniform(p: Tensor, low: float, high: float) -> Tensor:
    return torch.rand_like(p) * (high - low) + low


def _random_weight(name: str, p: Tensor) -> Tensor:
    """A random value for the named weight, at the scale at which every part of the model moves the logits."""
    if name.endswith("layer_scalar"):
        return _uniform(p, 0.7, 1.1)
    if name.endswith(("router.scale", "per_expert_scale")):
        return _uniform(p, 0.5, 1.5)
    if "k_norm" in name:
        return _uniform(p, 0.3, 0.7)  # attention is not scaled down: larger keys would look at one entry only
    if name.endswith(("model.norm.weight", "language_model.norm.weight")):
        return 3 * _uniform(p, 0.5, 1.5)  # logits large enough for the soft cap to bend them
    if "post_per_layer_input" in name:
        return _uniform(p, 0.1, 0.4)
    if "post_" in name and "norm" in name:
        return _uniform(p, 0.3, 0.8)  # larger, and rounding grows so much over the layers that 1e-4 cannot be asked for
    if "norm" in name:
        return _uniform(p, 0.5, 1.5)
    if "embed_tokens" in name:
        return torch.randn_like(p) * 0.08
    gain = 8.0 if "router.proj" in name else 1.0
    return torch.randn_like(p) * gain * p.shape[-1] ** -0.5


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Overwrite every weight, with a generator of its own so that families do not depend on each other's order."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, p in sorted({**dict(model.named_parameters()), **_scalars(model)}.items()):
            p.copy_(_random_weight(name, p))
        table = model.get_input_embeddings().weight
        table[EOS] *= 0.01  # logits near zero: greedy text never ends by itself, with whichever engine
        embedder = getattr(model, "masked_embedding", None)
        if embedder is not None:
            embedder.token_ordering.copy_(torch.randperm(VOCAB))
    model.tie_weights()


def _scalars(model: Any) -> dict[str, Tensor]:
    return {k: b for k, b in model.named_buffers() if k.endswith("layer_scalar")}


def fit_head(target: Any, assistant: Any, ids: list[int]) -> None:
    """Least squares of the drafter's head on one text of the target's, so that a share of drafts comes out right."""
    y, wanted = _teacher_forced(Oracle(target, assistant), ids)
    with torch.no_grad():
        assistant.model.embed_tokens.weight.copy_(8 * _ridge(y, wanted, VOCAB))
        embedder = assistant.masked_embedding
        if embedder is not None:
            cluster = torch.empty(VOCAB, dtype=torch.long)
            cluster[embedder.token_ordering] = torch.arange(VOCAB) // embedder.vocab_size_per_centroid
            embedder.centroids.weight.copy_(8 * _ridge(y, cluster[wanted], embedder.num_centroids))


@torch.no_grad()
def _teacher_forced(run: "Oracle", ids: list[int]) -> tuple[Tensor, Tensor]:
    """The drafter's last hidden states over rounds of two drafts at every position, and the tokens they should name."""
    starts, tokens = list(range(WINDOW, len(ids) - 2)), torch.tensor(ids)
    at = torch.tensor(starts)
    kv = {k: (_prefixes(a, starts), _prefixes(b, starts)) for k, (a, b) in run.shared_kv(ids).items()}
    mask = _prefixes(torch.ones(1, 1, len(ids), 1), starts)[:, 0, :, 0].long()
    states: list[Tensor] = []
    grab = run.assistant.model.norm.register_forward_hook(lambda _m, _i, out: states.append(out[:, 0]))
    h = run.hidden_states(ids)[at - 1]
    for step in range(2):
        x = torch.cat([run.target.get_input_embeddings()(tokens[at + step]), h], -1)[:, None]
        out = run.assistant(inputs_embeds=x, position_ids=at[:, None], shared_kv_states=kv, attention_mask=mask)
        h = out.last_hidden_state[:, 0]
    grab.remove()
    return torch.cat(states), torch.cat([tokens[at + 1], tokens[at + 2]])


def _prefixes(x: Tensor, lengths: list[int]) -> Tensor:
    """The first n entries along axis 2 for every n in lengths, as one batch padded on the left."""
    width = max(lengths)
    return torch.cat([torch.nn.functional.pad(x[:, :, :n], (0, 0, width - n, 0)) for n in lengths])


def _ridge(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Rows w_c for which x @ w_c is near one where the label is c and near zero elsewhere. [classes, width]"""
    gram = x.T @ x + 0.1 * x.pow(2).mean() * torch.eye(x.shape[1])
    w = torch.linalg.solve(gram, x.T @ torch.nn.functional.one_hot(labels, classes).float()).T
    return w + 1e-3 * w.std() * torch.randn_like(w)  # no exact ties among the classes never seen


# ---- files ----------------------------------------------------------------------------------------------------------


def build(name: str, root: Path) -> Pair:
    """Write the family's target and assistant under `root` in the hub's layout."""
    seed = SEEDS.get(name, 20)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        target, assistant = make_target(name).eval(), make_assistant(name).eval()
        randomise(target, seed + 1)
        randomise(assistant, seed + 2)
        pair = Pair(name, root / name / "target", root / name / "assistant", Oracle(target, assistant).greedy(NEW))
        fit_head(target, assistant, pair.text)
    _save(target, pair.target, {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}, name == "26b-a4b")
    _save(assistant, pair.assistant, {"num_assistant_tokens": DRAFTS, "num_assistant_tokens_schedule": "constant"})
    if name == "e2b":
        _add_unused_kv(pair.target)
    return pair


def _save(model: Any, folder: Path, generation: dict[str, Any], sharded: bool = False) -> None:
    model.generation_config = tf.GenerationConfig(bos_token_id=2, eos_token_id=EOS, pad_token_id=0, **generation)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=int(size * 0.6) if sharded else "5GB")
    hub_spelling(folder)


def _add_unused_kv(folder: Path) -> None:
    """Published E2B and E4B files still hold the key/value weights of layers that reuse another layer's."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    path, first = folder / "model.safetensors", text["num_hidden_layers"] - text["num_kv_shared_layers"]
    tensors = load_file(path)
    for i in range(first, text["num_hidden_layers"]):
        dim = text["global_head_dim"] if text["layer_types"][i] == F else text["head_dim"]
        at = f"model.language_model.layers.{i}.self_attn."
        for key in ("k_proj", "v_proj"):
            tensors[f"{at}{key}.weight"] = torch.randn(text["num_key_value_heads"] * dim, text["hidden_size"])
        tensors[f"{at}k_norm.weight"] = torch.rand(dim) + 0.5
    save_file(tensors, path, metadata={"format": "pt"})


# ---- the two spellings of config.json -------------------------------------------------------------------------------


def _edit_text_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config.get("text_config", config))
    path.unlink()  # the folder may be a copy made of hard links
    path.write_text(json.dumps(config, indent=2))


def hub_spelling(folder: Path) -> None:
    """Rewrite config.json as the hub has it: `global_head_dim` and `num_global_key_value_heads`."""

    def edit(text: dict[str, Any]) -> None:
        layers = text.pop("per_layer_config", {})
        full = next(iter(layers.values()), {})
        text["global_head_dim"] = full.get("head_dim", text["head_dim"])
        text["num_global_key_value_heads"] = full.get("num_key_value_heads")
        if text.get("moe_intermediate_size", 0) is None:
            text["expert_intermediate_size"] = text.pop("moe_intermediate_size")  # an older name, still in E2B's file
        text["dtype"] = "float32"

    _edit_text_config(folder, edit)


def per_layer_spelling(folder: Path) -> None:
    """Rewrite config.json as Transformers 5.21 and later save it: overrides by layer index, keys padded with zeros."""

    def edit(text: dict[str, Any]) -> None:
        wanted = {
            "head_dim": text.pop("global_head_dim"),
            "num_key_value_heads": text.pop("num_global_key_value_heads"),
        }
        full = {k: v for k, v in wanted.items() if v not in (None, text[k])}
        at = [i for i, kind in enumerate(text["layer_types"]) if kind == F]
        text["per_layer_config"] = {f"{i:0{len(str(at[-1]))}}": dict(full) for i in at} if full else {}
        if "expert_intermediate_size" in text:
            text["moe_intermediate_size"] = text.pop("expert_intermediate_size")

    _edit_text_config(folder, edit)


# ---- the oracle -----------------------------------------------------------------------------------------------------


def load_target(folder: Path) -> Any:
    """The target as Transformers reads it from disk, in the class its config names."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(tf, kind).from_pretrained(folder).eval()


KV = dict[str, tuple[Tensor, Tensor]]


class Oracle:
    """What Transformers computes for one family; everything is batch one and comes back without the batch axis."""

    def __init__(self, target: Any, assistant: Any) -> None:
        self.target, self.assistant = target, assistant

    @classmethod
    def load(cls, pair: Pair) -> "Oracle":
        return cls(load_target(pair.target), load_target(pair.assistant))

    @torch.no_grad()
    def _run(self, ids: Iterable[int], **options: Any) -> Any:
        return self.target(input_ids=torch.tensor([list(ids)]), **options)

    def prefill_logits(self, ids: list[int]) -> Tensor:
        """Logits of every position, without a cache. [len(ids), vocabulary]"""
        return self._run(ids, use_cache=False).logits[0]

    def decode_logits(self, ids: list[int], prompt: int) -> Tensor:
        """Prefill ids[:prompt], then feed the rest one at a time; logits after the prefill and after each."""
        out = self._run(ids[:prompt], use_cache=True)
        rows = [out.logits[0, -1]]
        for token in ids[prompt:]:
            out = self._run([token], use_cache=True, past_key_values=out.past_key_values)
            rows.append(out.logits[0, -1])
        return torch.stack(rows)

    def hidden_states(self, ids: list[int]) -> Tensor:
        """Hidden states after the final norm: what the drafter is fed. [len(ids), hidden]"""
        return self._run(ids, use_cache=False, output_hidden_states=True).hidden_states[-1][0]

    def shared_kv(self, ids: list[int]) -> KV:
        """Keys and values of every position of the two layers the drafter reads. [1, heads, len(ids), head_dim]"""
        return dict(self._run(ids, use_cache=False, return_shared_kv_states=True).shared_kv_states)

    def embed(self, token: int) -> Tensor:
        return self.target.get_input_embeddings()(torch.tensor([[token]]))[0, 0].detach()

    @torch.no_grad()
    def draft(self, token: int, hidden: Tensor, position: int, kv: KV) -> tuple[Tensor, Tensor]:
        """One drafter step: its logits and the hidden state that feeds the next step."""
        x = torch.cat([self.embed(token), hidden])[None, None]
        out = self.assistant(inputs_embeds=x, position_ids=torch.tensor([[position]]), shared_kv_states=kv)
        return out.logits[0, 0], out.last_hidden_state[0, 0]

    @torch.no_grad()
    def greedy(self, new: int, assisted: bool = False) -> list[int]:
        """PROMPT and `new` greedy tokens. No token ends the text: what it would stop at is not the matter here."""
        config = tf.GenerationConfig(do_sample=False, max_new_tokens=new, pad_token_id=0, bos_token_id=2)
        drafting = tf.GenerationConfig(num_assistant_tokens=DRAFTS, num_assistant_tokens_schedule="constant")
        ids = torch.tensor([PROMPT])
        more = {"assistant_model": self.assistant} if assisted else {}
        # A config that is passed still inherits what it leaves open from the model's own, the end tokens among it.
        with _generation_config(self.target, config), _generation_config(self.assistant, drafting):
            out = self.target.generate(ids, attention_mask=torch.ones_like(ids), **more)
        return out[0].tolist()


@contextmanager
def _generation_config(model: Any, config: Any) -> Iterator[None]:
    old, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = old
