"""The header of GGUF files: a real one, made ones, broken ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import smollm2

from rag.engine import gguf
from rag.errors import ModelUnavailable


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> bytes:
    """One value as the format has it: its kind, then itself."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, list) and isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(text, item))
    if isinstance(item, list):
        kind, letter = (7, "?") if isinstance(item[0], bool) else (4, "I")
        return struct.pack(f"<IIQ{len(item)}{letter}", 9, kind, len(item), *item)
    return struct.pack("<II", 4, item)


def header(kind: str, tensors: tuple[tuple[int, ...], ...] = (), **fields: Any) -> bytes:
    keys = {"general.architecture": kind, "tokenizer.ggml.tokens": ["a", "b", "c"]}
    keys |= {f"{kind}.{name.replace('__', '.')}": item for name, item in fields.items()}
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    data += b"".join(text(name) + value(item) for name, item in keys.items())
    for shape in tensors:
        data += text("t") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    return data


LLAMA = {
    "block_count": 4,
    "embedding_length": 64,
    "attention__head_count": 8,
    "attention__head_count_kv": 2,
    "context_length": 4096,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_a_real_file() -> None:
    model = gguf.read(smollm2())
    assert (model.architecture, model.parameters) == ("llama", 134_515_008)
    assert (model.layers, model.heads, model.kv_heads, model.head_dim) == (30, 9, 3, 64)
    assert (model.vocabulary, model.max_context) == (49152, 8192)
    assert model.weight_bytes == smollm2().stat().st_size


def test_tensors_and_vocabulary_are_counted(file: Path) -> None:
    file.write_bytes(header("llama", ((3, 5), (7,)), **LLAMA))
    model = gguf.read(file)
    assert (model.parameters, model.vocabulary, model.head_dim) == (22, 3, 8)


def test_layers_of_several_kinds(file: Path) -> None:
    # Layers without KV heads keep no cache; a pattern tells which layers have a window.
    file.write_bytes(header("lfm2", **{**LLAMA, "attention__head_count_kv": [0, 2, 0, 2]}))
    assert gguf.read(file).layers == 2
    window = {"attention__sliding_window": 512}
    pattern = {"attention__sliding_window_pattern": [True, True, True, False]}
    file.write_bytes(header("gemma3", **LLAMA, **window, **pattern))
    model = gguf.read(file)
    assert (model.layers, model.window_layers, model.window) == (1, 3, 512)
    file.write_bytes(header("gemma3", **LLAMA, **window))
    assert gguf.read(file).layers == 4  # not told which: more is counted, not less


def test_latent_attention(file: Path) -> None:
    latent = {"kv_lora_rank": 512, "key_length": 576, "value_length": 512, "key_length_mla": 192}
    file.write_bytes(
        header("deepseek2", **LLAMA, **{f"attention__{k}": v for k, v in latent.items()})
    )
    assert gguf.read(file).kv_elements() == 576


def test_all_parts_count(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(header("llama", **LLAMA))
    with pytest.raises(ModelUnavailable, match=r"m-00002-of-00002\.gguf is missing"):
        gguf.read(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b"x" * 1000)
    model = gguf.read(first)
    assert model.weight_bytes == first.stat().st_size + 1000
    assert model.name == "m"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin with GGUF"),
        (b"PK\x03\x04" + b"x" * 100, "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 50), "a text of"),
        (header("llama", **LLAMA)[:-3], "ends in its header"),
        (header("clip"), "no layers"),
    ],
)
def test_a_broken_file_is_one_error(file: Path, data: bytes, reason: str) -> None:
    file.write_bytes(data)
    with pytest.raises(ModelUnavailable, match=reason) as caught:
        gguf.read(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        gguf.read(tmp_path / "none.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_byte_gives_anything_but_that_error(file: Path, data: st.DataObject) -> None:
    content = bytearray(header("llama", ((3, 5),), **LLAMA))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        gguf.read(file)
    except ModelUnavailable as error:
        assert len(str(error)) < 1000
