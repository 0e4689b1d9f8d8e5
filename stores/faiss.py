"""The embedded default: FAISS searches, SQLite keeps.

`chunks.sqlite3` is the truth; `stores.faiss_view` keeps an index of its vectors beside it. No
pickle anywhere: loading a foreign folder runs none of its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import faiss
from pydantic import Field

from rag.errors import StoreError
from rag.filters import Filter
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
    Effort,
    Links,
    check_chunks,
    check_name,
    check_same,
    check_vectors,
    no_collection,
)
from stores.facets import facets_of
from stores.faiss_gpu import check_device, gpus
from stores.faiss_index import IndexOptions, VectorIndex
from stores.faiss_threads import threads_for
from stores.faiss_view import View, Views
from stores.keywords import KeywordIndex
from stores.ranking import members, nearest, scores
from stores.sqlite import FILE, ChunkTable, locked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rag.types import Vectors
    from stores.faiss_index import Numbers

_GONE = ".gone-"  # begins the name of a collection that is being deleted
_RESCORED = 8  # times k: so many of a lossy index are compared again by their true vectors

Pairs = list[tuple[float, int]]


class FaissStore:
    """One collection in a folder of its own."""

    def __init__(self, table: ChunkTable, options: IndexOptions, device: str) -> None:
        self._table = table
        self.spec = table.spec
        self._views = Views(table, options, device)
        self._words = KeywordIndex(table)
        self._wrote = False

    def describe(self) -> StoreInfo:
        spec, main = self.spec, self._views.current().main
        kind = main.kind if main else "Flat"
        return StoreInfo(
            "faiss",
            spec.name,
            spec.dim,
            spec.metric,
            kind,
            spec.embedder,
            self.count(),
            frozenset({"keyword_search", "generation", "facets"}),
            self._table.notes(),
        )

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        self._table.upsert(chunks, check_chunks(chunks, vectors, self.spec.dim))
        self._wrote = True

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        gone = self._table.delete(ids, document_ids, where)
        self._wrote = True
        return gone

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        return self._table.get(ids)

    def vectors(self, ids: Sequence[str]) -> Vectors:
        return self._table.vectors_of(ids)

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        queries = self._views.comparable(check_vectors(vectors, self.spec.dim))
        if k < 1:
            return [[] for _ in queries]

        def find() -> list[Pairs]:
            wanted = None if where is None else self._table.seqs(where)
            return self._nearest(self._views.current(), queries, k, wanted)

        return self._table.hits(find, k)

    def keyword_search(
        self, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        return self._table.hits(lambda: self._words.search(texts, k, where), k)

    def generation(self) -> str:
        """See `rag.protocols.Generations`."""
        return self._table.state()

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        return self._table.documents(where, containing=containing, after=after, limit=limit)

    def facets(self, where: Filter | None = None) -> Facets:
        """See `rag.protocols.FacetCounts`."""
        return facets_of(self._table.values(where), complete=True)

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        return self._table.scan(batch)

    def count(self, where: Filter | None = None) -> int:
        return self._table.count(where)

    def annotate(self, notes: Mapping[str, str]) -> None:
        self._table.annotate(notes)

    def close(self) -> None:
        try:
            if self._wrote:
                self._wrote = False
                self._views.current(patient=False)
                self._words.save()
        finally:
            self._table.close()

    def _nearest(self, view: View, queries: Vectors, k: int, wanted: Numbers | None) -> list[Pairs]:
        """(score, seq) of the k best for each query, and of all that tie with the last."""
        main, among, tail, tail_vectors = view.main, view.alive, view.tail, view.tail_vectors
        if wanted is not None:
            rows = members(tail, wanted)
            tail, tail_vectors = tail[rows], tail_vectors[rows]
            among = None if main is None else members(main.numbers, wanted)
        total = len(tail)
        if main is not None:
            total += len(main.numbers) if among is None else int(among.sum())

        def fetch(rows: list[int], n: int) -> list[Pairs]:
            some = queries if len(rows) == len(queries) else queries[rows]
            near = self._in_main(main, some, n, among) if main is not None else None
            last = self._in_tail(tail, tail_vectors, some, n) if len(tail) else None
            if near is None or last is None:
                return near or last or [[] for _ in rows]
            return [sorted(a + b, reverse=True)[:n] for a, b in zip(near, last, strict=True)]

        return nearest(fetch, len(queries), k, max(total, 1))

    def _in_main(
        self, main: VectorIndex, queries: Vectors, n: int, among: NDArray[np.bool_] | None
    ) -> list[Pairs]:
        if not main.lossy:
            return _pairs(*main.search(queries, n, among))
        _, rows = main.search(queries, n * _RESCORED, among)
        found = []
        for query, row in zip(queries, rows, strict=True):
            seqs, vectors = self._table.vectors(row[row >= 0])
            true = scores(query[None], vectors, self.spec.metric)
            found.append(sorted(_pairs(true, seqs[None])[0], reverse=True)[:n])
        return found

    def _in_tail(self, tail: Numbers, vectors: Vectors, queries: Vectors, n: int) -> list[Pairs]:
        l2 = self.spec.metric == "l2"
        measure = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
        with threads_for(queries, len(tail)):
            found, rows = faiss.knn(queries, vectors, min(n, len(tail)), metric=measure)
        return _pairs(-found if l2 else found, tail[rows])


def _pairs(found: NDArray[np.floating], seqs: Numbers) -> list[Pairs]:
    return [
        [(score, seq) for score, seq in zip(*row, strict=True) if seq >= 0]
        for row in zip(found.tolist(), seqs.tolist(), strict=True)
    ]


class FaissBackend:
    """Collections as folders under `data_dir`/faiss."""

    def __init__(
        self,
        *,
        data_dir: Path,
        index: str = "auto",
        M: Links = 32,
        ef_construction: Effort = 200,
        ef_search: Effort = 64,
        nlist: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
        nprobe: Effort = 16,
        m: Annotated[int, Field(ge=0, le=2_048)] = 0,
        device: str = "auto",
    ) -> None:
        """`index` is auto, Flat, HNSW, IVF_FLAT, IVF_PQ or SQ8; `device` auto, cpu, gpu:0 or all.

        The others are FAISS' own names: see `stores.faiss_index.IndexOptions`.
        """
        self._root = data_dir / "faiss"
        self._options = IndexOptions(index, M, ef_construction, ef_search, nlist, nprobe, m)
        self._device = device
        check_device(device)

    def check(self) -> BackendInfo:
        found = gpus()
        capabilities = frozenset({"gpu"} if found else ())
        return BackendInfo(
            str(self._root), f"faiss {faiss.__version__}, {found} GPUs", capabilities
        )

    def collections(self) -> list[str]:
        return sorted(path.parent.name for path in self._root.glob(f"[a-z0-9]*/{FILE}"))

    def create(self, spec: CollectionSpec) -> FaissStore:
        check_name(spec.name)
        self._options.check(spec.dim)
        self._sweep()
        table = ChunkTable.create(self._root / spec.name, spec)
        try:
            check_same(spec, table.spec)
        except StoreError:
            table.close()
            raise
        return FaissStore(table, self._options, self._device)

    def open(self, name: str) -> FaissStore:
        table = ChunkTable(self._existing(name))
        self._options.check(table.spec.dim)
        return FaissStore(table, self._options, self._device)

    def drop(self, name: str) -> None:
        folder = self._existing(name)
        with locked(folder):
            self._put_aside(folder)
        self._sweep()

    def replace(self, name: str, by: str) -> None:
        check_name(name)
        folder, new = self._root / name, self._existing(by)
        with ExitStack() as held:
            held.enter_context(locked(new))
            if folder.exists():
                held.enter_context(locked(folder))
                self._put_aside(folder)
            new.rename(folder)
        self._sweep()

    def close(self) -> None:
        """Nothing is held between the collections."""

    def _put_aside(self, folder: Path) -> None:
        """Take a collection away at once, so that no crash leaves half of it."""
        folder.rename(self._root / f"{_GONE}{uuid4().hex}")

    def _sweep(self) -> None:
        """Delete what was put aside, by processes that died meanwhile too."""
        for folder in self._root.glob(f"{_GONE}*"):
            rmtree(folder, ignore_errors=True)  # another process may be at it too

    def _existing(self, name: str) -> Path:
        check_name(name)
        if not (self._root / name / FILE).exists():
            raise no_collection("faiss", name)
        return self._root / name
