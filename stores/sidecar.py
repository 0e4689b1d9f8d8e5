"""Keyword search for stores that have none: an index beside the store, on this machine.

It follows every write: before one that adds, after one that deletes. So whenever the process dies,
it knows at least what the store holds; what it knows beyond that is not found in the store, and
left out. What other machines write is noticed by the count, and read from the store.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rag.errors import StoreUnavailable
from rag.filters import Filter
from rag.protocols import StoreBackend, VectorStore
from rag.types import BackendInfo, Chunk, CollectionSpec, Hit, StoreInfo
from stores.around import StoreAround
from stores.checks import check_chunks
from stores.generation import CAPABILITY as GENERATION
from stores.generation import NotedStore
from stores.keywords import KeywordIndex
from stores.ranking import rank
from stores.sqlite import ChunkTable

if TYPE_CHECKING:
    from rag.types import Vectors

_CAPABILITY = "keyword_search"
_COMPARED_S = 60.0  # how often the count is asked for, which is a question to a server


class KeywordBackend:
    """A backend whose collections all have keyword search and a generation.

    `folder` holds the indexes of words.
    """

    def __init__(
        self, backend: StoreBackend, folder: Path, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._backend = backend
        self._folder = folder
        self._say = say

    def check(self) -> BackendInfo:
        return self._backend.check()

    def collections(self) -> list[str]:
        return self._backend.collections()

    def create(self, spec: CollectionSpec) -> VectorStore:
        return self._with_all(self._backend.create(spec))

    def open(self, name: str) -> VectorStore:
        return self._with_all(self._backend.open(name))

    def drop(self, name: str) -> None:
        self._backend.drop(name)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def replace(self, name: str, by: str) -> None:
        self._backend.replace(name, by)
        if name != by:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            if (self._folder / by).exists():
                (self._folder / by).rename(self._folder / name)

    def close(self) -> None:
        self._backend.close()

    def _with_all(self, store: VectorStore) -> VectorStore:
        info = store.describe()
        if GENERATION not in info.capabilities:
            store = NotedStore(store)
        if _CAPABILITY in info.capabilities:
            return store
        return KeywordStore(store, info, self._folder, self._say)


class KeywordStore(StoreAround):
    """A collection and the index of its words."""

    def __init__(
        self, store: VectorStore, info: StoreInfo, folder: Path, say: Callable[[str], None]
    ) -> None:
        super().__init__(store)
        self._dim = info.dim
        self._folder = folder / info.collection
        # Only words: its vectors have no dimensions.
        self._words = CollectionSpec(info.collection, 0, info.metric)
        self._say = say
        self._lock = threading.RLock()
        self._opened: tuple[ChunkTable, KeywordIndex] | None = None
        self._compared = -_COMPARED_S
        self._generation: str | None = None
        self._wrote = False

    def describe(self) -> StoreInfo:
        info = super().describe()
        return replace(info, capabilities=info.capabilities | {_CAPABILITY})

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        with self._lock:
            self._wrote = True
            table = self._index()[0]
            # What the store will refuse is not remembered either.
            vectors = check_chunks(chunks, vectors, self._dim)
            table.upsert(chunks, _no_vectors(chunks))
            super().upsert(chunks, vectors)

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        with self._lock:
            gone = super().delete(ids=ids, document_ids=document_ids, where=where)
            self._wrote = True
            self._index()[0].delete(ids, document_ids, where)
            return gone

    def keyword_search(
        self, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The `k` best by BM25, as the store holds them; see `rag.protocols.KeywordSearch`."""
        if time.monotonic() - self._compared > _COMPARED_S:
            self._follow()
        found = self._find(texts, k, where)
        held = self._held(found)
        if len(held) < len({hit.chunk.id for hits in found for hit in hits}):
            self._follow(certain=True)
            found = self._find(texts, k, where)
            held = self._held(found)
        return [
            rank(((h.score, held[h.chunk.id]) for h in hits if h.chunk.id in held), k)
            for hits in found
        ]

    def generation(self) -> str | None:
        """That of the store. Once it is another, the index is compared with the store again."""
        found = super().generation()
        if found != self._generation:
            self._generation = found
            self._compared = -_COMPARED_S
        return found

    def close(self) -> None:
        with self._lock, ExitStack() as last:
            last.callback(self._store.close)
            if self._opened:
                table, words = self._opened
                last.callback(table.close)
                if self._wrote:
                    self._wrote = False
                    words.save()

    def _find(self, texts: Sequence[str], k: int, where: Filter | None) -> list[list[Hit]]:
        table, words = self._index()
        return table.hits(lambda: words.search(texts, k, where), k)

    def _held(self, found: Sequence[Sequence[Hit]]) -> dict[str, Chunk]:
        ids = list({hit.chunk.id for hits in found for hit in hits})
        return {chunk.id: chunk for chunk in self._store.get(ids)}

    def _index(self) -> tuple[ChunkTable, KeywordIndex]:
        with self._lock:
            if self._opened is None:
                try:
                    table = ChunkTable.create(self._folder, self._words)
                except StoreUnavailable:  # damaged, or not to be made: then this raises again
                    shutil.rmtree(self._folder, ignore_errors=True)
                    table = ChunkTable.create(self._folder, self._words)
                self._opened = table, KeywordIndex(table)
            return self._opened

    def _follow(self, *, certain: bool = False) -> None:
        """Read the store, if it holds other chunks than the index knows, as far as one can tell."""
        with self._lock:
            table, words = self._index()
            self._compared = time.monotonic()
            if not certain and table.count() == self._store.count():
                return
            try:
                with table.exclusive():
                    self._say(f"reading {self._store.count()} chunks for keyword search")
                    self._read_store(table)
                words.save()
            except StoreUnavailable:
                return  # another process writes, and keeps the index

    def _read_store(self, table: ChunkTable) -> None:
        seen: set[str] = set()
        for chunks, _ in self._store.scan():
            known = {chunk.id: chunk for chunk in table.get([chunk.id for chunk in chunks])}
            new = [chunk for chunk in chunks if known.get(chunk.id) != chunk]
            table.upsert(new, _no_vectors(new))
            seen.update(chunk.id for chunk in chunks)
        for ids in table.ids():
            table.delete([chunk_id for chunk_id in ids if chunk_id not in seen], None, None)


def _no_vectors(chunks: Sequence[Chunk]) -> Vectors:
    return np.zeros((len(chunks), 0), np.float32)
