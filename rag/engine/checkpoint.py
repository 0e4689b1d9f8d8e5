"""A Hugging Face checkpoint: its config.json, and the headers of its safetensors files."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rag.engine.model import ModelSize
from rag.errors import ModelError, ModelUnavailable

_MOST_HEADER = 100_000_000  # the limit of the format: github.com/huggingface/safetensors
_BITS = {"F64": 64, "F32": 32, "I64": 64, "I32": 32, "U32": 32, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS |= dict.fromkeys("BF16 F16 I16 U16".split(), 16)
_BITS |= dict.fromkeys("F8_E4M3 F8_E5M2 F8_E8M0 I8 U8 BOOL".split(), 8)
_FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Where the language model's part of a multimodal configuration is.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
# The same figure goes by the names of many model families.
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "head_dim": ("head_dim", "kv_channels"),
}


def read(folder: Path) -> ModelSize:
    """The figures of a model in a folder. Raises ModelUnavailable if it is not whole."""
    config = _json(folder / "config.json")
    dtypes, size = weights(folder)
    return from_config(
        config, source=str(folder), name=folder.resolve().name, dtypes=dtypes, weight_bytes=size
    )


def weights(folder: Path) -> tuple[Counter[str], int]:
    """(numbers of each type, bytes) of the files that hold the weights."""
    files = _weight_files(folder)
    if not files:
        raise ModelUnavailable(f"{folder} holds no weights", "fetch the model again, whole")
    dtypes: Counter[str] = Counter()
    for file in files:
        if file.suffix == ".safetensors":
            dtypes += _tensor_types(file)
    if dtypes:
        return dtypes, bytes_of(dtypes)
    return dtypes, sum(file.stat().st_size for file in files)  # .bin: no header to read


def bytes_of(dtypes: Mapping[str, int]) -> int:
    """The bytes of so many numbers of each safetensors type."""
    return sum(numbers * _BITS.get(dtype, 8) for dtype, numbers in dtypes.items()) // 8


def from_config(
    config: Mapping[str, Any],
    *,
    source: str,
    name: str,
    dtypes: Mapping[str, int],
    weight_bytes: int,
    parameters: int = 0,
    notes: Iterable[str] = (),
) -> ModelSize:
    """The figures that config.json tells, with what is known of the weights.

    `parameters` 0: those of `dtypes`, or as many as the bytes hold.
    """
    outer, config = config, _language_model(config)
    told = {key: _first(config, names) for key, names in _NAMES.items()}
    if not (told["layers"] and told["heads"] and told["hidden"]):
        raise ModelError(
            f"the config.json of {source} does not describe a language model "
            "(no layers, heads or hidden size)",
            "name a chat model",
        )
    heads, hidden = told["heads"], told["hidden"]
    if not told["kv_heads"]:
        told["kv_heads"] = 1 if config.get("multi_query") else heads
    stored = _stored(config, outer, dtypes)
    if not parameters:
        parameters = sum(dtypes.values()) or weight_bytes // (4 if stored == "float32" else 2)
    full, windowed, window, fixed = _layers(config, told["layers"])
    told["vocabulary"] = told["vocabulary"] or 0
    tied = config.get("tie_word_embeddings", outer.get("tie_word_embeddings", True))
    extra = [f"{fixed} layers keep a state of fixed size, which is not counted"] if fixed else []
    return ModelSize(
        source=source,
        name=name,
        format="safetensors",
        architecture=str((outer.get("architectures") or [config.get("model_type", "")])[0]),
        parameters=parameters,
        weight_bytes=weight_bytes,
        stored=stored,
        quantization=_quantization(outer, config),
        layers=full,
        window_layers=windowed,
        window=window,
        heads=heads,
        kv_heads=told["kv_heads"],
        head_dim=told["head_dim"] or hidden // heads,
        latent=_latent(config),
        hidden=hidden,
        intermediate=_intermediate(config, told["intermediate"] or 4 * hidden),
        vocabulary=told["vocabulary"],
        embedding_parameters=min(told["vocabulary"] * hidden * (1 if tied else 2), parameters),
        max_context=_context(config, told["context"] or 0),
        multimodal=config is not outer,
        notes=(*notes, *extra),
    )


def _language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _NESTED:
        inner = config.get(key)
        if isinstance(inner, dict):
            return _language_model(inner)
    return config


def _first(config: Mapping[str, Any], names: Iterable[str]) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
            return int(max(value))  # one a layer
        if isinstance(value, int) and value > 0:
            return value
    return 0


def _stored(config: Mapping[str, Any], outer: Mapping[str, Any], dtypes: Mapping[str, int]) -> str:
    floats = {dtype: numbers for dtype, numbers in dtypes.items() if dtype in _FLOATS}
    if floats:
        return _FLOATS[max(floats, key=floats.__getitem__)]
    names = ("torch_dtype", "dtype")
    return str(next((c[n] for c in (config, outer) for n in names if c.get(n)), "bfloat16"))


def _quantization(outer: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The method of a checkpoint that is quantised already, as vLLM calls it."""
    found = outer.get("quantization_config") or config.get("quantization_config") or {}
    return str(found.get("quant_method") or ("modelopt" if found else ""))


