"""A plan for running a model, with the arithmetic that it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rag.engine.hardware import GIB, Gpu

# In the order of preference. bitsandbytes is slow and not a part of vLLM any more: the last resort.
AT_LOAD = ("", "fp8_per_tensor", "bitsandbytes")
MOST_SEQUENCES = 256

Engine = Literal["vllm", "vllm-cpu", "llama.cpp"]
CONCURRENCY: dict[Engine, int] = {"vllm": 16, "vllm-cpu": 4, "llama.cpp": 4}


@dataclass(frozen=True, slots=True)
class Need:
    """`context` tokens an answer may span, prompt included; 0: the model's, at most 8192.

    `concurrency` answers at once; 0: 16 on a GPU, 4 on a CPU.
    """

    context: int = 0
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run a model. Bytes are those of one GPU, or of the memory.

    `sequences` of full length fit the KV cache at once; with 0 the plan does not fit.
    """

    engine: Engine
    gpus: tuple[Gpu, ...]
    quantization: str
    dtype: str
    context: int
    concurrency: int
    memory: int
    utilization: float
    weights: int
    overhead: int
    activations: int
    batch: int
    kv_bytes_each: int
    kv_sequence: int
    threads: int = 0
    copies: int = 1  # of the engine that GPUs of this kind would hold
    notes: tuple[str, ...] = ()

    @property
    def free(self) -> int:
        """What remains for the KV cache; below 0 by what is lacking."""
        return self.memory - self.weights - self.overhead - self.activations

    @property
    def room(self) -> int:
        """What the KV cache can have. On a CPU vLLM takes whole GiB."""
        free = max(self.free, 0)
        return free // GIB * GIB if self.engine == "vllm-cpu" else free

    @property
    def sequences(self) -> int:
        """Answers of full length at once."""
        return self.room // self.kv_sequence

    @property
    def parallel(self) -> int:
        """How many answers the engine is told to take at once.

        vLLM shares its cache out as it goes, and few answers have full length; llama.cpp gives
        each its part from the start.
        """
        if self.engine == "llama.cpp":
            return min(self.concurrency, self.sequences)
        if self.engine == "vllm-cpu":
            return self.concurrency
        return max(self.concurrency, min(self.sequences, MOST_SEQUENCES))

    @property
    def kv_bytes(self) -> int:
        """The KV cache: on a GPU all that is left, on a CPU what the concurrency needs."""
        if self.engine == "vllm":
            return self.room
        wanted = min(self.concurrency, self.sequences) * self.kv_sequence
        return -(-wanted // GIB) * GIB if self.engine == "vllm-cpu" else wanted

    @property
    def answers(self) -> int:
        """Answers of full length that this KV cache holds."""
        return self.kv_bytes // self.kv_sequence

    def score(self) -> tuple[bool, bool, bool, int, int, int, int]:
        """Greater is better; never less when there is more memory.

        Answers seldom have full length: room for half of those asked is enough, and more is no
        reason to quantise or to take another GPU.
        """
        return (
            self.sequences > 0,
            self.engine != "vllm-cpu",
            self.quantization != "bitsandbytes",
            min(self.sequences, -(-self.concurrency // 2)),
            -AT_LOAD.index(self.quantization),
            -len(self.gpus),
            self.batch,
        )
