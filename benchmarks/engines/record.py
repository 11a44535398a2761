"""Records what an engine's server really answers, as fixtures of the adapters' tests.

    python benchmarks/engines/record.py URL --engine llamacpp --version 1.2 --mtp on [--hide /models/dir] --out FILE

Asks a fixed list of questions: state pages, then completions and chats, streamed and whole, greedy, sampled and with
log-probabilities. Every exchange is kept as it came but for the folders named by --hide.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import httpx2

PAGES = (
    "/", "/health", "/version", "/v1/models", "/props", "/slots", "/metrics", "/api/version", "/server_info",
    "/prometheus/metrics",
)  # fmt: skip
KEEP_HEADERS = ("content-type", "server", "transfer-encoding")
QUESTION = [{"role": "user", "content": "How do I make a cup of tea?"}]
CODE = "def add(a, b):\n"
LONGEST_PAGE = 20_000
LONGEST_HTML = 300


# What the adapters ask for beyond the standard, all at once: servers pass over fields they do not know.
EVERYTHING = {
    "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "return_token_ids": True,
    "timings_per_token": True, "return_spec_tokens_details": True, "cache_prompt": False,
}  # fmt: skip


def main() -> None:
    """Reads the command line, asks everything, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--mtp", choices=["on", "off"], required=True)
    parser.add_argument("--greedy", action="store_true", help="ask for no sampling: it ends vLLM's engine on a CPU")
    parser.add_argument("--hide", default="", help="a folder to write as /models")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    # llama.cpp closes a connection after a stream without saying so: none is used again.
    alone = httpx2.Limits(max_keepalive_connections=0)
    with httpx2.Client(base_url=given.url, timeout=120, limits=alone) as client:
        exchanges = ask_everything(client, given.greedy)
    record = {
        "source": "recorded", "engine": given.engine, "version": given.version, "mtp": given.mtp == "on",
        "exchanges": exchanges,
    }  # fmt: skip
    text = json.dumps(record, indent=1, ensure_ascii=False)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text((text.replace(given.hide, "/models") if given.hide else text) + "\n")
    print(f"{given.out}: {len(exchanges)} exchanges, {given.out.stat().st_size} bytes")


def ask_everything(client: httpx2.Client, greedy: bool) -> list[dict[str, Any]]:
    """All exchanges, in order; state pages that the server does not have are kept as their 404."""
    exchanges = [exchange(client, "GET", page, None) for page in PAGES]
    listed = json.loads(next(e["body"] for e in exchanges if e["path"] == "/v1/models"))
    model = listed["data"][0]["id"]
    exchanges += [
        exchange(client, "POST", path, {"model": model, **body})
        for path, body in questions()
        if not (greedy and body.get("temperature"))
    ]
    exchanges.append(exchange(client, "POST", "/v1/chat/completions", {"model": "no-such-model", **chat()}))
    return exchanges + [{**exchange(client, "GET", page, None), "after": True} for page in ("/metrics", "/slots")]


def chat(**more: Any) -> dict[str, Any]:
    """A short chat, greedy."""
    return {"messages": QUESTION, "max_tokens": 24, "temperature": 0.0, **more}


def completion(**more: Any) -> dict[str, Any]:
    """A raw prompt, greedy."""
    return {"prompt": CODE, "max_tokens": 24, "temperature": 0.0, **more}


def questions() -> list[tuple[str, dict[str, Any]]]:
    """Path and body of each."""
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    sampled = {"temperature": 1.0, "top_p": 0.95, "top_k": 64, "seed": 7}
    return [
        ("/v1/chat/completions", chat()),
        ("/v1/chat/completions", chat(**usage)),
        ("/v1/chat/completions", chat(stream=True, **EVERYTHING)),
        ("/v1/chat/completions", chat(logprobs=True, top_logprobs=2)),
        ("/v1/chat/completions", chat(**usage, logprobs=True, top_logprobs=2)),
        ("/v1/chat/completions", chat(**sampled)),
        ("/v1/chat/completions", chat(ignore_eos=True)),
        ("/v1/completions", completion()),
        ("/v1/completions", completion(**usage)),
        ("/v1/completions", completion(logprobs=2)),
        ("/v1/completions", completion(**usage, logprobs=2)),
        ("/v1/completions", completion(max_tokens=1, logprobs=2)),
        ("/tokenize", {"messages": QUESTION}),
        ("/tokenize", {"prompt": "Plants are", "add_special_tokens": False}),
        ("/apply-template", {"messages": QUESTION}),
    ]


def exchange(client: httpx2.Client, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """One request and its answer; a stream as its lines."""
    with client.stream(method, path, json=body) as response:
        headers = {name: response.headers[name] for name in KEEP_HEADERS if name in response.headers}
        kept: dict[str, Any] = {"method": method, "path": path, "request": body, "status": response.status_code}
        kept["headers"] = headers
        if headers.get("content-type", "").startswith("text/event-stream"):
            kept["lines"] = list(response.iter_lines())
        else:
            text = response.read().decode("utf-8", "replace")
            cut = LONGEST_HTML if text.lstrip().startswith("<") else LONGEST_PAGE
            kept["body"] = trim_metrics(text) if path.endswith("metrics") else text[:cut]
    return kept


def trim_metrics(text: str) -> str:
    """Of a long Prometheus page, what is about drafting, tokens and the prefix cache."""
    words = ("spec", "_tokens", "prefix_cache", "accept", "draft")
    if text.startswith("{"):
        return text[:LONGEST_PAGE]
    return "\n".join(line for line in text.splitlines() if any(word in line for word in words) and "bucket" not in line)


if __name__ == "__main__":
    main()
