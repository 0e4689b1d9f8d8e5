"""What to say, and to advise, when a model fits nowhere on a machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rag.engine.fit import CHECKPOINTS, CPU_CHECKPOINTS, MIN_CAPABILITY, plans
from rag.engine.hardware import GIB, Gpu, Hardware
from rag.engine.model import INT4_CHECKPOINT, ModelSize
from rag.engine.plan import Need, Plan
from rag.errors import ModelError

_Q4_GGUF = 4.9 / 8  # bytes a weight of Q4_K_M: github.com/ggml-org/llama.cpp, tools/quantize
_GPU_SIZES = (16, 24, 48, 80, 141)  # GiB, of those that can be had
_MOST_GPUS = 16


def nowhere(hardware: Hardware, model: ModelSize, need: Need, found: list[Plan]) -> ModelError:
    """The error for a model of whose plans none fits."""
    if not found:
        return ModelError(f"no engine here runs {model.name}", _needed(model))
    nearest = max(found, key=lambda plan: plan.free - plan.kv_sequence)
    lacking = max(nearest.kv_sequence - nearest.free, GIB // 10) / GIB
    each = " each" if len(nearest.gpus) > 1 else ""
    where = f"{len(nearest.gpus)} x {nearest.gpus[0].name}" if nearest.gpus else "the CPU"
    asked = replace(need, context=nearest.context)
    return ModelError(
        f"{model.name} fits nowhere here: for one answer of {nearest.context} tokens, "
        f"{lacking:.1f} GiB{each} are lacking on {where}",
        "what would fit: " + (" or ".join(_remedies(hardware, model, asked)) or "a smaller model"),
    )


def _needed(model: ModelSize) -> str:
    method = model.quantization
    if method not in ("", *CHECKPOINTS):
        return f"vLLM does not read checkpoints of {method!r}; take an unquantised, AWQ or GPTQ one"
    gpu = f"a GPU of compute capability {max(CHECKPOINTS.get(method, 0), MIN_CAPABILITY)} or more"
    if method not in ("", *CPU_CHECKPOINTS):
        return f"a checkpoint of {method!r} needs {gpu}"
    return f"it needs {gpu}, or a CPU with AVX2 or NEON"


def _remedies(hardware: Hardware, model: ModelSize, need: Need) -> Iterator[str]:
    for context in (need.context >> halved for halved in range(1, 5)):
        if context >= 1024 and _fits(hardware, model, replace(need, context=context)):
            yield f"--context-tokens {context}"
            break
    if model.format == "gguf":
        yield "a GGUF with fewer bits a weight"
        return
    if not model.quantization:
        yield from _smaller(hardware, model, need)
    yield from _more_gpus(hardware, model, need)


def _smaller(hardware: Hardware, model: ModelSize, need: Need) -> Iterator[str]:
    linear = model.parameters - model.embedding_parameters
    size = round(linear * INT4_CHECKPOINT + model.embedding_parameters * 2)
    if plan := _fits(hardware, replace(model, quantization="awq", weight_bytes=size), need):
        where = "" if plan.gpus else ", on the CPU"
        yield f"an AWQ or GPTQ checkpoint of it (about {size / 1e9:.1f} GB{where})"
    size = round(model.parameters * _Q4_GGUF)
    gguf = replace(model, format="gguf", quantization="gguf", weight_bytes=size)
    if _fits(hardware, gguf, need):
        yield f"a GGUF of it in Q4_K_M (about {size / 1e9:.1f} GB, llama.cpp on the CPU)"


def _more_gpus(hardware: Hardware, model: ModelSize, need: Need) -> Iterator[str]:
    """More of the largest GPU here, or the smallest one that would do."""
    if hardware.gpus:
        largest = max(hardware.gpus, key=lambda gpu: gpu.total)
        kinds = [(largest.name, replace(largest, free=largest.total))]
    else:
        kinds = [(f"GPU with {n} GiB", Gpu(0, "", n * GIB, n * GIB, 8.9)) for n in _GPU_SIZES]
    for count in range(1, _MOST_GPUS + 1):
        for name, gpu in kinds:
            if _fits(replace(hardware, gpus=(gpu,) * count, ram_available=0), model, need):
                yield f"{count} x {name}"
                return


def _fits(hardware: Hardware, model: ModelSize, need: Need) -> Plan | None:
    return next((plan for plan in plans(hardware, model, need)[:1] if plan.sequences), None)
