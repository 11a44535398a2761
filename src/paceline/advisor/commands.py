"""How to run a choice, in Paceline and in other engines: their flags as their documents and sources have them.

Checkpoint names in angle brackets are the user's to fill in: quantised releases go by many names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

HUB = {"e2b": "E2B", "e4b": "E4B", "12b": "12B", "26b-a4b": "26B-A4B", "31b": "31B"}
W4A16 = {"e2b", "e4b", "12b", "31b"}  # Google publishes no 4-bit compressed-tensors release of 26B-A4B


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to run: k 0 is without a drafter; precision as in `memory.PRECISIONS`; kind of machine."""

    size: str
    precision: str
    k: int
    batch: int
    context: int
    kind: str
    int8_head: bool = False

    @property
    def hub(self) -> str:
        """The target's name on the hub."""
        return f"google/gemma-4-{HUB[self.size]}-it"


def commands(setup: Setup) -> dict[str, str]:
    """Engine name to command, for the engines that serve this kind of machine, precision and batch."""
    found = ((name, make(setup)) for name, make in ENGINES.items())
    return {name: command for name, command in found if command}


def _paceline(s: Setup) -> str:
    if s.precision != "bf16" or s.kind not in ("cuda", "cpu", "any"):
        return ""
    device = f"--device cuda --context {s.context} --sequences {s.batch}" if s.kind != "cpu" else "--device cpu"
    head = " --draft-weights int8-head" if s.int8_head and s.k and s.kind != "cpu" else ""
    return f"paceline chat --target {s.hub} {f'--k {s.k}' if s.k else '--drafter none'} {device}{head}"


def _checkpoint(s: Setup) -> str:
    """Target and quantisation flags of vLLM and SGLang; empty where there is nothing to name."""
    if s.precision == "4.5 bit":
        return f"google/gemma-4-{HUB[s.size]}-it-qat-w4a16-ct" if s.size in W4A16 else ""
    return s.hub + (" --quantization fp8" if s.precision == "8 bit" else "")


def _vllm(s: Setup) -> str:
    target = _checkpoint(s)
    if s.kind not in ("cuda", "rocm", "any") or not target:
        return ""
    # Without a length vLLM drafts one token, and without the method it takes the drafter for a whole model.
    spec = f'{{"method":"mtp","model":"{s.hub}-assistant","num_speculative_tokens":{s.k}}}'
    limits = f"--max-model-len {s.context} --max-num-seqs {s.batch}"
    return f"vllm serve {target} {limits}" + (f" --speculative-config '{spec}'" if s.k else "")


def _sglang(s: Setup) -> str:
    target = _checkpoint(s)
    if s.kind not in ("cuda", "any") or not target:
        return ""
    steps = min(s.k, 3) if s.batch > 1 else s.k  # longer chains were reported to corrupt text side by side (#32666)
    spec = (
        f" --speculative-algorithm NEXTN --speculative-draft-model-path {s.hub}-assistant"
        f" --speculative-num-steps {steps} --speculative-num-draft-tokens {steps + 1} --speculative-eagle-topk 1"
    )
    if s.size == "26b-a4b":
        spec = "  # without its drafter, for which SGLang's guide asks for two GPUs (--tp 2)"
    limits = f"--context-length {s.context} --max-running-requests {s.batch} --mem-fraction-static 0.85"
    return f"sglang serve --model-path {target} {limits}" + (spec if s.k else "")


def _llama_cpp(s: Setup) -> str:
    spec = f" -md <drafter.gguf> --spec-type draft-mtp --spec-draft-n-max {s.k}" if s.k else ""
    bits = {"bf16": "BF16", "8 bit": "Q8_0", "4.5 bit": "Q4_0"}[s.precision]
    return f"llama-server -m <gemma-4-{HUB[s.size]}-{bits}.gguf> -c {s.context * s.batch} -np {s.batch}{spec}"


def _ollama(s: Setup) -> str:
    if s.kind == "phone":
        return ""
    lines = [f"FROM <gemma-4-{HUB[s.size]}.gguf>", f"PARAMETER num_ctx {s.context}"]
    lines += ["DRAFT <drafter.gguf>", f"PARAMETER draft_num_predict {s.k}"] if s.k else []
    parallel = f"; and start it with OLLAMA_NUM_PARALLEL={s.batch} ollama serve" if s.batch > 1 else ""
    return "ollama create my-gemma -f Modelfile, with these lines in it: " + "; ".join(lines) + parallel


def _mlx(s: Setup) -> str:
    if s.kind != "apple":
        return ""
    # A block counts the token that anchors it.
    spec = f" --draft-model <mlx drafter> --draft-kind mtp --draft-block-size {s.k + 1}" if s.k else ""
    return f"mlx_vlm.server --model <mlx gemma-4-{HUB[s.size]}-it, {s.precision}>{spec}"


def _transformers(s: Setup) -> str:
    if s.precision != "bf16" or s.batch > 1 or s.kind not in ("cuda", "cpu", "rocm", "any"):
        return ""
    if not s.k:
        return "model.generate(**inputs)"
    return (
        f'assistant = AutoModelForCausalLM.from_pretrained("{s.hub}-assistant");'
        f" assistant.generation_config.num_assistant_tokens = {s.k};"
        " model.generate(**inputs, assistant_model=assistant)  # 5.22.2; 5.23.0 cannot run these drafters"
    )


ENGINES: dict[str, Callable[[Setup], str]] = {
    "Paceline": _paceline,
    "vLLM": _vllm,
    "SGLang": _sglang,
    "llama.cpp": _llama_cpp,
    "Ollama": _ollama,
    "MLX": _mlx,
    "Transformers": _transformers,
}
