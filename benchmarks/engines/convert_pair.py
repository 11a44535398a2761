"""Writes the embedded pair (or any pair) in the shapes other engines read, all in fp32.

    python benchmarks/engines/convert_pair.py OUT [--pair FOLDER] [--block K+1] [--converter convert_hf_to_gguf.py]

    OUT/target             Gemma4ForCausalLM                            transformers, vLLM
    OUT/assistant          with its centroid head                       transformers
    OUT/assistant_plain    the head over the whole vocabulary           vLLM on a CPU, which captures a CUDA graph for
                                                                        centroids
    OUT/target_vision      Gemma4ForConditionalGeneration, one random   mlx-vlm, which hands hidden states to a drafter
                           vision layer that nothing uses               from this class alone
    OUT/assistant_block    block_size in config.json                    mlx-vlm, which takes more than 3 drafts a round
                                                                        only where the checkpoint says so
    OUT/target.gguf, OUT/assistant.gguf                                 llama.cpp, with --converter of its sources

fp32, because engines that round to bf16 in other places break ties in other ways: texts can be compared here.
Needs transformers 5.22.2 and torch; the converter brings its own demands.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import paceline

PAIR = Path(paceline.__file__).parent / "assets" / "pair"
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64, "max_position_embeddings": 256,
}  # fmt: skip
# mlx-vlm hands every message over as a list of parts, which the pair's own template would print as Python.
CONTENT = "message['content'] | trim"
CONTENT_OR_PARTS = (
    "(message['content'] if message['content'] is string"
    " else message['content'] | map(attribute='text') | join('')) | trim"
)


def main() -> None:
    """Reads the command line and writes every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pair", type=Path, default=PAIR, help="folder with target/ and assistant/")
    parser.add_argument("--block", type=int, default=6, help="drafts a round plus one, for mlx-vlm")
    parser.add_argument("--converter", type=Path, help="convert_hf_to_gguf.py of llama.cpp's sources")
    parser.add_argument("--converter-python", default=sys.executable, help="an interpreter that can run it")
    given = parser.parse_args()
    write_shapes(given.pair, given.out, given.block)
    if given.converter:
        for name in ("target", "assistant"):
            to_gguf([given.converter_python, str(given.converter)], given.out / name, given.out / f"{name}.gguf")


def write_shapes(pair: Path, out: Path, block: int) -> None:
    """Everything but GGUF."""
    target, assistant = read(pair / "target"), read(pair / "assistant")
    write(out / "target", pair / "target", *target)
    write(out / "assistant", pair / "assistant", *assistant)
    write(out / "assistant_plain", pair / "assistant", *without_centroids(*assistant))
    config, tensors = assistant
    write(out / "assistant_block", pair / "assistant", {**config, "block_size": block}, tensors)
    write_with_vision(out / "target", out / "target_vision")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and tensors, floating ones as fp32."""
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("text_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    tensors = load_file(folder / "model.safetensors")
    return config, {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def without_centroids(
    config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The same drafter, its head over the whole vocabulary: other guesses where the centroids missed the best token."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("masked_embedding.")}
    return {**config, "use_ordered_embeddings": False}, kept


def write(folder: Path, source: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """A checkpoint folder with the tokenizer of `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    for name in BESIDE:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)


def write_with_vision(source: Path, folder: Path) -> None:
    """The target with a vision tower, as the published checkpoints are laid out."""
    from transformers import Gemma4Config, Gemma4ForCausalLM, Gemma4ForConditionalGeneration, Gemma4VisionConfig

    text = Gemma4ForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(0)
    ids = {"boi_token_id": 92, "eoi_token_id": 93, "image_token_id": 94, "video_token_id": 95, "boa_token_id": 96,
           "eoa_token_index": 97, "audio_token_id": 98}  # fmt: skip
    config = Gemma4Config(text_config=text.config, vision_config=Gemma4VisionConfig(**VISION), audio_config=None, **ids)
    whole = Gemma4ForConditionalGeneration(config).float()
    whole.model.language_model.load_state_dict(text.model.state_dict(), strict=True)
    whole.tie_weights()
    whole.generation_config = text.generation_config
    whole.save_pretrained(folder)
    _use_classic_text_config(folder / "config.json", source / "config.json")
    for name in BESIDE:
        shutil.copy(source / name, folder / name)
    template = (source / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace(CONTENT, CONTENT_OR_PARTS))


def _use_classic_text_config(path: Path, source: Path) -> None:
    """Transformers 5.22 saves head sizes by layer; published checkpoints, and mlx-vlm, have `global_head_dim`."""
    config = json.loads(path.read_text())
    config["text_config"] = json.loads(source.read_text())
    path.write_text(json.dumps(config, indent=1) + "\n")


def to_gguf(converter: list[str], folder: Path, out: Path) -> None:
    """Calls llama.cpp's own converter; its centroid head is dropped there."""
    subprocess.run([*converter, str(folder), "--outtype", "f32", "--outfile", str(out)], check=True)


if __name__ == "__main__":
    main()
