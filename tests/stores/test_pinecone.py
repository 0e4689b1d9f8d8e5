from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pinecone_emulator
import pytest
from pinecone._internal.http_client import get_budget_registry
from pinecone_emulator import PineconeEmulator, Request
from pinecone_emulator_index import Lag, Rules
from pinecone_emulator_schema import DESCRIPTIONS
from servers import RawServer, Reply

from rag import plugins
from rag.errors import (
    ConfigError,
    DimensionMismatch,
    InputError,
    MetricMismatch,
    StoreError,
    StoreUnavailable,
    UnknownCollection,
    UnsupportedFilter,
)
from rag.filters import matches, parse
from rag.types import Chunk
from stores.contract import (
    DIM,
    FILTERS,
    FINGERPRINT,
    SPEC,
    OpenBackend,
    StoreContract,
    chunk,
    library,
    random_vectors,
)
from stores.contract.filtering import has_text_range
from stores.pinecone import PineconeBackend
from stores.pinecone_store import PineconeStore

Make: TypeAlias = Callable[..., PineconeBackend]
INDEX = f"rag-{DIM}-cosine"


@contextmanager
def backends(emulator: PineconeEmulator) -> Iterator[Make]:
    """A function that opens a backend on the emulator; all are closed at the end."""
    with ExitStack() as opened:

        def make(**options: Any) -> PineconeBackend:
            given = {"api_key": emulator.api_key, "controller_host": emulator.url, **options}
            return opened.enter_context(closing(PineconeBackend(**given)))

        yield make


@pytest.fixture
def emulator() -> Iterator[PineconeEmulator]:
    with PineconeEmulator() as emulator:
        yield emulator
        assert emulator.violations == []


@pytest.fixture
def make(emulator: PineconeEmulator) -> Iterator[Make]:
    with backends(emulator) as make:
        yield make


@pytest.fixture
def backend(make: Make) -> PineconeBackend:
    return make()


@pytest.fixture
def store(backend: PineconeBackend) -> PineconeStore:
    return backend.create(SPEC)


class TestPinecone(StoreContract):
    text_ranges = False
    rules = Rules()

    @pytest.fixture(scope="class")
    @classmethod
    def emulator(cls) -> Iterator[PineconeEmulator]:
        with PineconeEmulator(rules=cls.rules) as emulator:
            yield emulator

    @pytest.fixture(autouse=True)
    def as_described(self, emulator: PineconeEmulator) -> Iterator[None]:
        yield
        assert emulator.violations == []

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, emulator: PineconeEmulator) -> Iterator[OpenBackend]:
        with backends(emulator) as make:
            yield make

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, emulator: PineconeEmulator) -> str:
        return f"""
from stores.pinecone import PineconeBackend
backend = PineconeBackend(api_key={emulator.api_key!r}, controller_host={emulator.url!r})
"""


class TestPineconeAtItsWorst(TestPinecone):
    """The same where writes are seen late, pages are short, and `$ne` means the other thing."""

    rules = Rules(search=Lag(reads=2), storage=Lag(reads=1), page=7, ne_matches_missing=False)
    examples = 3


def test_it_is_a_server(backend: PineconeBackend) -> None:
    assert backend.check().capabilities == {"server"}


def test_no_generation_is_told_where_writes_return_before_they_are_seen(make: Make) -> None:
    for visible in (True, False):
        store = make(wait_visible=visible).create(replace(SPEC, name=f"visible-{visible}".lower()))
        store.upsert([chunk(0)], random_vectors(1))
        store.close()
        assert (store.generation() is not None) is visible


# --- limits and concurrency


def upserts(emulator: PineconeEmulator) -> list[list[str]]:
    """The ids of the chunks of each upsert, without those of the catalogue."""
    return [
        [vector["id"] for vector in request.body["vectors"]]
        for request in emulator.sent("/vectors/upsert")
        if request.body["namespace"].startswith(SPEC.name)
    ]


