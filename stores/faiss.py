"""The embedded default: FAISS searches, SQLite keeps.

`chunks.sqlite3` is the truth; `index.faiss` is a cache of its vectors. The ids in the index are
the rows' `seq`, so comparing the two sets says what to add and remove after any crash.
No pickle anywhere: loading a foreign folder runs none of its code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from rag.errors import StoreUnavailable
from rag.filters import Filter
from rag.types import Chunk, CollectionSpec, DocumentRecord, Hit, StoreInfo
from stores.checks import check_chunks, check_name, check_same, check_vectors, no_collection
from stores.ranking import rank, unit
from stores.sqlite import FILE, ChunkTable, locked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.types import Vectors

_BATCH = 10_000
_SPARE = 16  # how many more than k are fetched, so that ties at the k-th place are ordered by id


class FaissStore:
    """One collection in a folder of its own."""

    def __init__(self, table: ChunkTable) -> None:
        self._table = table
        self.spec = table.spec
        self._path = table.folder / "index.faiss"
        self._stamp = table.folder / "index.json"
        self._lock = threading.RLock()
        self._index: Any = None
        self._generation = -1
        self._wrote = False

    def describe(self) -> StoreInfo:
        spec = self.spec
        return StoreInfo(
            "faiss", spec.name, spec.dim, spec.metric, "Flat", spec.embedder, self.count()
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
        self._wrote = True
        return self._table.delete(ids, document_ids, where)

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        return self._table.get(ids)

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        queries = check_vectors(vectors, self.spec.dim)
        if self.spec.metric == "cosine":
            queries = unit(queries)
        while True:
            generation = self._table.generation
            found = self._nearest(queries, k, where)
            chunks = self._table.chunks(sorted({seq for row in found for seq, _ in row}))
            whole = all(seq in chunks for row in found for seq, _ in row)
            # A chunk that went between the two steps would leave fewer than k: look again.
            if whole or generation == self._table.generation:
                return [rank(((s, chunks[q]) for q, s in row if q in chunks), k) for row in found]

    def documents(self) -> Iterator[DocumentRecord]:
        return self._table.documents()

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        return self._table.scan(batch)

    def count(self, where: Filter | None = None) -> int:
        return self._table.count(where)

    def close(self) -> None:
        if self._wrote:
            self._wrote = False
            with self._lock:
                self._synchronise()
        self._table.close()

    def _nearest(
        self, queries: Vectors, k: int, where: Filter | None
    ) -> list[list[tuple[int, float]]]:
        """(seq, score) of the k best for each query, and of all that tie with the last."""
        parameters, matching = None, self._table.seqs(where) if where is not None else None
        with self._lock:
            index = self._synchronise()
            total = index.ntotal if matching is None else len(matching)
            if total == 0 or k < 1 or len(queries) == 0:
                return [[] for _ in queries]
            if matching is not None:
                selector = faiss.IDSelectorBatch(matching)
                parameters = faiss.SearchParameters()
                parameters.sel = selector
            fetch = min(k + _SPARE, total)
            while True:
                scores, seqs = index.search(queries, fetch, params=parameters)
                if self.spec.metric == "l2":
                    scores = -scores
                tie = scores[:, min(k, fetch) - 1] - scores[:, -1] < 1e-6
                if fetch == total or not tie.any():
                    break
                fetch = min(fetch * 4, total)
        return [
            [(seq, score) for seq, score in zip(*pair, strict=True) if seq >= 0]
            for pair in zip(seqs.tolist(), scores.tolist(), strict=True)
        ]

    def _synchronise(self) -> Any:
        """The index, made equal to the table; saved when that changed it."""
        generation = self._table.generation
        if self._index is None:
            self._index = self._load()
        if generation != self._generation:
            present = faiss.vector_to_array(self._index.id_map)
            wanted = self._table.seqs()
            gone = np.setdiff1d(present, wanted)
            new = np.setdiff1d(wanted, present)
            if len(gone):
                self._index.remove_ids(faiss.IDSelectorBatch(gone))
            for start in range(0, len(new), _BATCH):
                self._add(*self._table.vectors(new[start : start + _BATCH]))
            if len(gone) or len(new):
                self._save(generation)
            self._generation = generation
        return self._index

    def _add(self, seqs: NDArray[np.int64], vectors: Vectors) -> None:
        if len(seqs):
            self._index.add_with_ids(
                unit(vectors) if self.spec.metric == "cosine" else vectors, seqs
            )

    def _load(self) -> Any:
        metric = faiss.METRIC_L2 if self.spec.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.read_index(str(self._path)) if self._is_sound() else None
        if (
            isinstance(index, faiss.IndexIDMap2)
            and index.d == self.spec.dim
            and index.metric_type == metric
        ):
            return index
        return faiss.IndexIDMap2(faiss.IndexFlat(self.spec.dim, metric))

    def _is_sound(self) -> bool:
        """Whether the file is the one that was saved, and of this table and not of a later one.

        A table restored from a backup gives out numbers again that an index may know already.
        """
        try:
            stamp = json.loads(self._stamp.read_text("utf-8"))
            with self._path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            return bool(found == stamp["sha256"] and stamp["generation"] <= self._table.generation)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _save(self, generation: int) -> None:
        """Replace the index file atomically. Failing costs only time at the next open."""
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            with self._table.exclusive():
                faiss.write_index(self._index, str(part))
                with part.open("rb") as file:
                    saved = hashlib.file_digest(file, "sha256").hexdigest()
                part.replace(self._path)
                part.write_text(json.dumps({"sha256": saved, "generation": generation}))
                part.replace(self._stamp)
        except (StoreUnavailable, RuntimeError, OSError):
            part.unlink(missing_ok=True)


class FaissBackend:
    """Collections as folders under `data_dir`/faiss."""

    def __init__(self, *, data_dir: Path, **_: Any) -> None:
        self._root = data_dir / "faiss"

    def collections(self) -> list[str]:
        return sorted(path.parent.name for path in self._root.glob(f"[a-z0-9]*/{FILE}"))

    def create(self, spec: CollectionSpec) -> FaissStore:
        check_name(spec.name)
        table = ChunkTable.create(self._root / spec.name, spec)
        check_same(spec, table.spec)
        return FaissStore(table)

    def open(self, name: str) -> FaissStore:
        return FaissStore(ChunkTable(self._existing(name)))

    def drop(self, name: str) -> None:
        folder = self._existing(name)
        with locked(folder):
            # Renamed first: no crash leaves half a collection.
            doomed = self._root / f".gone-{name}-{os.getpid()}"
            folder.rename(doomed)
            shutil.rmtree(doomed)

    def replace(self, name: str, by: str) -> None:
        check_name(name)
        folder, new = self._root / name, self._existing(by)
        with locked(new):
            if folder.exists():
                self.drop(name)
            new.rename(folder)

    def close(self) -> None:
        """Nothing is held between the collections."""

    def _existing(self, name: str) -> Path:
        check_name(name)
        if not (self._root / name / FILE).exists():
            raise no_collection("faiss", name)
        return self._root / name
