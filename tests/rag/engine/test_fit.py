"""Which plan comes out, for machines that the tests do not run on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.engine import explain, remedy
from rag.engine.fit import activations, gpu_plan, plans, tensor_parallel
from rag.engine.hardware import GIB, Gpu, Hardware
from rag.engine.hub import guess
from rag.engine.model import ModelSize
from rag.engine.plan import Need, Plan
from rag.errors import InputError

# Memory as nvidia-smi tells it, and compute capability (developer.nvidia.com/cuda-gpus).
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 81559 << 20, 81559 << 20, 9.0)
A100 = Gpu(0, "NVIDIA A100-SXM4-80GB", 81920 << 20, 81920 << 20, 8.0)
L4 = Gpu(0, "NVIDIA L4", 23034 << 20, 23034 << 20, 8.9)
T4 = Gpu(0, "Tesla T4", 15360 << 20, 15360 << 20, 7.5)

LLAMA_8B = guess("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248)
QWEN_7B = guess("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512)
LLAMA_70B = guess("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496)
LLAMA_405B = guess("meta-llama/Llama-3.1-405B-Instruct", 405_853_388_800)


def machine(*gpus: Gpu, ram: float = 64, flags: str = "AVX2 AVX512 AVX512-BF16") -> Hardware:
    numbered = tuple(replace(gpu, index=n) for n, gpu in enumerate(gpus))
    size = round(ram * GIB)
    return Hardware(numbered, 16, size, size, frozenset(flags.split()))


def best(hardware: Hardware, model: ModelSize, need: Need | None = None) -> Plan:
    return plans(hardware, model, need or Need())[0]


def command(plan: Plan, model: ModelSize) -> str:
    return explain.shell(*explain.command(plan, model, "m", "127.0.0.1", 8000))


def test_weights_and_overhead_agree_with_what_vllm_measured() -> None:
    # Meta-Llama-3-8B on H100, one GPU: weights 14.96 GiB, activations 1.26, KV cache 53.29;
    # on two: weights 7.48. github.com/vllm-project/vllm/pull/10511
    need = Need(8192)
    one = gpu_plan((H100,), LLAMA_8B, need, "", 8192)
    assert one.weights / GIB == pytest.approx(14.96, abs=0.01)
    assert one.activations / GIB == pytest.approx(1.26, abs=0.05)
    assert one.free / GIB == pytest.approx(53.29, abs=0.6)
    assert gpu_plan((H100, H100), LLAMA_8B, need, "", 8192).weights / GIB == pytest.approx(
        7.48, abs=0.01
    )


def test_fp8_leaves_the_embeddings_as_they_are() -> None:
    # RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8 has 9.08 GB of files.
    plan = gpu_plan((L4,), LLAMA_8B, Need(8192), "fp8_per_tensor", 8192)
    assert plan.weights / 1e9 == pytest.approx(9.08, abs=0.05)


@pytest.mark.parametrize(
    ("hardware", "model", "gpus", "quantization", "dtype"),
    [
        (machine(H100), LLAMA_8B, 1, "", "bfloat16"),
        (machine(H100, H100), LLAMA_8B, 1, "", "bfloat16"),  # no more GPUs than needed
        (machine(L4), QWEN_7B, 1, "", "bfloat16"),
        (machine(L4), LLAMA_8B, 1, "fp8_per_tensor", "bfloat16"),
        (machine(T4), QWEN_7B, 1, "fp8_per_tensor", "float16"),
        (machine(*[A100] * 4), LLAMA_70B, 4, "", "bfloat16"),  # 141 GB of weights
        (machine(*[A100] * 2), LLAMA_70B, 2, "fp8_per_tensor", "bfloat16"),
        (machine(H100), LLAMA_70B, 1, "bitsandbytes", "bfloat16"),
        (machine(*[H100] * 8), LLAMA_405B, 8, "fp8_per_tensor", "bfloat16"),
    ],
)
def test_known_machines(
    hardware: Hardware, model: ModelSize, gpus: int, quantization: str, dtype: str
) -> None:
    plan = best(hardware, model)
    assert plan.sequences > 0
    assert (len(plan.gpus), plan.quantization, plan.dtype) == (gpus, quantization, dtype)
    line = command(plan, model)
    assert f"--tensor-parallel-size {gpus} " in line
    assert f"--dtype {dtype} " in line
    assert ("--quantization" in line) == bool(quantization)


def test_the_cpu_takes_a_model_where_there_is_no_gpu() -> None:
    plan = best(machine(), LLAMA_8B, Need(4096, 4))
    environment, arguments = explain.command(plan, LLAMA_8B, "m", "127.0.0.1", 8000, "python")
    assert plan.engine == "vllm-cpu"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"  # 4 x 4096 x 128 KiB
    assert arguments[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    assert "--gpu-memory-utilization" not in arguments
    old = best(machine(flags="AVX2"), LLAMA_8B, Need(4096, 4))
    assert (old.dtype, old.weights) == ("float32", 2 * plan.weights)


def test_a_container_with_two_memory_nodes_counts_one() -> None:
    both = machine(ram=40)
    assert best(both, LLAMA_8B).sequences > 0
    assert best(replace(both, nodes=2), LLAMA_8B).sequences == 0


def test_a_gguf_gets_llama_cpp_and_its_slots() -> None:
    gguf = replace(LLAMA_8B, format="gguf", quantization="gguf", weight_bytes=4_920_000_000)
    plan = best(machine(H100, ram=16), gguf, Need(8192, 32))
    assert plan.engine == "llama.cpp"
    assert 0 < plan.parallel == plan.sequences < 32
    assert any("GPU" in note for note in plan.notes)


def test_memory_that_others_use_is_not_counted() -> None:
    busy = replace(H100, free=40 * GIB)
    plan = best(machine(busy), LLAMA_8B)
    assert plan.memory <= busy.free
    assert plan.utilization < 0.6
    # Where another kind of GPU has more room, that one is named.
    mixed = best(machine(T4, H100), LLAMA_8B)
    assert [gpu.name for gpu in mixed.gpus] == [H100.name]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1 " in command(mixed, LLAMA_8B)
    assert "CUDA_VISIBLE_DEVICES" not in command(best(machine(H100), LLAMA_8B), LLAMA_8B)


def test_quantised_checkpoints_need_the_right_gpu() -> None:
    mxfp4 = replace(LLAMA_8B, quantization="mxfp4", weight_bytes=5 * 10**9)
    assert best(machine(A100), mxfp4).dtype == "auto"
    assert plans(machine(T4), mxfp4, Need()) == []
    assert "8.0 or more" in str(remedy.nowhere(machine(T4), mxfp4, Need(), []))
    unknown = replace(mxfp4, quantization="aqlm")
    assert "does not read" in str(remedy.nowhere(machine(), unknown, Need(), []))
    fp8 = replace(LLAMA_8B, quantization="fp8", weight_bytes=9 * 10**9)
    assert any("no fp8" in note for note in best(machine(A100), fp8).notes)
    assert not best(machine(H100), fp8).notes
    shared = replace(LLAMA_70B, quantization="bitsandbytes", weight_bytes=40 * 10**9)
    assert tensor_parallel(shared, 8) == [1]


def test_what_fits_nowhere_says_what_would() -> None:
    hardware = machine(L4, ram=32)
    found = plans(hardware, LLAMA_70B, Need())
    assert found[0].sequences == 0
    error = str(remedy.nowhere(hardware, LLAMA_70B, Need(), found))
    assert "fits nowhere here" in error
    assert "4 x NVIDIA L4" in error
    # 70B in Q4_K_M has 42.5 GB (bartowski/Meta-Llama-3.1-70B-Instruct-GGUF), so not here.
    assert "GGUF" not in error
    roomy = machine(L4, ram=60)
    error = str(remedy.nowhere(roomy, LLAMA_70B, Need(), plans(roomy, LLAMA_70B, Need())))
    assert "an AWQ or GPTQ checkpoint of it (about 39.8 GB, on the CPU)" in error
    assert "a GGUF of it in Q4_K_M" in error


def test_a_context_that_only_just_does_not_fit_can_be_shorter() -> None:
    hardware = machine(T4, ram=4)
    asked = Need(65536)
    error = str(remedy.nowhere(hardware, LLAMA_8B, asked, plans(hardware, LLAMA_8B, asked)))
    assert "--context-tokens 32768" in error


def test_a_smaller_step_comes_before_another_gpu() -> None:
    one = best(machine(L4), QWEN_7B, Need(8192, 16))
    assert (len(one.gpus), one.batch, one.sequences) == (1, 2048, 8)
    assert len(best(machine(L4, L4), QWEN_7B, Need(8192, 16)).gpus) == 1


def test_a_multimodal_model_is_started_for_text() -> None:
    plan = best(machine(H100), LLAMA_8B)
    assert "--language-model-only" in command(plan, replace(LLAMA_8B, multimodal=True))
    assert "--language-model-only" not in command(plan, LLAMA_8B)


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(InputError, match="32768"):
        plans(machine(H100), QWEN_7B, Need(100_000))


def test_the_arithmetic_adds_up() -> None:
    plan = best(machine(L4), LLAMA_8B)
    shown = {step.what: step for step in explain.steps(plan, LLAMA_8B)}
    assert shown["KV of a token"].result == "128 KiB"
    assert shown["tokens"].result == str(plan.free // (128 * 1024))
    assert plan.memory == plan.weights + plan.overhead + plan.activations + plan.free
    assert shown["answers at once"].result == str(plan.free // (8192 * 128 * 1024))


models = st.builds(
    lambda billions, layers, kv, group, dim, window, method: replace(
        LLAMA_8B,
        parameters=int(billions * 1e9),
        weight_bytes=int(billions * 1e9 * (0.6 if method else 2)),
        embedding_parameters=int(billions * 1e8),
        layers=layers,
        window_layers=layers if window else 0,
        window=window,
        kv_heads=kv,
        heads=kv * group,
        head_dim=dim,
        quantization=method,
    ),
    st.floats(0.1, 500),
    st.integers(4, 130),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.sampled_from([1, 2, 4, 7, 8]),
    st.sampled_from([64, 128, 256]),
    st.sampled_from([0, 512, 4096]),
    st.sampled_from(["", "awq", "fp8", "bitsandbytes"]),
)
gpus = st.builds(
    lambda kind, share: replace(kind, free=int(kind.total * share)),
    st.sampled_from([H100, A100, L4, T4]),
    st.floats(0, 1),
)
machines = st.builds(
    lambda found, ram: machine(*found, ram=ram), st.lists(gpus, max_size=8), st.floats(0.5, 2000)
)
needs = st.builds(Need, st.sampled_from([0, 1024, 8192, 65536]), st.integers(0, 300))


@given(machines, models, needs)
def test_no_plan_uses_more_than_there_is(hardware: Hardware, model: ModelSize, need: Need) -> None:
    for plan in plans(hardware, model, need):
        if not plan.sequences:
            continue
        used = plan.weights + plan.overhead + plan.activations + plan.kv_bytes
        there = min((gpu.free for gpu in plan.gpus), default=hardware.ram_available)
        assert used <= plan.memory <= there
        assert plan.kv_bytes >= plan.kv_sequence
        assert plan.parallel >= 1


@given(machines, models, needs)
def test_gpus_are_shared_out_evenly(hardware: Hardware, model: ModelSize, need: Need) -> None:
    for plan in plans(hardware, model, need):
        count = len(plan.gpus) or 1
        assert model.heads % count == 0
        assert len({gpu.index for gpu in plan.gpus}) == len(plan.gpus)
        # Every KV head is on some GPU, and no GPU is without.
        assert model.kv_elements(count) * count >= model.kv_elements()


@given(machines, models, needs, st.integers(1, 4), st.floats(0, 1))
def test_more_memory_is_never_worse(
    hardware: Hardware, model: ModelSize, need: Need, factor: int, freed: float
) -> None:
    def grown(gpu: Gpu) -> Gpu:
        total, free = gpu.total * factor, gpu.free * factor
        return replace(gpu, total=total, free=free + int((total - free) * freed))

    larger = replace(
        hardware,
        gpus=tuple(map(grown, hardware.gpus)),
        ram_available=hardware.ram_available * factor,
    )
    before, after = plans(hardware, model, need)[:1], plans(larger, model, need)[:1]
    assert len(before) == len(after)
    if before:
        assert after[0].score() >= before[0].score()


@given(machines, models, needs)
def test_another_gpu_is_never_worse(hardware: Hardware, model: ModelSize, need: Need) -> None:
    more = replace(hardware, gpus=(*hardware.gpus, replace(H100, index=len(hardware.gpus))))
    before, after = plans(hardware, model, need)[:1], plans(more, model, need)[:1]
    assert not before or after[0].score() >= before[0].score()


def test_activations_grow_with_the_step() -> None:
    assert activations(LLAMA_8B, 8192, 256, 2) > activations(LLAMA_8B, 2048, 256, 2)
