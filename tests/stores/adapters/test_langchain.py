from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from langchain_tests.integration_tests.vectorstores import (
    EMBEDDING_SIZE,
    VectorStoreIntegrationTests,
)

from rag import plugins
from rag.errors import InvalidFilter, UnsupportedFilter
from rag.protocols import StoreBackend, VectorStore
from rag.types import Chunk, CollectionSpec, Metric
from stores.adapters.langchain import RagVectorStore

MakeStore: TypeAlias = Callable[..., VectorStore]


class Angles(Embeddings):
    """A text is a number: the angle of its vector, in degrees."""

    def embed_query(self, text: str) -> list[float]:
        angle = np.deg2rad(float(text))
        return [float(np.cos(angle)), float(np.sin(angle))]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


@pytest.fixture(scope="module")
def backend(kind: tuple[str, dict[str, Any]]) -> Iterator[StoreBackend]:
    name, options = kind
    data_dir = Path(options.get("data_dir", "."))
    made = plugins.load("store", name)(**{**options, "data_dir": data_dir})
    yield made
    made.close()


@pytest.fixture
def make_store(backend: StoreBackend) -> Iterator[MakeStore]:
    made: list[VectorStore] = []

    def make(dim: int = 2, metric: Metric = "cosine") -> VectorStore:
        made.append(backend.create(CollectionSpec(f"langchain-{uuid4().hex[:12]}", dim, metric)))
        return made[-1]

    yield make
    for store in made:
        name = store.describe().collection
        store.close()
        backend.drop(name)


@pytest.fixture
def angles(make_store: MakeStore) -> RagVectorStore:
    """Documents at 0, 10, 20 and 90 degrees."""
    store = RagVectorStore(make_store(), Angles())
    store.add_texts(
        ["0", "10", "20", "90"],
        [{"lang": "en"}, {"lang": "zh", "page": 2}, {"lang": "en", "page": "iv"}, {}],
        ids=["a", "b", "c", "d"],
    )
    return store


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


class TestSharedSuite(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, make_store: MakeStore) -> RagVectorStore:  # type: ignore[override]
        return RagVectorStore(make_store(EMBEDDING_SIZE), self.get_embeddings())


METADATA: list[dict[str, Any]] = [
    {},
    {"source": "a.md", "title": "A", "page": 3, "document_id": "doc", "year": 2024, "draft": True},
    {"source": "", "title": 7, "page": "iv", "document_id": 5},
    {"page": 0, "source": True},
    {"page": True, "title": "T"},
    {"page": 2.0, "title": ""},
    {"document_id": "x"},
    {"version": "1.2"},
    {"position": 0, "ingested_at": 12},
    {"version": "1.2", "position": 0, "ingested_at": 12, "source": "b.md"},
    {"version": "", "position": -1, "ingested_at": 0.5},
]


@pytest.mark.parametrize("metadata", METADATA, ids=repr)
def test_what_comes_back_is_what_went_in(make_store: MakeStore, metadata: dict[str, Any]) -> None:
    store = RagVectorStore(make_store(), Angles())
    document = Document(id="x", page_content="5", metadata=metadata)
    store.add_documents([document])
    [found] = store.get_by_ids(["x"])
    assert found == document
    # 1, 1.0 and True are equal, but not the same
    assert repr(sorted(found.metadata.items())) == repr(sorted(metadata.items()))


def test_fields_that_a_chunk_has_are_its_own(make_store: MakeStore) -> None:
    store = make_store()
    metadata = {"source": "a.md", "title": "A", "page": 3, "document_id": "doc", "year": 2024}
    RagVectorStore(store, Angles()).add_texts(["5", "6"], [metadata, {}], ids=["x", "y"])
    first, second = store.get(["x", "y"])
    assert (first.source, first.title, first.page, first.document_id) == ("a.md", "A", 3, "doc")
    assert dict(first.metadata) == {"year": 2024}
    assert second.document_id == "y"


def test_a_chunk_of_ingestion_is_a_document_with_all_its_fields(make_store: MakeStore) -> None:
    store = make_store()
    chunk = Chunk("d:v:0", "d", "v", 0, "5", "a.md", "A", 1, 17, {"lang": "en"})
    store.upsert([chunk], np.eye(1, 2, dtype=np.float32))
    langchain = RagVectorStore(store, Angles())
    [document] = langchain.get_by_ids(["d:v:0"])
    assert document.metadata == {
        **{"document_id": "d", "version": "v", "position": 0, "source": "a.md", "title": "A"},
        **{"page": 1, "ingested_at": 17, "lang": "en"},
    }
    langchain.add_documents([document])
    assert store.get(["d:v:0"]) == [chunk]


