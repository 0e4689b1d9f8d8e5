from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import pytest
from haystack import Pipeline
from haystack.components.preprocessors import DocumentSplitter, HierarchicalDocumentSplitter
from haystack.components.retrievers import AutoMergingRetriever, SentenceWindowRetriever
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream, Document, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as shared
from haystack.testing import document_store_async as shared_async
from haystack.utils import Secret
from haystack.utils.filters import document_matches_filter

from rag import plugins
from rag.errors import ConfigError, UnknownCollection
from rag.types import Chunk, CollectionSpec
from stores.adapters.haystack import RagDocumentStore, RagEmbeddingRetriever

MakeStore: TypeAlias = Callable[..., RagDocumentStore]


@pytest.fixture
def make_store(kind: tuple[str, dict[str, Any]]) -> Iterator[MakeStore]:
    name, options = kind
    made: list[RagDocumentStore] = []

    def make(dim: int | None = 2, **more: Any) -> RagDocumentStore:
        collection = f"haystack-{uuid4().hex[:12]}"
        made.append(RagDocumentStore(name, collection, dim, options=options, **more))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def document_store(make_store: MakeStore) -> RagDocumentStore:
    return make_store()


def ids(documents: list[Document]) -> set[str]:
    return {document.id for document in documents}


def same(received: list[Document], expected: list[Document]) -> None:
    """The same documents in any order; embeddings as float32 holds them."""

    def values(documents: list[Document]) -> list[dict[str, Any]]:
        found = [document.to_dict(flatten=False) for document in documents]
        for each in found:
            if each["embedding"] is not None:
                each["embedding"] = np.array(each["embedding"], np.float32).tolist()
        return sorted(found, key=lambda each: str(each["id"]))

    assert values(received) == values(expected)


class TestSharedSuite(
    shared.DocumentStoreBaseExtendedTests,
    shared.CountDocumentsByFilterTest,
    shared.CountUniqueMetadataByFilterTest,
    shared.GetMetadataFieldsInfoTest,
    shared.GetMetadataFieldMinMaxTest,
    shared.GetMetadataFieldUniqueValuesTest,
    shared_async.CountDocumentsAsyncTest,
    shared_async.CountDocumentsByFilterAsyncTest,
    shared_async.CountUniqueMetadataByFilterAsyncTest,
    shared_async.DeleteAllAsyncTest,
    shared_async.DeleteByFilterAsyncTest,
    shared_async.DeleteDocumentsAsyncTest,
    shared_async.FilterDocumentsAsyncTest,
    shared_async.GetMetadataFieldMinMaxAsyncTest,
    shared_async.GetMetadataFieldsInfoAsyncTest,
    shared_async.GetMetadataFieldUniqueValuesAsyncTest,
    shared_async.UpdateByFilterAsyncTest,
    shared_async.WriteDocumentsAsyncTest,
):
    """What Haystack ships; the two tests that have to be written by each store are."""

    @pytest.fixture
    def document_store(self, make_store: MakeStore) -> RagDocumentStore:
        return make_store(768)

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        same(received, expected)

    def test_write_documents(self, document_store: Any) -> None:
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])
        same(document_store.filter_documents(), [document])

    async def test_write_documents_async(self, document_store: Any) -> None:
        document = Document(content="test doc")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])


DOCUMENTS = [
    Document(id="bare"),
    Document(id="empty", content="", meta={}),
    Document(id="text", content="text\x00", embedding=[0.1, -3.5]),
    Document(id="own", meta={"source": "a.md", "title": "A", "page": 3, "document_id": "d"}),
    Document(id="misfits", meta={"source": "", "title": 7, "page": "iv", "position": 2}),
    Document(id="none", meta={"author": None, "page": None, "source": None}),
    Document(id="nested", meta={"tags": ["a", {"b": None}], "page": [1, 2], "of": {"x": 1.5}}),
    Document(
        id="long", meta={"abstract": "本" * 2001, "children": [f"{n:064}" for n in range(50)]}
    ),
    Document(id="dates", meta={"date": "2024-02-29", "source": "2024-02-29T10:00:00+02:00"}),
    Document(id="kinds", meta={"a": 1, "b": 1.0, "c": True, "d": "1", "e": -(2**53) + 1}),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.id))
