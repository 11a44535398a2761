"""Measures every engine that is installed under a folder, each started with and without its drafter.

    python benchmarks/engines/run_all.py ROOT [--only llamacpp,mlx] [--out benchmarks/results/engines] [-- bench flags]

ROOT holds a virtual environment for each engine (xllamacpp, mlx, vllm) and `pair`, as convert_pair.py writes it.
What stands after -- goes to `paceline bench`, for example --sample 12 --max-tokens 128. vLLM is measured greedily:
sampling with a drafter ends its engine on a CPU. One process after another; a failure does not stop the rest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DRAFTS = "4"


@dataclass(frozen=True, slots=True)
class Case:
    """One engine: its interpreter under the root, its checkpoints under `pair`, and what its profile changes."""

    engine: str
    venv: str | None
    target: str
    drafter: str
    profile: str = ""
    flags: tuple[str, ...] = ()


CASES = (
    Case("transformers", None, "target", "assistant"),
    Case(
        "llamacpp", "xllamacpp", "target.gguf", "assistant.gguf",
        '[llamacpp]\ncommand = ["{python}", "{here}/xllamacpp_server.py", "-m", "{{target}}", "--port", "{{port}}",'
        ' "--metrics", "--jinja"]\nenv = {{ OMP_WAIT_POLICY = "passive", GOMP_SPINCOUNT = "0" }}\n',
    ),
    Case(
        "mlx", "mlx", "target_vision", "assistant_block",
        '[mlx]\ncommand = ["{python}", "-m", "mlx_vlm.server", "--model", "{{target}}", "--host", "127.0.0.1",'
        ' "--port", "{{port}}"]\n',
    ),
    Case(
        "vllm", "vllm", "target", "assistant_plain",
        '[vllm]\ncommand = ["{python}", "-m", "vllm.entrypoints.openai.api_server", "--model", "{{target}}", "--host",'
        ' "127.0.0.1", "--port", "{{port}}", "--no-enable-prefix-caching", "--dtype", "float32", "--enforce-eager",'
        ' "--max-model-len", "2048", "--max-num-seqs", "4"]\nenv = {{ VLLM_CPU_KVCACHE_SPACE = "1",'
        ' VLLM_CPU_OMP_THREADS_BIND = "nobind", HF_HUB_OFFLINE = "1", VLLM_NO_USAGE_STATS = "1" }}\n',
        flags=("--temperature", "0"),
    ),
)  # fmt: skip


def main() -> int:
    """Runs the cases; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--only", default=",".join(case.engine for case in CASES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines"))
    known, more = parser.parse_known_args()
    known.out.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in CASES if case.engine in known.only.split(",")]
    failed = [case.engine for case in chosen if run(case, known.root.absolute(), known.out, more) != 0]
    print(f"{len(chosen) - len(failed)} engines measured; failed: {', '.join(failed) or 'none'}")
    return len(failed)


def run(case: Case, root: Path, out: Path, more: Sequence[str]) -> int:
    """One engine's benchmark in a process of its own."""
    pair = root / "pair"
    flags = [
        "--engine", case.engine, "--target", str(pair / case.target), "--drafter", str(pair / case.drafter),
        "--k", DRAFTS, "--out", str(out / f"{case.engine}.json"),
        *(() if "--temperature" in more else case.flags), *(word for word in more if word != "--"),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if case.venv:
            profile = Path(folder) / "profile.toml"
            python = root / case.venv / "bin" / "python"
            profile.write_text(case.profile.format(python=python, here=HERE.absolute()))
            flags += ["--engine-profile", str(profile)]
        print(f"== {case.engine}", flush=True)
        return subprocess.run([sys.executable, "-m", "paceline.cli", "bench", *flags]).returncode


if __name__ == "__main__":
    sys.exit(main())
