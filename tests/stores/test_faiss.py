from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from rag.errors import ConfigError, RagWarning, StoreUnavailable
from rag.filters import parse
from rag.types import CollectionSpec
from stores.contract import (
    SPEC,
    OpenBackend,
    StoreContract,
    chunk,
    clustered_vectors,
    library,
    random_vectors,
)
from stores.faiss import FaissBackend, FaissStore
from stores.sqlite import ChunkTable, acquire

FOLDER = Path("faiss") / SPEC.name


class TestFaiss(StoreContract):
    index = "auto"

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("faiss")

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        return lambda: FaissBackend(data_dir=folder, index=cls.index)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, folder: Path) -> str:
        return f"""
from pathlib import Path
from stores.faiss import FaissBackend
backend = FaissBackend(data_dir=Path({str(folder)!r}), index={cls.index!r})
"""


class Indexed(TestFaiss):
    """The contract on an index: without its threshold, small collections would not have one."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def at_once(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stores.faiss_view._TAIL", 0)
            patch.setattr("stores.faiss_index._LEAST", {"IVF_FLAT": 80, "IVF_PQ": 9984})
            yield

    def test_the_index_is_the_one_that_was_asked_for(
        self, backend: FaissBackend, spec: CollectionSpec
    ) -> None:
        store = backend.create(spec)
        store.upsert([chunk(n) for n in range(200)], random_vectors(200))
        assert store.describe().index == self.index
        store.close()


class TestFaissFlat(Indexed):
    index = "Flat"


class TestFaissHNSW(Indexed):
    index = "HNSW"
    exact = False


class TestFaissIVF(Indexed):
    index = "IVF_FLAT"
    exact = False


class TestFaissSQ8(Indexed):
    index = "SQ8"
    exact = False


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


MANY = 12_000


def filled(
    folder: Path, index: str = "auto", count: int = MANY, *, start: int = 0, **options: Any
) -> FaissStore:
    """A collection with the chunks `start` to `count` of MANY just written; 1 % are rare.

    Their vectors are clustered, of 32 dimensions.
    """
    backend = FaissBackend(data_dir=folder, index=index, **options)
    store = backend.create(CollectionSpec(SPEC.name, 32))
    chunks = [chunk(n, document=n // 100, rare=n % 100 == 7) for n in range(start, count)]
    store.upsert(chunks, clustered_vectors(MANY, 32)[start:count])
    return store


def recall(store: FaissStore, gone: range = range(0)) -> float:
    """recall@10 of 100 queries, with true scores, against exact search over what is not gone."""
    queries, vectors = clustered_vectors(100, 32, draw=1), clustered_vectors(MANY, 32)
    exact = queries @ vectors.T
    exact[:, gone] = -2
    best = np.argsort(-exact, axis=1)[:, :10]
    found = store.search(queries, 10)
    for hits, row in zip(found, exact, strict=True):
        assert [h.score for h in hits] == pytest.approx(
            [row[h.chunk.position] for h in hits], abs=1e-4
        )
    return float(
        np.mean(
            [
                len({hit.chunk.position for hit in hits} & set(row)) / 10
                for hits, row in zip(found, best.tolist(), strict=True)
            ]
        )
    )


@pytest.mark.parametrize("index", ["Flat", "HNSW", "IVF_FLAT", "IVF_PQ", "SQ8"])
def test_every_index_finds_the_nearest_with_true_scores(tmp_path: Path, index: str) -> None:
    store = filled(tmp_path, index)
    store.close()
    store = FaissBackend(data_dir=tmp_path, index=index).open(SPEC.name)
    assert store.describe().index == index
    assert recall(store) >= (1.0 if index == "Flat" else 0.95)
    rare = parse({"rare": True})
    for hits in store.search(clustered_vectors(50, 32, draw=2), 20, rare):
        assert len(hits) == 20
        assert all(hit.chunk.metadata["rare"] for hit in hits)
    half = parse({"position": {"$gte": MANY // 2}})
    assert {len(hits) for hits in store.search(clustered_vectors(50, 32, draw=3), 50, half)} == {50}
    assert store.delete(where=parse({"position": {"$lt": 500}})) == 500
    assert recall(store, range(500)) >= (1.0 if index == "Flat" else 0.95)
    store.close()


def saved(folder: Path) -> Any:
    return faiss.read_index(str(folder / FOLDER / "index.faiss"))


def inner(folder: Path) -> Any:
    """The saved index itself, without the numbers of its vectors."""
    outer = saved(folder)
    outer.own_fields = False  # or it would go with it
    return faiss.downcast_index(outer.index)


def test_deletions_beyond_a_share_make_the_index_anew(tmp_path: Path) -> None:
    store = filled(tmp_path, "HNSW")
    store.close()
    for gone, kept in ((1_000, MANY), (6_000, MANY - 6_000)):
        store = FaissBackend(data_dir=tmp_path, index="HNSW").open(SPEC.name)
        store.delete(where=parse({"position": {"$lt": gone}}))
        store.close()
        assert saved(tmp_path).ntotal == kept
        assert recall(store_at(tmp_path, "HNSW"), range(gone)) >= 0.95


def store_at(folder: Path, index: str = "auto") -> FaissStore:
    return FaissBackend(data_dir=folder, index=index).open(SPEC.name)


def test_lists_are_trained_again_when_the_collection_has_grown(tmp_path: Path) -> None:
    filled(tmp_path, "IVF_FLAT", count=3_000).close()
    few = inner(tmp_path).nlist
    filled(tmp_path, "IVF_FLAT", start=3_000).close()
    assert inner(tmp_path).nlist > 1.9 * few
    assert inner(tmp_path).ntotal == MANY
    assert recall(store_at(tmp_path, "IVF_FLAT")) >= 0.95


def test_an_index_that_cannot_be_trained_yet_is_flat(tmp_path: Path) -> None:
    filled(tmp_path, "IVF_PQ", count=3_000).close()
    store = store_at(tmp_path, "IVF_PQ")
    assert store.describe().index == "Flat"
    assert len(store.search(clustered_vectors(2, 32), 10)[1]) == 10
    store.close()


def test_auto_chooses_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.faiss_index._FLAT_UP_TO", 5_000)
    filled(tmp_path, count=4_000).close()
    assert store_at(tmp_path).describe().index == "Flat"
    filled(tmp_path, start=4_000).close()
    assert store_at(tmp_path).describe().index == "HNSW"


def test_a_few_new_chunks_are_searched_without_writing_the_index(tmp_path: Path) -> None:
    filled(tmp_path, "HNSW").close()
    before = (tmp_path / FOLDER / "index.faiss").stat().st_mtime_ns
    store = store_at(tmp_path, "HNSW")
    new = clustered_vectors(1, 32, draw=9)
    store.upsert([chunk(0, document=999, text="new")], new)
    store.close()
    store = store_at(tmp_path, "HNSW")
    assert store.search(new, 3)[0][0].chunk.text == "new"
    assert store.search(new, 3, parse({"document_id": "d999"}))[0][0].chunk.text == "new"
    store.close()
    assert (tmp_path / FOLDER / "index.faiss").stat().st_mtime_ns == before


def test_notes_make_no_index_stale_and_leave_the_collection_to_other_writers(
    tmp_path: Path,
) -> None:
    filled(tmp_path).close()
    table = ChunkTable(tmp_path / FOLDER)
    before = table.generation
    store = store_at(tmp_path)
    store.annotate({"weights": "[1]"})
    assert table.generation == before
    other = store_at(tmp_path)
    other.upsert([chunk(0, document=999)], clustered_vectors(1, 32))
    with pytest.raises(StoreUnavailable, match="being written"):
        store.annotate({"weights": "[2]"})
    other.close()
    assert store.describe().notes == {"weights": "[1]"}
    store.close()
    table.close()


@pytest.mark.parametrize(
    ("index", "before", "after", "built"),
    [
        ("HNSW", {"M": 8}, {"M": 16}, lambda i: i.hnsw.nb_neighbors(1) == 16),
        ("HNSW", {}, {"ef_construction": 40}, lambda i: i.hnsw.efConstruction == 40),
        ("IVF_FLAT", {"nlist": 50}, {"nlist": 60}, lambda i: i.nlist == 60),
        ("IVF_PQ", {"m": 1}, {"m": 2}, lambda i: i.pq.M == 2),
        ("SQ8", {"index": "Flat"}, {}, lambda i: isinstance(i, faiss.IndexScalarQuantizer)),
    ],
)
def test_other_settings_make_the_index_anew_at_the_next_write(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    index: str,
    before: dict[str, Any],
    after: dict[str, Any],
    built: Callable[[Any], bool],
) -> None:
    monkeypatch.setattr("stores.faiss_index._LEAST", {})
    filled(tmp_path, **{"index": index, **before}, count=3_000).close()
    filled(tmp_path, **{"index": index, **before}, start=3_000, count=3_001).close()
    assert inner(tmp_path).ntotal == 3_000  # the same settings leave it as it is
    assert not built(inner(tmp_path))
    store = filled(tmp_path, index, start=3_001, count=3_002, **after)
    assert len(store.search(clustered_vectors(1, 32), 3)[0]) == 3
    store.close()
    assert built(inner(tmp_path))
    assert inner(tmp_path).ntotal == 3_002


def test_search_settings_are_those_of_the_search(tmp_path: Path) -> None:
    filled(tmp_path, "HNSW", M=4, ef_construction=16).close()
    filled(tmp_path / "lists", "IVF_FLAT", nlist=200).close()
    for folder, name, options in (
        (tmp_path, "ef_search", {"index": "HNSW", "M": 4, "ef_construction": 16}),
        (tmp_path / "lists", "nprobe", {"index": "IVF_FLAT", "nlist": 200}),
    ):
        little, much = (
            recall(FaissBackend(data_dir=folder, **options, **{name: value}).open(SPEC.name))
            for value in (1, 200)
        )
        assert little < much - 0.05, name


@pytest.mark.parametrize("damage", ["missing", "garbage", "stale", "foreign", "flipped", "touched"])
def test_the_index_file_is_only_a_cache(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, count=3_000).close()
    index = tmp_path / FOLDER / "index.faiss"
    old = index.read_bytes()
    store = filled(tmp_path, count=6_000)
    store.delete(ids=[chunk(0).id])
    store.close()
    if damage == "missing":
        index.unlink()
    elif damage == "touched":
        index.touch()
    elif damage == "flipped":
        data = bytearray(index.read_bytes())
        data[200:600] = os.urandom(400)
        index.write_bytes(data)
    elif damage == "foreign":
        faiss.write_index(faiss.IndexFlatL2(3), str(index))
    else:
        index.write_bytes(old if damage == "stale" else b"not an index")
    store = store_at(tmp_path)
    found = store.search(clustered_vectors(MANY, 32)[3_500:3_501], 6_000)[0]
    assert len(found) == 5_999
    assert found[0].chunk.position == 3_500
    store.upsert([chunk(0)], clustered_vectors(1, 32))
    store.close()
    assert len(store_at(tmp_path).search(clustered_vectors(1, 32), 6_001)[0]) == 6_000


def test_an_index_of_a_later_table_is_not_used_with_a_restored_one(tmp_path: Path) -> None:
    store = filled(tmp_path, count=100)
    store.close()
    shutil.copytree(tmp_path / FOLDER, tmp_path / "backup")
    filled(tmp_path, count=3_000).close()
    shutil.copy(tmp_path / "backup" / "chunks.sqlite3", tmp_path / FOLDER)
    store = store_at(tmp_path)
    other = clustered_vectors(3_000, 32, draw=5)  # the same row numbers, other vectors
    for start in range(0, 3_000, 100):
        store.upsert([chunk(n) for n in range(start, start + 100)], other[start : start + 100])
    assert store.search(other[2_999:], 1)[0][0].score == pytest.approx(1, abs=1e-5)
    store.close()
    assert store_at(tmp_path).search(other[2_999:], 1)[0][0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("device", ["gpu:0", "all"])
def test_without_a_gpu_the_cpu_searches_and_says_so(tmp_path: Path, device: str) -> None:
    filled(tmp_path, "Flat", device="cpu").close()
    store = FaissBackend(data_dir=tmp_path, index="Flat", device=device).open(SPEC.name)
    with pytest.warns(RagWarning, match="searching on the CPU"):
        assert recall(store) == 1.0
    store.close()


class StandIn:
    """What FAISS does on a GPU, done on the CPU; more hits and a second thread it refuses."""

    def __init__(self, index: Any) -> None:
        self.index = faiss.clone_index(index)
        self.ntotal = index.ntotal
        self.searches = 0
        self.busy = threading.Lock()

    def search(self, queries: Any, n: int) -> Any:
        assert n <= 2_048
        assert self.busy.acquire(blocking=False), "two threads at a time"
        self.searches += 1
        time.sleep(0.001)
        found = self.index.search(queries, n)
        self.busy.release()
        return found


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The indexes that are on the GPU which this fixture pretends to be there."""
    made: list[StandIn] = []

    def index_cpu_to_gpu(_resources: Any, _number: int, index: Any) -> StandIn:
        made.append(StandIn(index))
        return made[-1]

    monkeypatch.setattr("stores.faiss_gpu.gpus", lambda: 1)
    monkeypatch.setattr("stores.faiss_gpu._resources", lambda _: None)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", index_cpu_to_gpu, raising=False)
    return made


