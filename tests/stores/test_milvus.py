from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_lite.server_manager import server_manager_instance
from milvus_server import QUICK, TOKEN, milvus_server
from pymilvus import DataType, MilvusClient
from servers import wait_until

from rag.errors import (
    ConfigError,
    InputError,
    MetricMismatch,
    StoreError,
    StoreUnavailable,
    UnknownCollection,
)
from rag.filters import matches, parse
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
from stores.contract.searching import SearchingTests
from stores.memory import MemoryBackend
from stores.milvus import MilvusBackend
from stores.milvus_store import GENERATION

Open = Callable[..., MilvusBackend]
CORPUS = Path(__file__).parents[2] / "sample_corpus"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a real server."""
    with milvus_server(settings=QUICK) as address:
        yield address


class OnLite:
    """Milvus Lite in a folder of the test class."""

    index = "HNSW"

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("milvus")

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        return lambda: MilvusBackend(data_dir=folder, index=cls.index)


class TestMilvusLite(OnLite, StoreContract):
    shared = False
    exact = False

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, folder: Path) -> str:
        return f"""
from pathlib import Path
from stores.milvus import MilvusBackend
backend = MilvusBackend(data_dir=Path({str(folder)!r}))
"""


class TestMilvusLiteIVF(OnLite, SearchingTests):
    exact = False
    index = "IVF_FLAT"


class TestMilvusLiteFlat(OnLite, SearchingTests):
    index = "FLAT"


class TestMilvusServer(StoreContract):
    exact = False
    examples = 3

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, server: str) -> OpenBackend:
        return lambda: MilvusBackend(data_dir=Path(), uri=server, token=TOKEN)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, server: str) -> str:
        return f"""
from pathlib import Path
from stores.milvus import MilvusBackend
backend = MilvusBackend(data_dir=Path(), uri={server!r}, token={TOKEN!r})
"""


@pytest.fixture(params=["lite", "server"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each test that asks for it runs on Lite and on the server."""
    return str(request.param)


