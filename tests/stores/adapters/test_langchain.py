"""LangChain's own tests of vector stores, over each of our stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests.vectorstores import (
    EMBEDDING_SIZE,
    VectorStoreIntegrationTests,
)
from stores_under_test import OpenStore

from rag.protocols import VectorStore
from rag.types import CollectionSpec
from stores.adapters.langchain import RagVectorStore
from stores.memory import MemoryBackend


class TestLangChain(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, open_store: OpenStore) -> Iterator[RagVectorStore]:  # type: ignore[override]
        with open_store(EMBEDDING_SIZE) as store:
            yield RagVectorStore(store, self.get_embeddings())


@pytest.fixture
def store() -> VectorStore:
    return MemoryBackend().create(CollectionSpec("texts", 8))


@pytest.fixture
def filled(store: VectorStore) -> RagVectorStore:
    made = RagVectorStore(store, DeterministicFakeEmbedding(size=8))
    made.add_texts(
        ["one", "two", "three"],
        [
            {"source": "a.txt", "page": 3, "n": 1},
            {"source": 7, "page": "iv", "n": 2, "document_id": "book"},
            {"version": "x", "n": 3.5},
        ],
        ids=["1", "2", "3"],
    )
    return made


def test_metadata_of_any_name_comes_back(filled: RagVectorStore) -> None:
    assert [document.metadata for document in filled.get_by_ids(["3", "1", "2"])] == [
        {"version": "x", "n": 3.5},
        {"source": "a.txt", "page": 3, "n": 1},
        {"source": 7, "page": "iv", "n": 2, "document_id": "book"},
    ]


def test_citations_see_source_and_page(filled: RagVectorStore, store: VectorStore) -> None:
    first, second = store.get(["1", "2"])
    assert (first.source, first.page) == ("a.txt", 3)
    assert second.document_id == "book"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"n": {"$gt": 1}}, {"2", "3"}),
        ({"source": "a.txt"}, {"1"}),
        ({"source": 7}, {"2"}),
        ({"page": {"$exists": True}}, {"1", "2"}),
        ({"page": {"$exists": False}}, {"3"}),
        ({"$not": {"version": "x"}}, {"1", "2"}),
        ({"document_id": "book"}, {"2"}),
    ],
    ids=str,
)
def test_filters_see_metadata_of_any_name(
    filled: RagVectorStore, where: dict[str, Any], expected: set[str]
) -> None:
    assert {d.id for d in filled.similarity_search("one", k=9, filter=where)} == expected


def test_scores_and_retrievers(filled: RagVectorStore) -> None:
    found = filled.similarity_search_with_score("two", k=3)
    assert found[0][0].page_content == "two"
    assert found[0][1] == pytest.approx(1, abs=1e-5)
    retriever = filled.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99}
    )
    assert [document.page_content for document in retriever.invoke("two")] == ["two"]
    diverse = filled.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 3})
    assert diverse.invoke("two")[0].page_content == "two"
    assert len(diverse.invoke("two")) == 2


def test_metadata_that_is_not_flat_is_told(filled: RagVectorStore) -> None:
    with pytest.raises(ValueError, match="tags"):
        filled.add_documents([Document("x", metadata={"tags": ["a"]})])
    with pytest.raises(ValueError, match="one id"):
        filled.add_texts(["x"], ids=["1", "2"])


def test_from_texts_makes_one_in_memory() -> None:
    made = RagVectorStore.from_texts(["a", "b"], DeterministicFakeEmbedding(size=8))
    assert made.similarity_search("b", k=1)[0].page_content == "b"
