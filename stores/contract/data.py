"""The chunks, vectors and filters that the tests of the contract use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rag.types import Chunk, CollectionSpec, Fingerprint, Scalar

if TYPE_CHECKING:
    from rag.types import Vectors

DIM = 8
FINGERPRINT = Fingerprint("a-model", "1", DIM)
SPEC = CollectionSpec("contract", DIM, embedder=FINGERPRINT)


def chunk(number: int, *, document: int = 0, text: str = "", **metadata: Scalar) -> Chunk:
    """A chunk of test data; its position is `number`."""
    return Chunk(
        id=f"d{document}:v1:{number}",
        document_id=f"d{document}",
        version="v1",
        position=number,
        text=text or f"text {number}",
        source=f"/docs/{document}.txt",
        title=f"Document {document}",
        page=number % 3 + 1 if number % 4 else None,
        ingested_at=1_700_000_000 + number,
        metadata=metadata,
    )


def random_vectors(count: int, seed: int = 0, dim: int = DIM) -> Vectors:
    """float32, shape (count, dim), of any length."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, dim)) * rng.uniform(0.1, 9, (count, 1))
    return drawn.astype(np.float32)


def clustered_vectors(count: int, dim: int, seed: int = 0, *, draw: int = 0) -> Vectors:
    """float32 unit rows around 1 % as many centres, as embeddings of real text lie.

    The same seed gives the same centres; another `draw` gives other points around them, for
    queries that are not rows of the collection.
    """
    centres = np.random.default_rng(seed).normal(size=(max(count // 100, 20), dim))
    rng = np.random.default_rng([seed, draw, count])
    drawn = centres[rng.integers(len(centres), size=count)] + 0.7 * rng.normal(size=(count, dim))
    found: Vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return found


FILTERS: list[dict[str, Any]] = [
    {"year": 2024},
    {"year": {"$ne": 2024}},
    {"year": {"$gt": 2023}},
    {"year": {"$gte": 2024, "$lt": 2026}},
    {"year": {"$lte": 2023.5}},
    {"lang": {"$in": ["en", "中文", 7]}},
    {"lang": {"$nin": ["en"]}},
    {"lang": {"$in": []}},
    {"lang": {"$nin": []}},
    {"draft": True},
    {"draft": {"$ne": False}},
    {"draft": 1},
    {"year": "2024"},
    {"lang": {"$gt": "e"}},
    {"lang": {"$exists": True}},
    {"lang": {"$exists": False}},
    {"$or": [{"year": 2023}, {"draft": True}]},
    {"$and": [{"year": {"$gt": 2022}}, {"$not": {"lang": "en"}}]},
    {"$not": {"$or": [{"lang": "en"}, {"draft": {"$exists": True}}]}},
    {"year": {"$not": {"$gt": 2023}}},
    {"nothing": {"$ne": 1}},
    {"nothing": {"$in": [1]}},
    {"document_id": "d1"},
    {"source": {"$in": ["/docs/0.txt", "/docs/2.txt"]}},
    {"page": 2},
    {"page": {"$ne": 2}},
    {"page": {"$exists": False}},
    {"page": "2"},
    {"position": {"$gte": 20}},
    {"position": {"$exists": False}},
    {"title": {"$gte": "Document 2"}},
    {"note": 'it\'s "quoted"; DROP TABLE chunks --'},
    {"it's a.key 字": "v"},
    {"mixed": {"$gte": 1}},
    {"mixed": {"$not": {"$gte": 1}}},
    {"mixed": {"$in": ["1", True]}},
    {"$not": {"mixed": {"$in": [1, 2]}}},
]


def library() -> list[Chunk]:
    """30 chunks of 3 documents whose metadata has gaps, several types and awkward text."""
    found = []
    for number in range(30):
        metadata: dict[str, Any] = {}
        if number % 5:
            metadata["year"] = 2022 + number % 4
        if number % 3:
            metadata["lang"] = ("en", "中文", "e")[number % 3]
        if number % 4 == 0:
            metadata["draft"] = number % 8 == 0
        if number % 7 == 0:
            metadata["note"] = 'it\'s "quoted"; DROP TABLE chunks --'
            metadata["year"] = 2023.5
            metadata["it's a.key 字"] = "v"
        if number % 2:
            metadata["mixed"] = (1, "1", True, 2.5)[number // 2 % 4]
        found.append(chunk(number, document=number % 3, **metadata))
    return found