# Which of METADATA match: each as Python would say of the dictionaries.
FILTERS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({"source": {"$exists": False}}, lambda m: "source" not in m),
    ({"source": "a.md"}, lambda m: m.get("source") == "a.md"),
    ({"source": ""}, lambda m: m.get("source") == ""),
    ({"source": {"$ne": "a.md"}}, lambda m: m.get("source") != "a.md"),
    ({"title": {"$nin": ["", 7]}}, lambda m: m.get("title") not in ("", 7)),
    ({"page": {"$exists": True}}, lambda m: "page" in m),
    ({"page": {"$lte": 2}}, lambda m: m.get("page") in (0, 2) and m["page"] is not True),
    ({"page": "iv"}, lambda m: m.get("page") == "iv"),
    ({"page": {"$not": {"$gt": 2}}}, lambda m: m.get("page") != 3),
    ({"version": {"$exists": True}}, lambda m: "version" in m),
    ({"version": "1.2"}, lambda m: m.get("version") == "1.2"),
    ({"position": {"$lt": 5}}, lambda m: "position" in m),
    ({"ingested_at": 0}, lambda m: False),
    ({"ingested_at": {"$in": [0.5, 12]}}, lambda m: "ingested_at" in m),
    ({"document_id": "doc"}, lambda m: m.get("document_id") == "doc"),
    (
        {"$or": [{"year": 2024}, {"position": {"$exists": True}}]},
        lambda m: "year" in m or "position" in m,
    ),
]


def test_filters_ask_about_the_metadata_as_it_went_in(make_store: MakeStore) -> None:
    store = RagVectorStore(make_store(), Angles())
    store.add_texts(["5"] * len(METADATA), METADATA, ids=[str(n) for n in range(len(METADATA))])
    for where, expected in FILTERS:
        found = {document.id for document in store.similarity_search("5", k=50, filter=where)}
        assert found == {str(n) for n, m in enumerate(METADATA) if expected(m)}, where


def test_what_cannot_be_asked_is_an_error(angles: RagVectorStore) -> None:
    with pytest.raises(InvalidFilter, match="document_id"):
        angles.similarity_search("5", filter={"document_id": {"$exists": False}})
    with pytest.raises(InvalidFilter, match="almost"):
        angles.similarity_search("5", filter={"lang": {"$almost": "en"}})


@pytest.mark.parametrize("search", ["similarity_search", "similarity_search_with_score"])
def test_a_misspelt_argument_is_an_error(angles: RagVectorStore, search: str) -> None:
    with pytest.raises(TypeError, match="filters"):
        getattr(angles, search)("5", filters={"lang": "en"})


def test_a_filter_that_the_store_cannot_apply_passes_through(
    angles: RagVectorStore, kind: tuple[str, Any]
) -> None:
    where = {"lang": {"$gt": "en"}}
    if kind[0] in ("memory", "faiss", "milvus"):
        assert ids(angles.similarity_search("5", filter=where)) == ["b"]
    else:
        with pytest.raises(UnsupportedFilter, match="lang"):
            angles.similarity_search("5", filter=where)


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, float("nan"), 2**63], ids=repr)
@pytest.mark.parametrize("key", ["tags", "page"])
def test_metadata_that_is_not_flat_is_refused_and_nothing_written(
    angles: RagVectorStore, key: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=key) as caught:
        angles.add_texts(["1", "2"], [{}, {key: value}], ids=["e", "f"])
    assert "\n" not in str(caught.value)
    assert angles.get_by_ids(["e", "f"]) == []


def test_a_key_that_the_adapter_uses_is_refused(angles: RagVectorStore) -> None:
    with pytest.raises(ValueError, match=r"meta\.page"):
        angles.add_texts(["1"], [{"meta.page": 1}])


def test_lengths_that_differ_are_refused(angles: RagVectorStore) -> None:
    with pytest.raises(ValueError, match="2 texts"):
        angles.add_texts(["1", "2"], [{}])
    with pytest.raises(ValueError, match="2 texts"):
        angles.add_texts(["1", "2"], ids=["e"])


