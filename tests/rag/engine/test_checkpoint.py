"""Checkpoints as they are published: their figures, and what is said when they are not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rag.engine import hub
from rag.engine.checkpoint import from_config
from rag.engine.model import ModelSize
from rag.errors import ModelError, ModelUnavailable

# From the config.json of each on huggingface.co, the fields that matter here.
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "vocab_size": 129280,
}
GEMMA_3_12B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "max_position_embeddings": 131072,
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "vocab_size": 262208,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
}
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "quantization_config": {"quant_method": "mxfp4"},
    "sliding_window": 128,
    "vocab_size": 201088,
}
QWEN3_NEXT = {
    "architectures": ["Qwen3NextForCausalLM"],
    "head_dim": 256,
    "hidden_size": 2048,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 12,
    "max_position_embeddings": 262144,
    "num_attention_heads": 16,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
GPT_2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}


def size_of(config: dict[str, Any], **dtypes: int) -> ModelSize:
    return from_config(config, source="x", name="x", dtypes=dtypes, weight_bytes=0)


def kib_per_token(model: ModelSize, tokens: int = 1) -> float:
    return model.kv_bytes(tokens, 1, 2, 0) / tokens / 1024


@pytest.mark.parametrize(
    ("config", "kib"),
    [
        (LLAMA_8B, 128),  # 16 GB for 128k tokens: huggingface.co/blog/llama31
        (QWEN_7B, 56),
        (MISTRAL_7B, 128),
        (DEEPSEEK_V3, 68.625),  # 70.272 KB in arXiv:2505.09343, table 1
        (GEMMA_3_12B, 384),
        (GPT_OSS_20B, 48),
        (QWEN3_NEXT, 24),
        (GPT_2, 36),
    ],
)
def test_kv_cache_of_a_token_in_16_bits(config: dict[str, Any], kib: float) -> None:
    assert kib_per_token(size_of(config)) == kib


def test_windows_bound_the_cache() -> None:
    mistral = size_of(MISTRAL_7B)
    assert mistral.kv_bytes(32768, 1, 2, 0) == mistral.kv_bytes(4096, 1, 2, 0)
    gemma = size_of(GEMMA_3_12B)
    assert (gemma.layers, gemma.window_layers) == (8, 40)
    # 8 layers keep all of the 32768 tokens, 40 keep 1024 and those of the step under way.
    assert gemma.kv_bytes(32768, 1, 2, 2048) == 2 * 8 * 256 * 2 * (8 * 32768 + 40 * 3072)
    assert size_of(QWEN_7B).window_layers == 0


def test_gpus_share_heads_but_not_a_latent() -> None:
    assert size_of(LLAMA_8B).kv_elements(4) == size_of(LLAMA_8B).kv_elements() / 4
    assert size_of(LLAMA_8B).kv_elements(16) == size_of(LLAMA_8B).kv_elements(8)
    assert size_of(DEEPSEEK_V3).kv_elements(8) == size_of(DEEPSEEK_V3).kv_elements()


def test_what_the_configuration_tells() -> None:
    assert size_of(LLAMA_8B).max_context == 131072
    assert size_of(DEEPSEEK_V3).quantization == "fp8"
    assert size_of(GPT_OSS_20B).quantization == "mxfp4"
    assert size_of(GEMMA_3_12B).multimodal
    assert size_of(GEMMA_3_12B).architecture == "Gemma3ForConditionalGeneration"
    assert "36 layers keep a state" in size_of(QWEN3_NEXT).notes[0]
    assert size_of(LLAMA_8B, BF16=1, F32=2).stored == "float32"


def test_the_weights_of_70b_have_141_gb() -> None:
    # 30 files of 141.1 GB: huggingface.co/meta-llama/Llama-3.1-70B-Instruct
    model = size_of({**LLAMA_8B, "num_hidden_layers": 80}, BF16=70_553_706_496)
    assert model.bytes_as("", "bfloat16") / 1e9 == pytest.approx(141.1, abs=0.1)
    assert model.bytes_as("", "float32") == 2 * model.bytes_as("", "bfloat16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in two files, one of them in float32."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B), "utf-8")
    save_file({"a": np.zeros((10, 20), np.float16)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(7, np.float32)}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return tmp_path


@pytest.mark.parametrize("indexed", [True, False])
def test_a_folder_is_read_by_the_headers_of_its_files(folder: Path, indexed: bool) -> None:
    # A second copy of the weights, as Mistral's repositories hold, does not count.
    save_file({"c": np.zeros(1000, np.float16)}, folder / "consolidated.safetensors")
    if not indexed:
        (folder / "model.safetensors.index.json").unlink()
    model = hub.find(str(folder))
    assert model.parameters == 207
    assert model.weight_bytes == 2 * 200 + 4 * 7
    assert model.stored == "float16"
    assert model.name == folder.name


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json"])
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff" * 8, b"\x04" + b"\x00" * 7 + b"[1]]", b"[]"]
)
def test_a_broken_folder_is_one_error(folder: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelUnavailable) as caught:
        hub.find(str(folder))
    assert name in str(caught.value)


def test_a_folder_of_another_kind_of_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "clip"}', "utf-8")
    with pytest.raises(ModelError, match="does not describe a language model"):
        hub.find(str(folder))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7e9),
        ("Qwen2.5-0.5b", 0.5e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9),
        ("Qwen/Qwen3-30B-A3B", 30e9),
        ("microsoft/phi-4", 0),
        ("unsloth/model-bnb-4bit", 0),
        ("7B", 7e9),
    ],
)
def test_the_size_in_a_name(name: str, parameters: float) -> None:
    assert hub.parameters_in(name) == parameters


def test_a_guess_takes_the_nearest_of_the_family_and_says_so() -> None:
    model = hub.guess("Qwen/Qwen2.5-7B-Instruct-AWQ", 7_000_000_000)
    assert model.architecture == "assumed: Qwen2.5-7B"
    assert kib_per_token(model) == 56
    assert (model.quantization, model.weight_bytes < 6e9) == ("awq", True)
    assert "assumed" in model.notes[0]
    assert "Qwen2.5-7B" in model.notes[0]
    assert hub.guess("someone/Unheard-of-69B", 69 * 10**9).architecture == "assumed: Llama-3.1-70B"
