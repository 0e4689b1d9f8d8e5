"""Search on a GPU, where the installed FAISS and the machine have one.

faiss-gpu (CUDA 12), faiss-gpu-cuvs (CUDA 13) and faiss-cpu are one module under three names;
what it can do is found out, not read from the name.
"""

from __future__ import annotations

import re
import threading
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import faiss

from rag.errors import ConfigError, RagWarning

if TYPE_CHECKING:
    from rag.types import Vectors

MOST_OF_GPU = 2_048
"""Hits that an index on a GPU gives at most."""

_KINDS = ("Flat", "IVF_FLAT", "IVF_PQ")
# FAISS' resources of a GPU, which all its indexes share, serve one thread at a time. Reentrant, as
# Python may free an index at any point of another's search.
_ONE_AT_A_TIME = threading.RLock()


class GpuIndex:
    """A copy of an index on the GPU. Safe to share between threads."""

    def __init__(self, copy: Any) -> None:
        self._copy = copy
        self._turn = _ONE_AT_A_TIME

    def search(self, queries: Vectors, n: int) -> Any:
        """(scores, positions) as the CPU gives them; n is MOST_OF_GPU at most."""
        with self._turn:
            return self._copy.search(queries, n)

    def __del__(self) -> None:
        """Give the GPU its memory back while no other thread is there."""
        with self._turn:
            del self._copy


def gpus() -> int:
    """How many GPUs FAISS can use. Without one, index_cpu_to_all_gpus gives an empty index."""
    if not hasattr(faiss, "StandardGpuResources"):
        return 0
    return int(faiss.get_num_gpus())


def check_device(device: str) -> None:
    """Raise ConfigError unless it is "auto", "cpu", "all" or like "gpu:0"."""
    if not re.fullmatch(r"auto|cpu|all|gpu:\d+", device):
        raise ConfigError(
            f"stores.faiss.device is {device!r}", "use one of: auto, cpu, gpu:0 (or 1, ...), all"
        )


def to_gpu(index: Any, kind: str, device: str) -> Any:
    """A GpuIndex of `index`; None, with a warning if one was asked for, where not."""
    present = gpus()
    if device == "cpu" or (device == "auto" and not present):
        return None
    number = 0 if device in ("auto", "all") else int(device.removeprefix("gpu:"))
    if number >= present:
        has = f"only {present}" if present else "none"
        return _refused(f"no GPU for {device!r}, FAISS finds {has}")
    if kind not in _KINDS:
        return None if device == "auto" else _refused(f"FAISS has no {kind} on a GPU")
    try:
        with _ONE_AT_A_TIME:
            if device == "all":
                copy = faiss.index_cpu_to_all_gpus(index)
            else:
                copy = faiss.index_cpu_to_gpu(_resources(number), number, index)
    except RuntimeError as error:  # for example out of its memory
        reason = str(error).splitlines()[-1][:200]
        return _refused(f"the GPU refused the index ({reason})")
    if copy.ntotal != index.ntotal:
        return _refused("the copy on the GPU is not whole")
    return GpuIndex(copy)


@cache
def _resources(_number: int) -> Any:
    """One a GPU and process: each takes a share of the GPU's memory for itself."""
    return faiss.StandardGpuResources()


def _refused(reason: str) -> None:
    warnings.warn(f"{reason}: searching on the CPU", RagWarning, stacklevel=3)
