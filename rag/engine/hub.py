"""A model by what a person calls it: a folder, a .gguf file, or a name on the Hugging Face hub.

Of the last it is read from the local cache, from the hub, or told from the name alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from rag.engine import checkpoint, gguf
from rag.engine.model import INT4_CHECKPOINT, ModelSize
from rag.errors import MissingExtra, ModelUnavailable

# name, 10^9 parameters, layers, hidden, heads, KV heads, head size, intermediate, vocabulary,
# context: from the config.json of each on huggingface.co. For a model whose own cannot be had.
_KNOWN = (
    ("Qwen2.5-0.5B", 0.494, 24, 896, 14, 2, 64, 4864, 151936, 32768),
    ("Llama-3.2-1B", 1.24, 16, 2048, 32, 8, 64, 8192, 128256, 131072),
    ("Qwen2.5-1.5B", 1.54, 28, 1536, 12, 2, 128, 8960, 151936, 32768),
    ("Qwen2.5-3B", 3.09, 36, 2048, 16, 2, 128, 11008, 151936, 32768),
    ("Llama-3.2-3B", 3.21, 28, 3072, 24, 8, 128, 8192, 128256, 131072),
    ("Mistral-7B", 7.25, 32, 4096, 32, 8, 128, 14336, 32768, 32768),
    ("Qwen2.5-7B", 7.62, 28, 3584, 28, 4, 128, 18944, 152064, 32768),
    ("Llama-3.1-8B", 8.03, 32, 4096, 32, 8, 128, 14336, 128256, 131072),
    ("Qwen3-8B", 8.19, 36, 4096, 32, 8, 128, 12288, 151936, 40960),
    ("Qwen2.5-14B", 14.8, 48, 5120, 40, 8, 128, 13824, 152064, 32768),
    ("Qwen2.5-32B", 32.8, 64, 5120, 40, 8, 128, 27648, 152064, 32768),
    ("Llama-3.1-70B", 70.6, 80, 8192, 64, 8, 128, 28672, 128256, 131072),
    ("Qwen2.5-72B", 72.7, 80, 8192, 64, 8, 128, 29568, 152064, 32768),
    ("Llama-3.1-405B", 405.9, 126, 16384, 128, 8, 128, 53248, 128256, 131072),
)
_BILLIONS = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.I)


def find(model: str, parameters: int = 0) -> ModelSize:
    """The figures of a model. Raises ModelUnavailable if it is not there or not whole."""
    path = Path(model).expanduser()
    if path.is_dir():
        return checkpoint.read(path)
    if path.is_file() or path.suffix == ".gguf":
        return gguf.read(path)
    return _named(model, parameters)


def _named(name: str, parameters: int) -> ModelSize:
    """The figures of a model on the hub. Given `parameters` (0: not), the hub is not asked.

    Raises ModelUnavailable if neither cache nor hub has it and nothing says how large it is.
    """
    folder = _cached(name)
    if folder is not None:
        try:
            size = checkpoint.read(folder)
            return replace(size, source=name, name=checkpoint.served_name(name))
        except ModelUnavailable:
            pass  # only some of its files are there
    if parameters:
        return guess(name, parameters)
    try:
        return _from_hub(name)
    except ModelUnavailable:
        found = parameters_in(name)
        if not found:
            raise
        return guess(name, found)


def parameters_in(text: str) -> int:
    """7B, 0.5b, 135M or 8x7B in a name as a number of parameters; 0 if there is none."""
    found = _BILLIONS.search(text)
    if not found:
        return 0
    times, count, unit = found.groups()
    return round(int(times or 1) * float(count) * (1e9 if unit in "Bb" else 1e6))


def guess(name: str, parameters: int) -> ModelSize:
    """Figures of the known model of the nearest size, of the same family if one is known."""
    family = [row for row in _KNOWN if _family(row[0]) == _family(checkpoint.served_name(name))]
    row = min(family or _KNOWN, key=lambda row: abs(row[1] * 1e9 / parameters - 1))
    method, bytes_each = _quantised_by_name(name)
    like, _, layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, context = row
    embeddings = min(vocabulary * hidden * 2, parameters)
    size = (parameters - embeddings) * bytes_each + embeddings * 2
    return ModelSize(
        source=name,
        name=checkpoint.served_name(name),
        format="safetensors",
        architecture=f"assumed: {like}",
        parameters=parameters,
        weight_bytes=round(size),
        stored="bfloat16",
        quantization=method,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        intermediate=intermediate,
        vocabulary=vocabulary,
        embedding_parameters=embeddings,
        max_context=context,
        notes=(
            f"assumed, because the model's own config.json is not at hand: {parameters / 1e9:g} B "
            f"parameters{f', {method}' if method else ''}, and the {layers} layers, {kv_heads} KV "
            f"heads of {head_dim}, vocabulary and window of {like}",
        ),
    )


def _family(name: str) -> str:
    return re.split(r"[-_.\d]", name.lower().removeprefix("meta-"))[0]


def _quantised_by_name(name: str) -> tuple[str, float]:
    """(method, bytes a weight) that a name such as Qwen2.5-7B-Instruct-AWQ tells."""
    for pattern, method, bytes_each in (
        (r"awq", "awq", INT4_CHECKPOINT),
        (r"gptq.*int8|gptq.*8bit", "gptq", 1.0),
        (r"gptq", "gptq", INT4_CHECKPOINT),
        (r"w4a16|int4", "compressed-tensors", INT4_CHECKPOINT),
        (r"w8a8|w8a16|int8", "compressed-tensors", 1.0),
        (r"fp8", "fp8", 1.0),
    ):
        if re.search(pattern, name, re.I):
            return method, bytes_each
    return "", 2.0


def _cached(name: str) -> Path | None:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except HFValidationError as error:
        raise ModelUnavailable(
            f"there is no folder or file {name!r}, and no model can have that name",
            "--model is a folder, a .gguf file, or OWNER/NAME on the Hugging Face hub",
        ) from error
    except LocalEntryNotFoundError:
        return None


def _from_hub(name: str) -> ModelSize:
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError as error:
        raise MissingExtra(
            f"asking the hub for {name} needs huggingface_hub",
            "pip install huggingface_hub, or give --parameters 7B",
        ) from error
    try:
        # Asked first, because it fails at once where there is no network; a download tries again.
        found = HfApi().model_info(name, expand=["safetensors"], timeout=10).safetensors
        config: dict[str, Any] = json.loads(
            Path(hf_hub_download(name, "config.json", etag_timeout=10)).read_text("utf-8")
        )
    except Exception as error:  # its own errors, and those of its HTTP client, whichever that is
        reason = str(error).partition("\n")[0]
        raise ModelUnavailable(
            f"{name} is no folder or file here, and the hub does not give it ({reason})",
            "check the name, log in with `hf auth login` if it is gated, or give --parameters 7B",
        ) from error
    if not found:
        raise ModelUnavailable(f"{name} has no safetensors on the hub", "give --parameters 7B")
    return checkpoint.from_config(
        config,
        source=name,
        name=checkpoint.served_name(name),
        dtypes=found.parameters,
        weight_bytes=checkpoint.bytes_of(found.parameters),
    )
