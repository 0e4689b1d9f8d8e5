"""One collection of Chroma, embedded or on a server."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ldexp
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

import numpy as np
from chromadb.api.models.Collection import Collection
from chromadb.errors import InternalError, NotFoundError

from rag.filters import Filter
from rag.types import Chunk, CollectionSpec, DocumentKey, DocumentRecord, Hit, StoreInfo
from stores.checks import check_chunks, check_notes, check_vectors, gone
from stores.chroma_connection import Connection
from stores.chroma_description import (
    generation_of,
    notes_of,
    set_generation,
    set_notes,
    their_name,
)
from stores.chroma_filters import VECTOR, Where, join, to_chunk, to_metadata, to_where
from stores.generation import CAPABILITY, Marks
from stores.ranking import best, nearest, rank, scores, unit
from stores.records import page_of

if TYPE_CHECKING:
    from rag.types import Vectors

Condition: TypeAlias = Where | bool
T = TypeVar("T")

_MOST = 2**31 - 1  # hits of a query
_FEW = 100  # hits that are read with the query
_BYTES = 30_000_000  # a server takes requests of 40 MB, unless it is told otherwise
_PAGE = 1000
_PATIENCE_S = 10.0  # for the index, which follows the table


class _Row(NamedTuple):
    id: str
    text: str
    metadata: dict[str, Any]
    vector: Any


class ChromaStore:
    """One collection; `chroma_id` is Chroma's own, which no other has."""

    def __init__(self, connection: Connection, spec: CollectionSpec, chroma_id: UUID) -> None:
        self.spec = spec
        self._connection = connection
        self._id = chroma_id
        self._handle: tuple[Any, Collection] | None = None
        self._marks = Marks(self._generation, self._set_generation)

    def describe(self) -> StoreInfo:
        spec = self.spec
        with self._fresh() as collection:
            notes = notes_of(collection)
        return StoreInfo(
            "chroma",
            spec.name,
            spec.dim,
            spec.metric,
            "HNSW",
            spec.embedder,
            self.count(),
            frozenset({CAPABILITY}),
            notes,
        )

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        vectors = check_chunks(chunks, vectors, self.spec.dim)
        self._connection.claim(self)
        last = {chunk.id: row for row, chunk in enumerate(chunks)}
        for rows in _batches(list(last.values()), chunks, self.spec.dim, self._most()):
            with self._writing() as collection:
                self._put(collection, [chunks[row] for row in rows], vectors[rows])

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        if ids is None and document_ids is None and where is None:
            return 0
        self._connection.claim(self)
        condition, most, went = _condition(where), self._most(), 0
        for documents in _parts(document_ids, most):
            named = documents is None or {"document_id": {"$in": documents}}
            wanted = join("$and", [condition, named])
            for part in _parts(ids, most):
                found = self._ids(wanted, part)
                for doomed in _parts(found, most):
                    with self._writing() as collection:
                        collection.delete(ids=doomed)
                went += len(found)
        return went

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        return self._each(ids, ["metadatas", "documents"], _chunk)

    def vectors(self, ids: Sequence[str]) -> Vectors:
        found = self._each(ids, ["metadatas", "embeddings"], _vector)
        return np.array(found, np.float32).reshape(-1, self.spec.dim)

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        queries = check_vectors(vectors, self.spec.dim)
        condition = _condition(where)
        if k < 1 or condition is False or len(queries) == 0:
            return [[] for _ in queries]
        with self._connection.use():
            return self._search(queries, k, condition)

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
        return page_of(self._records(where), containing, after, limit)

    def _records(self, where: Filter | None) -> Iterator[DocumentRecord]:
        first: dict[tuple[str, str, str], dict[str, Any]] = {}
        counts: Counter[tuple[str, str, str]] = Counter()
        for rows in self._pages(["metadatas"], _PAGE, _condition(where)):
            for values in (row.metadata for row in rows):
                key = (values["source"], values["version"], values["document_id"])
                counts[key] += 1
                if key not in first or values["position"] < first[key]["position"]:
                    first[key] = values
        for key in sorted(first):
            values = first[key]
            yield DocumentRecord(
                id=values["document_id"],
                source=values["source"],
                title=values["title"],
                version=values["version"],
                chunks=counts[key],
                ingested_at=values["ingested_at"],
                complete=values["position"] == 0,
            )

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        for rows in self._pages(["metadatas", "documents", "embeddings"], batch):
            yield [_chunk(row) for row in rows], np.stack([_vector(row) for row in rows])

    def count(self, where: Filter | None = None) -> int:
        return self._count(_condition(where))

    def annotate(self, notes: Mapping[str, str]) -> None:
        with self._connection.use(), self._marks.writing() as mark, self._fresh() as collection:
            kept = check_notes(notes_of(collection), notes)
            with self._connection.writing():
                set_notes(collection, kept, mark)

    def close(self) -> None:
        self._marks.close()  # still as the writer
        self._connection.release(self)
        self._handle = None

    @contextmanager
    def _use(self) -> Iterator[Collection]:
        with self._connection.use() as client:
            try:
                if self._handle is None or self._handle[0] is not client:
                    self._handle = (client, self._find(client))
                yield self._handle[1]
            except NotFoundError as error:
                self._handle = None
                raise gone(self.spec.name) from error

    @contextmanager
    def _fresh(self) -> Iterator[Collection]:
        """With the metadata of now, which another process may have changed."""
        with self._use(), self._connection.use() as client:
            yield self._find(client)

    def _generation(self) -> str:
        with self._fresh() as collection:
            return generation_of(collection)

    def _set_generation(self, text: str) -> None:
        with self._fresh() as collection, self._connection.writing():
            set_generation(collection, text)

    def _find(self, client: Any) -> Collection:
        collection: Collection = client.get_collection(their_name(self.spec.name), None)
        if collection.id != self._id:
            raise NotFoundError("another has its name")
        return collection

    @contextmanager
    def _writing(self) -> Iterator[Collection]:
        with (
            self._use() as collection,
            self._marks.writing(),
            self._connection.writing(str(collection.id)),
        ):
            yield collection

    def _most(self) -> int:
        """How many records a request may hold."""
        with self._connection.use() as client:
            most: int = client.get_max_batch_size()
            return most

    def _put(self, collection: Collection, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        metadatas: dict[str, Any] = {chunk.id: to_metadata(chunk) for chunk in chunks}
        ids = list(metadatas)
        if self.spec.metric == "cosine":
            other = np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-6
            for row in np.flatnonzero(other).tolist():
                metadatas[ids[row]][VECTOR] = base64.b64encode(vectors[row].tobytes()).decode()
            vectors = np.where(other[:, None], unit(vectors), vectors)
        # Of a record that it replaces Chroma keeps all keys but those that are set to None.
        old = collection.get(ids, include=["metadatas"])
        for chunk_id, metadata in zip(old["ids"], old["metadatas"] or (), strict=True):
            metadatas[chunk_id] = {**dict.fromkeys(metadata), **metadatas[chunk_id]}
        collection.upsert(
            ids, vectors, list(metadatas.values()), documents=[chunk.text for chunk in chunks]
        )

    def _search(self, queries: Vectors, k: int, condition: Condition) -> list[list[Hit]]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            chunks: dict[str, Chunk] = {}
            found = self._nearest(queries, k, condition, chunks)
            wanted = {chunk_id for row in found for _, chunk_id in row}
            chunks.update({chunk.id: chunk for chunk in self.get(list(wanted - chunks.keys()))})
            if wanted <= chunks.keys() or time.monotonic() > deadline:
                break
            time.sleep(0.01)  # some are being deleted: the table goes before the index
        hits = [[Hit(chunks[i], score) for score, i in row if i in chunks] for row in found]
        if any(len(row) < k for row in hits):
            # There may be no more. Or the graph of HNSW has lost its way to some, as it does
            # to a few in ten thousand once many were replaced.
            there = min(k, self._count(condition))
            short = [row for row in range(len(hits)) if len(hits[row]) < there]
            for row, exact in zip(short, self._exact(queries[short], k, condition), strict=True):
                hits[row] = exact
        return hits

    def _nearest(
        self, queries: Vectors, k: int, condition: Condition, chunks: dict[str, Chunk]
    ) -> list[list[tuple[float, str]]]:
        """(score, id) of the k best for each query, ties by id.

        A few come with their `chunks`. For many it is quicker to ask for each once, afterwards.
        """
        if self.spec.metric == "cosine":
            queries = unit(queries)
        far, shifts = 0, np.zeros(len(queries), np.int32)
        if self.spec.metric != "l2":
            # Chroma tells 1 - product, in float32, which leaves nothing of small products. A query
            # of length 2 ** 40 makes them large, and a power of two changes no digit.
            far, shifts = 1, 40 - np.frexp(np.linalg.norm(queries, axis=1))[1]
            queries = np.ldexp(queries, shifts[:, None])
        whole = ["documents", "metadatas"] if len(queries) * k <= _FEW else []

        def fetch(rows: list[int], n: int) -> list[list[tuple[float, str]]]:
            answer = self._settled(
                "query",
                query_embeddings=queries[rows],
                n_results=n,
                where=_where(condition),
                include=["distances", *whole],
            )
            if whole:
                columns = (answer[name] for name in ("ids", "documents", "metadatas"))
                for row in zip(*columns, strict=True):
                    for chunk_id, text, metadata in zip(*row, strict=True):
                        if metadata is not None:
                            chunks[chunk_id] = to_chunk(chunk_id, text, metadata)
            return [
                [(ldexp(far - distance, -shift), i) for distance, i in zip(*row, strict=True)]
                for *row, shift in zip(
                    answer["distances"], answer["ids"], shifts[rows].tolist(), strict=True
                )
            ]

        found = nearest(fetch, len(queries), k, _MOST)
        return [best(row, k, str) for row in found]

    def _exact(self, queries: Vectors, k: int, condition: Condition) -> list[list[Hit]]:
        top: list[list[Hit]] = [[] for _ in queries]
        for rows in self._pages(["metadatas", "documents", "embeddings"], _PAGE, condition):
            chunks = [_chunk(row) for row in rows]
            table = scores(queries, np.stack([_vector(row) for row in rows]), self.spec.metric)
            for number, values in enumerate(table.tolist()):
                known = [(hit.score, hit.chunk) for hit in top[number]]
                top[number] = rank([*known, *zip(values, chunks, strict=True)], k)
        return top

    def _count(self, condition: Condition) -> int:
        if condition is True:
            with self._use() as collection:
                return collection.count()
        return len(self._ids(condition))

    def _ids(self, condition: Condition, ids: list[str] | None = None) -> list[str]:
        if condition is False:
            return []
        with self._use() as collection:
            return collection.get(ids, _where(condition), include=[])["ids"]

    def _pages(
        self, include: list[str], size: int, condition: Condition = True
    ) -> Iterator[list[_Row]]:
        """All rows that are there now, but for those that are deleted before their turn.

        Read by their ids, as what is deleted meanwhile would move the others to another place.
        """
        for part in _parts(self._ids(condition), min(size, self._most())):
            rows = self._rows(include, ids=part)
            if rows:
                yield rows

    def _each(self, ids: Sequence[str], include: list[str], read: Callable[[_Row], T]) -> list[T]:
        """What `read` makes of each row that is there, in the order asked."""
        found: dict[str, T] = {}
        for part in _parts(ids, self._most()):
            found.update({row.id: read(row) for row in self._rows(include, ids=part)})
        return [found[chunk_id] for chunk_id in ids if chunk_id in found]

    def _rows(self, include: list[str], **what: Any) -> list[_Row]:
        answer = self._settled("get", include=include, **what)
        columns = [answer[name] for name in ("documents", "metadatas", "embeddings")]
        nothing = [None] * len(answer["ids"])
        given = (nothing if column is None else column for column in columns)
        return list(map(_Row, answer["ids"], *given))

    def _settled(self, method: str, **what: Any) -> Any:
        """The answer to a question, asked again while the index and the table are not at one."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with self._use() as collection:
                try:
                    return getattr(collection, method)(**what)
                except InternalError as error:
                    if "Error finding id" not in str(error) or time.monotonic() > deadline:
                        raise
            time.sleep(0.01)


def _condition(where: Filter | None) -> Condition:
    return True if where is None else to_where(where)


def _where(condition: Condition) -> Where | None:
    return condition if isinstance(condition, dict) else None


def _chunk(row: _Row) -> Chunk:
    return to_chunk(row.id, row.text, row.metadata)


def _vector(row: _Row) -> Vectors:
    """As it was given."""
    if VECTOR in row.metadata:
        return np.frombuffer(base64.b64decode(row.metadata[VECTOR]), np.float32)
    return np.asarray(row.vector, np.float32)


def _parts(values: Sequence[str] | None, size: int) -> Iterator[list[str] | None]:
    """The values without duplicates in lists of up to `size`; one None for no values at all."""
    if values is None:
        yield None
        return
    once = list(dict.fromkeys(values))
    for start in range(0, len(once), size):
        yield once[start : start + size]


def _batches(rows: list[int], chunks: Sequence[Chunk], dim: int, most: int) -> Iterator[list[int]]:
    """The rows in lists that fit into a request."""
    batch: list[int] = []
    size = 0
    for row in rows:
        texts = [chunks[row].text, *map(str, chunks[row].metadata.values())]
        # A vector goes in base64, four characters for three bytes; a character has up to four.
        cost = 6 * dim + 4 * sum(map(len, texts))
        if batch and (len(batch) == most or size + cost > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += cost
    if batch:
        yield batch
