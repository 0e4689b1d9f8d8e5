from __future__ import annotations

import fcntl
import http.server
import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import chromadb
import numpy as np
import pytest
from chroma_server import chroma_server, free_port
from chromadb.config import Settings
from servers import RawServer, Reply

from rag.errors import (
    ConfigError,
    MetricMismatch,
    StoreUnavailable,
    UnknownCollection,
    UnsupportedFilter,
)
from rag.filters import matches, parse
from rag.protocols import VectorStore
from stores.chroma import ChromaBackend
from stores.contract import (
    SPEC,
    OpenBackend,
    StoreContract,
    chunk,
    library,
    random_vectors,
)

THEIRS = f"rag.{SPEC.name}.chunks"


class TestChromaPersistent(StoreContract):
    text_ranges = False

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("chroma")

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        return lambda: ChromaBackend(data_dir=folder)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, folder: Path) -> str:
        return f"""
from pathlib import Path
from stores.chroma import ChromaBackend
backend = ChromaBackend(data_dir=Path({str(folder)!r}))
"""


class TestChromaServer(StoreContract):
    text_ranges = False

    @pytest.fixture(scope="class")
    @classmethod
    def port(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
        with chroma_server(tmp_path_factory.mktemp("chroma")) as (port, _):
            yield port

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, port: int) -> OpenBackend:
        return lambda: ChromaBackend(data_dir=Path(), host="127.0.0.1", port=port)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, port: int) -> str:
        return f"""
from pathlib import Path
from stores.chroma import ChromaBackend
backend = ChromaBackend(data_dir=Path(), host="127.0.0.1", port={port})
"""

    def test_it_says_that_it_is_a_server(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        assert "server" in open_backend().check().capabilities
        with closing(ChromaBackend(data_dir=tmp_path)) as folder:
            assert "server" not in folder.check().capabilities

    def test_texts_of_more_bytes_than_a_request_may_have(self, open_backend: OpenBackend) -> None:
        backend = open_backend()
        store = backend.create(replace(SPEC, name="large"))
        chunks = [chunk(n, text="文" * 100_000) for n in range(150)]  # 45 MB; the server takes 40
        store.upsert(chunks, random_vectors(150))
        assert store.count() == 150
        backend.drop("large")
        backend.close()


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[ChromaBackend]:
    backend = ChromaBackend(data_dir=tmp_path)
    yield backend
    backend.close()


def bare(folder: Path) -> Any:
    """Chroma itself, as another program uses it."""
    return chromadb.PersistentClient(folder, Settings(anonymized_telemetry=False))


def started(code: str, data_dir: Path) -> subprocess.Popen[str]:
    """A process that runs `code`, with `store` open on the collection."""
    begin = f"""
        import os, signal, sys
        from pathlib import Path
        from stores.chroma import ChromaBackend
        from stores.contract import SPEC, chunk, library, random_vectors
        backend = ChromaBackend(data_dir=Path({str(data_dir)!r}))
        store = backend.create(SPEC)
    """
    source = textwrap.dedent(begin) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def run(code: str, data_dir: Path) -> tuple[str, str, int]:
    """(output, errors, status) of `code`."""
    process = started(code, data_dir)
    out, err = process.communicate(timeout=120)
    return out, err, process.returncode


# --- several processes on one folder


def test_a_second_writer_is_refused_and_readers_are_not(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    store = backend.create(SPEC)
    store.upsert(library(), random_vectors(30))
    out, err, _ = run(
        """
        print(store.count(), len(store.search(random_vectors(1), 5)[0]))
        store.upsert([chunk(1)], random_vectors(1))
        """,
        tmp_path,
    )
    assert out.split() == ["30", "5"]
    last = err.splitlines()[-1]
    assert "is being written by another process" in last
    assert f"chroma run --path {tmp_path / 'chroma'} --host 127.0.0.1" in last
    for refused in ("store.delete(ids=['x'])", "backend.drop(SPEC.name)"):
        assert "is being written" in run(refused, tmp_path)[1]
    store.close()
    assert run("store.upsert([chunk(1)], random_vectors(1))", tmp_path)[2] == 0


def test_threads_that_search_all_the_time_let_other_processes_in(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    store = backend.create(SPEC)
    store.upsert(library(), random_vectors(30))
    store.close()  # no longer the writer
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                assert len(store.search(random_vectors(2), 5)[1]) == 5
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        code = """
            for n in range(100, 110):
                store.upsert([chunk(n)], random_vectors(1))
            """
        process = started(code, tmp_path)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
    finally:
        done.set()
        for reader in readers:
            reader.join()
        process.kill()
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert failures == []
    assert store.count() == 40


def test_who_waits_is_not_overtaken(backend: ChromaBackend, tmp_path: Path) -> None:
    store = backend.create(SPEC)
    code = "print('ready', flush=True); sys.stdin.readline(); store.annotate({'one': 'turn'})"
    process = started(code, tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with backend._connection.use(), (tmp_path / "chroma" / "rag.queue").open() as queue:
        process.stdin.write("go\n")
        process.stdin.flush()
        deadline = time.monotonic() + 30
        with suppress(BlockingIOError):
            while time.monotonic() < deadline:
                fcntl.flock(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(queue, fcntl.LOCK_UN)
    notes = store.describe().notes
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert notes == {"one": "turn"}


def test_processes_that_write_in_turn_do_not_lose_each_others_vectors(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    """Chroma would save its index without what it did not know of: more than 1,000 each time."""
    store = backend.create(SPEC)
    vectors = random_vectors(4_500)
    store.upsert([chunk(n) for n in range(1_500)], vectors[:1_500])
    assert len(store.search(vectors[:1], 5_000)[0]) == 1_500
    store.close()
    write = """
        store.upsert([chunk(n) for n in range(1_500, 3_000)], random_vectors(4_500)[1_500:3_000])
        """
    assert run(write, tmp_path)[2] == 0
    assert len(store.search(vectors[:1], 5_000)[0]) == 3_000
    store.upsert([chunk(n) for n in range(3_000, 4_500)], vectors[3_000:])
    store.close()
    backend.close()
    out, err, _ = run("print(len(store.search(random_vectors(1), 5_000)[0]))", tmp_path)
    assert out.split() == ["4500"], err
    for hits, n in zip(store.search(vectors[::500], 1), range(0, 4_500, 500), strict=True):
        assert hits[0].chunk == chunk(n)


def test_a_reader_follows_a_writer(backend: ChromaBackend, tmp_path: Path) -> None:
    """Deletions and filters, too, which Chroma answers with stale rows, or "Error finding id"."""
    store = backend.create(SPEC)
    condition = parse({"position": {"$gte": 0}})
    writer = started(
        """
        for line in sys.stdin:
            exec(line)
            print("done", flush=True)
        """,
        tmp_path,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None

    def write(line: str) -> None:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(line + "\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "done\n"

    write("store.upsert(library(), random_vectors(30))")
    assert len(store.search(random_vectors(1), 50)[0]) == 30
    write("store.delete(document_ids=['d1'])")
    assert len(store.search(random_vectors(1), 50)[0]) == 20
    write("store.upsert([chunk(n, document=9) for n in range(5)], random_vectors(5))")
    assert len(store.search(random_vectors(1), 50, condition)[0]) == 25
    assert sum(len(chunks) for chunks, _ in store.scan()) == 25
    write("store.close()")
    store.upsert([chunk(77)], random_vectors(1))
    assert store.count() == 26
    writer.stdin.close()
    assert writer.wait(timeout=60) == 0
    writer.stdout.close()
    assert writer.stderr is not None
    writer.stderr.close()


def test_a_process_without_end_inside_is_told_of(
    backend: ChromaBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.chroma_folder._WAIT_S", 0.2)
    process = started(
        "with backend._connection.use(): print('in', flush=True); sys.stdin.read()", tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    with pytest.raises(StoreUnavailable, match=r"busy in other processes.*chroma run --path"):
        backend.collections()
    process.communicate(timeout=60)
    assert backend.collections() == [SPEC.name]


# --- crashes


def test_kill_9_while_the_index_is_saved_loses_nothing(tmp_path: Path) -> None:
    """The process is stopped again and again until it is in the middle of saving, then killed."""
    index = tmp_path / "chroma"
    write = """
        vectors = random_vectors(20_000)
        for start in range(store.count() // 250 * 250, 20_000, 250):
            chunks = [chunk(n, document=n // 250) for n in range(start, start + 250)]
            store.upsert(chunks, vectors[start:start + 250])
            print(start + 250, flush=True)
        """
    vectors = random_vectors(20_000)
    before = 0
    for _ in range(3):
        process = started(write, tmp_path)
        try:
            _wait_for_half_a_save(process, index)
        finally:
            process.kill()
        out, err = process.communicate(timeout=60)
        assert out.split(), err
        acknowledged = int(out.split()[-1])
        assert acknowledged > before
        backend = ChromaBackend(data_dir=tmp_path)
        store = backend.open(SPEC.name)
        count = store.count()
        assert count in (acknowledged, acknowledged + 250)
        assert len(store.search(vectors[:1], 30_000)[0]) == count
        for chunks, rows in store.scan():
            for each, row in zip(chunks, rows, strict=True):
                np.testing.assert_array_equal(row, vectors[each.position])
        backend.close()
        before = count


def _wait_for_half_a_save(process: subprocess.Popen[str], folder: Path) -> None:
    """Return with the process stopped when vectors are newer than the map of ids after them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "done before it was caught saving"
        for vectors in folder.glob("*/data_level0.bin"):
            if _is_half_saved(vectors):
                os.kill(process.pid, signal.SIGSTOP)
                if _is_half_saved(vectors):
                    return
                os.kill(process.pid, signal.SIGCONT)
    raise AssertionError("never caught saving")


def _is_half_saved(vectors: Path) -> bool:
    ids = vectors.with_name("index_metadata.pickle")
    return ids.exists() and vectors.stat().st_mtime_ns > ids.stat().st_mtime_ns


def test_a_run_after_kill_9_converges(tmp_path: Path) -> None:
    write = """
        chunks = [chunk(n, document=n // 100) for n in range(6_000)]
        print("begun", flush=True)
        store.upsert(chunks, random_vectors(6_000))
        store.close()
        """
    process = started(write, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.kill()
    process.communicate(timeout=60)
    assert run(write, tmp_path)[2] == 0
    backend = ChromaBackend(data_dir=tmp_path)
    store = backend.open(SPEC.name)
    assert sorted(record.chunks for record in store.documents()) == [100] * 60
    assert len(store.search(random_vectors(1), 10_000)[0]) == 6_000
    backend.close()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The process may write files of 1 MB at most, which the engine meets like a full disk."""
    out, err, _ = run(
        """
        import resource
        from rag.errors import StoreUnavailable
        store.upsert(library(), random_vectors(30))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        try:
            many = [chunk(n, text="x" * 5_000) for n in range(100, 1_300)]
            store.upsert(many, random_vectors(1_200))
        except StoreUnavailable as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(store.count(), len(store.search(random_vectors(1), 2_000)[0]))
        store.upsert(many, random_vectors(1_200))
        print(store.count(), len(store.search(random_vectors(1), 2_000)[0]))
        """,
        tmp_path,
    )
    assert len(out.splitlines()) == 3, err
    message, *counts = out.splitlines()
    assert str(tmp_path) in message
    assert "free some space" in message
    assert counts == ["30 30", "1230 1230"]


def test_too_little_space_is_told_before_anything_is_written(
    backend: ChromaBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma would go on, lose the vectors, and end with a segmentation fault at the next start.

    The copy of the index, here of 3 MB, needs space, too.
    """
    store = backend.create(replace(SPEC, dim=500, embedder=None))
    store.upsert([chunk(n) for n in range(1_500)], random_vectors(1_500, dim=500))
    backend.close()
    before = sorted((tmp_path / "chroma").iterdir())
    monkeypatch.setattr("stores.chroma_folder._SPARE_MB", 10**9)
    with pytest.raises(StoreUnavailable, match=r"MB are free .*free 100000000[3-9] MB"):
        store.upsert([chunk(9_999)], random_vectors(1, dim=500))
    assert sorted((tmp_path / "chroma").iterdir()) == before
    assert len(store.search(random_vectors(1, dim=500), 2_000)[0]) == 1_500


def test_a_change_that_failed_half_way_is_undone(backend: ChromaBackend, tmp_path: Path) -> None:
    store = backend.create(SPEC)
    vectors = random_vectors(1_500)
    store.upsert([chunk(n) for n in range(1_500)], vectors)
    (ids,) = (tmp_path / "chroma").glob("*/index_metadata.pickle")
    with pytest.raises(KeyboardInterrupt), store._writing():
        ids.write_bytes(ids.read_bytes()[:1_000])
        raise KeyboardInterrupt
    store.upsert([chunk(n) for n in range(500)], vectors[:500])
    backend.close()
    assert len(store.search(vectors[:1], 2_000)[0]) == 1_500


def test_nobody_writes_until_a_change_that_failed_is_undone(backend: ChromaBackend) -> None:
    """The engine of this turn may have lost vectors; what it saved now would count as whole."""
    store = backend.create(SPEC)
    with backend._connection.use():
        with pytest.raises(KeyboardInterrupt), store._writing():
            raise KeyboardInterrupt
        with pytest.raises(StoreUnavailable, match=r"has failed.*run this again"):
            store.upsert(library(), random_vectors(30))
    store.upsert(library(), random_vectors(30))
    assert store.count() == 30


def test_copies_of_the_index_go_when_nothing_is_under_way(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    copies = tmp_path / "chroma" / "rag.undo"
    backend.create(SPEC).upsert(library(), random_vectors(30))
    assert copies.exists()
    backend.close()
    assert not copies.exists()
    run("store.upsert(library(), random_vectors(30)); os._exit(0)", tmp_path)
    assert copies.exists()
    backend.collections()
    assert not copies.exists()


@pytest.mark.parametrize("damage", ["database", "index"])
def test_a_damaged_folder_is_said_in_one_line(
    backend: ChromaBackend, tmp_path: Path, damage: str
) -> None:
    store = backend.create(SPEC)
    store.upsert([chunk(n) for n in range(1_200)], random_vectors(1_200))
    store.close()
    backend.close()
    name = {"database": "chroma.sqlite3", "index": "*/index_metadata.pickle"}[damage]
    for file in (tmp_path / "chroma").glob(name):
        file.write_bytes(b"this is something else" * 100)
    with pytest.raises(StoreUnavailable, match=r"damaged: .*ingest again") as caught:
        backend.open(SPEC.name).search(random_vectors(1), 3)
    assert "\n" not in str(caught.value)


# --- what is stored


def test_metadata_is_replaced_not_merged(backend: ChromaBackend, tmp_path: Path) -> None:
    store = backend.create(SPEC)
    store.upsert([chunk(1, lang="en", year=2024, draft=True)], random_vectors(1))
    store.upsert([chunk(4, lang="en")], random_vectors(1))
    new = replace(chunk(1), page=None, metadata={"year": "later"})
    store.upsert([new], random_vectors(1) / 100)
    backend.close()
    kept = bare(tmp_path / "chroma").get_collection(THEIRS, None).get(ids=[new.id])["metadatas"][0]
    assert kept["year"] == "later"
    assert not {"lang", "draft", "page"} & kept.keys()
    assert store.get([new.id]) == [new]
    assert store.count(parse({"lang": {"$exists": True}})) == 1
    assert store.count(parse({"page": {"$exists": True}})) == 0
    unit = random_vectors(1) / np.linalg.norm(random_vectors(1))
    store.upsert([new], unit)  # a vector of length one needs no copy; the old one must go
    ((_, vectors),) = store.scan()
    assert unit.tolist()[0] in vectors.tolist()


KEYS = [
    "#hash",
    "rag:mine",
    "rag:key:mine",
    "chroma:document",
    "chroma:x",
    "id",
    "#document",
    "a b",
]


def test_any_key_is_kept_and_found(backend: ChromaBackend) -> None:
    store = backend.create(SPEC)
    chunks = [chunk(n, **{key: n, f"{key}2": "x"}) for n, key in enumerate(KEYS)]
    store.upsert(chunks, random_vectors(len(KEYS)))
    assert store.get([c.id for c in chunks]) == chunks
    for number, key in enumerate(KEYS):
        for where in ({key: number}, {key: {"$exists": True}}, {key: {"$not": {"$ne": number}}}):
            assert [h.chunk for h in store.search(random_vectors(1), 9, parse(where))[0]] == [
                chunks[number]
            ]


NUMBERS = [-2, -1.5, -1, 0, 0.5, 1, 1.5, 2, 2.0, 2**53 + 1, 2.0**53, 2.0**60, 2**60 + 1]
NUMBERS += [2**63 - 1, -(2**63) + 1, 1e300, -1e300, 5e-324]


def test_numbers_compare_by_value_whatever_their_type(backend: ChromaBackend) -> None:
    """Chroma casts 1.5 to 1 where it compares with whole numbers."""
    store = backend.create(SPEC)
    chunks = [chunk(n, value=value) for n, value in enumerate([*NUMBERS, True, "1"])]
    chunks.append(chunk(len(chunks)))
    store.upsert(chunks, random_vectors(len(chunks)))
    for value in NUMBERS:
        for operator_ in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
            for where in ({"value": {operator_: value}}, {"value": {"$not": {operator_: value}}}):
                condition = parse(where)
                assert condition is not None
                expected = [c.id for c in chunks if matches(condition, c.fields())]
                assert store.count(condition) == len(expected), where
    several = parse({"value": {"$in": [1.5, 2, True, "1", 2**60 + 1, 0.25]}})
    assert several is not None
    found = {hit.chunk.id for hit in store.search(random_vectors(1), 50, several)[0]}
    assert found == {c.id for c in chunks if matches(several, c.fields())}
    assert store.count(parse({"$not": {"value": {"$in": [1.5, 2, True, "1"]}}})) == (
        len(chunks) - 5
    )


def test_fractions_are_kept_to_the_last_digit(backend: ChromaBackend) -> None:
    """Chroma itself changes one of seven of them."""
    store = backend.create(SPEC)
    values = np.random.default_rng(0).uniform(-200, 200, 500).tolist()
    chunks = [chunk(n, **{"x": value, "rag:floats": value}) for n, value in enumerate(values)]
    store.upsert(chunks, random_vectors(500))
    assert store.get([c.id for c in chunks]) == chunks
    for n in range(0, 500, 25):
        assert store.count(parse({"x": values[n]})) == 1
        assert store.count(parse({"x": {"$gt": values[n]}})) == sum(x > values[n] for x in values)
    store.upsert([chunk(0)], random_vectors(1))
    assert store.get([chunk(0).id]) == [chunk(0)]


def test_filters_up_to_the_limit_of_the_language_work(backend: ChromaBackend) -> None:
    store = backend.create(SPEC)
    store.upsert([chunk(n, year=2000 + n % 50) for n in range(100)], random_vectors(100))
    wide = {"$or": [{"year": {"$not": {"$gt": 1000.5 + n}}} for n in range(240)]}
    assert store.count(parse(wide)) == 0
    deep: dict[str, Any] = {"year": 2001}
    for n in range(30):
        parts = [{"year": {"$lt": 3000 + n * 20 + m}} for m in range(12)]
        deep = {"$and" if n % 2 else "$or": [deep, {"$and": parts}]}
    assert store.count(parse(deep)) == 100
    with pytest.raises(UnsupportedFilter, match="fewer"):
        store.count(parse({"year": {"$in": list(range(40_000))}}))


def test_all_are_found_after_many_were_replaced(backend: ChromaBackend) -> None:
    """HNSW loses its way to some: in one of six of these rounds, k hits would be k - 1."""
    store = backend.create(replace(SPEC, dim=4, embedder=None))
    rng = np.random.default_rng(1)
    chunks = [chunk(n) for n in range(300)]
    for _ in range(25):
        near = rng.normal(size=(3, 4))[rng.integers(3, size=300)]
        vectors = (near + 0.01 * rng.normal(size=(300, 4))).astype(np.float32)
        store.upsert(chunks, vectors)
        for hits in store.search(vectors[:3], 500):
            assert {hit.chunk.id for hit in hits} == {c.id for c in chunks}


@pytest.mark.parametrize("doomed", [{"$lt": 30}, {"$lt": 130}, {"$gt": 270}, {"$gt": 170}])
def test_a_scan_gives_each_once_when_others_are_deleted_meanwhile(
    backend: ChromaBackend, doomed: dict[str, int]
) -> None:
    store = backend.create(SPEC)
    store.upsert([chunk(n) for n in range(300)], random_vectors(300))
    seen: list[str] = []
    for number, (chunks, _) in enumerate(store.scan(50)):
        seen += [c.id for c in chunks]
        if number == 1:
            store.delete(where=parse({"position": doomed}))
    left = [c.id for chunks, _ in store.scan() for c in chunks]
    assert len(seen) == len(set(seen))
    assert 0 < len(left) == len(set(left) & set(seen))


def rows_come_and_go(store: VectorStore, turns: int) -> None:
    """Write and delete, while readers look for just those rows."""
    store.upsert(library(), random_vectors(30))
    failures: list[BaseException] = []
    done = threading.Event()
    coming = parse({"document_id": "d7"})

    def read() -> None:
        try:
            while not done.is_set():
                assert len(store.search(random_vectors(2), 1_000, coming)[0]) <= 5
                assert len(store.search(random_vectors(2), 30)[1]) == 30
                assert sum(len(chunks) for chunks, _ in store.scan()) >= 30
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(turns):
            store.upsert([chunk(n, document=7) for n in range(5)], random_vectors(5, seed=turn))
            store.delete(document_ids=["d7"])
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert store.count() == 30


def test_readers_meet_rows_that_come_and_go(backend: ChromaBackend) -> None:
    """The table is ahead of the index, which Chroma reports as an internal error."""
    rows_come_and_go(backend.create(SPEC), 50)


def test_readers_of_a_server_meet_rows_that_come_and_go(tmp_path: Path) -> None:
    with chroma_server(tmp_path) as (port, _):
        backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port)
        rows_come_and_go(backend.create(SPEC), 50)
        backend.close()


# --- other collections in the same database


def test_collections_of_others_are_not_listed_nor_touched(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    client = bare(tmp_path / "chroma")
    for name in ("docs", "rag-docs", SPEC.name):
        client.create_collection(name, embedding_function=None).add(["a"], [[1.0, 2.0]])
    client.close()
    store = backend.create(SPEC)
    store.upsert(library(), random_vectors(30))
    store.close()
    backend.create(replace(SPEC, name="docs-"))
    assert backend.collections() == [SPEC.name, "docs-"]
    for missing in (backend.open, backend.drop):
        with pytest.raises(UnknownCollection):
            missing("docs")
    backend.replace("docs", by=SPEC.name)
    backend.drop("docs-")
    backend.drop("docs")
    backend.close()
    client = bare(tmp_path / "chroma")
    names = sorted(collection.name for collection in client.list_collections())
    assert names == sorted(["docs", "rag-docs", SPEC.name])
    assert client.get_collection("docs", None).count() == 1
    client.close()


def test_an_index_that_measures_something_else_is_refused(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    backend.create(SPEC)
    backend.close()
    client = bare(tmp_path / "chroma")
    description = client.get_collection(THEIRS, None).metadata
    client.delete_collection(THEIRS)
    other: Any = {"hnsw": {"space": "l2"}}
    client.create_collection(
        THEIRS, configuration=other, metadata=description, embedding_function=None
    )
    client.create_collection("rag.undescribed.chunks", embedding_function=None)
    client.close()
    for refused in (lambda: backend.open(SPEC.name), lambda: backend.create(SPEC)):
        with pytest.raises(MetricMismatch, match=r"cosine.*'ip', not 'l2'"):
            refused()
    with pytest.raises(StoreUnavailable, match="malformed description"):
        backend.open("undescribed")
    backend.drop("undescribed")
    backend.drop(SPEC.name)
    assert backend.collections() == []


def test_a_collection_that_was_replaced_is_not_mistaken_for_the_old_one(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    store = backend.create(SPEC)
    store.upsert(library(), random_vectors(30))
    store.close()
    code = """
        from dataclasses import replace
        other = replace(SPEC, name="shadow", embedder=replace(SPEC.embedder, model="other"))
        backend.create(other).close()
        backend.replace(SPEC.name, by="shadow")
        """
    assert run(code, tmp_path)[2] == 0
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"was deleted or replaced; open it again"):
            store.search(random_vectors(1), 3)
    assert backend.open(SPEC.name).count() == 0


def test_a_collection_may_replace_itself(backend: ChromaBackend) -> None:
    store = backend.create(SPEC)
    store.upsert(library(), random_vectors(30))
    backend.replace(SPEC.name, by=SPEC.name)
    assert store.count() == 30


def test_what_a_swap_that_was_cut_short_set_aside_goes_with_the_next(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    for name in (SPEC.name, "shadow"):
        backend.create(replace(SPEC, name=name))
    backend.close()
    client = bare(tmp_path / "chroma")
    client.get_collection(THEIRS, None).modify(name=f"rag.{SPEC.name}.old")
    client.close()
    backend.replace(SPEC.name, by="shadow")
    assert backend.collections() == [SPEC.name]
    backend.close()
    client = bare(tmp_path / "chroma")
    assert [collection.name for collection in client.list_collections()] == [THEIRS]
    client.close()


def test_a_dropped_collection_leaves_no_index_behind(
    backend: ChromaBackend, tmp_path: Path
) -> None:
    for name in (SPEC.name, "kept"):
        backend.create(replace(SPEC, name=name)).upsert([chunk(0)], random_vectors(1))
    backend.drop(SPEC.name)
    backend.close()
    assert backend.collections() == ["kept"]
    assert len(list((tmp_path / "chroma").glob("*/header.bin"))) == 1
    assert backend.open("kept").count() == 1


# --- the server and the settings


@contextmanager
def answering(reply: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[int]:
    """The port of an HTTP server that replies to each request by `reply`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_server_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    port = free_port()
    backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port)
    with pytest.raises(StoreUnavailable) as caught:
        backend.check()
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert f"chroma run --host 127.0.0.1 --port {port}" in str(caught.value)


def test_a_server_that_goes_and_comes_back(tmp_path: Path) -> None:
    with chroma_server(tmp_path) as (port, _):
        backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port)
        store = backend.create(SPEC)
        store.upsert(library(), random_vectors(30))
    for gone in (
        store.count,
        lambda: store.search(random_vectors(1), 3),
        lambda: store.upsert(library(), random_vectors(30)),
        lambda: list(store.scan()),
        backend.collections,
    ):
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port} .*chroma run"):
            gone()
    with chroma_server(tmp_path, port):
        assert len(store.search(random_vectors(1), 50)[0]) == 30
    backend.close()


def test_a_server_that_hangs_is_told_of(tmp_path: Path) -> None:
    with chroma_server(tmp_path) as (port, process):
        backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port, timeout_s=0.5)
        store = backend.create(SPEC)
        os.kill(process, signal.SIGSTOP)
        for asked in (
            store.count,
            ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port, timeout_s=0.5).check,
        ):
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}"):
                asked()
        os.kill(process, signal.SIGCONT)
        backend.close()


def test_a_server_that_hangs_after_its_first_answer_is_told_of(tmp_path: Path) -> None:
    """While the client is being made, which asks for the tenant and the user."""
    first = b'{"name": "default_database", "tenant": "default_tenant"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(first) + first
    with RawServer(Reply(answer), Reply(then="hang")) as server:
        port = urlsplit(server.url).port
        backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port, timeout_s=1)
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}"):
            backend.check()
        backend.close()


def test_a_server_that_is_no_chroma_is_told_of(tmp_path: Path) -> None:
    def reply(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"<html>welcome</html>")

    with answering(reply) as port:
        backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port)
        with pytest.raises(StoreUnavailable, match="no answer of Chroma"):
            backend.check()


def test_the_token_is_sent_and_refusal_told(tmp_path: Path) -> None:
    tokens: list[str | None] = []

    def reply(request: http.server.BaseHTTPRequestHandler) -> None:
        tokens.append(request.headers["Authorization"])
        request.send_error(403)

    with answering(reply) as port:
        backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port, token="secret-1")
        with pytest.raises(StoreUnavailable, match="token") as caught:
            backend.check()
    assert set(tokens) == {"Bearer secret-1"}
    assert "secret-1" not in str(caught.value)


def test_a_database_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with chroma_server(tmp_path) as (port, _):
        backend = ChromaBackend(data_dir=tmp_path, host="127.0.0.1", port=port, database="other")
        with pytest.raises(StoreUnavailable, match="no database 'other'"):
            backend.check()


@pytest.mark.parametrize("wrong", [{"host": "h", "path": "p"}, {"token": "t"}, {"ssl": True}])
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        ChromaBackend(data_dir=tmp_path, **wrong)


def test_the_path_is_a_setting_and_a_dotenv_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("CHROMA_API_IMPL=chromadb.api.fastapi.FastAPI\n")
    backend = ChromaBackend(data_dir=tmp_path, path=str(tmp_path / "elsewhere"))
    backend.create(SPEC)
    assert (tmp_path / "elsewhere" / "chroma.sqlite3").exists()
    backend.close()


def test_search_settings_reach_the_index(tmp_path: Path) -> None:
    backend = ChromaBackend(data_dir=tmp_path, ef_construction=50, max_neighbors=8, ef_search=20)
    backend.create(replace(SPEC, metric="l2"))
    backend.close()
    client = bare(tmp_path / "chroma")
    kept = client.get_collection(THEIRS, None).configuration_json["hnsw"]
    wanted = operator.itemgetter("space", "ef_construction", "max_neighbors", "ef_search")
    assert wanted(kept) == ("l2", 50, 8, 20)
    client.close()
