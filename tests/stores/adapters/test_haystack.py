"""Haystack's own tests of document stores, over each of our stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    CountUniqueMetadataByFilterTest,
    DocumentStoreBaseExtendedTests,
    GetMetadataFieldMinMaxTest,
    GetMetadataFieldsInfoTest,
    GetMetadataFieldUniqueValuesTest,
)
from stores_under_test import Options

from stores.adapters.haystack import RagDocumentStore, RagEmbeddingRetriever


class TestHaystack(
    DocumentStoreBaseExtendedTests,
    CountDocumentsByFilterTest,
    CountUniqueMetadataByFilterTest,
    GetMetadataFieldsInfoTest,
    GetMetadataFieldMinMaxTest,
    GetMetadataFieldUniqueValuesTest,
):
    @pytest.fixture
    def document_store(self, store_options: Options) -> Iterator[RagDocumentStore]:  # type: ignore[override]
        kind, options = store_options
        store = RagDocumentStore(kind, "haystack", options=options)
        yield store
        store.delete_all_documents()
        store.close()

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """Without order; embeddings are float32."""

        def by_id(documents: list[Document]) -> dict[str, Any]:
            return {d.id: d.to_dict(flatten=False) | {"embedding": None} for d in documents}

        assert len(received) == len(expected)
        assert by_id(received) == by_id(expected)
        embeddings = {document.id: document.embedding or [] for document in expected}
        for document in received:
            assert (document.embedding or []) == pytest.approx(embeddings[document.id], rel=1e-6)

    def test_write_documents(self, document_store: RagDocumentStore) -> None:
        """Ours refuses duplicates by default."""
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])


@pytest.fixture
def filled() -> RagDocumentStore:
    store = RagDocumentStore(dim=2)
    store.write_documents(
        [
            Document(id="a", content="near", embedding=[1, 0.1], meta={"n": 1, "page": 2}),
            Document(id="b", content="far", embedding=[0.1, 1], meta={"n": 2, "title": None}),
            Document(id="c", meta={"n": 3}),
        ]
    )
    return store


def test_a_pipeline_retrieves_by_embedding(filled: RagDocumentStore) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", RagEmbeddingRetriever(filled, top_k=1))
    found = pipeline.run({"retriever": {"query_embedding": [0.9, 0.1]}})["retriever"]["documents"]
    assert [document.content for document in found] == ["near"]
    assert found[0].score > 0.9
    where = {"field": "meta.n", "operator": ">", "value": 1}
    only = RagEmbeddingRetriever(filled, filters=where).run([1.0, 0.0])["documents"]
    assert {document.id for document in only} == {"b", "c"}


def test_what_a_document_lacks_it_lacks_afterwards(filled: RagDocumentStore) -> None:
    found = {document.id: document for document in filled.filter_documents()}
    assert (found["c"].content, found["c"].embedding) == (None, None)
    assert found["a"].meta == {"n": 1, "page": 2}
    assert found["b"].meta == {"n": 2}


def test_it_is_made_again_from_a_dictionary() -> None:
    store = RagDocumentStore(dim=3, metric="l2")
    retriever = RagEmbeddingRetriever(store, top_k=3, filters=None)
    again = RagEmbeddingRetriever.from_dict(retriever.to_dict())
    assert again.to_dict() == retriever.to_dict()
    assert again.document_store.count_documents() == 0


def test_what_no_store_keeps_is_told(filled: RagDocumentStore) -> None:
    with pytest.raises(ValueError, match="tags"):
        filled.write_documents([Document(content="x", meta={"tags": ["a"]})])
