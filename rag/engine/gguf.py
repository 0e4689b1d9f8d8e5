"""The header of a GGUF file. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from rag.engine.model import ModelSize
from rag.errors import ModelUnavailable

# A broken file must not make us read for minutes: the largest vocabulary has some 300,000 words.
_MOST_BYTES = 1 << 20
_MOST_ITEMS = 4_000_000
_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("B b H h I i f ?".split())) | {10: "Q", 11: "q", 12: "d"}


def read(path: Path) -> ModelSize:
    """The figures of a GGUF file, all its parts counted. Raises ModelUnavailable."""
    try:
        with path.open("rb") as file:
            values, parameters = _header(file)
        architecture = str(values["general.architecture"])
        return _size(path, architecture, values, parameters)
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read ({error})", "check --model") from error
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelUnavailable(
            f"{path} is not a whole GGUF file of a language model ({error})", "fetch it again"
        ) from error


def _size(path: Path, kind: str, values: dict[str, Any], parameters: int) -> ModelSize:
    def told(name: str, default: Any = 0) -> Any:
        return values.get(f"{kind}.{name}", default)

    layers, heads = int(told("block_count")), _most(told("attention.head_count"))
    if not layers or not heads:
        raise ValueError(f"no layers or heads of {kind!r} in its header")
    per_layer = told("attention.head_count_kv", heads)
    # A layer without KV heads keeps a state of fixed size, not a cache.
    cached = sum(n > 0 for n in per_layer) if isinstance(per_layer, list) else layers
    hidden = int(told("embedding_length"))
    keys = int(told("attention.key_length") or hidden // heads)
    dim = (keys + int(told("attention.value_length") or keys)) // 2
    vocabulary = int(told("vocab_size")) or values.get("tokenizer.ggml.tokens", 0)
    window = int(told("attention.sliding_window"))
    windowed = _windowed(told("attention.sliding_window_pattern"), layers) if window else 0
    parts = _parts(path)
    return ModelSize(
        source=str(path),
        name=re.sub(r"-\d{5}-of-\d{5}$", "", path.stem),
        format="gguf",
        architecture=kind,
        parameters=parameters,
        weight_bytes=sum(part.stat().st_size for part in parts),
        stored="gguf",
        quantization="gguf",
        layers=cached - windowed,
        window_layers=windowed,
        window=window,
        heads=heads,
        kv_heads=_most(per_layer),
        head_dim=dim,
        # In the newer files of such models the key is the latent and holds the value too.
        latent=keys if told("attention.kv_lora_rank") and told("attention.key_length_mla") else 0,
        hidden=hidden,
        intermediate=_most(told("feed_forward_length")),
        vocabulary=vocabulary,
        embedding_parameters=vocabulary * hidden,
        max_context=int(told("context_length")),
        notes=("its parameters are those of the first part",) if len(parts) > 1 else (),
    )


def _parts(path: Path) -> list[Path]:
    """NAME-00001-of-00003.gguf stands for all three; llama.cpp opens the others itself."""
    found = re.fullmatch(r"(.*)-00001-of-(\d{5})", path.stem)
    if not found:
        return [path]
    name, count = found.groups()
    parts = [path.with_name(f"{name}-{n:05}-of-{count}.gguf") for n in range(1, int(count) + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise ValueError(f"{missing[0]} is missing beside it")
    return parts


def _windowed(pattern: Any, layers: int) -> int:
    """How many layers have a window: a list says each, a number n that every n-th has none."""
    if isinstance(pattern, list):
        return sum(map(bool, pattern))
    return layers - layers // int(pattern) if pattern else 0


def _most(value: Any) -> int:
    return int(max(value)) if isinstance(value, list) else int(value)


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """(key -> value, number of parameters). Of a list of texts only the length is kept."""
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensors, keys = _unpack(file, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format is not known")
    values = {}
    for _ in range(_within(keys)):
        name = _text(file)
        values[name] = _value(file, *_unpack(file, "<I"))
    parameters = 0
    for _ in range(_within(tensors)):
        _text(file)
        (dimensions,) = _unpack(file, "<I")
        if dimensions > 8:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        parameters += math.prod(_unpack(file, f"<{dimensions}Q"))
        _unpack(file, "<IQ")  # its type and its place
    return values, parameters


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _unpack(file, f"<{_SCALARS[kind]}")[0]
    inner, count = _unpack(file, "<IQ")
    _within(count)
    if inner == _STRING:
        for _ in range(count):
            _text(file)
        return count
    return list(_unpack(file, f"<{count}{_SCALARS[inner]}"))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    if length > _MOST_BYTES:
        raise ValueError(f"a text of {length} bytes in its header")
    return _exactly(file, length).decode("utf-8", "replace")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _exactly(file, struct.calcsize(layout)))


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise ValueError("it ends in its header")
    return data


def _within(count: int) -> int:
    if count > _MOST_ITEMS:
        raise ValueError(f"{count} entries in its header")
    return count
