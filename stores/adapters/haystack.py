"""Any of our stores as a Haystack `DocumentStore`, and the retriever that goes with it.

    documents = RagDocumentStore("faiss", "handbook", dim=384, options={"data_dir": "data"})
    pipeline.add_component("writer", DocumentWriter(documents))
    pipeline.add_component("retriever", RagEmbeddingRetriever(documents, top_k=5))

Haystack loads a pipeline that was saved only if it is told that it may import this module:
`Pipeline.loads(text, allowed_modules=["stores.adapters.*"])`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy, apply_filter_policy

from stores.adapters.haystack_store import RagDocumentStore

__all__ = ["RagDocumentStore", "RagEmbeddingRetriever"]


@component
class RagEmbeddingRetriever:
    """Finds the documents nearest to an embedding."""

    def __init__(
        self,
        document_store: RagDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.filter_policy = filter_policy

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """The documents, best first. What is not given is as the component was made."""
        where = apply_filter_policy(self.filter_policy, self.filters, filters)
        k = self.top_k if top_k is None else top_k
        return {"documents": self.document_store.embedding_retrieval(query_embedding, where, k)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """The same in a thread."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k)

    def close(self) -> None:
        """Close the document store."""
        self.document_store.close()

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same retriever of."""
        return default_to_dict(
            self,
            document_store=self.document_store,
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RagEmbeddingRetriever:
        """The retriever that `to_dict` describes."""
        parameters = data["init_parameters"]
        init = {
            **parameters,
            "document_store": RagDocumentStore.from_dict(parameters["document_store"]),
            "filter_policy": FilterPolicy.from_str(parameters["filter_policy"]),
        }
        return default_from_dict(cls, {**data, "init_parameters": init})