def test_many_records_are_written_in_requests_of_a_thousand(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    store.upsert([chunk(n + 1) for n in range(2_500)], random_vectors(2_500))
    assert sorted(map(len, upserts(emulator))) == [500, 1_000, 1_000]
    assert store.count() == 2_500


def test_large_records_are_written_in_requests_of_two_megabytes(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    chunks = [chunk(n + 1, text="字" * 5_000) for n in range(300)]
    store.upsert(chunks, random_vectors(300))
    sizes = [request.size for request in emulator.sent("/vectors/upsert")]
    assert max(sizes) <= pinecone_emulator.MOST_BYTES
    assert 4 <= len(sizes) <= 10
    assert store.get([c.id for c in chunks]) == chunks


def test_the_chunks_at_position_0_are_written_after_all_others(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    chunks = [chunk(n, document=d) for d in range(3) for n in range(600)]
    store.upsert(chunks, random_vectors(len(chunks)))
    written = upserts(emulator)
    assert sorted(len(ids) for ids in written[:-1]) == [797, 1_000]
    assert written[-1] == ["d0:v1:0", "d1:v1:0", "d2:v1:0"]


@pytest.mark.parametrize("path", ["/query", "/vectors/upsert"])
def test_requests_run_at_the_same_time(
    emulator: PineconeEmulator, store: PineconeStore, path: str
) -> None:
    together = threading.Barrier(3, timeout=20)

    def before(request: Request) -> None:
        if request.path == path and len(request.body.get("vectors", "all")) in (3, 1_000):
            together.wait()

    emulator.before = before
    if path == "/query":
        assert store.search(random_vectors(6), 3) == [[]] * 6
    else:
        store.upsert([chunk(n + 1) for n in range(3_000)], random_vectors(3_000))
        assert store.count() == 3_000


def test_threads_may_share_a_store(store: PineconeStore) -> None:
    store.upsert(library(), random_vectors(30))
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mine = [chunk(n, document=100 + number) for n in range(20)]
            store.upsert(mine, random_vectors(20, seed=number))
            assert store.get([c.id for c in mine]) == mine
            assert len(store.search(random_vectors(3), 10)[2]) == 10
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.count() == 30 + 8 * 20


def test_a_search_is_one_request(emulator: PineconeEmulator, store: PineconeStore) -> None:
    store.upsert(library(), random_vectors(30))
    emulator.requests.clear()
    assert len(store.search(random_vectors(1, seed=4), 10)[0]) == 10
    assert [request.path for request in emulator.requests] == ["/query"]


def test_hits_with_long_texts_fit_the_size_of_an_answer(store: PineconeStore) -> None:
    """4 MB: a hundred hits of 38 KB come with the answer, more are fetched."""
    chunks = [chunk(n, text=f"{n} " + "x" * 37_400) for n in range(130)]
    store.upsert(chunks, random_vectors(130))
    for k in (99, 120):
        hits = store.search(random_vectors(1, seed=5), k)[0]
        assert len(hits) == k
        assert all(hit.chunk == chunks[hit.chunk.position] for hit in hits)


def test_more_hits_than_pinecone_finds_are_refused(
    store: PineconeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.pinecone_store.MOST_K", 20)
    store.upsert(library(), random_vectors(30))
    assert len(store.search(random_vectors(1), 20)[0]) == 20
    with pytest.raises(InputError, match="20 chunks at most, not 21"):
        store.search(random_vectors(1), 21)
    assert len(store.search(random_vectors(1), 21, parse({"document_id": "d1"}))[0]) == 10


def test_counts_beyond_what_a_search_finds(
    store: PineconeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.pinecone_store.MOST_K", 20)
    store.upsert(library(), random_vectors(30))
    assert store.count() == 30
    assert store.count(parse({"position": {"$lt": 25}})) == 25
    assert store.count(parse({"position": {"$lt": 5}})) == 5


def test_a_vector_of_zeros_is_refused(store: PineconeStore) -> None:
    with pytest.raises(InputError, match="'d0:v1:1' is zero"):
        store.upsert([chunk(0), chunk(1)], np.stack([np.ones(DIM), np.full(DIM, 1e-9)]))
    assert store.count() == 0


def test_metadata_that_is_too_large_is_refused(store: PineconeStore) -> None:
    large = {f"key{n}": "字" * 2_000 for n in range(9)}
    with pytest.raises(InputError, match=r"'d0:v1:0' takes \d+ bytes"):
        store.upsert([replace(chunk(0), metadata=large)], random_vectors(1))
    assert store.count() == 0


# --- ids


def test_a_document_is_deleted_by_its_prefix_without_a_filter(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    chunks = [chunk(n, document=d) for d in (1, 12) for n in range(250)]
    store.upsert(chunks, random_vectors(500))
    emulator.requests.clear()
    assert store.delete(document_ids=["d1"]) == 250
    assert [record.id for record in store.documents()] == ["d12"]
    pages = [r for r in emulator.sent("/vectors/list") if r.query.get("prefix") == ["d1:"]]
    assert len(pages) == 3
    assert not emulator.sent("/vectors/fetch_by_metadata")
    assert not any("filter" in request.body for request in emulator.sent("/vectors/delete"))


def test_documents_are_listed_without_fetching_every_chunk(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    store.upsert([chunk(n, document=n % 2) for n in range(400)], random_vectors(400))
    emulator.requests.clear()
    assert [record.chunks for record in store.documents()] == [200, 200]
    assert sum(len(request.query["ids"]) for request in emulator.sent("/vectors/fetch")) == 2


FOREIGN = [
    "plain",
    "文档 #1/é?&%",
    "d1:v1:07",
    "d1:v1:x",
    "d1:v1:0",  # of document d1, but here of another
    ":",
    "=" * 700,
    "字" * 300,
]


@pytest.mark.parametrize("document", ["other", "d1:v1", "文档 ☃" * 100, ":"])
def test_any_id_is_found_and_deleted(store: PineconeStore, document: str) -> None:
    chunks = [
        Chunk(id=name, document_id=document, version="v", position=n, text=name, source="s")
        for n, name in enumerate(FOREIGN)
    ]
    others = [chunk(n, document=1) for n in range(1, 4)]
    store.upsert([*chunks, *others], random_vectors(len(chunks) + 3))
    assert store.get([c.id for c in reversed(chunks)]) == chunks[::-1]
    assert {c.id for batch, _ in store.scan(3) for c in batch} == {
        *FOREIGN,
        *(c.id for c in others),
    }
    assert {(r.id, r.chunks) for r in store.documents()} == {(document, 8), ("d1", 3)}
    assert store.delete(ids=FOREIGN[:2]) == 2
    assert store.delete(document_ids=[document]) == 6
    assert store.get(FOREIGN) == []
    assert store.delete(document_ids=["d1"]) == 3
    assert store.count() == 0


def test_many_long_ids_fit_the_addresses_of_requests(store: PineconeStore) -> None:
    chunks = [replace(chunk(n), id=f"{'字' * 20}{n}", document_id="文" * 15) for n in range(150)]
    store.upsert(chunks, random_vectors(150))
    assert store.get([c.id for c in chunks]) == chunks


def test_a_chunk_moves_between_documents_and_back(store: PineconeStore) -> None:
    own = chunk(0)
    for turn in (own, replace(own, document_id="other"), own):
        store.upsert([turn], random_vectors(1))
        assert store.get([own.id]) == [turn]
        assert store.count() == 1
        assert [hit.chunk for hit in store.search(random_vectors(1), 5)[0]] == [turn]


# --- texts that are too long for a record


def counts(emulator: PineconeEmulator) -> dict[str, int]:
    """How many records each namespace has, by what the service itself says."""
    stats = json.loads(raw(emulator, "/describe_index_stats", {})[1])
    return {name: each["vectorCount"] for name, each in stats["namespaces"].items()}


def texts(emulator: PineconeEmulator) -> int:
    return sum(n for name, n in counts(emulator).items() if name.endswith(".texts"))


LONG = [chunk(n, document=n % 2, text='😀\x00"\\ é' * 10_000 + str(n)) for n in range(4)]


@pytest.mark.parametrize(
    "which",
    [
        {"document_ids": ["d0", "d1"]},
        {"ids": [c.id for c in LONG]},
        {"where": parse({"position": {"$lt": 4}})},
    ],
    ids=["documents", "ids", "filter"],
)
def test_long_texts_lie_in_pieces_and_go_with_their_chunk(
    emulator: PineconeEmulator, store: PineconeStore, which: Any
) -> None:
    short = chunk(9, document=2)
    store.upsert([*LONG, short], random_vectors(5))
    assert texts(emulator) > 4
    assert store.get([c.id for c in LONG]) == LONG
    assert {h.chunk.id: h.chunk for h in store.search(random_vectors(1), 9)[0]} == {
        c.id: c for c in (*LONG, short)
    }
    assert store.count() == 5
    assert store.delete(**which) == 4
    assert texts(emulator) == 0
    assert store.get([short.id]) == [short]


def test_a_long_text_is_replaced_and_leaves_no_pieces(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    long = ["a" * 90_000, "b" * 50_000, "short", "c" * 90_000, "c" * 90_000]
    for text, pieces in zip(long, (30, 17, 0, 30, 30), strict=True):
        store.upsert([chunk(0, text=text)], random_vectors(1))
        assert store.get([chunk(0).id]) == [chunk(0, text=text)]
        assert texts(emulator) == pieces
    moved = chunk(0, text="d" * 60_000)
    store.upsert([replace(moved, document_id="other")], random_vectors(1))  # in another record
    assert texts(emulator) == 20
    store.upsert([moved, chunk(1)], random_vectors(2))
    assert store.get([moved.id]) == [moved]
    assert texts(emulator) == 20


@pytest.mark.parametrize("read", ["get", "search", "scan"])
def test_a_long_text_is_found_while_it_is_replaced(
    emulator: PineconeEmulator, store: PineconeStore, make: Make, read: str
) -> None:
    """The other writer comes between a reader's look at the record and that at its pieces."""
    old, new = (chunk(0, text=letter * 60_000) for letter in "ab")
    vectors = random_vectors(2)
    store.upsert([old], vectors[:1])
    other = make().open(SPEC.name)

    def before(request: Request) -> None:
        if request.path == "/vectors/fetch" and "#" in request.query["ids"][0]:
            emulator.before = lambda _request: None
            other.upsert([new], vectors[1:])

    emulator.before = before
    if read == "get":
        assert store.get([new.id]) == [new]
    elif read == "search":
        assert [hit.chunk for hit in store.search(vectors[:1], 1)[0]] == [new]
    else:
        ((chunks, rows),) = store.scan()
        assert chunks == [new]
        np.testing.assert_array_equal(rows, vectors[1:])


# --- filters


@pytest.mark.parametrize("missing", [True, False])
def test_filters_do_not_depend_on_what_ne_says_of_missing_fields(
    emulator: PineconeEmulator, store: PineconeStore, missing: bool
) -> None:
    emulator.rules.ne_matches_missing = missing
    store.upsert(library(), random_vectors(30))
    for where in FILTERS:
        condition = parse(where)
        if condition is None or has_text_range(condition):
            continue
        expected = [c.id for c in library() if matches(condition, c.fields())]
        assert store.count(condition) == len(expected), where
        assert store.delete(where=condition) == len(expected), where
        store.upsert(library(), random_vectors(30))


@pytest.mark.parametrize(
    "where",
    [
        {"lang": {"$gt": "e"}},
        {"$not": {"title": {"$lte": "x"}}},
        {"n": 2**53},
        {"n": {"$in": [1, -(2**60)]}},
        {"n": {"$lt": 1e300}},
        {"n": {"$in": [str(n) for n in range(10_001)]}},
    ],
    ids=lambda where: str(where)[:40],
)
def test_what_pinecone_cannot_compare_exactly_is_refused(
    store: PineconeStore, where: dict[str, Any]
) -> None:
    condition = parse(where)
    with pytest.raises(UnsupportedFilter, match="Pinecone") as refused:
        store.search(random_vectors(1), 3, condition)
    assert "\n" not in str(refused.value)
    with pytest.raises(UnsupportedFilter):
        store.delete(ids=["x"], where=condition)


def test_numbers_come_back_as_they_were(store: PineconeStore) -> None:
    numbers = {"int": 2**62 + 1, "float": 3.0, "zero": 0, "true": True, "tiny": 5e-324}
    written = chunk(1, **numbers)
    store.upsert([written], random_vectors(1))
    found = store.get([written.id])[0]
    assert found == written
    assert {name: type(value) for name, value in found.metadata.items()} == {
        name: type(value) for name, value in numbers.items()
    }
    assert (type(found.position), type(found.page)) == (int, int)
    assert store.count(parse({"int": {"$gt": 5}, "float": 3, "true": True})) == 1


# --- writes that are seen late


@pytest.mark.parametrize("late", ["search", "storage"])
def test_a_write_returns_when_every_read_sees_it(
    emulator: PineconeEmulator, store: PineconeStore, late: str
) -> None:
    getattr(emulator.rules, late).reads = 5
    store.upsert(library(), random_vectors(30))
    assert len(store.search(random_vectors(1), 50)[0]) == 30
    assert store.count(parse({"document_id": "d1"})) == 10
    assert store.get([library()[3].id]) == [library()[3]]
    changed = replace(library()[3], text="changed")
    store.upsert([changed], random_vectors(1, seed=9))
    assert store.search(random_vectors(1, seed=9), 1)[0][0].chunk == changed
    assert store.get([changed.id]) == [changed]
    assert store.delete(document_ids=["d0"]) == 10
    assert store.get([library()[0].id]) == []
    assert len(store.search(random_vectors(1), 50)[0]) == 20


def test_without_log_numbers_a_write_waits_until_it_can_be_fetched(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    emulator.rules.lsn_headers = False
    emulator.rules.storage.reads = 5
    store.upsert(library(), random_vectors(30))
    assert store.get([library()[29].id]) == [library()[29]]


def test_without_waiting_a_write_is_seen_later(emulator: PineconeEmulator, make: Make) -> None:
    store = make(wait_visible=False).create(SPEC)
    emulator.rules.search.reads = emulator.rules.storage.reads = 5
    store.upsert(library(), random_vectors(30))
    assert store.search(random_vectors(1), 50) == [[]]
    assert store.get([library()[0].id]) == []
    for _ in range(10):
        seen = store.search(random_vectors(1), 50)[0]
    assert len(seen) == 30


def test_a_write_that_is_never_seen_is_told(emulator: PineconeEmulator, make: Make) -> None:
    store = make(wait_seconds=0.2).create(SPEC)
    emulator.rules.search.seconds = 600
    with pytest.raises(StoreUnavailable, match=rf"'{INDEX}', but .* after 0.2 s; .*wait_seconds"):
        store.upsert(library(), random_vectors(30))


@pytest.mark.parametrize("numbers", [True, False], ids=["numbers", "no numbers"])
def test_a_write_does_not_wait_for_what_another_writer_replaced(
    emulator: PineconeEmulator, store: PineconeStore, make: Make, numbers: bool
) -> None:
    """Between each write and the first look at it, the other one writes or deletes the chunk."""
    emulator.rules.lsn_headers = numbers
    other = make().open(SPEC.name)
    turns: list[Callable[[], Any]] = []

    def before(request: Request) -> None:
        if request.path == "/vectors/upsert" and "ours" in str(request.body):
            turns.append(lambda: other.upsert([chunk(0, text="theirs")], random_vectors(1)))
            turns.append(lambda: other.delete(ids=[chunk(0).id]))
        elif turns and request.path in ("/query", "/vectors/fetch"):
            turn = turns.pop(number % 2)
            turns.clear()
            turn()

    emulator.before = before
    for number in range(6):
        store.upsert([chunk(0, text=f"ours {number}")], random_vectors(1))
    assert turns == []
    assert store.get([chunk(0).id]) == []


# --- failures


@pytest.fixture(autouse=True)
def patience() -> None:
    """The SDK stops trying again once a host has failed too often, in the whole process."""
    get_budget_registry()._reset()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_passes_is_not_noticed(
    emulator: PineconeEmulator, store: PineconeStore, status: int
) -> None:
    emulator.fail(*[status] * 3, path="/vectors/upsert")
    store.upsert(library(), random_vectors(30))
    emulator.fail(status, path="/query")
    assert len(store.search(random_vectors(1), 50)[0]) == 30


def test_too_many_requests_are_made_one_by_one_later(
    emulator: PineconeEmulator, store: PineconeStore
) -> None:
    """The SDK gives up after four attempts; so often are all of eight at once refused."""
    store.upsert(library(), random_vectors(30))
    emulator.fail(*[429] * 40, path="/query")
    assert [len(hits) for hits in store.search(random_vectors(8), 50)] == [30] * 8


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "refuses the API key; set stores.pinecone.api_key"),
        (403, "does not allow this .*; check what the API key may do"),
        (429, "too many requests; wait"),
        (500, "does not answer .*; check the network"),
        (503, "does not answer .*; check the network"),
        (400, r"refuses a request \(told to answer 400\)"),
    ],
)
def test_a_failure_that_stays_is_told_in_a_line(
    emulator: PineconeEmulator, make: Make, status: int, says: str
) -> None:
    store = make(wait_seconds=0.3).create(SPEC)
    for path, write in (
        ("/query", lambda: store.search(random_vectors(2), 3)),
        ("/vectors/upsert", lambda: store.upsert(library(), random_vectors(30))),
        ("/vectors/list", lambda: list(store.scan())),
    ):
        emulator.fail(*[status] * 99, path=path)
        with pytest.raises(StoreError if status == 400 else StoreUnavailable, match=says) as failed:
            write()
        assert "\n" not in str(failed.value)
        emulator.forgive()
    assert store.count() == 0


def test_a_wrong_key_is_told(make: Make) -> None:
    wrong = make(api_key="wrong")
    for refused in (wrong.check, wrong.collections, lambda: wrong.create(SPEC)):
        with pytest.raises(StoreUnavailable, match=r"refuses the API key; set .*api_key"):
            refused()


def test_a_server_that_never_answers_is_told_of() -> None:
    with RawServer(Reply(then="hang")) as server:
        url = server.url.removesuffix("/v1")
        for place in ({"controller_host": url}, {"host": url}):
            backend = PineconeBackend(api_key="key", timeout_s=0.2, **place)
            with pytest.raises(StoreUnavailable, match="does not answer"):
                backend.check()
            backend.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"api_key": ""}, "needs an API key; set RAG_STORES_PINECONE_API_KEY"),
        ({"api_key": "with a newline\n"}, "API key"),
        ({"host": "nowhere"}, "host"),
    ],
)
def test_settings_that_cannot_be_used_are_told(make: Make, options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**options).collections()


def test_a_service_that_is_not_there_is_named(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for options in ({"controller_host": address}, {"host": address}):
        with pytest.raises(StoreUnavailable, match=f"{address} does not answer"):
            make(**options).collections()


def test_the_settings_are_those_of_the_signature() -> None:
    given = {"api_key": "k", "wait_seconds": "5", "wait_visible": "false"}
    found = plugins.options(PineconeBackend, "stores.pinecone", given, leave_out=("data_dir",))
    assert found == {"api_key": "k", "wait_seconds": 5.0, "wait_visible": False}
    with pytest.raises(ConfigError, match=r"stores\.pinecone\.namespace is no setting"):
        plugins.options(PineconeBackend, "stores.pinecone", {"namespace": "x"})


# --- indexes


def test_each_dimension_and_metric_gets_an_index(
    emulator: PineconeEmulator, backend: PineconeBackend
) -> None:
    backend.create(SPEC)
    backend.create(replace(SPEC, name="b", metric="l2", embedder=None))
    backend.create(replace(SPEC, name="c", metric="ip", dim=3, embedder=None))
    backend.create(replace(SPEC, name="d"))
    created = [r.body for r in emulator.requests if r.path == "/indexes" and r.method == "POST"]
    assert [body["name"] for body in created] == [INDEX, "rag-8-l2", "rag-3-ip"]
    assert created[2]["deployment"] == {
        "deployment_type": "managed",
        "cloud": "aws",
        "region": "us-east-1",
    }
    assert backend.collections() == ["b", "c", SPEC.name, "d"]
    assert backend.open("c").describe().index == "serverless rag-3-ip"


def test_a_named_index_is_made_and_used_as_it_is(emulator: PineconeEmulator, make: Make) -> None:
    named = make(index="mine", cloud="gcp", region="europe-west4")
    assert named.collections() == []
    named.create(SPEC).upsert(library(), random_vectors(30))
    deployment = emulator.model("mine")["deployment"]
    assert (deployment["cloud"], deployment["region"]) == ("gcp", "europe-west4")
    with pytest.raises(
        DimensionMismatch, match=r"'mine' .* 8 .*, not 3; set stores\.pinecone\.index"
    ):
        named.create(replace(SPEC, name="other", dim=3, embedder=None))
    with pytest.raises(MetricMismatch, match="metric cosine, not ip"):
        named.create(replace(SPEC, name="other", metric="ip"))
    assert named.collections() == [SPEC.name]
    assert make().collections() == []
    assert make(index="mine").open(SPEC.name).count() == 30


def test_the_address_of_an_index_is_enough(emulator: PineconeEmulator, make: Make) -> None:
    make().create(SPEC).upsert(library(), random_vectors(30))
    host = emulator.model(INDEX)["host"]
    emulator.requests.clear()
    local = make(host=host, controller_host="http://127.0.0.1:1")
    assert local.check().location == host
    assert local.collections() == [SPEC.name]
    assert local.open(SPEC.name).count() == 30
    local.create(replace(SPEC, name="another"))
    with pytest.raises(DimensionMismatch, match=r"set stores\.pinecone\.index"):
        local.create(replace(SPEC, name="third", dim=3, embedder=None))
    local.drop(SPEC.name)
    assert local.collections() == ["another"]
    assert {request.index for request in emulator.requests} == {INDEX}


def test_an_index_of_documents_is_refused(emulator: PineconeEmulator, make: Make) -> None:
    make(index="mine").create(SPEC)
    fields = emulator.model("mine")["schema"]["fields"]
    fields["embedding"] = fields.pop("_values")
    with pytest.raises(ConfigError, match="'mine' of Pinecone does not hold vectors"):
        make(index="mine").collections()


def test_an_index_that_is_not_ready_is_told(emulator: PineconeEmulator, make: Make) -> None:
    make(index="mine").create(SPEC)
    emulator.model("mine")["status"] = {"ready": False, "state": "Terminating"}
    other = make(index="mine")
    assert other.collections() == []
    with pytest.raises(StoreUnavailable, match=r"'mine' .* being made or deleted"):
        other.create(SPEC)


# --- the catalogue


def test_collections_of_an_index_share_nothing(backend: PineconeBackend) -> None:
    one, two = backend.create(SPEC), backend.create(replace(SPEC, name="two"))
    one.upsert(library(), random_vectors(30))
    two.upsert([replace(c, text="two") for c in library()], random_vectors(30))
    assert one.delete(document_ids=["d0"]) == 10
    assert (one.count(), two.count()) == (20, 30)
    assert two.get([library()[0].id])[0].text == "two"


def test_a_collection_is_empty_when_it_is_made_again(backend: PineconeBackend) -> None:
    for _ in range(2):
        again = backend.create(SPEC)
        assert again.count() == 0
        again.upsert(LONG, random_vectors(4))
        backend.drop(SPEC.name)


def test_a_swap_between_indexes_holds_from_its_one_write_on(
    emulator: PineconeEmulator, make: Make
) -> None:
    """Everything after the upsert of two records fails, as if the process had died."""
    backend = make()
    backend.create(SPEC).upsert(library(), random_vectors(30))
    shadow = replace(SPEC, name="next", dim=3, embedder=replace(FINGERPRINT, dim=3))
    backend.create(shadow).upsert(library()[:5], random_vectors(5, dim=3))
    emulator.requests.clear()
    emulator.fail(*[500] * 8, path="/vectors/delete")
    with pytest.raises(StoreUnavailable):
        backend.replace(SPEC.name, by="next")
    emulator.forgive()
    (write,) = emulator.sent("/vectors/upsert")
    assert sorted(vector["id"] for vector in write.body["vectors"]) == [SPEC.name, "next"]
    for later in (backend, make()):
        assert later.collections() == [SPEC.name]
        info = later.open(SPEC.name).describe()
        assert (info.dim, info.count, info.embedder) == (3, 5, shadow.embedder)
        with pytest.raises(UnknownCollection):
            later.open("next")
    backend.drop(SPEC.name)
    assert make().collections() == []


def test_what_was_dropped_or_replaced_leaves_nothing(
    emulator: PineconeEmulator, backend: PineconeBackend
) -> None:
    for name in (SPEC.name, "next", "third"):
        backend.create(replace(SPEC, name=name)).upsert(LONG, random_vectors(4))
    backend.replace(SPEC.name, by="next")
    backend.drop("third")
    kept = {name: n for name, n in counts(emulator).items() if n}
    assert sorted(name.partition(".")[0] for name in kept) == ["next", "next", "rag"]
    assert kept["rag.catalogue"] == 1


@pytest.mark.parametrize("gone", ["replaced", "replaced by another index", "dropped", "made anew"])
def test_what_was_open_is_not_the_collection_that_took_its_name(
    emulator: PineconeEmulator, backend: PineconeBackend, make: Make, gone: str
) -> None:
    other, dim = make(), 3 if gone.endswith("index") else DIM
    old, long = backend.create(SPEC), library()
    old.upsert([*long[:3], chunk(50, text="x" * 90_000)], random_vectors(4))
    if gone.startswith("replaced"):
        shadow = replace(SPEC, name="next", dim=dim, embedder=None)
        other.create(shadow).upsert(long[:5], random_vectors(5, dim=dim))
        other.replace(SPEC.name, by="next")
    else:
        other.drop(SPEC.name)
    if gone == "made anew":
        other.create(SPEC).upsert(long[:5], random_vectors(5))
    before = counts(emulator)
    calls: list[Callable[[], Any]] = [
        lambda: old.upsert([chunk(99)], random_vectors(1)),
        lambda: old.delete(ids=[long[0].id]),
        lambda: old.delete(document_ids=["d0"]),
        lambda: old.annotate({"a": "b"}),
        lambda: old.search(random_vectors(1), 3),
        lambda: old.get([long[0].id]),
        lambda: old.vectors([long[0].id]),
        lambda: list(old.scan()),
        lambda: list(old.documents()),
        old.describe,
        old.count,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="was deleted or replaced; open it again"):
            call()
    assert counts(emulator) == before
    if gone != "dropped":
        assert backend.open(SPEC.name).count() == 5


def test_replacing_a_collection_by_itself_changes_nothing(backend: PineconeBackend) -> None:
    backend.create(SPEC).upsert(library(), random_vectors(30))
    backend.replace(SPEC.name, by=SPEC.name)
    assert backend.open(SPEC.name).count() == 30


# --- the emulator itself


def raw(emulator: PineconeEmulator, path: str, body: Any) -> tuple[int, str]:
    """Status and text of the answer to a request that the SDK would not send."""
    headers = {"Api-Key": emulator.api_key, "X-Pinecone-Api-Version": "2026-07"}
    url = emulator.model(INDEX)["host"] + path
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def one(**changes: Any) -> dict[str, Any]:
    return {"vectors": [{"id": "x", "values": [0.5] * DIM, "metadata": {"a": 1}, **changes}]}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/vectors/upsert", one(values=[0.0] * DIM), "only zeros"),
        ("/vectors/upsert", one(values=[0.5] * 3), "dimension 3 does not match"),
        ("/vectors/upsert", one(id="é"), "ASCII"),
        ("/vectors/upsert", one(metadata={"a": None}), "Metadata value must be"),
        ("/vectors/upsert", one(metadata={"a": {"b": 1}}), "Metadata value must be"),
        ("/vectors/upsert", one(metadata={"a": "字" * 14_000}), "exceeds the limit of 40960"),
        ("/vectors/upsert", {"vectors": one()["vectors"] * 1_001}, "1 to 1000 vectors"),
        ("/vectors/upsert", one(metadata={"a": "x" * 2_100_000}), "exceeds the maximum of 2MB"),
        ("/vectors/delete", {"ids": ["x"] * 1_001}, "1 to 1000 ids"),
        ("/vectors/delete", {"filter": {}}, "empty metadata filter"),
        ("/query", {"topK": 3, "vector": [0.5] * 3}, "dimension 3 does not match"),
        ("/query", {"topK": 3}, "exactly one of"),
        *(
            ("/query", {"topK": 3, "vector": [0.5] * DIM, "filter": where}, says)
            for where, says in [
                ({"a": {"$gt": "x"}}, "followed by a number"),
                ({"a": {"$in": [1, "x"]}}, "list of strings or a list of numbers"),
                ({"a": {"$in": [True]}}, "list of strings or a list of numbers"),
                ({"a": None}, "followed by a string, boolean or a number, got null"),
                ({"a": {"$like": "x"}}, "not a valid operator"),
                ({"$or": []}, "non-empty list"),
            ]
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_emulator_refuses_what_pinecone_refuses(
    emulator: PineconeEmulator, store: PineconeStore, path: str, body: Any, says: str
) -> None:
    store.upsert([chunk(0)], random_vectors(1))
    namespace = upserts_namespace(emulator)
    status, text = raw(emulator, path, {"namespace": namespace, **body})
    assert (status, says in text) == (400, True), text
    assert store.count() == 1


def upserts_namespace(emulator: PineconeEmulator) -> str:
    found: str = emulator.sent("/vectors/upsert")[-1].body["namespace"]
    return found


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/vectors/upsert", one(values=[0.5, None]), "None is not of type 'number'"),
        ("/query", {"topK": 3, "vector": [0.5] * DIM, "k": 3}, "unknown field k"),
        ("/query", {"vector": [0.5] * DIM}, "'topK' is a required property"),
        ("/querry", {}, "not in the description"),
    ],
)
def test_what_differs_from_pinecones_description_is_caught(
    emulator: PineconeEmulator, store: PineconeStore, path: str, body: Any, says: str
) -> None:
    if not DESCRIPTIONS.exists():
        pytest.skip("needs ../shared/data/pinecone-api")
    assert raw(emulator, path, body)[0] == 400
    (violation,) = emulator.violations
    assert says in violation
    emulator.violations.clear()


def test_the_emulator_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with emulator_process(tmp_path) as (process, url), backends_at(url) as make:
        first = make().create(SPEC)
        first.upsert(library(), random_vectors(30))
        first.delete(document_ids=["d1"])
        process.send_signal(signal.SIGKILL)
    with emulator_process(tmp_path) as (_, url), backends_at(url) as make:
        again = make().open(SPEC.name)
        assert again.describe().embedder == FINGERPRINT
        assert again.count() == 20
        assert again.get([library()[0].id]) == [library()[0]]


@contextmanager
def emulator_process(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [sys.executable, pinecone_emulator.__file__, "--data", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().decode().strip()
        finally:
            process.kill()


@contextmanager
def backends_at(url: str) -> Iterator[Callable[[], PineconeBackend]]:
    with ExitStack() as opened:
        yield lambda: opened.enter_context(
            closing(PineconeBackend(api_key="a-key", controller_host=url))
        )
