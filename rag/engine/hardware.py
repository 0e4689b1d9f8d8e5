"""What the machine has: GPUs, memory, CPU. Containers see their own limits, not the host's."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
# The names that Linux gives to them, on x86 and on ARM, and the names that people know.
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX",
    "asimd": "NEON",
    "bf16": "ARM-BF16",
}
_QUERY = "index,uuid,name,memory.total,memory.free,compute_cap"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU; `index` as nvidia-smi counts, memory in bytes."""

    index: int
    name: str
    total: int
    free: int
    capability: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """Memory in bytes; `cores` and memory are what this process may use."""

    gpus: tuple[Gpu, ...]
    cores: int
    ram_total: int
    ram_available: int
    cpu_flags: frozenset[str]
    nodes: int = 1  # of memory (NUMA)
    notes: tuple[str, ...] = ()

    @property
    def cpu_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 itself."""
        return bool({"AVX512-BF16", "AMX", "ARM-BF16"} & self.cpu_flags)


def detect(root: Path = Path("/")) -> Hardware:
    """Read this machine. What cannot be read is left out, and said in `notes`."""
    gpus, notes = _gpus()
    if (root / "dev/kfd").exists():
        notes.append("an AMD GPU is there: it is not read, plan for it by hand with vLLM's ROCm")
    total, available = _memory(root)
    return Hardware(
        gpus=gpus,
        cores=_cores(root),
        ram_total=total,
        ram_available=available,
        cpu_flags=_flags(root),
        nodes=len(list(root.glob("sys/devices/system/node/node[0-9]*/meminfo"))) or 1,
        notes=tuple(notes),
    )


def _gpus() -> tuple[tuple[Gpu, ...], list[str]]:
    """The GPUs of CUDA_VISIBLE_DEVICES, or all. nvidia-smi comes with the driver."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False, errors="replace"
        )
    except FileNotFoundError:
        return (), []
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), [f"nvidia-smi does not run ({error})"]
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[:200]
        return (), [f"nvidia-smi failed ({said or f'exit status {done.returncode}'})"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else [part.strip() for part in visible.split(",")]
    gpus, notes = [], []
    for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True):
        try:
            index, uuid, name, total, free, capability = row
            gpu = Gpu(int(index), name, int(total) * MIB, int(free) * MIB, float(capability))
        except ValueError:  # "[N/A]", as where GPU and CPU share one memory
            notes.append(
                f"a GPU is left out, nvidia-smi does not tell its memory: {', '.join(row)}"
            )
            continue
        if wanted is None or index in wanted or any(w and uuid.startswith(w) for w in wanted):
            gpus.append(gpu)
    return tuple(gpus), notes


def _memory(root: Path) -> tuple[int, int]:
    """(total, available) bytes: of the machine, or of the cgroup where that is less."""
    lines = [line.split() for line in _text(root / "proc/meminfo").splitlines()]
    told = {words[0]: int(words[1]) << 10 for words in lines if len(words) > 1}
    if "MemTotal:" not in told:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return size, size // 2  # not Linux: half is a guess on the safe side
    total = told["MemTotal:"]
    available = told.get("MemAvailable:", told.get("MemFree:", 0))
    for limit, used in _cgroup_memory(root):
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return total, available


def _cgroup_memory(root: Path) -> list[tuple[int, int]]:
    """(limit, used) of the cgroup of this process and of those around it; version 2, then 1."""
    found = []
    for folder, limit, used, cache in (
        *((f, "memory.max", "memory.current", "inactive_file") for f in _cgroups(root)),
        (
            root / "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        most, now = _text(folder / limit), _text(folder / used)
        if most.isdecimal() and now.isdecimal():
            stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
            found.append((int(most), int(now) - int(stat.get(cache, "0"))))  # cache can be dropped
    return found


def _cgroups(root: Path) -> list[Path]:
    """The folder of this process's cgroup (version 2), and those above it."""
    top = root / "sys/fs/cgroup"
    own = [line[3:] for line in _text(root / "proc/self/cgroup").splitlines() if line[:3] == "0::"]
    folder = top / own[0].lstrip("/") if own else top
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]


def _cores(root: Path) -> int:
    """Cores that this process may use: its affinity, or the cgroup's share of time if less."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    for folder in _cgroups(root):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cores = min(cores, max(int(quota) // int(period), 1))
    return cores


def _flags(root: Path) -> frozenset[str]:
    words = set(_text(root / "proc/cpuinfo").split())
    if platform.machine() == "arm64":  # macOS tells nothing in a file
        words.add("asimd")
    return frozenset(name for flag, name in _FLAGS.items() if flag in words)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
