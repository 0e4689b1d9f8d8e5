"""The contract of `rag.protocols.VectorStore`, as tests that a store's own test file inherits.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_backend(self, tmp_path):
            return lambda: MyBackend(data_dir=tmp_path)

`open_backend()` gives a new backend on the same data each time. A store that keeps nothing sets
`persistent = False`; one whose index is approximate sets `exact = False`. Put
`pytest.register_assert_rewrite("stores.contract")` into conftest.py, or failures say nothing.
No test may be deleted or overridden without `pytest.mark.xfail(reason=...)`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rag.errors import (
    DimensionMismatch,
    EmbedderMismatch,
    InputError,
    MetricMismatch,
    UnknownCollection,
)
from rag.filters import matches, parse
from rag.protocols import StoreBackend, VectorStore
from rag.types import Chunk, CollectionSpec, Fingerprint, Metric, Scalar

DIM = 8
FINGERPRINT = Fingerprint("a-model", "1", DIM)
SPEC = CollectionSpec("contract", DIM, embedder=FINGERPRINT)

OpenBackend = Callable[[], StoreBackend]


def chunk(number: int, *, document: int = 0, text: str = "", **metadata: Scalar) -> Chunk:
    """A chunk of test data; its position is `number`."""
    return Chunk(
        id=f"d{document}:v1:{number}",
        document_id=f"d{document}",
        version="v1",
        position=number,
        text=text or f"text {number}",
        source=f"/docs/{document}.txt",
        title=f"Document {document}",
        page=number % 3 + 1 if number % 4 else None,
        ingested_at=1_700_000_000 + number,
        metadata=metadata,
    )


def random_vectors(count: int, seed: int = 0, dim: int = DIM) -> Any:
    """float32, shape (count, dim), of any length."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) * rng.uniform(0.1, 9, (count, 1))).astype(np.float32)


FILTERS: list[dict[str, Any]] = [
    {"year": 2024},
    {"year": {"$ne": 2024}},
    {"year": {"$gt": 2023}},
    {"year": {"$gte": 2024, "$lt": 2026}},
    {"year": {"$lte": 2023.5}},
    {"lang": {"$in": ["en", "中文", 7]}},
    {"lang": {"$nin": ["en"]}},
    {"lang": {"$in": []}},
    {"draft": True},
    {"draft": {"$ne": False}},
    {"draft": 1},
    {"year": "2024"},
    {"lang": {"$gt": "e"}},
    {"lang": {"$exists": True}},
    {"lang": {"$exists": False}},
    {"$or": [{"year": 2023}, {"draft": True}]},
    {"$and": [{"year": {"$gt": 2022}}, {"$not": {"lang": "en"}}]},
    {"$not": {"$or": [{"lang": "en"}, {"draft": {"$exists": True}}]}},
    {"year": {"$not": {"$gt": 2023}}},
    {"nothing": {"$ne": 1}},
    {"nothing": {"$in": [1]}},
    {"document_id": "d1"},
    {"source": {"$in": ["/docs/0.txt", "/docs/2.txt"]}},
    {"page": 2},
    {"page": {"$ne": 2}},
    {"page": {"$exists": False}},
    {"page": "2"},
    {"position": {"$gte": 20}},
    {"title": {"$gte": "Document 2"}},
    {"note": 'it\'s "quoted"; DROP TABLE chunks --'},
]


def library() -> list[Chunk]:
    """30 chunks of 3 documents whose metadata has gaps, several types and awkward text."""
    found = []
    for number in range(30):
        metadata: dict[str, Any] = {}
        if number % 5:
            metadata["year"] = 2022 + number % 4
        if number % 3:
            metadata["lang"] = ("en", "中文", "e")[number % 3]
        if number % 4 == 0:
            metadata["draft"] = number % 8 == 0
        if number % 7 == 0:
            metadata["note"] = 'it\'s "quoted"; DROP TABLE chunks --'
            metadata["year"] = 2023.5
        found.append(chunk(number, document=number % 3, **metadata))
    return found


