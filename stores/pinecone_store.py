"""One collection in Pinecone: a namespace of an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from pinecone import ScoredVector, Vector

from rag.errors import InputError
from rag.filters import Filter, matches
from rag.types import Chunk, CollectionSpec, DocumentKey, DocumentRecord, Hit, StoreInfo
from stores.checks import check_chunks, check_notes, check_vectors, gone
from stores.generation import CAPABILITY, Marks
from stores.pinecone_catalogue import CATALOGUE, Entry, entries_of
from stores.pinecone_index import MOST_K, Connection
from stores.pinecone_records import (
    FOREIGN,
    Body,
    document_prefix,
    foreign_id,
    own_id,
    parts_of,
    piece_ids,
    record_id,
    to_chunk,
    to_filter,
    to_metadata,
)
from stores.ranking import nearest, rank
from stores.records import page_of, record_of, records_of

if TYPE_CHECKING:
    from rag.types import Vectors

TEXTS = ".texts"
"""What ends the name of the namespace with the pieces of a collection's long texts."""

Record: TypeAlias = Vector | ScoredVector

_WITH_METADATA = 100  # hits whose metadata fits the 4 MB that Pinecone answers a query with
_ZERO = 1e-8  # what Pinecone takes for zero
_MOST_VALUES = 1_000  # documents in a filter


