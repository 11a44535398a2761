"""llama.cpp's HTTP server out of the xllamacpp wheel, with the flags of `llama-server` that the benchmark uses.

    python xllamacpp_server.py -m target.gguf [-md drafter.gguf --spec-type draft-mtp --spec-draft-n-max 4] --port 8081

For machines without a compiler. Stops on SIGTERM and Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import threading

import xllamacpp


def main() -> None:
    """Serves until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-md", "--model-draft")
    parser.add_argument("--spec-type", choices=["none", "draft-mtp"], default="none")
    parser.add_argument("--spec-draft-n-max", type=int, default=3)
    parser.add_argument("-c", "--ctx-size", type=int, default=2048)
    parser.add_argument("-np", "--parallel", type=int, default=1)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--jinja", action="store_true")
    parser.add_argument("--metrics", action="store_true")
    server = xllamacpp.Server(parameters(parser.parse_args()))
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    stopping.wait()
    del server


def parameters(given: argparse.Namespace) -> xllamacpp.CommonParams:
    """The command line as the library wants it."""
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.n_ctx, params.n_parallel = given.ctx_size, given.parallel
    params.cpuparams.n_threads = given.threads
    params.hostnames, params.port = [given.host], given.port
    params.endpoint_metrics, params.use_jinja, params.endpoint_slots = given.metrics, given.jinja, True
    if given.spec_type == "draft-mtp":
        speculative = params.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        speculative.draft.mparams.path, speculative.draft.n_max = given.model_draft, given.spec_draft_n_max
    return params


if __name__ == "__main__":
    main()
