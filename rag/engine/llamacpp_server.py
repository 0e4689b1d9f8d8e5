"""llama.cpp's own HTTP server, by xllamacpp, in a process of its own.

    python -m rag.engine.llamacpp_server FILE.gguf --port 8000

It answers as OpenAI's API does. LLAMA_API_KEY is asked of clients if it is set.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    asked = _parser().parse_args(arguments)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked.model
    params.model_alias = {asked.alias}
    params.hostnames = [asked.host]
    params.port = asked.port
    params.n_parallel = asked.parallel
    params.n_ctx = asked.context_tokens * asked.parallel  # llama.cpp divides it by n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    params.cache_ram_mib = 0  # prompts kept beside the KV cache: by default up to 8 GiB more
    params.fit_params = False  # the context stays as asked
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it shows the questions of others
    params.ui = False
    if key := os.environ.pop("LLAMA_API_KEY", ""):
        params.api_keys = [key]
    server = xllamacpp.Server(params)
    print(f"llama.cpp listens at {server.listening_address}", flush=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rag.engine.llamacpp_server")
    parser.add_argument("model")
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--threads", type=int, default=-1)
    return parser


if __name__ == "__main__":
    main()
