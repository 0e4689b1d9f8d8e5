"""A collection around another one, as which it does: what adds something begins here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rag.filters import Filter
from rag.protocols import VectorStore
from rag.types import Chunk, DocumentKey, DocumentRecord, Facets, Hit, StoreInfo

if TYPE_CHECKING:
    from rag.types import Vectors


class StoreAround:
    """Passes everything on, the methods of capabilities too: whether they are there, those say."""

    def __init__(self, store: VectorStore) -> None:
        self._store: Any = store

    def describe(self) -> StoreInfo:
        info: StoreInfo = self._store.describe()
        return info

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        self._store.upsert(chunks, vectors)

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        gone: int = self._store.delete(ids=ids, document_ids=document_ids, where=where)
        return gone

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        found: list[Chunk] = self._store.get(ids)
        return found

    def vectors(self, ids: Sequence[str]) -> Vectors:
        found: Vectors = self._store.vectors(ids)
        return found

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        found: list[list[Hit]] = self._store.search(vectors, k, where)
        return found

    def keyword_search(
        self, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """See `rag.protocols.KeywordSearch`."""
        found: list[list[Hit]] = self._store.keyword_search(texts, k, where)
        return found

    def hybrid_search(
        self, vectors: Vectors, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """See `rag.protocols.HybridSearch`."""
        found: list[list[Hit]] = self._store.hybrid_search(vectors, texts, k, where)
        return found

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        found: Iterator[DocumentRecord] = self._store.documents(
            where, containing=containing, after=after, limit=limit
        )
        return found

    def facets(self, where: Filter | None = None) -> Facets:
        """See `rag.protocols.FacetCounts`."""
        found: Facets = self._store.facets(where)
        return found

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        found: Iterator[tuple[list[Chunk], Vectors]] = self._store.scan(batch)
        return found

    def count(self, where: Filter | None = None) -> int:
        found: int = self._store.count(where)
        return found

    def annotate(self, notes: Mapping[str, str]) -> None:
        self._store.annotate(notes)

    def generation(self) -> str | None:
        """See `rag.protocols.Generations`."""
        found: str | None = self._store.generation()
        return found

    def close(self) -> None:
        self._store.close()