class PineconeStore:
    """One collection: a namespace, and another one for the pieces of texts over 38 KB."""

    def __init__(self, spec: CollectionSpec, index: Connection, namespace: str) -> None:
        self.spec = spec
        self._index = index
        self._namespace = namespace
        self._texts = namespace + TEXTS
        self._marks = Marks(lambda: self._entry().generation, self._set_generation)

    def describe(self) -> StoreInfo:
        spec, count = self.spec, self._index.count(self._namespace)
        index = f"serverless {self._index.name}"
        return StoreInfo(
            "pinecone",
            spec.name,
            spec.dim,
            spec.metric,
            index,
            spec.embedder,
            count,
            frozenset({CAPABILITY}),
            self._entry().notes,
        )

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        vectors = check_chunks(chunks, vectors, self.spec.dim)
        _check_not_zero(chunks, vectors)
        rows = {chunk.id: (chunk, row) for chunk, row in zip(chunks, vectors.tolist(), strict=True)}
        if rows:
            # Which asks first: otherwise a namespace that was dropped would be there again.
            with self._marks.writing():
                self._put(rows.values())

    def _put(self, rows: Iterable[tuple[Chunk, list[float]]]) -> None:
        first: list[Vector] = []
        later: list[Vector] = []
        pieces: list[Vector] = []
        moved: dict[str, str] = {}  # chunk ids by the id of the record that was theirs
        has_foreign = self._index.has(self._namespace, FOREIGN)
        for chunk, row in rows:
            record = record_id(chunk)
            metadata, texts = to_metadata(chunk, record)
            for piece, text in texts.items():
                pieces.append(Vector(id=piece, values=self._index.probe, metadata={"text": text}))
            (later if chunk.position else first).append(
                Vector(id=record, values=row, metadata=metadata)
            )
            if has_foreign or record.startswith(FOREIGN):
                both = (own_id(chunk.id), foreign_id(chunk.id))
                moved |= {other: chunk.id for other in both if other and other != record}
        stale: dict[str, None] = {}
        if self._index.has(self._texts):
            replaced = self._fetched([*moved, *(vector.id for vector in (*first, *later))])
            stale = {i: None for each in replaced.items() for i in piece_ids(*each)}
        for vector in pieces:
            stale.pop(vector.id, None)
        self._index.upsert(self._texts, pieces)
        # The chunk at position 0 says that its document is whole.
        self._index.upsert(self._namespace, later, first)
        self._index.delete(self._namespace, moved)
        self._index.delete_unseen(self._texts, list(stale))

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        self._entry()
        documents = None if document_ids is None else dict.fromkeys(document_ids)
        condition = None if where is None else to_filter(where)
        doomed: dict[str, str] = {}  # chunk ids by record id
        pieces: list[str] = []
        if ids is not None:
            found: Iterable[dict[str, Body]] = [_bodies(self._records(ids))]
        elif condition is not None:
            found = self._matching(condition, documents)
        else:
            records, pieces = self._own_records(documents or {})
            doomed = {record: ":".join(map(str, parts_of(record))) for record in records}
            foreign = bool(documents) and self._index.has(self._namespace, FOREIGN)
            found = self._matching({"foreign": True}, documents) if foreign else []
        for page in found:
            for record, metadata in page.items():
                chunk = to_chunk(metadata, "")
                if (documents is None or chunk.document_id in documents) and (
                    where is None or matches(where, chunk.fields())
                ):
                    doomed[record] = chunk.id
                    pieces += piece_ids(record, metadata)
        if doomed or pieces:
            with self._marks.writing():
                self._index.delete(self._namespace, doomed)
                self._index.delete_unseen(self._texts, pieces)
        return len(doomed)

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        found = {chunk.id: chunk for chunk, _ in self._whole(self._records(ids)).values()}
        return [found[chunk_id] for chunk_id in ids if chunk_id in found]

    def vectors(self, ids: Sequence[str]) -> Vectors:
        records = self._records(ids).values()
        found = {(record.metadata or {})["id"]: record.values for record in records}
        wanted = [found[chunk_id] for chunk_id in ids if chunk_id in found]
        return np.array(wanted, np.float32).reshape(-1, self.spec.dim)

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        queries = check_vectors(vectors, self.spec.dim).tolist()
        condition = None if where is None else to_filter(where)
        if k < 1:
            return [[] for _ in queries]
        # A euclidean score is the squared distance.
        sign = -1.0 if self.spec.metric == "l2" else 1.0
        known: dict[str, Record] = {}

        def fetch(rows: list[int], n: int) -> list[list[tuple[float, str]]]:
            some = [queries[row] for row in rows]
            metadata = n <= _WITH_METADATA
            found = self._index.query(self._namespace, some, n, condition, metadata=metadata)
            known.update({m.id: m for row in found for m in row if m.metadata})
            return [sorted(((sign * m.score, m.id) for m in row), reverse=True) for row in found]

        near = nearest(fetch, len(queries), k, MOST_K)
        if k > MOST_K and any(len(row) == MOST_K for row in near):
            raise InputError(f"Pinecone finds {MOST_K} chunks at most, not {k}", "ask for fewer")
        wanted = dict.fromkeys(record for row in near for _, record in row)
        if not wanted:
            self._entry()
        known.update(self._index.fetch(self._namespace, [i for i in wanted if i not in known]))
        found = self._whole({record: known[record] for record in wanted if record in known})
        return [rank(((s, found[i][0]) for s, i in row if i in found), k) for row in near]

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        records = self._all_records() if where is None else self._records_of(where)
        return page_of(records, containing, after, limit)

    def _all_records(self) -> Iterator[DocumentRecord]:
        # Ids tell all but source and title, so that one chunk of each version is enough.
        counts: dict[tuple[str, str], int] = {}
        first: dict[tuple[str, str], tuple[int, str]] = {}
        for document, version, position, record in self._positions():
            key = document, version
            counts[key] = counts.get(key, 0) + 1
            first[key] = min(first.get(key, (position, record)), (position, record))
        found = self._fetched(record for _, record in first.values())
        records = []
        for key, (_, record) in first.items():
            if record not in found:  # deleted meanwhile
                continue
            records.append(record_of(to_chunk(found[record], ""), counts[key]))
        yield from sorted(records, key=lambda record: record.key)

    def _records_of(self, where: Filter) -> Iterator[DocumentRecord]:
        empty = True
        for record in records_of(self._chunks_matching(where)):
            empty = False
            yield record
        if empty:
            self._entry()

    def _chunks_matching(self, where: Filter) -> Iterator[Chunk]:
        """Without their texts."""
        for page in self._matching(to_filter(where), None):
            yield from (to_chunk(body, "") for body in page.values())

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        waiting: list[str] = []
        for page in self._pages():
            waiting += page
            while len(waiting) >= batch:
                yield from self._scanned(waiting[:batch])
                waiting = waiting[batch:]
        yield from self._scanned(waiting)

    def count(self, where: Filter | None = None) -> int:
        condition = None if where is None else to_filter(where)
        # A search is as fresh as the last write and finds all that match, up to its limit.
        found = len(self._index.query(self._namespace, [self._index.probe], MOST_K, condition)[0])
        if not found:
            self._entry()
        if found < MOST_K:
            return found
        if condition is None:
            return self._index.count(self._namespace)
        return sum(len(page) for page in self._index.matching(self._namespace, condition))

    def annotate(self, notes: Mapping[str, str]) -> None:
        with self._marks.writing() as mark:
            entry = self._entry()
            # With the mark, lest an earlier generation come back: a record is written whole.
            kept = replace(entry, notes=check_notes(entry.notes, notes), generation=mark)
            self._index.upsert(CATALOGUE, [kept.to_record(self.spec.name)])

    def generation(self) -> str | None:
        """See `rag.protocols.Generations`. None where a write returns before it is seen."""
        return self._marks.generation() if self._index.shows_writes else None

    def close(self) -> None:
        """Nothing to free: connections are the backend's."""
        self._marks.close()

    def _set_generation(self, text: str) -> None:
        entry = replace(self._entry(), generation=text)
        self._index.upsert(CATALOGUE, [entry.to_record(self.spec.name)])

    def _entry(self) -> Entry:
        """What the catalogue says of the collection. Raises StoreUnavailable if it is another now.

        Asked before and after every write, and before it is said that nothing is there.
        """
        entry = entries_of(self._index, [self.spec.name]).get(self.spec.name)
        if entry is None or entry.namespace != self._namespace:
            raise gone(self.spec.name)
        return entry

    def _fetched(self, records: Iterable[str]) -> dict[str, Body]:
        """The metadata of the records that are there."""
        return _bodies(self._index.fetch(self._namespace, records))

    def _pages(self) -> Iterator[list[str]]:
        """The ids of all records, a page at a time."""
        empty = True
        for page in self._index.ids(self._namespace):
            empty = empty and not page
            yield page
        if empty:
            self._entry()

    def _records(self, ids: Sequence[str]) -> dict[str, Vector]:
        """The records of these chunks."""
        own = {chunk_id: own_id(chunk_id) for chunk_id in ids}
        found = self._index.fetch(self._namespace, filter(None, own.values()))
        others = [foreign_id(chunk_id) for chunk_id, i in own.items() if i not in found]
        if others and self._index.has(self._namespace, FOREIGN):
            found |= self._index.fetch(self._namespace, others)
        if ids and not found:
            self._entry()
        return found

    def _own_records(self, documents: Iterable[str]) -> tuple[list[str], list[str]]:
        """The records whose ids begin with these documents, and those of pieces of their texts."""
        prefixes = [prefix for prefix in map(document_prefix, documents) if prefix]
        records = self._index.all_ids(self._namespace, prefixes)
        if not records or not self._index.has(self._texts):
            return records, []
        return records, self._index.all_ids(self._texts, prefixes)

    def _matching(self, where: Body, documents: Iterable[str] | None) -> Iterator[dict[str, Body]]:
        """The metadata of the records that match, of these documents, a page at a time."""
        filters = [where]
        if documents is not None:
            names = list(documents)
            filters = [
                {"$and": [where, {"text:document_id": {"$in": names[at : at + _MOST_VALUES]}}]}
                for at in range(0, len(names), _MOST_VALUES)
            ]
        for each in filters:
            for page in self._index.matching(self._namespace, each):
                yield _bodies(page)

    def _whole(self, records: Mapping[str, Record]) -> dict[str, tuple[Chunk, Record]]:
        """Chunk and record, by record id, with the texts that are kept in pieces."""
        whole = self._joined(records)
        lost = [record for record in records if record not in whole]
        if lost:  # replaced meanwhile, or deleted
            whole |= self._joined(self._index.fetch(self._namespace, lost))
        return whole

    def _joined(self, records: Mapping[str, Record]) -> dict[str, tuple[Chunk, Record]]:
        """What `_whole` finds, without those records of whose texts a piece is missing."""
        bodies = _bodies(records)
        pieces = {record: piece_ids(record, metadata) for record, metadata in bodies.items()}
        found = self._index.fetch(self._texts, [i for ids in pieces.values() for i in ids])
        texts = {i: (vector.metadata or {})["text"] for i, vector in found.items()}
        return {
            record: (
                to_chunk(body, body.get("text") or "".join(texts[i] for i in pieces[record])),
                records[record],
            )
            for record, body in bodies.items()
            if all(i in texts for i in pieces[record])
        }

    def _positions(self) -> Iterator[tuple[str, str, int, str]]:
        """Document, version, position and record id of every chunk."""
        for page in self._pages():
            for record in page:
                if not record.startswith(FOREIGN):
                    yield *parts_of(record), record
            foreign = [record for record in page if record.startswith(FOREIGN)]
            for record, metadata in self._fetched(foreign).items():
                chunk = to_chunk(metadata, "")
                yield chunk.document_id, chunk.version, chunk.position, record

    def _scanned(self, ids: list[str]) -> Iterator[tuple[list[Chunk], Vectors]]:
        found = self._whole(self._index.fetch(self._namespace, ids)).values()
        if found:
            rows = np.array([record.values for _, record in found], np.float32)
            yield [chunk for chunk, _ in found], rows


def _bodies(records: Mapping[str, Record]) -> dict[str, Body]:
    return {i: record.metadata or {} for i, record in records.items()}


def _check_not_zero(chunks: Sequence[Chunk], vectors: Vectors) -> None:
    zero = (np.abs(vectors) < _ZERO).all(axis=1)
    if zero.any():
        raise InputError(
            f"the vector of chunk {chunks[int(zero.argmax())].id!r} is zero: Pinecone refuses it",
            "check the embedder that made it",
        )