class StoreContract:
    """Every promise of the protocol, a test each."""

    persistent = True
    exact = True

    @pytest.fixture
    def open_backend(self) -> OpenBackend:
        """Override: a function that opens the backend, each time on the same data."""
        raise NotImplementedError("the store's test class gives this fixture")

    @pytest.fixture
    def backend(self, open_backend: OpenBackend) -> StoreBackend:
        """One backend for the test."""
        return open_backend()

    @pytest.fixture
    def store(self, backend: StoreBackend) -> Iterator[VectorStore]:
        """An empty collection with metric cosine."""
        store = backend.create(SPEC)
        yield store
        store.close()

    @pytest.fixture
    def filled(self, store: VectorStore) -> VectorStore:
        """The collection with `library()` in it."""
        store.upsert(library(), random_vectors(30))
        return store

    def test_empty_collection(self, store: VectorStore) -> None:
        assert store.count() == 0
        assert store.search(random_vectors(2), 5) == [[], []]
        assert list(store.documents()) == []
        assert list(store.scan()) == []
        assert store.get(["x"]) == []
        assert store.delete(ids=["x"]) == 0

    def test_describe_tells_what_it_was_created_with(self, filled: VectorStore) -> None:
        info = filled.describe()
        assert (info.collection, info.dim, info.metric) == ("contract", DIM, "cosine")
        assert info.embedder == FINGERPRINT
        assert info.count == 30

    def test_get_returns_chunks_whole_and_in_the_order_asked(self, filled: VectorStore) -> None:
        wanted = [library()[i] for i in (7, 0, 29)]
        ids = [wanted[0].id, "missing", wanted[1].id, wanted[2].id]
        assert filled.get(ids) == wanted

    def test_upsert_replaces_the_same_id(self, filled: VectorStore) -> None:
        old = library()[3]
        new = replace(old, text="new", metadata={"only": "this"})
        vector = random_vectors(1, seed=9)
        filled.upsert([new], vector)
        assert filled.get([old.id]) == [new]
        assert filled.count() == 30
        best = filled.search(vector, 1)[0][0]
        assert best.chunk == new
        assert best.score == pytest.approx(1.0, abs=1e-4)
        assert filled.count(parse({"lang": {"$exists": True}, "document_id": "d0"})) < 10

    def test_of_duplicates_in_one_call_the_last_stays(self, store: VectorStore) -> None:
        first, last = chunk(0, text="first"), chunk(0, text="last")
        vectors = random_vectors(2)
        store.upsert([first, last], vectors)
        assert store.count() == 1
        assert store.get([first.id]) == [last]
        assert store.search(vectors[1:], 1)[0][0].score == pytest.approx(1.0, abs=1e-4)

    def test_upsert_of_nothing_is_nothing(self, store: VectorStore) -> None:
        store.upsert([], np.zeros((0, DIM), np.float32))
        assert store.count() == 0

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_score_means_the_same_in_every_metric(
        self, backend: StoreBackend, metric: Metric
    ) -> None:
        store = backend.create(CollectionSpec("scores", DIM, metric))
        axis = np.eye(DIM, dtype=np.float32)
        vectors = np.stack([axis[0] * 3, axis[1] * 3, axis[0] * -3])
        store.upsert([chunk(i) for i in range(3)], vectors)
        found = store.search(axis[:1] * 3, 3)[0]
        expected = {"cosine": [1, 0, -1], "ip": [9, 0, -9], "l2": [0, -18, -36]}[metric]
        assert [hit.chunk.position for hit in found] == [0, 1, 2]
        assert [hit.score for hit in found] == pytest.approx(expected, abs=1e-4)
        assert store.describe().metric == metric
        store.close()

    def test_batch_search_equals_single_searches(self, filled: VectorStore) -> None:
        queries = random_vectors(5, seed=3)
        together = filled.search(queries, 7)
        alone = [filled.search(queries[i : i + 1], 7)[0] for i in range(5)]
        for left, right in zip(together, alone, strict=True):
            assert [hit.chunk for hit in left] == [hit.chunk for hit in right]
            assert [h.score for h in left] == pytest.approx([h.score for h in right], abs=1e-5)
            assert len(left) == 7

    def test_best_come_first_and_k_may_exceed_the_count(self, filled: VectorStore) -> None:
        found = filled.search(random_vectors(1, seed=4), 100)[0]
        scores = [hit.score for hit in found]
        assert len(found) == 30
        assert scores == sorted(scores, reverse=True)

    def test_ties_are_ordered_by_id(self, store: VectorStore) -> None:
        vectors = np.repeat(random_vectors(1), 40, axis=0)
        numbers = np.random.default_rng(1).permutation(40).tolist()
        store.upsert([chunk(n) for n in numbers], vectors)
        found = store.search(vectors[:1], 5)[0]
        assert [hit.chunk.id for hit in found] == sorted(chunk(n).id for n in range(40))[:5]

    @pytest.mark.parametrize("where", FILTERS, ids=str)
    def test_filters_mean_what_the_language_says(
        self, filled: VectorStore, where: dict[str, Any]
    ) -> None:
        condition = parse(where)
        assert condition is not None
        expected = {c.id for c in library() if matches(condition, c.fields())}
        found = filled.search(random_vectors(1, seed=5), 30, condition)[0]
        assert {hit.chunk.id for hit in found} == expected
        assert filled.count(condition) == len(expected)

    def test_a_selective_filter_still_gives_k(self, filled: VectorStore) -> None:
        condition = parse({"document_id": "d2"})
        for hits in filled.search(random_vectors(4, seed=6), 10, condition):
            assert len(hits) == 10
            assert {hit.chunk.document_id for hit in hits} == {"d2"}

    def test_delete_by_id_document_and_filter(self, filled: VectorStore) -> None:
        chunks = library()
        assert filled.delete(ids=[chunks[0].id, "missing", chunks[1].id]) == 2
        assert filled.delete(document_ids=["d2", "missing"]) == 10
        old = [c for c in chunks[2:] if c.document_id != "d2" and c.metadata.get("year") == 2024]
        assert filled.delete(where=parse({"year": 2024})) == len(old)
        assert filled.count() == 30 - 12 - len(old)
        found = filled.search(random_vectors(1), 30)[0]
        assert len(found) == filled.count()
        assert not {hit.chunk.document_id for hit in found} & {"d2"}

    def test_delete_takes_what_matches_every_argument(self, filled: VectorStore) -> None:
        assert filled.delete(document_ids=["d1"], where=parse({"position": {"$lt": 10}})) == 3
        assert filled.count(parse({"document_id": "d1"})) == 7

    def test_delete_without_argument_deletes_nothing(self, filled: VectorStore) -> None:
        assert filled.delete() == 0
        assert filled.delete(ids=[]) == 0
        assert filled.count() == 30

    def test_documents_tells_versions_and_whether_they_are_whole(self, store: VectorStore) -> None:
        whole = [chunk(n, document=1) for n in range(3)]
        partial = [replace(chunk(n, document=0), id=f"p{n}", version="v2") for n in (1, 2)]
        store.upsert([*whole, *partial], random_vectors(5))
        records = list(store.documents())
        assert [(r.id, r.version, r.chunks, r.complete) for r in records] == [
            ("d0", "v2", 2, False),
            ("d1", "v1", 3, True),
        ]
        assert records[1].source == "/docs/1.txt"
        assert records[1].title == "Document 1"
        assert records[1].ingested_at == whole[0].ingested_at

    def test_scan_gives_everything_back_as_it_was_given(self, filled: VectorStore) -> None:
        vectors = random_vectors(30)
        seen: dict[str, Any] = {}
        for chunks, rows in filled.scan(batch=7):
            assert len(chunks) == len(rows) <= 7
            assert rows.dtype == np.float32
            seen.update({c.id: (c, row) for c, row in zip(chunks, rows, strict=True)})
        assert len(seen) == 30
        for expected, row in zip(library(), vectors, strict=True):
            assert seen[expected.id][0] == expected
            np.testing.assert_allclose(seen[expected.id][1], row, rtol=1e-6)

    def test_any_text_survives(self, store: VectorStore) -> None:
        texts = ["汉字 かな 한국어 😀 é \u202e", "x" * 100_000, "\t\n'\";--", "\x00nul"]
        chunks = [
            replace(chunk(n, text=text), id=f"字-{n}-é", document_id="文档")
            for n, text in enumerate(texts)
        ]
        store.upsert(chunks, random_vectors(4))
        assert store.get([c.id for c in chunks]) == chunks
        assert store.delete(document_ids=["文档"]) == 4

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_vectors_that_are_not_finite_are_refused(self, store: VectorStore, bad: float) -> None:
        vectors = random_vectors(2)
        vectors[1, 3] = bad
        with pytest.raises(InputError):
            store.upsert([chunk(0), chunk(1)], vectors)
        with pytest.raises(InputError):
            store.search(vectors, 3)
        assert store.count() == 0

    def test_wrong_dimension_is_refused(self, store: VectorStore) -> None:
        with pytest.raises(DimensionMismatch, match=r"8 .*5"):
            store.upsert([chunk(0)], random_vectors(1, dim=5))
        with pytest.raises(DimensionMismatch, match=r"8 .*5"):
            store.search(random_vectors(1, dim=5), 3)

    @pytest.mark.parametrize(
        "bad", [{"list": [1]}, {"none": None}, {"source": "x"}, {"$x": 1}, {"nan": np.nan}]
    )
    def test_metadata_that_cannot_be_filtered_is_refused(
        self, store: VectorStore, bad: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError):
            store.upsert([replace(chunk(0), metadata=bad)], random_vectors(1))
        assert store.count() == 0

    def test_lengths_that_differ_are_refused(self, store: VectorStore) -> None:
        with pytest.raises(InputError):
            store.upsert([chunk(0)], random_vectors(2))

    def test_another_dimension_metric_or_embedder_is_refused(self, backend: StoreBackend) -> None:
        backend.create(SPEC).close()
        with pytest.raises(DimensionMismatch):
            backend.create(CollectionSpec("contract", 5))
        with pytest.raises(MetricMismatch):
            backend.create(replace(SPEC, metric="l2"))
        with pytest.raises(EmbedderMismatch, match=r"a-model.*other"):
            backend.create(replace(SPEC, embedder=replace(FINGERPRINT, model="other")))

    def test_collections_come_and_go(self, backend: StoreBackend) -> None:
        for name in ("one", "two"):
            store = backend.create(replace(SPEC, name=name))
            store.upsert([chunk(0)], random_vectors(1))
            store.close()
        assert backend.collections() == ["one", "two"]
        backend.drop("one")
        assert backend.collections() == ["two"]
        with pytest.raises(UnknownCollection):
            backend.open("one")
        with pytest.raises(UnknownCollection):
            backend.drop("one")
        again = backend.create(replace(SPEC, name="one"))
        assert again.count() == 0
        again.close()

    @pytest.mark.parametrize("name", ["", "../x", "A", "a b", "x" * 64, ".", "名"])
    def test_names_that_not_every_store_takes_are_refused(
        self, backend: StoreBackend, name: str
    ) -> None:
        with pytest.raises(InputError):
            backend.create(replace(SPEC, name=name))

    def test_reopened_it_is_the_same(self, open_backend: OpenBackend) -> None:
        if not self.persistent:
            return
        backend = open_backend()
        store = backend.create(SPEC)
        store.upsert(library(), random_vectors(30))
        store.delete(document_ids=["d1"])
        query = random_vectors(1, seed=8)
        before = store.search(query, 20)
        store.close()
        store.close()
        again = open_backend().open("contract")
        assert again.describe().embedder == FINGERPRINT
        assert again.count() == 20
        assert again.search(query, 20) == before
        again.upsert([chunk(99)], random_vectors(1))
        assert again.count() == 21
        again.close()

    def test_readers_are_not_disturbed_by_a_writer(self, filled: VectorStore) -> None:
        failures: list[BaseException] = []
        done = threading.Event()
        queries = random_vectors(3, seed=2)

        def read() -> None:
            try:
                while not done.is_set():
                    # d0 is never touched, so its ten chunks are always all there.
                    found = filled.search(queries, 10, parse({"document_id": "d0"}))
                    assert [len(hits) for hits in found] == [10, 10, 10]
            except BaseException as error:
                failures.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for turn in range(15):
                extra = [chunk(n, document=7) for n in range(20)]
                filled.upsert(extra, random_vectors(20, seed=turn))
                filled.delete(document_ids=["d7"])
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert failures == []
        assert filled.count() == 30