def test_what_comes_back_is_what_went_in(
    document_store: RagDocumentStore, document: Document
) -> None:
    document_store.write_documents([document])
    [found] = document_store.filter_documents()
    same([found], [document])
    assert repr(sorted(found.meta.items())) == repr(sorted(document.meta.items()))


def test_fields_that_a_chunk_has_are_its_own(make_store: MakeStore) -> None:
    document_store = make_store()
    document_store.write_documents([DOCUMENTS[3]])
    [[chunks, _]] = document_store._opened.scan()
    assert (chunks[0].source, chunks[0].title, chunks[0].page) == ("a.md", "A", 3)


@pytest.mark.parametrize(
    "document",
    [
        Document(blob=ByteStream(b"x")),
        Document(sparse_embedding=SparseEmbedding([1], [0.5])),
        Document(meta={"when": object()}),
        Document(meta={"when": [float("nan")]}),
        Document(meta={"when": float("inf")}),
        Document(meta={"when": 2**63}),
        Document(meta={"$when": 1}),
        Document(meta={"haystack_json": "[]"}),
        Document(meta={"meta.page": 1}),
        Document(embedding=[1.0, 2.0, 3.0]),
    ],
    ids=lambda document: repr(document)[-40:],
)
def test_what_cannot_be_kept_is_refused_and_nothing_written(
    document_store: RagDocumentStore, document: Document
) -> None:
    with pytest.raises(ValueError) as caught:
        document_store.write_documents([Document(content="good"), document])
    assert "\n" not in str(caught.value)
    assert document_store.count_documents() == 0


def test_duplicates_in_one_call(document_store: RagDocumentStore) -> None:
    twice = [Document(id="x", content="1"), Document(id="x", content="2")]
    with pytest.raises(DuplicateDocumentError, match="'x'"):
        document_store.write_documents(twice)
    assert document_store.count_documents() == 0
    assert document_store.write_documents(twice, DuplicatePolicy.SKIP) == 1
    assert document_store.filter_documents()[0].content == "1"
    assert document_store.write_documents(twice, DuplicatePolicy.OVERWRITE) == 2
    assert document_store.filter_documents()[0].content == "2"


