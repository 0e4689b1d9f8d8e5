"""What an approximate index costs: its ten best against those of an exact search."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from rag.filters import Filter, matches
from rag.protocols import VectorStore
from stores.ranking import scores

if TYPE_CHECKING:
    from rag.types import Vectors

QUERIES = 200
_K = 10
_BATCH = 1_000
_NOISE = 1e-5  # of float32: a vector that scores within it of the tenth best is as good


def ann_recall(store: VectorStore, queries: Vectors, where: Filter | None = None) -> float:
    """Recall@10 of the store's search against comparing every vector; 1 for no chunks.

    The collection is read once, in batches. Ties count as found, whichever of them is.
    """
    metric = store.describe().metric
    finders: dict[str, list[int]] = defaultdict(list)  # chunk id -> the queries that found it
    for query, hits in enumerate(store.search(queries, _K, where)):
        for hit in hits:
            finders[hit.chunk.id].append(query)
    best = np.empty((len(queries), 0))
    found: list[list[float]] = [[] for _ in queries]  # exact scores of what the index found
    for chunks, vectors in store.scan(_BATCH):
        rows = [n for n, c in enumerate(chunks) if where is None or matches(where, c.fields())]
        exact = scores(queries, vectors[rows], metric)
        best = -np.sort(-np.hstack([best, exact]), axis=1)[:, :_K]
        for column, row in enumerate(rows):
            for query in finders.get(chunks[row].id, ()):
                found[query].append(exact[query, column])
    if not best.size:
        return 1.0
    reached = [
        sum(score >= last - _NOISE * max(1.0, abs(last)) for score in own)
        for own, last in zip(found, best[:, -1], strict=True)
    ]
    return float(np.mean(reached)) / best.shape[1]
