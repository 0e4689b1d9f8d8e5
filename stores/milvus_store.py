"""One collection of Milvus as a vector store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.filters import And, Compare, Filter
from rag.terms import tokens
from rag.types import Chunk, CollectionSpec, DocumentKey, DocumentRecord, Hit, StoreInfo
from stores.checks import check_chunks, check_notes, check_vectors
from stores.generation import CAPABILITY, Marks
from stores.milvus_collection import MOST, MOST_IDS, Collection
from stores.milvus_filters import both, expression, one_of
from stores.milvus_rows import FIELDS, MORE, VECTOR, searchable, size, to_chunk, to_row
from stores.milvus_search import PAGE, Found, Searcher
from stores.ranking import nearest, rank
from stores.records import page_of

if TYPE_CHECKING:
    from rag.types import Vectors

GENERATION = "ragline_generation"
"""The property of what `stores.generation` keeps."""

_NOTES = "ragline_notes"
_BATCH_BYTES = 32 * 2**20  # a server takes messages of 64 MiB


@dataclass(frozen=True)
class Live:
    """What a collection says of itself: its description, and the index that is really there.

    `own_name` is its name in Milvus, which no other collection ever has.
    """

    own_name: str
    spec: CollectionSpec
    index: str
    partition_key: str
    words: bool


class MilvusStore:
    """One collection. Open it with `stores.milvus.MilvusBackend`."""

    def __init__(self, collection: Collection, live: Live, *, ef: int, nprobe: int) -> None:
        self.spec = live.spec
        self.collection = collection
        self._live = live
        self._searcher = Searcher(collection, live.spec.metric, live.index, ef=ef, nprobe=nprobe)
        self._marks = Marks(
            lambda: collection.properties().get(GENERATION, ""),
            lambda text: collection.set_property(GENERATION, text),
        )

    def describe(self) -> StoreInfo:
        spec, words = self.spec, self._live.words
        return StoreInfo(
            "milvus",
            spec.name,
            spec.dim,
            spec.metric,
            self._live.index,
            spec.embedder,
            self.count(),
            frozenset({CAPABILITY, *(("keyword_search", "hybrid_search") if words else ())}),
            self._notes(),
        )

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        vectors = check_chunks(chunks, vectors, self.spec.dim)
        # Of one id twice in a request Lite keeps the last, a server the first.
        numbers = {chunk.id: number for number, chunk in enumerate(chunks)}.values()
        batches: list[list[dict[str, Any]]] = []
        room = 0
        for number in numbers:
            room -= size(chunks[number], self.spec.dim)
            if room < 0:
                batches.append([])
                room = _BATCH_BYTES
            batches[-1].append(self._row(chunks[number], vectors[number]))
        for batch in batches:
            with self._marks.writing():
                self.collection.upsert(batch)

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        if ids is None and document_ids is None and where is None:
            return 0
        condition = self._expression(where)
        # Looked up first: a server counts what it was told to delete, not what was there.
        doomed: dict[str, None] = {}
        for some_ids in _conditions("id", ids):
            for some_documents in _conditions("document_id", document_ids):
                wanted = both(some_ids, some_documents, condition)
                for rows in self.collection.pages(wanted, ["id"], MOST):
                    doomed.update(dict.fromkeys(row["id"] for row in rows))
        for some_ids in _conditions("id", list(doomed)):
            with self._marks.writing():
                self.collection.delete(some_ids)
        return len(doomed)

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        found = self._searcher.chunks(ids)
        return [found[chunk_id] for chunk_id in ids if chunk_id in found]

    def vectors(self, ids: Sequence[str]) -> Vectors:
        rows = self.collection.rows(list(dict.fromkeys(ids)), ["id", VECTOR])
        found = {row["id"]: row[VECTOR] for row in rows}
        wanted = [found[chunk_id] for chunk_id in ids if chunk_id in found]
        return np.array(wanted, np.float32).reshape(-1, self.spec.dim)

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        queries = check_vectors(vectors, self.spec.dim)
        condition = self._expression(where)
        if k < 1:
            return [[] for _ in queries]

        def fetch(rows: list[int], n: int) -> Found:
            return self._searcher.by_vectors(queries[rows], n, condition)

        return [rank(found, k) for found in nearest(fetch, len(queries), k, MOST)]

    def keyword_search(
        self, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The `k` best by BM25; see `rag.protocols.KeywordSearch`."""
        words = [_asked(text) for text in texts]
        condition = self._expression(where)
        if k < 1:
            return [[] for _ in texts]

        def fetch(rows: list[int], n: int) -> Found:
            asked = [row for row in rows if words[row]]
            found = self._searcher.by_words([words[row] for row in asked], n, condition)
            by_row = dict(zip(asked, found, strict=True))
            return [by_row.get(row, []) for row in rows]

        return [rank(found, k) for found in nearest(fetch, len(words), k, MOST)]

    def hybrid_search(
        self, vectors: Vectors, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """Vectors and words in one round trip; see `rag.protocols.HybridSearch`."""
        queries = check_vectors(vectors, self.spec.dim)
        condition = self._expression(where)
        if k < 1:
            return [[] for _ in queries]
        words = [_asked(text) for text in texts]
        return [rank(found, k) for found in self._searcher.by_both(queries, words, k, condition)]

    def generation(self) -> str | None:
        """See `rag.protocols.Generations`."""
        return self._marks.generation()

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        if after is not None:
            behind = Compare("source", "gte", after.source)
            where = behind if where is None else And((where, behind))
        return page_of(self._records(where), containing, after, limit)

    def _records(self, where: Filter | None) -> Iterator[DocumentRecord]:
        fields = ["source", "version", "document_id", "position", "title", "ingested_at"]
        counts: Counter[tuple[str, str, str]] = Counter()
        first: dict[tuple[str, str, str], tuple[int, str, int]] = {}
        for rows in self.collection.pages(self._expression(where), fields, MOST):
            for row in rows:
                key = row["source"], row["version"], row["document_id"]
                counts[key] += 1
                if key not in first or row["position"] < first[key][0]:
                    first[key] = (row["position"], row["title"], row["ingested_at"])
        for key in sorted(first):
            (source, version, document), (position, title, ingested_at) = key, first[key]
            yield DocumentRecord(
                document, source, title, version, counts[key], ingested_at, position == 0
            )

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        for rows in self.collection.pages("", [*FIELDS, MORE, VECTOR], PAGE):
            vectors = np.array([row[VECTOR] for row in rows], np.float32)
            chunks = [to_chunk(row, row["id"], row[MORE]) for row in rows]
            for start in range(0, len(chunks), batch):
                yield chunks[start : start + batch], vectors[start : start + batch]

    def count(self, where: Filter | None = None) -> int:
        return self.collection.count(self._expression(where))

    def annotate(self, notes: Mapping[str, str]) -> None:
        with self._marks.writing():
            kept = check_notes(self._notes(), notes)
            self.collection.set_property(_NOTES, json.dumps(kept))

    def close(self) -> None:
        """Nothing to free: the backend holds the connection, the server the collection."""
        self._marks.close()

    def _expression(self, where: Filter | None) -> str:
        return expression(where, self._live.partition_key)

    def _notes(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.collection.properties().get(_NOTES, "{}"))
        return found

    def _row(self, chunk: Chunk, vector: Vectors) -> dict[str, Any]:
        live = self._live
        return to_row(chunk, vector, partition_key=live.partition_key, words=live.words)


def _asked(text: str) -> str:
    """The terms of a question, each once: one that is repeated weighs no more."""
    return searchable(dict.fromkeys(tokens(text)))


def _conditions(field: str, values: Sequence[str] | None) -> list[str]:
    """That the field has one of these values, in several conditions; empty where any will do."""
    if values is None:
        return [""]
    return [one_of(field, values[n : n + MOST_IDS]) for n in range(0, len(values), MOST_IDS)]
