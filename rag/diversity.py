"""Hits that differ from one another: no passage twice, and if asked for, MMR."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rag.protocols import VectorStore
from rag.types import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAME = 0.9  # of the words of both
_PIECE = re.compile(r"\w+")  # a word; in Chinese what stands between two marks


def without_repeats(hits: Sequence[Hit], k: int) -> list[Hit]:
    """The hits less those that say the same as one above, until there are `k`; then those below.

    The same is a share of common words (Jaccard) of .9: a page header that changed, a copied file.
    """
    kept: list[Hit] = []
    seen: list[frozenset[str]] = []
    for at, hit in enumerate(hits):
        if len(kept) == k:
            return kept + list(hits[at:])
        words = frozenset(_PIECE.findall(hit.chunk.text))
        if not any(_alike(words, other) for other in seen):
            kept.append(hit)
            seen.append(words)
    return kept


def diverse(store: VectorStore, hits: Sequence[Hit], k: int, diversity: float) -> list[Hit]:
    """`k` of the hits by maximal marginal relevance (Carbonell and Goldstein 1998), best first.

    Relevance is the hit's score, scaled to 0..1 over these hits; likeness is the cosine of vectors.
    """
    pool = list(hits[: max(4 * k, 50)])
    vectors = store.vectors([hit.chunk.id for hit in pool])
    if not pool or len(vectors) != len(pool):  # nothing found, or some were deleted meanwhile
        return pool[:k]
    likeness = _unit(vectors) @ _unit(vectors).T
    scores = np.array([hit.score for hit in pool])
    relevance = (scores - scores.min()) / (float(np.ptp(scores)) or 1.0)
    chosen: list[int] = []
    nearest = np.zeros(len(pool))
    for _ in range(min(k, len(pool))):
        worth = (1 - diversity) * relevance - diversity * nearest
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
        nearest = np.maximum(nearest, likeness[chosen[-1]])
    return [pool[n] for n in chosen]


def _alike(left: frozenset[str], right: frozenset[str]) -> bool:
    if min(len(left), len(right)) < _SAME * max(len(left), len(right)):
        return False
    common = len(left & right)
    return common > 0 and common >= _SAME * (len(left) + len(right) - common)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-9))
    return scaled
