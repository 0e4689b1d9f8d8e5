"""How many threads FAISS searches with.

Its threads (OpenMP's) wait for the next search by spinning, for milliseconds, on the cores that the
embedder needs: on 2 cores a question over 10,000 vectors took 17 ms instead of 11. One thread
neither spins nor waits for others, and reads so few vectors as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import faiss

if TYPE_CHECKING:
    from rag.types import Vectors

# Products of two numbers; one core computes as many in about 20 ms.
_WORTH_THREADS = 100_000_000


@contextmanager
def threads_for(queries: Vectors, vectors: int) -> Iterator[None]:
    """Inside, this thread searches alone unless there is much to compare."""
    if queries.size * vectors >= _WORTH_THREADS:
        yield
        return
    usual = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # for the calling thread alone
    try:
        yield
    finally:
        faiss.omp_set_num_threads(usual)