def test_documents_come_in_the_order_asked_for(angles: RagVectorStore) -> None:
    assert ids(angles.get_by_ids(["d", "nothing", "a", "c"])) == ["d", "a", "c"]


def test_scores_are_those_of_the_store(angles: RagVectorStore) -> None:
    found = angles.similarity_search_with_score("10", k=2, filter={"lang": "en"})
    assert ids([document for document, _ in found]) == ["a", "c"]
    assert [score for _, score in found] == pytest.approx([np.cos(np.deg2rad(10))] * 2, abs=1e-5)


def test_search_by_vector(angles: RagVectorStore) -> None:
    assert ids(angles.similarity_search_by_vector([0.0, 1.0], k=1)) == ["d"]
    assert ids(angles.similarity_search_by_vector([0.0, 1.0], k=1, filter={"lang": "zh"})) == ["b"]


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_relevance_is_the_same_in_every_metric(make_store: MakeStore, metric: Metric) -> None:
    store = RagVectorStore(make_store(metric=metric), Angles())
    store.add_texts(["30", "90", "150", "210"], ids=["a", "b", "c", "d"])
    found = store.similarity_search_with_relevance_scores("30")
    assert [document.id for document, _ in found] == ["a", "b", "c", "d"]
    assert [score for _, score in found] == pytest.approx([1, 0.75, 0.25, 0], abs=1e-5)
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.5}
    )
    assert ids(retriever.invoke("30")) == ["a", "b"]


def test_relevance_of_a_text_to_itself_is_one(make_store: MakeStore) -> None:
    embedding = VectorStoreIntegrationTests.get_embeddings()
    store = RagVectorStore(make_store(EMBEDDING_SIZE), embedding)
    texts = [f"text {n}" for n in range(25)]
    store.add_texts(texts, ids=texts)
    for text in texts:  # LangChain would warn of what is over 1
        [(document, score)] = store.similarity_search_with_relevance_scores(text, k=1)
        assert (document.id, score) == (text, 1)


def test_mmr_takes_what_is_near_and_unlike(angles: RagVectorStore) -> None:
    def found(**options: Any) -> list[str | None]:
        search = {"k": 2, "lambda_mult": 0.2, **options}
        retriever = angles.as_retriever(search_type="mmr", search_kwargs=search)
        return ids(retriever.invoke("-1"))

    assert found() == ["a", "d"]
    assert found(lambda_mult=1.0) == ["a", "b"]
    assert found(fetch_k=2) == ["a", "b"]
    assert found(filter={"lang": "en"}) == ["a", "c"]
    assert found(filter={"lang": "fr"}) == []
    assert found(k=9) == ["a", "d", "c", "b"]


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9, 1.0])
def test_mmr_chooses_as_langchain_does(make_store: MakeStore, weight: float) -> None:
    embedding = VectorStoreIntegrationTests.get_embeddings()
    store = RagVectorStore(make_store(EMBEDDING_SIZE), embedding)
    texts = [f"text {n}" for n in range(12)]
    store.add_texts(texts, ids=texts)
    query = embedding.embed_query("query")
    vectors = embedding.embed_documents(texts)
    expected = maximal_marginal_relevance(np.array(query), vectors, weight, 6)
    found = store.max_marginal_relevance_search_by_vector(query, k=6, lambda_mult=weight)
    assert ids(found) == [texts[row] for row in expected]


def test_delete_all(angles: RagVectorStore) -> None:
    angles.delete([])
    assert len(angles.similarity_search("5", k=9)) == 4
    angles.delete()
    assert angles.similarity_search("5", k=9) == []


def test_from_texts_and_documents(make_store: MakeStore) -> None:
    store = RagVectorStore.from_texts(
        ["1", "2"], Angles(), [{"n": 1}, {"n": 2}], store=make_store()
    )
    assert [document.metadata for document in store.similarity_search("2", k=1)] == [{"n": 2}]
    documents = [Document(id="e", page_content="7")]
    store = RagVectorStore.from_documents(documents, Angles(), store=make_store())
    assert store.get_by_ids(["e"]) == documents
    with pytest.raises(TypeError, match="store="):
        RagVectorStore.from_texts(["1"], Angles())


async def test_async_search_takes_filters(angles: RagVectorStore) -> None:
    assert ids(await angles.asimilarity_search("0", k=1, filter={"lang": "zh"})) == ["b"]
    found = await angles.amax_marginal_relevance_search("-1", k=2)
    assert ids(found)[0] == "a"