@pytest.fixture
def open_milvus(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens backends on Lite or the server; what they made is dropped, and they are closed."""
    opened: list[MilvusBackend] = []
    where = {"uri": request.getfixturevalue("server"), "token": TOKEN} if kind == "server" else {}

    def open_one(**options: Any) -> MilvusBackend:
        opened.append(MilvusBackend(data_dir=tmp_path, **where, **options))
        return opened[-1]

    yield open_one
    for name in opened[0].collections():
        opened[0].drop(name)
    for backend in opened:
        backend.close()


@pytest.fixture
def bare(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Gives the bare client of the same Lite or server; Lite must not be open elsewhere."""

    @contextmanager
    def client() -> Iterator[MilvusClient]:
        if kind == "server":
            address = request.getfixturevalue("server")
            found = MilvusClient(address, token=TOKEN, dedicated=True)
        else:
            found = MilvusClient(str(tmp_path / "milvus.db"), dedicated=True)
        yield found
        found.close()
        server_manager_instance.release_server(str(tmp_path / "milvus.db"))

    return client


# --- searching


COUNT = 3_000


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        *(("lite", index) for index in ("HNSW", "IVF_FLAT", "IVF_SQ8", "FLAT", "AUTOINDEX")),
        *(("server", index) for index in ("HNSW", "IVF_FLAT", "IVF_SQ8")),
    ],
)
def test_every_index_finds_the_nearest_whatever_a_filter_leaves(
    kind: str, open_milvus: Open, request: pytest.FixtureRequest, index: str
) -> None:
    """recall@10 against exact search over what matches."""
    store = open_milvus(index=index).create(CollectionSpec("many", 32))
    vectors, queries = clustered_vectors(COUNT, 32), clustered_vectors(30, 32, draw=1)
    shares = (1, 5, 30, 200)
    chunks = [
        chunk(n, document=n // 100, **{f"each{share}": n % share == 0 for share in shares})
        for n in range(COUNT)
    ]
    store.upsert(chunks, vectors)
    if kind == "server":
        seal(request.getfixturevalue("server"), "ragline_many_e")
    assert store.describe().index == index
    for share in shares:
        matching = np.arange(0, COUNT, share)
        best = np.argsort(-(queries @ vectors[matching].T), axis=1)[:, :10]
        found = store.search(queries, 10, parse({f"each{share}": True}) if share > 1 else None)
        shared = [
            len({hit.chunk.position for hit in hits} & set(matching[row].tolist())) / 10
            for hits, row in zip(found, best, strict=True)
        ]
        assert np.mean(shared) >= (1.0 if index == "FLAT" else 0.95), share
        for hits, query in zip(found, queries, strict=True):
            assert [h.score for h in hits] == pytest.approx(
                [float(query @ vectors[h.chunk.position]) for h in hits], abs=0.01
            )
    assert len(store.search(queries[:1], COUNT)[0]) == COUNT
    for hits in store.search(queries[:9], 50, parse({"document_id": "d7"})):
        assert len(hits) == 50


def seal(server: str, name: str) -> None:
    """Have the server write the collection to a segment, and index that."""
    with closing(MilvusClient(server, token=TOKEN, dedicated=True)) as client:
        client.flush(name)
        wait_until(lambda: not client.describe_index(name, "vector")["pending_index_rows"], 30)


def test_a_read_waits_for_others_only_when_it_must(
    open_milvus: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first for all, after a write for that write, later for what is some seconds old."""
    sent = spied(monkeypatch, "query")

    def levels() -> list[str]:
        """Those of counts since the last time."""
        counts = [options for options in sent if options["output_fields"] == ["count(*)"]]
        sent.clear()
        return [options["consistency_level"] for options in counts]

    store = open_milvus().create(CollectionSpec("levels", 8))
    assert [store.count(), store.count()] == [0, 0]
    store.upsert([chunk(0)], random_vectors(1))
    assert store.count() == 1
    monkeypatch.setattr("stores.milvus_collection._SESSION_S", 0)
    assert store.count() == 1
    assert levels() == ["Strong", "Bounded", "Session", "Bounded"]
    store.delete(ids=[chunk(0).id])
    assert store.count() == 0
    store.close()
    assert store.count() == 0
    assert levels() == ["Strong", "Bounded"]
    another = open_milvus()._milvus
    another("alter_collection_properties", "ragline_levels_e", {GENERATION: "of another"})
    assert store.count() == 0
    assert store.generation() == "of another"
    assert [store.count(), store.count()] == [0, 0]
    assert levels() == ["Bounded", "Strong", "Bounded"]
    assert open_milvus(consistency="Strong").open("levels").count() == 0
    assert levels() == ["Strong"]


def test_long_texts_come_back_in_as_many_answers_as_are_needed(server: str) -> None:
    """70 MB: a message of the server has 64 at most."""
    with closing(MilvusBackend(data_dir=Path(), uri=server, token=TOKEN)) as backend:
        store = backend.create(SPEC)
        chunks = [chunk(n, text=f"{n} " + "\U0001f600" * 95_000) for n in range(185)]
        store.upsert(chunks, random_vectors(185))
        assert store.get([c.id for c in chunks]) == chunks
        found = store.search(random_vectors(1), 185)[0]
        assert {hit.chunk.id: hit.chunk for hit in found} == {c.id: c for c in chunks}
        assert {c.id: c for part, _ in store.scan() for c in part} == {c.id: c for c in chunks}
        backend.drop(SPEC.name)


def test_what_is_longer_than_milvus_takes_is_refused(open_milvus: Open) -> None:
    store = open_milvus().create(SPEC)
    for change in (
        {"id": "字" * 1_366},
        {"document_id": "x" * 4_097},
        {"source": "字" * 22_000},
        {"text": "\U0001f600" * 300_000},
        {"metadata": {f"k{n}": "x" * 2_000 for n in range(33)}},
    ):
        with pytest.raises(InputError, match=r"(longer|larger) than Milvus takes; use up to"):
            store.upsert([chunk(1), replace(chunk(0), **change)], random_vectors(2))
    assert store.count() == 0
    most = [
        replace(chunk(0), id="字" * 1_365),
        replace(chunk(1), source="/" + "x" * 60_000),
        chunk(2, text="é" * 32_766),
        chunk(3, text="é" * 32_767),
        chunk(4, text="x" + "\U0001f600" * 200_000),
    ]
    store.upsert(most, random_vectors(5))
    assert store.get([c.id for c in most]) == most
    assert (
        sorted(
            (hit.chunk for hit in store.search(random_vectors(1), 9)[0]), key=lambda c: c.position
        )
        == most
    )


def test_any_metadata_key_and_number_can_be_filtered(open_milvus: Open) -> None:
    store = open_milvus().create(SPEC)
    keys = ["a b", "a_b", "a__b", "_", "1", "é", "键", "a.b", "n_year", "x" * 500, "\x00", 'q"\\\n']
    numbers = [0, -1, 1.0, 2.5, -2.5, 1e300, 5e-324, 2**53, 2**62 + 1, 2**63 - 1, 1 - 2**63]
    chunks = [chunk(n, **{key: n}) for n, key in enumerate(keys)]
    chunks += [chunk(100 + n, amount=number) for n, number in enumerate(numbers)]
    store.upsert(chunks, random_vectors(len(chunks)))
    assert [c.metadata for c in store.get([c.id for c in chunks])] == [c.metadata for c in chunks]
    conditions = [{key: n} for n, key in enumerate(keys)]
    conditions += [{key: {"$exists": True}} for key in keys]
    for number in [*numbers, 0.5]:
        conditions += [{"amount": {op: number}} for op in ("$eq", "$ne", "$gt", "$lte")]
        conditions += [{field: {"$gte": number}} for field in ("position", "page")]
        conditions += [{field: {"$lt": number}} for field in ("position", "page")]
    conditions.append({"amount": {"$in": numbers}})
    for where in conditions:
        condition = parse(where)
        assert condition is not None
        expected = sum(matches(condition, c.fields()) for c in chunks)
        assert store.count(condition) == expected, where


# --- collections


def test_names_that_milvus_does_not_take_keep_apart(open_milvus: Open) -> None:
    backend = open_milvus()
    names = ["0-_", "0--", "0_d-", "a-b", "a__b", "a_b", "a_d", "a_db", "x" * 63, "x" + "-" * 62]
    for number, name in enumerate(names):
        store = backend.create(CollectionSpec(name, 8))
        store.upsert([chunk(n) for n in range(number)], random_vectors(number))
    assert backend.collections() == sorted(names)
    assert [backend.open(name).count() for name in names] == list(range(len(names)))


def test_databases_share_nothing(server: str) -> None:
    with closing(MilvusClient(server, token=TOKEN, dedicated=True)) as client:
        client.create_database("other")
    options: dict[str, Any] = {"data_dir": Path(), "uri": server, "token": TOKEN}
    with (
        closing(MilvusBackend(**options)) as one,
        closing(MilvusBackend(**options, database="other")) as two,
    ):
        fill(one, {"docs": 10, "docs--next": 20})
        fill(two, {"docs": 30, "only": 1})
        assert (one.collections(), two.collections()) == (["docs", "docs--next"], ["docs", "only"])
        one.replace("docs", by="docs--next")
        assert [one.open("docs").count(), two.open("docs").count()] == [20, 30]
        two.replace("docs", by="only")
        two.drop("docs")
        assert (one.collections(), two.collections()) == (["docs"], [])
        one.drop("docs")
    for name in ("other", "default"):
        with closing(MilvusClient(server, token=TOKEN, db_name=name, dedicated=True)) as client:
            assert not [each for each in client.list_collections() if "docs" in each]


def test_collections_of_others_are_left_alone(open_milvus: Open, bare: Any) -> None:
    foreign = ("docs", "ragline_docs_e", "ragline_A_e", "ragline__e", "ragline_e")
    with bare() as client:
        fields = client.create_schema()
        fields.add_field("id", DataType.INT64, is_primary=True)
        fields.add_field("vector", DataType.FLOAT_VECTOR, dim=8)
        for name in foreign:
            client.create_collection(name, schema=fields)
    backend = open_milvus()
    with pytest.raises(StoreError, match="another program's"):
        backend.open("docs")
    with pytest.raises(StoreError, match="another program's"):
        backend.create(CollectionSpec("docs", 8))
    with pytest.raises(UnknownCollection):
        backend.open("a")
    backend.close()
    with bare() as client:
        assert set(foreign) <= set(client.list_collections())
        for name in foreign:
            client.drop_collection(name)


def test_the_metric_is_the_one_of_the_index(open_milvus: Open, bare: Any) -> None:
    backend = open_milvus()
    backend.create(CollectionSpec("docs", 8)).upsert([chunk(0)], random_vectors(1))
    backend.close()
    with bare() as client:
        client.release_collection("ragline_docs_e")
        client.drop_index("ragline_docs_e", "vector")
        indexes = client.prepare_index_params()
        indexes.add_index("vector", "FLAT", "vector", metric_type="L2")
        client.create_index("ragline_docs_e", indexes)
    with pytest.raises(MetricMismatch, match=r"metric cosine.*L2"):
        backend.open("docs")


def test_an_index_that_is_gone_is_made_again(open_milvus: Open, bare: Any) -> None:
    backend = open_milvus()
    backend.create(CollectionSpec("docs", 8)).upsert([chunk(0)], random_vectors(1))
    backend.close()
    with bare() as client:
        client.release_collection("ragline_docs_e")
        client.drop_index("ragline_docs_e", "vector")
    assert len(backend.open("docs").search(random_vectors(1), 3)[0]) == 1


def fill(backend: MilvusBackend, counts: Mapping[str, int]) -> None:
    """Make collections with so many chunks."""
    for name, count in counts.items():
        store = backend.create(CollectionSpec(name, 8))
        store.upsert([chunk(n) for n in range(count)], random_vectors(count))


def test_a_name_leads_somewhere_at_every_moment_of_a_replacement(open_milvus: Open) -> None:
    backend = open_milvus()
    fill(backend, {"docs": 10, "docs--next": 20})
    seen: list[Any] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                with suppress(StoreUnavailable):  # it was replaced after it was opened
                    seen.append(len(backend.open("docs").search(random_vectors(1), 30)[0]))
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        wait_until(lambda: bool(seen), 30)
        backend.replace("docs", by="docs--next")
        wait_until(lambda: seen[-1] != 10, 30)
    finally:
        done.set()
        thread.join()
    assert set(seen) == {10, 20}
    backend.replace("docs", by="docs")
    assert backend.open("docs").count() == 20


@pytest.mark.parametrize("gone", ["replaced", "dropped", "made anew"])
def test_what_was_open_is_not_the_collection_that_took_its_name(
    open_milvus: Open, gone: str
) -> None:
    backend, other = open_milvus(), open_milvus()
    fill(backend, {"docs": 10, "docs--next": 20})
    old = backend.open("docs")
    assert old.count() == 10
    if gone == "replaced":
        other.replace("docs", by="docs--next")
    else:
        other.drop("docs")
    if gone == "made anew":
        fill(other, {"docs": 20})
    calls: list[Callable[[], Any]] = [
        lambda: old.upsert([chunk(99)], random_vectors(1)),
        lambda: old.delete(ids=[chunk(0).id]),
        lambda: old.annotate({"a": "b"}),
        lambda: old.search(random_vectors(1), 3),
        lambda: old.get([chunk(0).id]),
        lambda: old.vectors([chunk(0).id]),
        lambda: list(old.scan()),
        lambda: list(old.documents()),
        old.describe,
        old.count,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="'docs' was deleted or replaced; open it again"):
            call()
    if gone == "dropped":
        with pytest.raises(UnknownCollection):
            backend.open("docs")
    else:
        info = backend.open("docs").describe()
        assert (info.count, info.notes) == (20, {})


@pytest.mark.parametrize("step", ["alter_alias", "drop_collection", "drop_alias"])
@pytest.mark.parametrize("then", ["replace", "drop"])
def test_a_replacement_that_was_cut_off_can_be_finished_or_given_up(
    open_milvus: Open, monkeypatch: pytest.MonkeyPatch, step: str, then: str
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    backend = open_milvus()
    fill(backend, {"docs": 10, "docs--next": 20})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MilvusClient, step, killed)
        backend.replace("docs", by="docs--next")
    count = 10 if step == "alter_alias" else 20
    assert backend.open("docs").count() == count
    assert backend.open("docs--next").count() == 20
    if then == "replace":
        backend.replace("docs", by="docs--next")
        count = 20
    else:
        backend.drop("docs--next")
    assert backend.collections() == ["docs"]
    assert backend.open("docs").count() == count


@pytest.mark.parametrize(
    ("options", "made", "asked"),
    [
        (
            {"index": "HNSW", "M": 5, "ef_construction": 33, "ef": 77},
            {"M": 5, "efConstruction": 33},
            {"ef": 77},
        ),
        ({"index": "IVF_FLAT", "nlist": 7, "nprobe": 3}, {"nlist": 7}, {"nprobe": 3}),
        ({"index": "IVF_SQ8", "nlist": 9, "nprobe": 4}, {"nlist": 9}, {"nprobe": 4}),
    ],
    ids=lambda value: value.get("index") if isinstance(value, dict) else None,
)
def test_an_index_is_made_and_searched_as_it_was_set(
    open_milvus: Open,
    bare: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    made: dict[str, int],
    asked: dict[str, int],
) -> None:
    backend = open_milvus(**options)
    store = backend.create(CollectionSpec("docs", 8))
    store.upsert(library(), random_vectors(30))
    sent = spied(monkeypatch, "search")
    store.search(random_vectors(1), 2)
    assert sent[0]["search_params"]["params"] == asked
    backend.close()
    with bare() as client:
        index = client.describe_index("ragline_docs_e", "vector")
    assert (index["index_type"], index["params"]) == (options["index"], made)


def spied(monkeypatch: pytest.MonkeyPatch, operation: str) -> list[dict[str, Any]]:
    """The named arguments of each call that is made from now on."""
    sent: list[dict[str, Any]] = []
    original = getattr(MilvusClient, operation)

    def call(self: MilvusClient, *arguments: Any, **options: Any) -> Any:
        sent.append(options)
        return original(self, *arguments, **options)

    monkeypatch.setattr(MilvusClient, operation, call)
    return sent


def test_a_partition_key_holds_tenants_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MilvusBackend(data_dir=tmp_path, partition_key="tenant")
    store = backend.create(CollectionSpec("docs", 8))
    tenants: list[Any] = ["a", "b", "", None, 7, "a", "字\x00", True, "b"]
    chunks = [
        chunk(n, **({} if t is None else {"tenant": t}), year=2020 + n)
        for n, t in enumerate(tenants)
    ]
    store.upsert(chunks, random_vectors(len(chunks)))
    assert store.get([c.id for c in chunks]) == chunks
    moved = replace(chunks[0], metadata={"tenant": "b"})
    store.upsert([moved], random_vectors(1))
    chunks[0] = moved
    backend.close()
    backend = MilvusBackend(data_dir=tmp_path)  # the collection knows its key
    store = backend.open("docs")
    sent = spied(monkeypatch, "search")
    for where in (
        *({"tenant": value} for value in ("a", "b", "", 7, True, "字\x00", "none")),
        {"tenant": {"$ne": "a"}},
        {"tenant": {"$in": ["a", "", 7]}},
        {"tenant": {"$nin": ["a", "b"]}},
        {"tenant": {"$gt": "a"}},
        {"tenant": {"$exists": False}},
        {"tenant": "b", "year": {"$gt": 2022}},
        {"tenant": "a", "$or": [{"tenant": "b"}, {"year": 2025}]},
    ):
        sent.clear()
        condition = parse(where)
        assert condition is not None
        expected = {c.id for c in chunks if matches(condition, c.fields())}
        found = store.search(random_vectors(1), 20, condition)[0]
        assert {hit.chunk.id for hit in found} == expected, where
        assert store.count(condition) == len(expected), where
        if where["tenant"] in ("a", "b", "字\x00", "none"):  # a server reads one partition only
            assert all("partition == " in options["filter"] for options in sent)
    assert store.delete(where=parse({"tenant": "b"})) == 3
    assert store.count() == len(chunks) - 3
    backend.close()


def test_a_server_that_mixes_partitions_up_is_given_none(server: str) -> None:
    options: dict[str, Any] = {"uri": server, "token": TOKEN, "partition_key": "tenant"}
    with (
        closing(MilvusBackend(data_dir=Path(), **options)) as backend,
        pytest.raises(ConfigError, match=r"partition_key is set, but .*2\.3\.5.*leave it out"),
    ):
        backend.create(SPEC)


# --- words


def test_keywords_are_found_in_segments_and_beside_them(tmp_path: Path) -> None:
    backend = MilvusBackend(data_dir=tmp_path)
    assert {"keyword_search", "hybrid_search"} <= backend.check().capabilities
    store = backend.create(SPEC)
    store.upsert([chunk(n, text=f"filler number{n}") for n in range(1_500)], random_vectors(1_500))
    store.upsert([chunk(2_000, text="夜间充电的电池")], random_vectors(1))
    store.search(random_vectors(1), 1)  # puts 1,501 rows into a segment
    store.upsert([chunk(2_001, text="The batteries were charged.")], random_vectors(1))
    found = store.keyword_search(["电池", "battery charging", "number7 number8", "the of"], 5)
    assert [[hit.chunk.position for hit in hits] for hits in found] == [
        [2_000],
        [2_001],
        [7, 8],
        [],
    ]
    assert all(hit.score > 0 for hits in found for hit in hits)
    hybrid = store.hybrid_search(random_vectors(1_500)[3:5], ["battery", "the of"], 3)
    assert [len(hits) for hits in hybrid] == [3, 3]
    assert {hit.chunk.position for hit in hybrid[0]} >= {3, 2_001}
    assert hybrid[1][0].chunk.position == 4
    backend.close()


def test_keywords_rank_as_in_every_store(tmp_path: Path) -> None:
    """Of the sample corpus: titles count, and so does how often a word is there."""
    chunks = []
    for path in sorted(CORPUS.rglob("*.md")):
        title, *paragraphs = path.read_text("utf-8").split("\n\n")
        for n, text in enumerate(paragraphs):
            chunks.append(replace(chunk(n, document=len(chunks), text=text), title=title))
    lines = (CORPUS / "eval" / "queries.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line)["text"] for line in lines]
    questions += ["E-31 E-31 charge charge", "TK-40's 3.2.1", "KV_9.a", "电池 充电 电池"]
    backend = MilvusBackend(data_dir=tmp_path)
    stores: list[Any] = [backend.create(SPEC), MemoryBackend().create(SPEC)]
    for store in stores:
        store.upsert(chunks, random_vectors(len(chunks)))
    found, expected = (store.keyword_search(questions, 10) for store in stores)
    assert sum(len(hits) == 10 for hits in expected) > 100
    for question, ours, theirs in zip(questions, found, expected, strict=True):
        assert [h.chunk.id for h in ours] == [h.chunk.id for h in theirs], question
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-4)
    backend.close()


def test_terms_beyond_the_length_of_a_field_are_left_out_whole(tmp_path: Path) -> None:
    backend = MilvusBackend(data_dir=tmp_path)
    store = backend.create(SPEC)
    words = [f"b{n:05}zz" for n in range(9_000)]
    store.upsert([chunk(0, text=" ".join(words))], random_vectors(1))
    some = words[7_000:7_500]
    held = [bool(hits) for hits in store.keyword_search(some, 1)].index(False)
    assert held > 0
    assert store.keyword_search([*some[held:], words[-1]], 1) == [[]] * (501 - held)
    beginnings = [some[held][:n] for n in range(1, 8)]
    assert store.keyword_search(beginnings, 1) == [[]] * 7
    backend.close()


def test_a_server_without_bm25_does_not_claim_it(server: str) -> None:
    backend = MilvusBackend(data_dir=Path(), uri=server, token=TOKEN)
    assert "keyword_search" not in backend.check().capabilities
    assert "2.3.5" in backend.check().version
    backend.close()


# --- connections


def test_a_folder_in_use_is_told_with_the_way_out(tmp_path: Path) -> None:
    """And what the message says works."""
    backend = MilvusBackend(data_dir=tmp_path)
    other = MilvusBackend(data_dir=tmp_path)  # the same process shares it
    store = backend.create(SPEC)
    store.upsert(library(), random_vectors(30))
    assert other.open(SPEC.name).count() == 30
    other.close()
    refused = in_another_process(f"MilvusBackend(data_dir=Path({str(tmp_path)!r})).check()")
    assert "Traceback" not in refused.stdout
    message = refused.stderr.splitlines()[-1]
    folder = tmp_path / "milvus.db"
    command = f"milvus-lite server --host 127.0.0.1 --data-dir {folder}"
    assert "StoreUnavailable" in message
    assert "in use by another process" in message
    assert command in message
    backend.close()
    free = in_another_process(
        f"print(MilvusBackend(data_dir=Path({str(tmp_path)!r})).collections())"
    )
    assert free.stdout.strip() == f"['{SPEC.name}']"
    with lite_server(folder) as (address, process):
        code = f"store = MilvusBackend(data_dir=Path(), uri={address!r}).open({SPEC.name!r}); "
        assert in_another_process(code + "print(store.count())").stdout.strip() == "30"
        served = MilvusBackend(data_dir=Path(), uri=address, timeout_s=2)
        store = served.open(SPEC.name)
        new = replace(library()[1], metadata={"only": "this"})
        store.upsert([new], random_vectors(1))
        assert store.get([new.id]) == [new]
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            store.count()
        process.kill()
        process.wait()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            store.count()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            store.upsert([new], random_vectors(1))
    with lite_server(folder, address):  # started again, it has loaded nothing
        assert store.search(random_vectors(30)[4:5], 1)[0][0].chunk == library()[4]
        served.close()


def test_a_server_says_that_it_is_one_and_lite_that_it_is_none(
    open_milvus: Open, kind: str
) -> None:
    assert ("server" in open_milvus().check().capabilities) == (kind == "server")


def test_a_server_that_is_not_there_is_told_in_one_line(server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}"
        cases: list[tuple[dict[str, Any], str]] = [
            ({"uri": "http://127.0.0.1:1"}, "127.0.0.1:1 cannot be reached"),
            ({"uri": "http://nowhere.invalid:1"}, "cannot be reached"),
            ({"uri": mute, "timeout_s": 1}, "did not answer in time"),
            ({"uri": server}, "refused the token"),
            ({"uri": server, "token": "root:no"}, "refused the token"),
            ({"uri": server.replace("http", "https")}, "cannot be reached"),
            ({"uri": server, "token": TOKEN, "database": "no"}, "has no database 'no'"),
        ]
        code = f"""
import time
from rag.errors import StoreError
for options, _ in {cases!r}:
    started = time.monotonic()
    try:
        MilvusBackend(data_dir=Path(), **options).collections()
    except StoreError as error:
        print(error)
    assert time.monotonic() - started < 8
"""
        told = in_another_process(code)
    assert told.stderr == ""  # neither pymilvus nor gRPC says a word
    assert len(told.stdout.splitlines()) == len(cases)
    for line, (_, words) in zip(told.stdout.splitlines(), cases, strict=True):
        assert words in line


@pytest.mark.parametrize("uri", ["ftp://x", "http://", "http://host:abc", "milvus://host:1"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"stores\.milvus\.uri is '.*; use http://HOST:19530"):
        MilvusBackend(data_dir=Path(), uri=uri)


def test_a_file_is_no_folder_for_lite(tmp_path: Path) -> None:
    (tmp_path / "old.db").write_bytes(b"SQLite format 3")
    with pytest.raises(StoreUnavailable, match=r"old\.db cannot be opened"):
        MilvusBackend(data_dir=Path(), uri=str(tmp_path / "old.db")).check()


def test_a_killed_server_has_kept_what_it_acknowledged(tmp_path: Path) -> None:
    quick = QUICK | {"common.session.ttl": "3"}  # s that the dead one still counts as alive
    with milvus_server(tmp_path, quick) as address:
        backend = MilvusBackend(data_dir=Path(), uri=address, token=TOKEN)
        store = backend.create(SPEC)
        store.upsert(library(), random_vectors(30))
        store.delete(document_ids=["d1"])
        begins_alike = SPEC.name[:4]
        fill(backend, {begins_alike: 1, "a": 2, "b": 3})
        backend.drop(begins_alike)
        backend.replace("a", by="b")
        backend.close()
    with milvus_server(tmp_path, quick) as address:
        backend = MilvusBackend(data_dir=Path(), uri=address, token=TOKEN)
        assert backend.collections() == ["a", SPEC.name]
        assert backend.open("a").count() == 3
        store = backend.open(SPEC.name)
        kept = [c for c in library() if c.document_id != "d1"]
        assert store.get([c.id for c in library()]) == kept
        assert len(store.search(random_vectors(1), 30)[0]) == 20
        backend.close()


def in_another_process(code: str) -> subprocess.CompletedProcess[str]:
    start = "from pathlib import Path\nfrom stores.milvus import MilvusBackend\n"
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def lite_server(folder: Path, address: str = "") -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of `milvus-lite server`, and its process."""
    if not address:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1"]
    command += ["--port", address.rpartition(":")[2], "--data-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(address), 30)
            yield address, process
        finally:
            process.kill()


def answers(address: str) -> bool:
    backend = MilvusBackend(data_dir=Path(), uri=address)
    try:
        return bool(backend.check())
    except StoreUnavailable:
        return False
    finally:
        backend.close()
