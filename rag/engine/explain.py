"""A plan in words: the arithmetic, the command that starts the engine, the settings that use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rag.engine.hardware import GIB, Hardware
from rag.engine.model import BNB_4BIT, ModelSize
from rag.engine.plan import Plan

# None of vLLM's figures leave the machine.
QUIET = {"DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
_LABELS = {"vllm": "vLLM on GPU", "vllm-cpu": "vLLM on CPU", "llama.cpp": "llama.cpp on CPU"}


class Step(NamedTuple):
    """One line of the arithmetic: what it is, how it comes about, what it gives."""

    what: str
    formula: str
    result: str


def facts(hardware: Hardware, model: ModelSize) -> list[Step]:
    """What the machine has, and what the model is."""
    flags = " ".join(sorted(hardware.cpu_flags))
    memory = f"{_gib(hardware.ram_total)} GiB, {_gib(hardware.ram_available)} available"
    gpus = [
        Step(
            f"GPU {gpu.index}",
            f"{gpu.name}, compute capability {gpu.capability:g}",
            f"{_gib(gpu.total)} GiB, {_gib(gpu.free)} free",
        )
        for gpu in hardware.gpus
    ]
    shape = f"{model.parameters / 1e9:.4g} B parameters, {model.quantization or model.stored}"
    return [
        *(gpus or [Step("GPU", "none", "")]),
        Step("CPU", f"{hardware.cores} cores {flags}", memory),
        Step(
            "model", f"{model.name} ({model.architecture}), {shape}", f"{model.max_context} tokens"
        ),
    ]


def summary(plan: Plan, model: ModelSize) -> str:
    """The plan in one line."""
    where = f"{len(plan.gpus)} x {plan.gpus[0].name}" if plan.gpus else f"{plan.threads} cores"
    stored = f"{model.quantization} as stored" if model.quantization else plan.dtype
    return (
        f"{_LABELS[plan.engine]} ({where}), {plan.quantization or stored}, tensor_parallel_size "
        f"{len(plan.gpus) or 1}, KV cache {_gib(plan.kv_bytes)} GiB, {plan.answers} answers of "
        f"{plan.context} tokens at once"
    )


def steps(plan: Plan, model: ModelSize) -> Iterator[Step]:
    """The arithmetic of a plan, line by line."""
    gpus = len(plan.gpus) or 1
    each = " each" if gpus > 1 else ""
    whole = round(plan.memory / plan.utilization) if plan.utilization else 0
    kind = "GPU memory" if plan.gpus else "memory available"
    yield Step(
        "memory",
        f"{gpus} x {_gib(whole)} GiB of {kind} x {plan.utilization:.2f}",
        f"{_gib(plan.memory)} GiB{each}",
    )
    shared = f" / {gpus} GPUs" if gpus > 1 else ""
    yield Step("- weights", _weights(plan, model) + shared, f"{_gib(plan.weights)} GiB{each}")
    engine = "CUDA context, graphs, NCCL" if plan.gpus else "the engine itself"
    yield Step("- engine", f"{engine} (measured)", f"{_gib(plan.overhead)} GiB{each}")
    yield Step(
        "- activations",
        f"{plan.batch} tokens a step through {model.hidden} + {model.intermediate} wide layers, "
        f"logits of {model.vocabulary}",
        f"{_gib(plan.activations)} GiB{each}",
    )
    yield Step("= left for KV", "", f"{_gib(plan.free)} GiB{each}")
    layers = model.layers + model.window_layers
    elements = model.kv_elements(gpus)
    formula = (
        f"{layers} layers x {model.latent} (latent) x {plan.kv_bytes_each} bytes"
        if model.latent
        else f"2 x {layers} layers x {elements // 2 // model.head_dim} KV heads x "
        f"{model.head_dim} x {plan.kv_bytes_each} bytes"
    )
    token = layers * elements * plan.kv_bytes_each
    yield Step("KV of a token", formula, f"{token / 1024:.4g} KiB{each}")
    if model.window_layers:
        yield Step(
            "windows",
            f"{model.window_layers} layers keep {model.window} tokens + {plan.batch} of a step",
            "",
        )
    else:
        yield Step(
            "tokens", f"{_gib(plan.room)} GiB / {token / 1024:.4g} KiB", f"{plan.room // token}"
        )
    yield Step("KV of an answer", f"{plan.context} tokens", f"{_gib(plan.kv_sequence)} GiB{each}")
    yield Step(
        "answers at once",
        f"{_gib(plan.room)} / {_gib(plan.kv_sequence)} GiB, {plan.concurrency} asked",
        f"{plan.sequences}",
    )
    if not plan.gpus:
        yield Step(
            "KV cache",
            f"taken for {plan.concurrency} answers, in whole GiB"
            if plan.engine == "vllm-cpu"
            else f"taken for {plan.parallel} answers",
            f"{_gib(plan.kv_bytes)} GiB",
        )


def command(
    plan: Plan, model: ModelSize, name: str, host: str, port: int, python: str = ""
) -> tuple[dict[str, str], list[str]]:
    """(environment, arguments) that start the engine. `python` has vLLM; "": the vllm command."""
    if plan.engine == "llama.cpp":
        arguments = [python, "-m", "rag.engine.llamacpp_server", model.source]
        options = {
            "alias": name,
            "host": host,
            "port": port,
            "context-tokens": plan.context,
            "parallel": plan.parallel,
            "threads": plan.threads,
        }
        return {}, [*arguments, *_options(options)]
    environment = dict(QUIET)
    if plan.engine == "vllm-cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(plan.kv_bytes // GIB)
    elif _chosen(plan):
        environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": _chosen(plan)}
    start = (
        [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model.source]
        if python
        else ["vllm", "serve", model.source]
    )
    options = {
        "served-model-name": name,
        "host": host,
        "port": port,
        "dtype": plan.dtype,
        **({"quantization": plan.quantization} if plan.quantization else {}),
        "max-model-len": plan.context,
        "max-num-seqs": plan.parallel,
        "max-num-batched-tokens": max(plan.batch, plan.parallel),
        "tensor-parallel-size": len(plan.gpus) or 1,
        **({"gpu-memory-utilization": plan.utilization} if plan.gpus else {}),
    }
    switches = ["--enable-prefix-caching"]
    if model.multimodal:
        switches.append("--language-model-only")  # passages are text
    return environment, [*start, *_options(options), *switches]


def notes(plan: Plan, model: ModelSize) -> list[str]:
    """What a person should know beside the figures."""
    more = []
    if plan.copies > 1:
        more.append(
            f"the other GPUs stay free; --data-parallel-size {plan.copies} after -- runs an engine "
            "on each, behind one address"
        )
    return [*model.notes, *plan.notes, *more]


def shell(environment: dict[str, str], arguments: Sequence[str]) -> str:
    """The same as a line for a shell."""
    return " ".join(
        [*(f"{key}={value}" for key, value in environment.items()), shlex.join(arguments)]
    )


def settings(plan: Plan, name: str, url: str) -> str:
    """The lines of rag.toml that use the engine."""
    kind = "openai" if plan.engine == "llama.cpp" else "vllm"
    values = {"kind": kind, "url": url, "model": name}
    return "\n".join(["[generator]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())])


def _weights(plan: Plan, model: ModelSize) -> str:
    if model.quantization:
        return f"{model.weight_bytes / 1e9:.2f} GB, {model.quantization}, as the files are"
    full = 4 if plan.dtype == "float32" else 2
    if not plan.quantization:
        return f"{model.parameters / 1e9:.4g} B parameters x {full} bytes ({plan.dtype})"
    linear = model.parameters - model.embedding_parameters
    each = BNB_4BIT if plan.quantization == "bitsandbytes" else 1
    return (
        f"{linear / 1e9:.4g} B x {each:g} bytes ({plan.quantization}) + "
        f"{model.embedding_parameters / 1e9:.3g} B of embeddings x {full}"
    )


def _chosen(plan: Plan) -> str:
    """The GPUs by number, unless they are the first ones, which vLLM takes anyway."""
    indexes = sorted(gpu.index for gpu in plan.gpus)
    return "" if indexes == list(range(len(indexes))) else ",".join(map(str, indexes))


def _options(options: dict[str, object]) -> list[str]:
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if abs(size) >= GIB else f"{size / GIB:.2f}"
