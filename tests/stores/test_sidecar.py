from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.errors import StoreUnavailable
from rag.filters import parse
from rag.protocols import StoreBackend
from rag.types import CollectionSpec, StoreInfo
from stores.chroma import ChromaBackend
from stores.contract import SPEC, OpenBackend, StoreContract, chunk, random_vectors
from stores.faiss import FaissBackend
from stores.memory import MemoryBackend, MemoryStore
from stores.sidecar import KeywordBackend, KeywordStore


def beside_chroma(folder: Path) -> KeywordBackend:
    return KeywordBackend(ChromaBackend(data_dir=folder), folder / "keywords")


class TestKeywordsBesideChroma(StoreContract):
    """The whole contract: nothing of the store may change by it."""

    text_ranges = False

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("data")

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        return lambda: beside_chroma(folder)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, folder: Path) -> str:
        return f"""
from pathlib import Path
from stores.chroma import ChromaBackend
from stores.sidecar import KeywordBackend
folder = Path({str(folder)!r})
backend = KeywordBackend(ChromaBackend(data_dir=folder), folder / "keywords")
"""


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[KeywordBackend]:
    made = beside_chroma(tmp_path)
    yield made
    made.close()


def found(store: object, text: str) -> list[str]:
    assert isinstance(store, KeywordStore)
    return [hit.chunk.text for hit in store.keyword_search([text], 10)[0]]


def test_a_store_with_keyword_search_is_left_as_it_is(tmp_path: Path) -> None:
    backend = KeywordBackend(FaissBackend(data_dir=tmp_path), tmp_path / "keywords")
    assert not isinstance(backend.create(SPEC), KeywordStore)


class WithoutGeneration(MemoryStore):
    def describe(self) -> StoreInfo:
        info = super().describe()
        return replace(info, capabilities=info.capabilities - {"generation"})


class Foreign(MemoryBackend):
    def create(self, spec: CollectionSpec) -> MemoryStore:
        return self._stores.setdefault(spec.name, WithoutGeneration(spec))


def test_a_store_that_has_keyword_search_alone_is_given_a_generation(tmp_path: Path) -> None:
    store: Any = KeywordBackend(Foreign(), tmp_path).create(SPEC)
    assert store.describe().capabilities >= {"keyword_search", "generation"}
    store.upsert([chunk(0, text="a pump")], random_vectors(1))
    assert store.generation() is None
    store.close()
    before = store.generation()
    assert before
    assert [hit.chunk.text for hit in store.keyword_search(["pump"], 5)[0]] == ["a pump"]
    store.delete(document_ids=["d0"])
    store.close()
    assert store.generation() not in {before, None}
    assert store.describe().notes == {}