def test_of_several_threads_one_writes(
    document_store: RagDocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = document_store._opened
    together, written = threading.Barrier(2), []

    def get_together(ids: list[str], get: Any = store.get) -> Any:
        found = get(ids)
        with suppress(threading.BrokenBarrierError):  # as only one may be here
            together.wait(0.2)
        return found

    monkeypatch.setattr(store, "get", get_together)

    def write() -> None:
        written.append(document_store.write_documents([Document(id="x")], DuplicatePolicy.SKIP))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == [0, 1]


LIBRARY = [
    Document(id="a", content="a", meta={"year": 2023, "lang": "en", "date": "2024-01-01"}),
    Document(
        id="b", content="b", meta={"year": 2024, "lang": None, "date": "2024-01-01T00:00:00Z"}
    ),
    Document(id="c", meta={"year": 2024.0, "page": 2, "date": "2024-01-02 06:00:00+08:00"}),
    Document(id="d", meta={"year": "2024", "page": "iv", "tags": ["x"], "source": "a.md"}),
    Document(
        id="e", meta={"page": [2], "title": "", "source": None, "date": "2023-12-31T23:59:59"}
    ),
]


def compare(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


FILTERS = [
    *(compare("meta.year", operator, [2024, None]) for operator in ("in", "not in")),
    *(compare("meta.year", operator, 2024) for operator in ("==", "!=")),
    *(compare("meta.year", operator, "2024") for operator in ("==", "!=")),
    *(compare("meta.lang", operator, None) for operator in ("==", "!=", ">", "<=")),
    *(compare("meta.tags", operator, None) for operator in ("==", "!=")),
    *(compare("meta.page", operator, None) for operator in ("==", "!=")),
    *(compare("meta.source", operator, None) for operator in ("==", "!=")),
    *(compare("meta.title", operator, "") for operator in ("==", "!=")),
    *(compare("meta.page", "in", values) for values in ([], [2, "iv"], [None, "iv"])),
    *(compare("meta.date", operator, "2024-01-01") for operator in ("==", "!=")),
    compare("meta.date", "in", ["2024-01-01T00:00:00.000Z", "x"]),
    compare("lang", "==", "en"),
    compare("id", "==", "a"),
    compare("id", "in", ["a", "e", "nothing"]),
    {"operator": "NOT", "conditions": [compare("meta.lang", "==", "en")]},
    {
        "operator": "NOT",
        "conditions": [compare("meta.page", "==", 2), compare("meta.year", ">", 2000)],
    },
    {
        "operator": "OR",
        "conditions": [
            compare("id", "==", "e"),
            {
                "operator": "AND",
                "conditions": [compare("meta.page", "==", 2), compare("meta.year", "==", 2024)],
            },
        ],
    },
]


def test_filters_are_as_haystack_defines_them(document_store: RagDocumentStore) -> None:
    document_store.write_documents(LIBRARY)
    for filters in FILTERS:
        expected = {d.id for d in LIBRARY if document_matches_filter(filters, d)}
        assert ids(document_store.filter_documents(filters)) == expected, filters
        if "'id'" in str(filters):
            with pytest.raises(FilterError, match="by id"):
                document_store.count_documents_by_filter(filters)
        else:
            assert document_store.count_documents_by_filter(filters) == len(expected), filters


def test_dates_are_ordered_whatever_their_notation(document_store: RagDocumentStore) -> None:
    dated = [document for document in LIBRARY if document.id != "d"]
    document_store.write_documents(dated)
    for operator in (">", ">=", "<", "<="):
        for value in ("2024-01-01", "2024-01-01T00:00:00+00:00", "2023-12-31 23:59:59Z"):
            filters = compare("meta.date", operator, value)
            expected = {d.id for d in dated if document_matches_filter(filters, d)}
            assert ids(document_store.filter_documents(filters)) == expected, filters
            assert document_store.count_documents_by_filter(filters) == len(expected)
    zoned = "2024-01-02T00:00:00+02:00"
    assert ids(document_store.filter_documents(compare("meta.date", ">=", zoned))) == {"c"}
    assert ids(document_store.filter_documents(compare("meta.date", ">", zoned))) == set()
    moment = datetime(2024, 1, 1, 22, tzinfo=UTC)
    assert ids(document_store.filter_documents(compare("meta.date", "==", moment))) == {"c"}


def test_what_has_no_date_is_not_left_out_in_silence(document_store: RagDocumentStore) -> None:
    filters = compare("meta.date", ">", "2024-01-01")
    document_store.write_documents([*LIBRARY, Document(id="f", meta={"date": "last year"})])
    for method in ("filter_documents", "count_documents_by_filter", "delete_by_filter"):
        with pytest.raises(FilterError, match="date"):
            getattr(document_store, method)(filters)
    with pytest.raises(FilterError, match="date"):
        document_store.embedding_retrieval([1.0, 0.0], filters)


@pytest.mark.parametrize(
    "filters",
    [
        compare("content", "==", "a"),
        compare("embedding", "!=", None),
        compare("meta.person.name", "==", "a"),
        compare("meta.tags", "==", ["x"]),
        compare("meta.year", "almost", 3),
        compare("meta.year", ">", True),
        compare("meta.year", "in", (1, 2)),
        compare("meta.date", ">", "yesterday"),
        compare("meta.$year", "==", 1),
        compare("meta.document_id", "==", None),
        {"operator": "AND", "conditions": []},
        {"operator": "AND", "conditions": {}},
        {"operator": "XOR", "conditions": [compare("meta.year", "==", 1)]},
        {"operator": "AND", "conditions": ["meta.year"]},
    ],
    ids=str,
)
def test_what_cannot_be_filtered_is_an_error(
    document_store: RagDocumentStore, filters: dict[str, Any]
) -> None:
    document_store.write_documents(LIBRARY)
    with pytest.raises(FilterError) as caught:
        document_store.filter_documents(filters)
    assert "\n" not in str(caught.value)


def test_an_empty_filter_changes_nothing(document_store: RagDocumentStore) -> None:
    document_store.write_documents(LIBRARY)
    with pytest.raises(FilterError, match="delete_all_documents"):
        document_store.delete_by_filter({})
    with pytest.raises(FilterError, match="empty"):
        document_store.update_by_filter({}, {"year": 1})
    same(document_store.filter_documents(), LIBRARY)


def test_an_update_keeps_the_rest(document_store: RagDocumentStore) -> None:
    before = [
        Document(
            id="x", content="x", embedding=[0.6, 0.8], meta={"n": 1, "tags": ["a"], "page": 2}
        ),
        Document(id="y", meta={"n": 1}),
        Document(id="z", meta={"n": 2}),
    ]
    document_store.write_documents(before)
    changed = {"page": "iv", "tags": {"b": 1}, "date": "2024-01-01"}
    assert document_store.update_by_filter(compare("meta.n", "==", 1), changed) == 2
    after = [
        Document(id="x", content="x", embedding=[0.6, 0.8], meta={"n": 1, **changed}),
        Document(id="y", meta={"n": 1, **changed}),
        before[2],
    ]
    same(document_store.filter_documents(), after)


def test_retrieval(document_store: RagDocumentStore) -> None:
    document_store.write_documents(
        [
            Document(id="near", content="near", embedding=[1.0, 0.1], meta={"lang": "en"}),
            Document(id="far", content="far", embedding=[-1.0, 0.0], meta={"lang": "en", "n": 1}),
            Document(
                id="other", content="other", embedding=[1.0, 0.0], meta={"lang": "zh", "n": 1}
            ),
            Document(id="none", content="no embedding", meta={"lang": "en"}),
        ]
    )
    retriever = RagEmbeddingRetriever(document_store, compare("meta.lang", "==", "en"))
    found = retriever.run([1.0, 0.0])["documents"]
    assert [document.id for document in found] == ["near", "far"]
    assert [document.score for document in found] == pytest.approx(
        [1 / np.sqrt(1.01), -1], abs=1e-5
    )
    assert [document.embedding for document in found] == [None, None]
    assert [d.id for d in retriever.run([1.0, 0.0], top_k=1)["documents"]] == ["near"]
    assert retriever.run([1.0, 0.0], top_k=0)["documents"] == []
    chinese = compare("meta.lang", "==", "zh")
    assert [d.id for d in retriever.run([1.0, 0.0], filters=chinese)["documents"]] == ["other"]
    both = RagEmbeddingRetriever(
        document_store, compare("meta.lang", "==", "en"), filter_policy=FilterPolicy.MERGE
    )
    found = both.run([1.0, 0.0], filters=compare("meta.n", "==", 1))["documents"]
    assert [document.id for document in found] == ["far"]


async def test_pipelines_run_and_come_back_from_text(document_store: RagDocumentStore) -> None:
    indexing = Pipeline()
    indexing.add_component("split", DocumentSplitter(split_length=4, split_overlap=2))
    indexing.add_component("write", DocumentWriter(document_store))
    indexing.connect("split", "write")
    indexing.run({"split": {"documents": [Document(content="one two three four five six")]}})
    [first, second] = sorted(
        document_store.filter_documents(), key=lambda document: document.meta["split_id"]
    )
    assert first.meta["_split_overlap"][0]["doc_id"] == second.id
    window = SentenceWindowRetriever(document_store, window_size=1).run([first])
    assert window["context_windows"] == ["one two three four five six"]

    query = Pipeline()
    query.add_component("find", RagEmbeddingRetriever(document_store, top_k=1))
    document_store.write_documents([Document(id="x", content="x", embedding=[0.0, 1.0])])
    request = {"find": {"query_embedding": [0.0, 1.0]}}
    found = await query.run_async(request)
    assert [document.id for document in found["find"]["documents"]] == ["x"]


def test_merging_retriever_finds_parents(document_store: RagDocumentStore) -> None:
    splitter = HierarchicalDocumentSplitter(block_sizes={60, 1}, split_overlap=0, split_by="word")
    parts = splitter.run([Document(content=" ".join(f"word{n}" for n in range(60)))])["documents"]
    document_store.write_documents(parts)
    leaves = [part for part in parts if not part.meta["__children_ids"]]
    found = AutoMergingRetriever(document_store, threshold=0.4).run(leaves[:40])["documents"]
    assert len(found) == 1
    assert len(found[0].meta["__children_ids"]) >= 1


def test_a_pipeline_is_saved_and_loaded(tmp_path: Path) -> None:
    store = RagDocumentStore("faiss", "docs", 2, "l2", {"data_dir": str(tmp_path), "M": 16})
    store.write_documents([Document(id="x", content="x", embedding=[3.0, 4.0])])
    store.close()
    pipeline = Pipeline()
    pipeline.add_component(
        "find", RagEmbeddingRetriever(store, compare("meta.n", "==", None), 3, FilterPolicy.MERGE)
    )
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["stores.adapters.*"])
    assert loaded.to_dict() == pipeline.to_dict()
    [found] = loaded.run({"find": {"query_embedding": [0.0, 0.0]}})["find"]["documents"]
    assert (found.id, found.score) == ("x", pytest.approx(-25))
    loaded.get_component("find").close()


def test_secrets_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    secret = Secret.from_env_var("SOME_KEY")
    store = RagDocumentStore("pinecone", "docs", options={"api_key": secret, "region": "eu"})
    pipeline = Pipeline()
    pipeline.add_component("find", RagEmbeddingRetriever(store))
    assert "SOME_KEY" in pipeline.dumps()
    assert RagDocumentStore.from_dict(store.to_dict()).options["api_key"] == secret
    plain = RagDocumentStore("pinecone", "docs", options={"api_key": "secret"})
    with pytest.raises(ValueError, match="from_env_var"):
        plain.to_dict()


def test_what_ingestion_made_is_opened_without_dim(tmp_path: Path) -> None:
    options = {"data_dir": str(tmp_path)}
    backend = plugins.load("store", "faiss")(data_dir=tmp_path)
    chunk = Chunk("d:v:0", "d", "v", 0, "text", "a.md", "A", 1, 17, {"date": "2024-01-01"})
    with_store = backend.create(CollectionSpec("docs", 2))
    with_store.upsert([chunk], np.eye(1, 2, dtype=np.float32))
    with_store.close()
    store = RagDocumentStore("faiss", "docs", options=options)
    [document] = store.embedding_retrieval([1.0, 0.0])
    assert document.content == "text"
    assert document.meta == {
        **{"document_id": "d", "version": "v", "position": 0, "source": "a.md", "title": "A"},
        **{"page": 1, "ingested_at": 17, "date": "2024-01-01"},
    }
    with pytest.raises(FilterError, match="'date' is no date"):
        store.filter_documents(compare("meta.date", ">", "2023-01-01"))
    assert store.update_by_filter(compare("meta.page", "==", 1), {"lang": "en"}) == 1
    store.close()
    again = backend.open("docs")
    [found] = again.get(["d:v:0"])
    assert (found.version, found.position, found.source) == ("v", 0, "a.md")
    again.close()


def test_wrong_settings_are_told_in_a_line(tmp_path: Path) -> None:
    options = {"data_dir": str(tmp_path)}
    with pytest.raises(UnknownCollection):
        RagDocumentStore("faiss", "docs", options=options).count_documents()
    with pytest.raises(ConfigError, match="indx"):
        RagDocumentStore("faiss", "docs", 2, options={**options, "indx": "HNSW"}).count_documents()


def test_a_closed_store_connects_again(make_store: MakeStore, kind: tuple[str, Any]) -> None:
    store = make_store()
    store.write_documents([Document(id="x")])
    store.close()
    store.close()
    assert store.count_documents() == (0 if kind[0] == "memory" else 1)
