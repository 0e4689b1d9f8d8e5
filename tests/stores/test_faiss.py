from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import faiss
import pytest

from rag.errors import StoreUnavailable
from stores.contract import SPEC, OpenBackend, StoreContract, chunk, library, random_vectors
from stores.faiss import FaissBackend

FOLDER = Path("faiss") / SPEC.name


class TestFaiss(StoreContract):
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("faiss")

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        return lambda: FaissBackend(data_dir=folder)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, folder: Path) -> str:
        return f"""
from pathlib import Path
from stores.faiss import FaissBackend
backend = FaissBackend(data_dir=Path({str(folder)!r}))
"""


def run(code: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, with `store` open on the collection."""
    begin = f"""
        import os, signal
        from pathlib import Path
        from stores.contract import SPEC, chunk, library, random_vectors
        from stores.faiss import FaissBackend
        store = FaissBackend(data_dir=Path({str(data_dir)!r})).create(SPEC)
    """
    source = textwrap.dedent(begin) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    done = run(
        """
        store.upsert(library()[:20], random_vectors(30)[:20])
        store.search(random_vectors(1), 1)
        store.upsert(library()[20:], random_vectors(30)[20:])
        store.delete(document_ids=["d1"])
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -9, done.stderr
    store = FaissBackend(data_dir=tmp_path).open(SPEC.name)
    assert store.count() == 20
    found = store.search(random_vectors(30)[:1], 30)[0]
    assert {hit.chunk.id for hit in found} == {c.id for c in library() if c.document_id != "d1"}
    assert found[0].chunk == library()[0]
    store.upsert([chunk(50)], random_vectors(1))  # the dead writer's lock is gone
    store.close()


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    store = FaissBackend(data_dir=tmp_path).create(SPEC)
    store.upsert(library(), random_vectors(30))
    other = run(
        """
        print(store.count(), len(store.search(random_vectors(1), 5)[0]))
        store.upsert([chunk(1)], random_vectors(1))
        """,
        tmp_path,
    )
    assert other.stdout.split() == ["30", "5"]
    assert "being written by another process" in other.stderr.splitlines()[-1]
    store.close()
    assert run("store.upsert([chunk(1)], random_vectors(1))", tmp_path).returncode == 0


def test_what_another_process_writes_is_found(tmp_path: Path) -> None:
    store = FaissBackend(data_dir=tmp_path).create(SPEC)
    assert store.search(random_vectors(1), 3) == [[]]
    run("store.upsert(library(), random_vectors(30)); store.close()", tmp_path)
    assert store.search(random_vectors(30)[4:5], 1)[0][0].chunk == library()[4]
    run("store.delete(ids=[library()[4].id]); store.close()", tmp_path)
    assert store.search(random_vectors(30)[4:5], 1)[0][0].chunk != library()[4]
    store.close()


@pytest.mark.parametrize("damage", ["missing", "garbage", "stale", "foreign", "flipped"])
def test_the_index_file_is_only_a_cache(tmp_path: Path, damage: str) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    store = backend.create(SPEC)
    store.upsert(library()[:10], random_vectors(30)[:10])
    store.close()
    index = tmp_path / FOLDER / "index.faiss"
    old = index.read_bytes()
    store = backend.open(SPEC.name)
    store.upsert(library()[10:], random_vectors(30)[10:])
    store.delete(ids=[library()[0].id])
    store.close()
    if damage == "missing":
        index.unlink()
    elif damage == "flipped":
        data = bytearray(index.read_bytes())
        data[200:600] = os.urandom(400)
        index.write_bytes(data)
    elif damage == "foreign":
        faiss.write_index(faiss.IndexFlatL2(3), str(index))
    else:
        index.write_bytes(old if damage == "stale" else b"not an index")
    store = backend.open(SPEC.name)
    found = store.search(random_vectors(30)[15:16], 30)[0]
    assert len(found) == 29
    assert found[0].chunk == library()[15]
    store.close()
    assert faiss.read_index(str(index)).ntotal == 29


def test_an_index_of_a_later_table_is_not_used_with_a_restored_one(tmp_path: Path) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    backend.create(SPEC).close()
    shutil.copytree(tmp_path / FOLDER, tmp_path / "backup")
    store = backend.open(SPEC.name)
    store.upsert([chunk(0)], random_vectors(1, seed=1))
    store.close()
    shutil.copy(tmp_path / "backup" / "chunks.sqlite3", tmp_path / FOLDER)
    store = backend.open(SPEC.name)
    store.search(random_vectors(1), 1)
    store.upsert([chunk(0)], random_vectors(1, seed=2))  # the same row number, another vector
    assert store.search(random_vectors(1, seed=2), 1)[0][0].score == pytest.approx(1, abs=1e-5)
    store.close()


def test_a_damaged_collection_can_be_deleted(tmp_path: Path) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    backend.create(SPEC).close()
    (tmp_path / FOLDER / "chunks.sqlite3").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="damaged"):
        backend.open(SPEC.name)
    backend.drop(SPEC.name)
    assert backend.collections() == []


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The process may write files of 256 KB at most, which SQLite meets like a full disk."""
    done = run(
        """
        import resource
        from rag.errors import StoreUnavailable
        store.upsert(library(), random_vectors(30))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
        try:
            many = [chunk(n, text="x" * 10_000) for n in range(100, 200)]
            store.upsert(many, random_vectors(100))
        except StoreUnavailable as error:
            print(error)
        print(store.count())
        """,
        tmp_path,
    )
    message, count = done.stdout.splitlines()
    assert str(tmp_path) in message
    assert count == "30"
    store = FaissBackend(data_dir=tmp_path).open(SPEC.name)
    assert store.get([c.id for c in library()]) == library()
    store.close()


def test_a_damaged_database_is_said_in_one_line(tmp_path: Path) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    backend.create(SPEC).close()
    for file in (tmp_path / FOLDER).glob("chunks.sqlite3*"):
        file.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreUnavailable, match="damaged"):
        backend.open(SPEC.name)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    store = FaissBackend(data_dir=tmp_path).create(SPEC)
    store.upsert(library(), random_vectors(30))
    store.close()
    names = {path.name for path in (tmp_path / FOLDER).iterdir()}
    assert names <= {"chunks.sqlite3", "index.faiss", "index.json", "write.lock"}