def test_a_write_that_fails_leaves_no_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written yet, as of a request whose answer was lost."""
    store: Any = KeywordBackend(Foreign(), tmp_path).create(SPEC)
    store.upsert([chunk(0)], random_vectors(1))
    store.close()
    known = store.generation()

    def lost(*_: object) -> None:
        raise StoreUnavailable("no answer came", "wait")

    with monkeypatch.context() as patched, pytest.raises(StoreUnavailable):
        patched.setattr(MemoryStore, "upsert", lost)
        store.upsert([chunk(1)], random_vectors(1))
    store.close()
    assert store.generation() is None
    store.upsert([chunk(1)], random_vectors(1))
    store.close()
    assert store.generation() not in {known, None}


def test_what_a_writer_does_in_the_middle_of_anothers_write_hides_it_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = KeywordBackend(Foreign(), tmp_path)
    first, second, reader = backend.create(SPEC), backend.open(SPEC.name), backend.open(SPEC.name)
    plain, told = MemoryStore.upsert, []

    def during_firsts_write(*others: Callable[[], None]) -> None:
        def upsert(*arguments: Any) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(MemoryStore, "upsert", plain)
                for other in others:
                    other()
            told.append(reader.generation())
            plain(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(MemoryStore, "upsert", upsert)
            first.upsert([chunk(1)], random_vectors(1))
        told.append(reader.generation())

    def write() -> None:
        second.upsert([chunk(2)], random_vectors(1))

    first.upsert([chunk(0)], random_vectors(1))
    write()
    during_firsts_write(second.close)
    assert told == [None, None]
    during_firsts_write(write, second.close)
    assert told[2] is not None
    assert told[3] is None
    first.close()
    assert reader.generation() not in told


def test_what_others_wrote_to_the_store_is_found(backend: KeywordBackend, tmp_path: Path) -> None:
    backend.create(SPEC).upsert([chunk(0, text="a pump")], random_vectors(1))
    backend.close()
    other = ChromaBackend(data_dir=tmp_path).open(SPEC.name)
    other.upsert([chunk(1, text="another pump")], random_vectors(1))
    other.delete(ids=[chunk(0).id])
    other.upsert([chunk(2, text="a third pump")], random_vectors(1))
    other.close()
    assert sorted(found(backend.open(SPEC.name), "pump")) == ["a third pump", "another pump"]


def test_what_others_replaced_one_for_one_is_noticed(
    backend: KeywordBackend, tmp_path: Path
) -> None:
    backend.create(SPEC).upsert([chunk(0, text="a pump")], random_vectors(1))
    backend.close()
    other = ChromaBackend(data_dir=tmp_path).open(SPEC.name)
    other.delete(ids=[chunk(0).id])
    other.upsert([chunk(1, text="the other pump")], random_vectors(1))
    other.close()
    assert found(backend.open(SPEC.name), "pump") == ["the other pump"]


@pytest.mark.parametrize("damage", ["database", "index", "all"])
def test_a_lost_or_damaged_index_is_made_again(
    backend: KeywordBackend, tmp_path: Path, damage: str
) -> None:
    store = backend.create(SPEC)
    store.upsert([chunk(n, text=f"pump {n}") for n in range(300)], random_vectors(300))
    store.close()
    folder = tmp_path / "keywords" / SPEC.name
    if damage == "all":
        for path in folder.iterdir():
            path.unlink()
    else:
        name = "chunks.sqlite3" if damage == "database" else "keywords.bin"
        (folder / name).write_bytes(b"garbage" * 100)
    assert found(backend.open(SPEC.name), "pump 17")[0] == "pump 17"


def test_a_dropped_collection_leaves_no_words(backend: KeywordBackend) -> None:
    backend.create(SPEC).upsert([chunk(0, text="a pump")], random_vectors(1))
    backend.drop(SPEC.name)
    assert found(backend.create(SPEC), "pump") == []


def test_words_move_with_a_collection_that_takes_anothers_name(backend: KeywordBackend) -> None:
    for name in ("old", "new"):
        store = backend.create(CollectionSpec(name, 8))
        store.upsert([chunk(0, text=f"{name} pump")], random_vectors(1))
        store.close()
    backend.replace("old", by="new")
    assert found(backend.open("old"), "pump") == ["new pump"]


def test_kill_9_between_the_two_writes_is_mended(tmp_path: Path) -> None:
    """The index knows a chunk that the store does not, or one that it has deleted."""
    code = f"""
import os
from pathlib import Path
from stores.chroma_store import ChromaStore
from stores.contract import SPEC, chunk, random_vectors
from stores.sidecar import KeywordBackend
from stores.chroma import ChromaBackend
folder = Path({str(tmp_path)!r})
backend = KeywordBackend(ChromaBackend(data_dir=folder), folder / "keywords")
store = backend.create(SPEC)
store.upsert([chunk(0, text="a pump")], random_vectors(1))
ChromaStore.upsert = lambda *_: os.kill(os.getpid(), 9)
store.upsert([chunk(1, text="a pump that was never written")], random_vectors(1))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    backend: StoreBackend = beside_chroma(tmp_path)
    store = backend.open(SPEC.name)
    assert found(store, "pump") == ["a pump"]
    assert found(store, "never written") == []
    store.upsert([chunk(1, text="a pump")], random_vectors(1))
    where = parse({"position": 1})
    assert isinstance(store, KeywordStore)
    assert [h.chunk.position for h in store.keyword_search(["pump"], 5, where)[0]] == [1]
    backend.close()