@pytest.mark.parametrize("index", ["Flat", "IVF_FLAT"])
def test_deletions_and_filters_leave_the_search_on_the_gpu(
    tmp_path: Path, on_gpu: list[StandIn], index: str
) -> None:
    filled(tmp_path, index).close()
    store = FaissBackend(data_dir=tmp_path, index=index).open(SPEC.name)
    assert recall(store) >= 0.95
    assert store.delete(where=parse({"position": {"$lt": 500}})) == 500
    before = on_gpu[-1].searches
    assert recall(store, range(500)) >= 0.95
    half = parse({"position": {"$gte": MANY // 2}})
    for hits in store.search(clustered_vectors(20, 32, draw=3), 50, half):
        assert len(hits) == 50
        assert all(hit.chunk.position >= MANY // 2 for hit in hits)
    assert on_gpu[-1].searches == before + 2
    for hits in store.search(clustered_vectors(20, 32, draw=2), 20, parse({"rare": True})):
        assert len(hits) == 20
        assert all(hit.chunk.metadata["rare"] for hit in hits)
    store.close()


@pytest.mark.usefixtures("on_gpu")
def test_lists_that_end_early_on_the_gpu_are_filled(tmp_path: Path) -> None:
    filled(tmp_path, "IVF_FLAT").close()
    store = FaissBackend(data_dir=tmp_path, index="IVF_FLAT", nprobe=1).open(SPEC.name)
    assert {len(hits) for hits in store.search(clustered_vectors(20, 32, draw=1), 200)} == {200}
    store.close()


@pytest.mark.usefixtures("on_gpu")
def test_one_thread_at_a_time_is_on_the_gpu(tmp_path: Path) -> None:
    filled(tmp_path, "Flat").close()
    store = FaissBackend(data_dir=tmp_path, index="Flat").open(SPEC.name)
    queries = clustered_vectors(20, 32, draw=1)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda row: store.search(row[None], 3)[0], queries))
    assert [[h.chunk for h in row] for row in found] == [
        [h.chunk for h in row] for row in store.search(queries, 3)
    ]
    store.close()


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["auto", "gpu:0", "all"])
@pytest.mark.parametrize("index", ["Flat", "IVF_FLAT", "IVF_PQ"])
def test_on_a_gpu_the_same_is_found(tmp_path: Path, index: str, device: str) -> None:
    filled(tmp_path, index, device=device).close()
    store = FaissBackend(data_dir=tmp_path, index=index, device=device).open(SPEC.name)
    assert recall(store) >= (0.999 if index == "Flat" else 0.95)
    store.delete(document_ids=["d0"])
    assert recall(store, range(100)) >= (0.999 if index == "Flat" else 0.95)
    store.close()
    assert type(saved(tmp_path)).__name__ == "IndexIDMap"


@pytest.mark.parametrize("options", [{"index": "HNSW32"}, {"device": "cuda"}, {"device": "gpu"}])
def test_a_wrong_setting_names_the_right_ones(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"stores\.faiss\.\w+ is .*use one of: auto, "):
        FaissBackend(data_dir=tmp_path, **options)


def test_a_damaged_collection_can_be_deleted(tmp_path: Path) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    backend.create(SPEC).close()
    (tmp_path / FOLDER / "chunks.sqlite3").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="damaged"):
        backend.open(SPEC.name)
    backend.drop(SPEC.name)
    assert backend.collections() == []


