"""The exact store in memory: the reference that every other store is compared with."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from rag.filters import Filter, matches
from rag.terms import tokens
from rag.types import (
    BackendInfo,
    Chunk,
    CollectionSpec,
    DocumentKey,
    DocumentRecord,
    Facets,
    Hit,
    StoreInfo,
)
from stores.checks import (
    check_chunks,
    check_name,
    check_notes,
    check_same,
    check_vectors,
    gone,
    no_collection,
)
from stores.facets import counted, facets_of
from stores.keywords import words_of
from stores.postings import Postings, search
from stores.ranking import rank, scores
from stores.records import page_of, records_of

if TYPE_CHECKING:
    from rag.types import Vectors


class MemoryStore:
    """One collection as a dictionary. Gone with the process."""

    def __init__(self, spec: CollectionSpec) -> None:
        self.spec = spec
        self._kept: dict[str, tuple[Chunk, Vectors]] = {}
        self._gone = False
        self._words: dict[str, list[str]] = {}
        self._postings: Postings | None = None
        self._notes: dict[str, str] = {}
        self._state = uuid4().hex
        self._lock = threading.RLock()

    def describe(self) -> StoreInfo:
        spec = self.spec
        return StoreInfo(
            "memory",
            spec.name,
            spec.dim,
            spec.metric,
            "exact",
            spec.embedder,
            self.count(),
            frozenset({"keyword_search", "generation", "facets"}),
            dict(self._notes),
        )

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        vectors = check_chunks(chunks, vectors, self.spec.dim)
        if not len(chunks):
            return
        with self._lock:
            for chunk, vector in zip(chunks, vectors, strict=True):
                self._rows[chunk.id] = (replace(chunk, metadata=dict(chunk.metadata)), vector)
                self._words[chunk.id] = words_of(chunk)
            self._changed()

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        if ids is None and document_ids is None and where is None:
            return 0
        wanted_ids, wanted_documents = set(ids or ()), set(document_ids or ())
        with self._lock:
            doomed = [
                chunk.id
                for chunk, _ in self._matching(where)
                if (ids is None or chunk.id in wanted_ids)
                and (document_ids is None or chunk.document_id in wanted_documents)
            ]
            for chunk_id in doomed:
                del self._rows[chunk_id], self._words[chunk_id]
            self._changed()
            return len(doomed)

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        with self._lock:
            return [self._rows[chunk_id][0] for chunk_id in ids if chunk_id in self._rows]

    def vectors(self, ids: Sequence[str]) -> Vectors:
        with self._lock:
            rows = [self._rows[chunk_id][1] for chunk_id in ids if chunk_id in self._rows]
        return np.array(rows, np.float32).reshape(-1, self.spec.dim)

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        queries = check_vectors(vectors, self.spec.dim)
        rows = self._matching(where)
        if not rows or k < 1:
            return [[] for _ in queries]
        table = scores(queries, np.stack([vector for _, vector in rows]), self.spec.metric)
        chunks = [chunk for chunk, _ in rows]
        return [rank(zip(row.tolist(), chunks, strict=True), k) for row in table]

    def keyword_search(
        self, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        with self._lock:
            chunks = [chunk for chunk, _ in self._rows.values()]
            if self._postings is None:
                self._postings = Postings.of(enumerate(self._words[c.id] for c in chunks))
            postings = self._postings
        may = [where is None or matches(where, chunk.fields()) for chunk in chunks]
        among = [np.array(may, np.bool_)]
        return [
            rank(((s, chunks[n]) for s, n in search([postings], tokens(text), k, among)), k)
            for text in texts
        ]

    def generation(self) -> str:
        """See `rag.protocols.Generations`."""
        self._check_there()
        return self._state

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        records = records_of(chunk for chunk, _ in self._matching(where))
        return page_of(records, containing, after, limit)

    def facets(self, where: Filter | None = None) -> Facets:
        """See `rag.protocols.FacetCounts`."""
        return facets_of(counted(chunk for chunk, _ in self._matching(where)), complete=True)

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        rows = self._matching(None)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            yield [chunk for chunk, _ in part], np.stack([vector for _, vector in part])

    def count(self, where: Filter | None = None) -> int:
        return len(self._matching(where))

    def annotate(self, notes: Mapping[str, str]) -> None:
        with self._lock:
            self._check_there()
            self._notes = check_notes(self._notes, notes)
            self._state = uuid4().hex

    def close(self) -> None:
        """Nothing to free: the backend keeps the collection until the process ends."""

    def forget(self) -> None:
        """Be a collection that is gone, for those who still have it open."""
        self._gone = True

    @property
    def _rows(self) -> dict[str, tuple[Chunk, Vectors]]:
        self._check_there()
        return self._kept

    def _changed(self) -> None:
        self._postings = None
        self._state = uuid4().hex

    def _check_there(self) -> None:
        if self._gone:
            raise gone(self.spec.name)

    def _matching(self, where: Filter | None) -> list[tuple[Chunk, Vectors]]:
        with self._lock:
            rows = list(self._rows.values())
        return [row for row in rows if where is None or matches(where, row[0].fields())]


class MemoryBackend:
    """Collections of this process."""

    def __init__(self, *, data_dir: Path = Path()) -> None:
        self._stores: dict[str, MemoryStore] = {}

    def check(self) -> BackendInfo:
        return BackendInfo("this process", f"numpy {np.__version__}")

    def collections(self) -> list[str]:
        return sorted(self._stores)

    def create(self, spec: CollectionSpec) -> MemoryStore:
        check_name(spec.name)
        store = self._stores.setdefault(spec.name, MemoryStore(spec))
        check_same(spec, store.spec)
        return store

    def open(self, name: str) -> MemoryStore:
        if name not in self._stores:
            raise no_collection("memory", name)
        return self._stores[name]

    def drop(self, name: str) -> None:
        self.open(name).forget()
        del self._stores[name]

    def replace(self, name: str, by: str) -> None:
        store = self.open(by)
        if name in self._stores and name != by:
            self.drop(name)
        store.spec = replace(store.spec, name=name)
        self._stores[name] = self._stores.pop(by)

    def close(self) -> None:
        """Nothing to free."""
