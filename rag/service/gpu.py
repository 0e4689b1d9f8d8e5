"""GPU memory and utilisation, read from NVIDIA's driver (NVML) when somebody asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_FRESH_S = 1.0  # NVML itself samples the utilisation over 1/6 to 1 s


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the driver says of one GPU: bytes, and the share of time that a kernel ran, 0 to 1.

    `utilisation` is None where it does not tell, as for the slices of MIG.
    """

    index: int
    name: str
    used: int
    total: int
    utilisation: float | None


class GpuCollector(Collector):
    """The GPUs of this machine as Prometheus gauges; none where NVML does not answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = -_FRESH_S
        self._gpus: list[Gpu] = []
        self._absent = find_spec("pynvml") is None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read at most once a second."""
        gpus = self._current()
        if not gpus:
            return
        labels = ["gpu", "model"]
        used = GaugeMetricFamily("rag_gpu_memory_used_bytes", "GPU memory in use.", labels=labels)
        total = GaugeMetricFamily("rag_gpu_memory_total_bytes", "GPU memory.", labels=labels)
        busy = GaugeMetricFamily(
            "rag_gpu_utilization_ratio", "Share of time that a kernel ran.", labels=labels
        )
        for gpu in gpus:
            values = [str(gpu.index), gpu.name]
            used.add_metric(values, gpu.used)
            total.add_metric(values, gpu.total)
            if gpu.utilisation is not None:
                busy.add_metric(values, gpu.utilisation)
        yield from (used, total, busy)

    def _current(self) -> list[Gpu]:
        with self._lock:
            if not self._absent and time.monotonic() - self._read_at >= _FRESH_S:
                self._gpus = self._read()
                self._read_at = time.monotonic()
            return self._gpus

    def _read(self) -> list[Gpu]:
        nvml: Any = import_module("pynvml")
        try:
            nvml.nvmlInit()  # counted by NVML: a second time costs nothing
        except nvml.NVMLError:  # no driver, and none will come while we run
            self._absent = True
            return []
        with suppress(nvml.NVMLError):
            return [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        return []


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    busy = None
    with suppress(nvml.NVMLError):
        busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    return Gpu(index, str(nvml.nvmlDeviceGetName(handle)), memory.used, memory.total, busy)
