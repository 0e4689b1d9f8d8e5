"""One order of hits for every store: higher score first, ties by chunk id."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rag.types import Chunk, Hit, Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.types import Vectors


T = TypeVar("T")
# Scores closer than this share of themselves are ties: ten times the rounding of float32.
_NOISE = 1e-6


def nearest(
    fetch: Callable[[list[int], int], list[list[tuple[float, T]]]], queries: int, k: int, limit: int
) -> list[list[tuple[float, T]]]:
    """(score, item) of the k best for each query, and of all that tie with the last of them.

    `fetch(rows, n)` gives the n best for those queries, best first; `limit` is the largest n that
    the engine takes. One more than k is asked for, and more only while that one is a tie: so equal
    scores can be ordered by id, at next to no cost where there are none.
    """
    rows, wanted = list(range(queries)), min(k + 1, limit)
    found: dict[int, list[tuple[float, T]]] = {}
    while rows:
        found.update(zip(rows, fetch(rows, wanted), strict=True))
        if wanted >= limit:
            break
        rows = [
            row
            for row in rows
            if len(found[row]) >= wanted and _tied(found[row][k - 1][0], found[row][-1][0])
        ]
        wanted = min(wanted * 4, limit)
    return [found[row] for row in range(queries)]


def best(
    found: Iterable[tuple[float, T]], k: int, name: Callable[[T], str]
) -> list[tuple[float, T]]:
    """The k best (score, item), those of equal score by name.

    Equal is relative, because the scores of metrics ip and l2 have no scale of their own.
    """
    ordered = sorted(found, key=itemgetter(0), reverse=True)
    first = np.array([score for score, _ in ordered[: k + 1]], np.float64)
    high, low = first[:-1], first[1:]
    if not (high - low <= _NOISE * np.maximum(abs(high), abs(low))).any():
        return ordered[:k]
    named: list[tuple[float, str, float, T]] = []
    top = 0.0  # of those that tie
    for score, item in ordered:
        if not named or not _tied(top, score):
            if len(named) >= k:
                break
            top = score
        named.append((-top, name(item), score, item))
    named.sort(key=lambda row: row[:2])
    return [(score, item) for *_, score, item in named[:k]]


def rank(found: Iterable[tuple[float, Chunk]], k: int) -> list[Hit]:
    """The k best as hits, ties by chunk id."""
    return [Hit(chunk, float(score)) for score, chunk in best(found, k, lambda chunk: chunk.id)]


def _tied(high: float, low: float) -> bool:
    return high - low <= _NOISE * max(abs(high), abs(low))


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length one; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return scaled


def scores(queries: Vectors, vectors: Vectors, metric: Metric) -> NDArray[np.float64]:
    """Exact scores, shape (len(queries), len(vectors)); higher is better in every metric.

    cosine: cosine similarity; ip: inner product; l2: negative squared Euclidean distance.
    In float64, so that the reference has no rounding of its own.
    """
    if metric == "cosine":
        queries, vectors = unit(queries), unit(vectors)
    left, right = queries.astype(np.float64), vectors.astype(np.float64)
    products: NDArray[np.float64] = left @ right.T
    if metric != "l2":
        return products
    lengths = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :]
    distances: NDArray[np.float64] = np.minimum(2 * products - lengths, 0.0)
    return distances


def members(numbers: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each of `numbers` whether it is among `wanted`; both ascend."""
    found = np.zeros(len(numbers), np.bool_)
    if len(wanted) and len(numbers):
        at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        found[at[numbers[at] == wanted]] = True
    return found