@pytest.mark.parametrize("step", ["drop", "replace"])
def test_a_process_that_died_while_deleting_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    backend.create(SPEC).close()
    new = backend.create(replace(SPEC, name="next"))
    new.upsert(library(), random_vectors(30))
    new.close()
    with monkeypatch.context() as patch:
        patch.setattr("stores.faiss.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            backend.replace(SPEC.name, by="next") if step == "replace" else backend.drop(SPEC.name)
    left = "next" if step == "drop" else SPEC.name
    assert backend.collections() == [left]
    assert backend.open(left).get([c.id for c in library()]) == library()
    backend.create(replace(SPEC, name="more")).close()
    assert {path.name for path in (tmp_path / "faiss").iterdir()} == {left, "more"}
    backend.drop("more")
    assert backend.collections() == [left]


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_is_left_of_a_collection_that_was_never_made_is_deleted_later(tmp_path: Path) -> None:
    for name, age in ((".new-dead", 7_200), (".new-alive", 0)):
        (tmp_path / "faiss" / name).mkdir(parents=True)
        os.utime(tmp_path / "faiss" / name, (time.time() - age,) * 2)
    FaissBackend(data_dir=tmp_path).create(SPEC).close()
    found = {path.name for path in (tmp_path / "faiss").iterdir()}
    assert found == {".new-alive", SPEC.name}


def test_who_has_it_open_is_told_when_it_has_gone(tmp_path: Path) -> None:
    """And holds nothing of the one that has its name now."""
    backend = FaissBackend(data_dir=tmp_path)
    backend.create(SPEC).close()
    old = backend.open(SPEC.name)
    assert old.search(random_vectors(1), 3) == [[]]
    backend.drop(SPEC.name)
    new = backend.create(SPEC)
    new.upsert(library(), random_vectors(30))
    new.close()
    calls: list[Callable[[], Any]] = [
        lambda: old.upsert([chunk(99)], random_vectors(1)),
        lambda: old.search(random_vectors(1), 3),
        lambda: old.keyword_search(["text"], 3),
        lambda: old.get([chunk(0).id]),
        lambda: old.vectors([chunk(0).id]),
        lambda: list(old.scan()),
        lambda: list(old.documents()),
        old.count,
        old.describe,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="deleted or replaced; open it again"):
            call()
    assert run("store.upsert([chunk(1)], random_vectors(1))", tmp_path).returncode == 0
    old.close()


def test_a_collection_that_goes_at_the_last_moment_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    old = backend.create(SPEC)

    def late(lock: Any, folder: Path) -> None:
        monkeypatch.undo()
        backend.drop(SPEC.name)
        backend.create(SPEC).close()
        acquire(lock, folder)

    monkeypatch.setattr("stores.sqlite.acquire", late)
    with pytest.raises(StoreUnavailable, match="deleted or replaced; open it again"):
        old.upsert([chunk(99)], random_vectors(1))
    assert run("store.upsert([chunk(1)], random_vectors(1))", tmp_path).returncode == 0
    old.close()


def open_files(folder: Path) -> list[str]:
    """The files in a folder that this process holds open, one for each time it does."""
    held = []
    for entry in Path("/dev/fd").iterdir():
        with suppress(FileNotFoundError):
            held.append(str(entry.readlink()))
    return [name for name in held if name.startswith(str(folder))]


def test_threads_that_ended_leave_no_open_files(tmp_path: Path) -> None:
    store = FaissBackend(data_dir=tmp_path).create(SPEC)
    store.upsert(library(), random_vectors(30))
    store.search(random_vectors(1), 3)
    before = len(open_files(tmp_path))
    for _ in range(50):
        thread = threading.Thread(target=lambda: store.search(random_vectors(1), 3))
        thread.start()
        thread.join()
    assert 0 < len(open_files(tmp_path)) <= before
    store.close()


def test_a_small_search_starts_no_threads_that_would_spin(tmp_path: Path) -> None:
    code = """
        import faiss
        store.upsert([chunk(n) for n in range(5_000)], random_vectors(5_000))
        faiss.omp_set_num_threads(4)
        threads = lambda: len(os.listdir("/proc/self/task"))
        before = threads()
        for _ in range(3):
            store.search(random_vectors(4), 3)  # in the index, and in what was written since
            store.upsert([chunk(6_000)], random_vectors(1))
        print(store.describe().index, threads() - before, faiss.omp_get_max_threads())
    """
    told = run(code, tmp_path)
    assert told.stdout.split() == ["Flat", "0", "4"], told.stderr


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


def test_what_is_done_to_a_hit_is_not_done_to_the_collection(tmp_path: Path) -> None:
    """Although the chunks of late searches are not read again."""
    store = FaissBackend(data_dir=tmp_path).create(SPEC)
    store.upsert(library(), random_vectors(30))
    for search in (store.search, lambda _, k: store.keyword_search(["text"], k)):
        for hit in search(random_vectors(1), 5)[0]:
            metadata: Any = hit.chunk.metadata
            metadata["spoilt"] = True
        found = [hit.chunk for hit in search(random_vectors(1), 5)[0]]
        assert found
        assert all(chunk in library() for chunk in found)
    store.close()


def test_nothing_is_pickled(tmp_path: Path) -> None:
    store = FaissBackend(data_dir=tmp_path).create(SPEC)
    store.upsert(library(), random_vectors(30))
    store.close()
    names = {path.name for path in (tmp_path / FOLDER).iterdir()}
    made = {"index.faiss", "index.json", "keywords.bin", "keywords.json"}
    assert names <= made | {"chunks.sqlite3", "write.lock"}


def test_a_collection_from_before_there_were_generations_gets_one_for_all(tmp_path: Path) -> None:
    with closing(FaissBackend(data_dir=tmp_path).create(SPEC)) as store:
        store.upsert([chunk(0)], random_vectors(1))
    with closing(sqlite3.connect(tmp_path / "faiss" / SPEC.name / "chunks.sqlite3")) as db:
        assert db.execute("DELETE FROM meta WHERE key = 'state'").rowcount == 1
        db.commit()
    one, other = (FaissBackend(data_dir=tmp_path).open(SPEC.name) for _ in range(2))
    before = one.generation()
    assert other.generation() == before
    one.delete(ids=[chunk(0).id])
    assert other.generation() == one.generation() != before
    one.close()
    other.close()


def test_an_embedded_store_is_no_server(tmp_path: Path) -> None:
    assert "server" not in FaissBackend(data_dir=tmp_path).check().capabilities


def archive(data_dir: Path, documents: int) -> FaissStore:
    """A collection of documents of three chunks; every hundredth is of the tenant "rare"."""
    store = FaissBackend(data_dir=data_dir).create(SPEC)
    numbers = list(range(documents))[::-1]
    for start in range(0, documents, 2_000):
        chunks = [
            chunk(n, document=document, tenant="common" if document % 100 else "rare")
            for document in numbers[start : start + 2_000]
            for n in range(3)
        ]
        store.upsert(chunks, random_vectors(len(chunks)))
    return store


def seconds(work: Callable[[], object]) -> float:
    """The least of five times."""
    took = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return min(took)


def test_a_page_is_read_without_the_others(tmp_path: Path) -> None:
    with closing(archive(tmp_path, 3_000)) as store:
        whole = list(store.documents())
        common = parse({"tenant": "common"})
        all_of_it = seconds(lambda: list(store.documents()))
        for place in (0, 1_500, 2_900):
            after = whole[place].key
            for where in (None, common):
                page = list(store.documents(where, after=after, limit=50))
                wanted = [r for r in whole[place + 1 :] if where is None or int(r.id[1:]) % 100]
                assert page == wanted[:50]
                took = seconds(lambda w=where, a=after: list(store.documents(w, after=a, limit=50)))
                assert took < all_of_it / 4


def test_pages_and_facets_are_the_same_whether_much_or_little_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without large numbers of chunks.
    monkeypatch.setattr("stores.sql_documents._NEAR", 200)
    monkeypatch.setattr("stores.sql_documents._FEW", 200)
    with closing(archive(tmp_path, 1_000)) as store:
        for tenant, count in (("common", 990), ("rare", 10)):
            where = parse({"tenant": tenant})
            whole = list(store.documents(where))
            assert len(whole) == count
            for place in (0, 4, count - 3):
                for limit in (1, 7, 90):
                    page = list(store.documents(where, after=whole[place].key, limit=limit))
                    assert page == whole[place + 1 :][:limit]
            found = store.documents(where, containing="DOCUMENT 9", limit=1_000)
            assert list(found) == [record for record in whole if record.id[1] == "9"]
            (field,) = store.facets(where).fields
            assert field.values == ((tenant, count),)
        (field,) = store.facets().fields
        assert field.values == (("common", 990), ("rare", 10))


def test_a_file_without_the_index_of_documents_gets_one_from_its_next_writer(
    tmp_path: Path,
) -> None:
    archive(tmp_path, 20).close()
    file = tmp_path / FOLDER / "chunks.sqlite3"

    def indexes() -> set[str]:
        with closing(sqlite3.connect(file)) as db:
            return {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}

    assert "chunks_in_order" in indexes()
    with closing(sqlite3.connect(file)) as db:
        db.execute("DROP INDEX chunks_in_order")
    with closing(FaissBackend(data_dir=tmp_path).open(SPEC.name)) as store:
        whole = list(store.documents())
        assert len(whole) == 20
        assert list(store.documents(after=whole[3].key, limit=5)) == whole[4:9]
        rare = parse({"tenant": "rare"})
        assert [record.id for record in store.documents(rare, limit=5)] == ["d0"]
        assert "chunks_in_order" not in indexes()
        store.upsert([chunk(0, document=99)], random_vectors(1))
        assert len(list(store.documents())) == 21
    assert "chunks_in_order" in indexes()
