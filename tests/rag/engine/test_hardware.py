"""Reading a machine: from a made-up root folder, and from a made-up nvidia-smi."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rag.engine.hardware import GIB, detect

MEMINFO = "MemTotal:       33554432 kB\nMemFree:  1048576 kB\nMemAvailable:   16777216 kB\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 32 GiB, 16 of them available."""
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/cpuinfo", "flags : fpu avx2 avx512f avx512_bf16 amx_bf16\n")
    return tmp_path / "root"


def write(folder: Path, name: str, content: str) -> None:
    file = folder / "root" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, "utf-8")


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script that stands for nvidia-smi."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder / "nvidia-smi"


def says(script: Path, output: str, status: int = 0) -> None:
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {status}\n", "utf-8")
    script.chmod(0o755)


def test_memory_and_flags(root: Path) -> None:
    found = detect(root)
    assert (found.ram_total, found.ram_available) == (32 * GIB, 16 * GIB)
    assert found.cpu_flags == {"AVX2", "AVX512", "AVX512-BF16", "AMX"}
    assert found.cpu_bf16
    assert found.nodes == 1


def test_an_arm_machine(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "Features : fp asimd\n")
    assert (detect(root).cpu_flags, detect(root).cpu_bf16) == ({"NEON"}, False)
    write(tmp_path, "proc/cpuinfo", "Features : fp asimd bf16\n")
    assert detect(root).cpu_bf16


def test_memory_nodes(root: Path, tmp_path: Path) -> None:
    for node in (0, 1):
        write(tmp_path, f"sys/devices/system/node/node{node}/meminfo", "")
    assert detect(root).nodes == 2


def test_a_container_has_its_limit(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.max", f"{8 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.current", f"{5 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.stat", f"anon 1\ninactive_file {2 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", "100000 100000\n")
    found = detect(root)
    assert (found.ram_total, found.ram_available, found.cores) == (8 * GIB, 5 * GIB, 1)


def test_a_container_of_the_older_kind(root: Path, tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    write(tmp_path, f"{folder}/memory.limit_in_bytes", f"{4 * GIB}\n")
    write(tmp_path, f"{folder}/memory.usage_in_bytes", f"{GIB}\n")
    assert detect(root).ram_available == 3 * GIB


def test_gpus(root: Path, smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(
        smi,
        "0, GPU-aa, NVIDIA L4, 23034, 22500, 8.9\n"
        "1, GPU-bb, NVIDIA H100 80GB HBM3, 81559, 81000, 9.0\n"
        "2, GPU-cc, NVIDIA GB10, [N/A], [N/A], 12.1",
    )
    found = detect(root)
    assert [(gpu.index, gpu.name, gpu.capability) for gpu in found.gpus] == [
        (0, "NVIDIA L4", 8.9),
        (1, "NVIDIA H100 80GB HBM3", 9.0),
    ]
    assert (found.gpus[0].total, found.gpus[0].free) == (23034 << 20, 22500 << 20)
    assert "GB10" in found.notes[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.index for gpu in detect(root).gpus] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    assert [gpu.index for gpu in detect(root).gpus] == [0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect(root).gpus == ()


def test_a_driver_that_fails_is_a_note(root: Path, smi: Path) -> None:
    says(smi, "NVIDIA-SMI has failed because it couldn't communicate with the driver.", 9)
    found = detect(root)
    assert found.gpus == ()
    assert "couldn't communicate" in found.notes[0]


def test_an_amd_gpu_is_a_note(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "dev/kfd", "")
    assert "AMD" in detect(root).notes[0]


def test_this_machine() -> None:
    found = detect()
    assert 0 < found.ram_available <= found.ram_total
    assert found.cores >= 1
