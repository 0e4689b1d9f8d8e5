from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.errors import StoreError, StoreUnavailable
from rag.protocols import VectorStore
from stores.contract import SPEC, chunk, library, random_vectors
from stores.copy import copy
from stores.faiss import FaissBackend
from stores.memory import MemoryBackend


def everything(store: VectorStore) -> dict[str, Any]:
    return {
        c.id: (c, row.tobytes())
        for chunks, rows in store.scan(7)
        for c, row in zip(chunks, rows, strict=True)
    }


@pytest.fixture
def source() -> VectorStore:
    store = MemoryBackend().create(SPEC)
    store.upsert(library(), random_vectors(30))
    return store


class Stopping:
    """A target that fails after some writes, and remembers the order of what it got."""

    def __init__(self, store: VectorStore, writes: int) -> None:
        self.store, self.writes = store, writes
        self.written: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def upsert(self, chunks: Any, vectors: Any) -> None:
        if self.writes == 0:
            raise StoreUnavailable("the connection broke", "try again")
        self.writes -= 1
        self.written += [c.position for c in chunks]
        self.store.upsert(chunks, vectors)


def test_a_copy_holds_the_same_chunks_and_vectors(source: VectorStore, tmp_path: Path) -> None:
    target = FaissBackend(data_dir=tmp_path).create(replace(SPEC, name="other"))
    seen: list[int] = []
    report = copy(source, target, seen.append)
    assert everything(target) == everything(source)
    assert (report.copied, report.kept) == (30, 0)
    assert seen[-1] == 30
    back = MemoryBackend().create(SPEC)
    assert copy(target, back).checksum == report.checksum
    assert everything(back) == everything(source)
    target.close()


def test_notes_are_copied_once_the_copy_is_proven(source: VectorStore, tmp_path: Path) -> None:
    source.annotate({"weights": "[1]", "both": "of the source"})
    target = FaissBackend(data_dir=tmp_path).create(replace(SPEC, name="other"))
    target.annotate({"own": "1", "both": "of the target"})
    before = target.describe().notes
    add_foreign(target)
    with pytest.raises(StoreError, match="holds other chunks already"):
        copy(source, target)
    assert target.count() == 1  # nothing was written
    assert target.describe().notes == before
    target.delete(document_ids=["d77"])
    report = copy(source, target)
    assert target.describe().notes == {"weights": "[1]", "both": "of the source"}
    target.annotate({"weights": ""})
    assert copy(source, target).checksum == report.checksum
    target.close()


def test_a_copy_that_was_stopped_goes_on(
    source: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.copy._BATCH", 4)
    target = Stopping(MemoryBackend().create(SPEC), writes=3)
    with pytest.raises(StoreUnavailable):
        copy(source, target)
    done = target.count()
    assert 0 < done < 30
    target.writes = -1
    report = copy(source, target)
    assert (report.copied, report.kept) == (30 - done, done)
    assert everything(target.store) == everything(source)
    assert copy(source, target).copied == 0


def test_first_chunks_come_last(source: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ingestion takes no half-copied document for a whole one."""
    monkeypatch.setattr("stores.copy._BATCH", 4)
    extra = [chunk(0, document=n) for n in range(40, 45)]
    source.upsert(extra, random_vectors(5))
    target = Stopping(MemoryBackend().create(SPEC), writes=-1)
    copy(source, target)
    assert 0 not in target.written[:29]
    assert target.written[29:] == [0] * 6


def test_the_source_is_read_once(source: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that pages through a server gives its vectors slowly."""
    monkeypatch.setattr("stores.copy._BATCH", 4)
    read: list[str] = []

    class Counted(Stopping):
        def scan(self, batch: int = 1000) -> Any:
            for chunks, vectors in self.store.scan(batch):
                read.extend(c.id for c in chunks)
                yield chunks, vectors

    assert copy(Counted(source, -1), MemoryBackend().create(SPEC)).copied == 30
    assert sorted(read) == sorted(c.id for c in library())


def test_a_first_chunk_that_goes_meanwhile_is_an_error(source: VectorStore) -> None:
    class Shrinking(Stopping):
        def vectors(self, ids: Any) -> Any:
            self.store.delete(ids=[library()[0].id])
            return self.store.vectors(ids)

    with pytest.raises(StoreError, match="the source changed meanwhile"):
        copy(Shrinking(source, -1), MemoryBackend().create(SPEC))


def spoil_text(store: VectorStore) -> None:
    store.upsert([replace(library()[4], text="changed")], random_vectors(30)[4:5])


def spoil_vector(store: VectorStore) -> None:
    store.upsert([library()[4]], random_vectors(1, seed=99))


def add_foreign(store: VectorStore) -> None:
    store.upsert([chunk(0, document=77)], random_vectors(1))


@pytest.mark.parametrize("spoil", [spoil_text, spoil_vector, add_foreign])
def test_what_does_not_arrive_as_it_left_is_an_error(
    source: VectorStore, spoil: Callable[[VectorStore], None]
) -> None:
    class Spoiled(Stopping):
        def scan(self, batch: int = 1000) -> Any:
            spoil(self.store)
            return self.store.scan(batch)

    with pytest.raises(StoreError, match="checksum"):
        copy(source, Spoiled(MemoryBackend().create(SPEC), writes=-1))


def test_memory_does_not_grow_with_the_collection(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for count in (6_000, 24_000):
        backend = FaissBackend(data_dir=tmp_path / str(count))
        source = backend.create(replace(SPEC, name="from"))
        source.upsert([chunk(n, document=n // 50) for n in range(count)], random_vectors(count))
        source.close()  # so that the index is made before, and not as part of the copy
        source = backend.open("from")
        target = backend.create(replace(SPEC, name="to"))
        tracemalloc.start()
        copy(source, target)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        source.close()
        target.close()
    assert peaks[1] < 1.2 * peaks[0]


def test_notes_that_the_source_gave_up_are_given_up_by_the_copy() -> None:
    source, target = MemoryBackend().create(SPEC), MemoryBackend().create(SPEC)
    source.annotate({"fusion": "learnt"})
    copy(source, target)
    assert target.describe().notes == {"fusion": "learnt"}
    source.annotate({"fusion": ""})
    copy(source, target)
    assert target.describe().notes == {}
