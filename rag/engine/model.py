"""What a model needs of an engine: the bytes of its weights and of its KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The figures of one model. `weight_bytes` is what its files hold.

    `layers` are those with a KV cache for every token; `window_layers` keep only the last
    `window` tokens. `latent` is the width of what multi-head latent attention keeps instead of
    keys and values. Without `quantization` the weights have the type `stored`.
    """

    source: str
    name: str
    format: Literal["safetensors", "gguf"]
    architecture: str
    parameters: int
    weight_bytes: int
    stored: str
    quantization: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    embedding_parameters: int
    max_context: int
    window_layers: int = 0
    window: int = 0
    latent: int = 0
    multimodal: bool = False
    notes: tuple[str, ...] = ()

    def bytes_as(self, quantization: str, dtype: str) -> int:
        """Bytes of the weights in memory: as stored, or quantised at load."""
        if self.quantization or self.format == "gguf":
            return self.weight_bytes
        full = _DTYPE_BYTES[dtype]
        linear = self.parameters - self.embedding_parameters
        bytes_each = {"": full, "fp8_per_tensor": 1, "bitsandbytes": BNB_4BIT}[quantization]
        return math.ceil(linear * bytes_each + self.embedding_parameters * full)

    def kv_elements(self, gpus: int = 1) -> int:
        """Numbers that one layer keeps of one token, on each of so many GPUs.

        KV heads are shared out, and repeated where there are fewer of them than GPUs. A latent
        is one for all heads, so each GPU keeps it whole.
        """
        return self.latent or 2 * math.ceil(self.kv_heads / gpus) * self.head_dim

    def kv_bytes(self, tokens: int, gpus: int, bytes_each: int, ahead: int) -> int:
        """KV cache of a sequence of `tokens`, on each GPU.

        A layer with a window also holds the up to `ahead` tokens that one step reads.
        """
        windowed = self.window_layers * min(tokens, self.window + ahead)
        return self.kv_elements(gpus) * bytes_each * (self.layers * tokens + windowed)


# 4 bits, and for each block of 64 a scale of 32 bits (arXiv:2305.14314, without double
# quantisation, which vLLM leaves off when it quantises at load).
BNB_4BIT = 0.5 + 4 / 64
# 4 bits, and for each group of 128 a scale of 16 bits and a zero point of 4: AWQ and GPTQ.
INT4_CHECKPOINT = 0.5 + 2.5 / 128