def _layers(config: Mapping[str, Any], layers: int) -> tuple[int, int, int, int]:
    """(layers that keep every token, layers with a window, the window, layers without cache)."""
    window = config.get("sliding_window") or 0
    if config.get("use_sliding_window") is False or not isinstance(window, int):
        window = 0
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        windowed = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
        full = sum(kind == "full_attention" for kind in kinds)
        windowed, full = (windowed, full) if window else (0, full + windowed)
        return full, windowed, window, len(kinds) - full - windowed
    if not window:
        return layers, 0, 0, 0
    every = config.get("sliding_window_pattern")  # every n-th layer sees all
    windowed = layers - layers // every if isinstance(every, int) and every > 0 else layers
    if config.get("model_type") in ("gemma2", "cohere2") and not every:
        windowed = layers // 2  # every other one, said in the code only: count more, not less
    return layers - windowed, windowed, window, 0


def _latent(config: Mapping[str, Any]) -> int:
    """Multi-head latent attention (arXiv:2405.04434) keeps a latent and a rotated key."""
    rank = config.get("kv_lora_rank")
    return int(rank) + int(config.get("qk_rope_head_dim") or 0) if rank else 0


def _intermediate(config: Mapping[str, Any], dense: int) -> int:
    """The width that one token passes: with experts, that of those that it visits."""
    each = config.get("moe_intermediate_size") or dense
    visited = config.get("num_experts_per_tok") or 0
    return max(dense, int(each) * int(visited))


def _context(config: Mapping[str, Any], told: int) -> int:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
    return max(told, int(base * factor)) if base and factor else told


def _weight_files(folder: Path) -> list[Path]:
    """The files of the index; otherwise model*.safetensors, any other ones, or *.bin."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise ModelUnavailable(
                f"{folder} lacks {len(missing)} of {len(files)} files of weights, {missing[0]} "
                "among them",
                "fetch the model again, whole",
            )
        return files
    patterns = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
    found = (sorted(folder.glob(pattern)) for pattern in patterns)
    return next((files for files in found if files), [])


def _tensor_types(file: Path) -> Counter[str]:
    """How many numbers of each type a safetensors file holds, by its header."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > _MOST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(opened.read(length))
        counts: Counter[str] = Counter()
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[tensor["dtype"]] += math.prod(tensor["shape"])
        return counts
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelUnavailable(
            f"{file} is not a whole safetensors file ({error})", "fetch it again"
        ) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnavailable(
            f"{file} cannot be read ({error})", "--model is the folder of a model, with config.json"
        ) from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{file} does not hold an object", "fetch it again")
    return found


def served_name(source: str) -> str:
    """A name for the API: the folder's or the repository's own, without its owner."""
    return re.sub(r"[^\w.:-]+", "-", source.rstrip("/").rpartition("/")[2]) or "model"
