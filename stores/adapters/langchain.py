"""Any of our stores as a LangChain `VectorStore`.

    store = FaissBackend(data_dir=Path("data")).open("handbook")
    retriever = RagVectorStore(store, embeddings).as_retriever(search_kwargs={"k": 5})

Filters are written in our language: `similarity_search("...", filter={"year": {"$gte": 2024}})`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore as LangChainVectorStore

from rag.errors import InputError
from rag.filters import parse
from rag.protocols import VectorStore
from rag.types import Chunk
from stores.adapters.fields import chunk_of, metadata_of, renamed


class RagVectorStore(LangChainVectorStore):
    """Reads and writes one collection, with LangChain's embeddings.

    A document's id is the chunk's; `document_id` in its metadata names the document it is part of.
    """

    def __init__(self, store: VectorStore, embedding: Embeddings) -> None:
        self._store = store
        self._embedding = embedding

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that texts and questions are embedded with."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Write texts; the same id replaces. Returns the ids, new ones where none are given.

        Raises ValueError for metadata that is not text, finite numbers or true and false.
        """
        written = list(texts)
        given = metadatas or [{} for _ in written]
        wanted = list(ids or [None] * len(written))
        if not len(written) == len(given) == len(wanted):
            raise ValueError("give one id and one metadata for each text")
        chunks = []
        for text, metadata, chunk_id in zip(written, given, wanted, strict=True):
            try:
                chunks.append(chunk_of(chunk_id or str(uuid4()), text, metadata))
            except InputError as error:
                raise ValueError(str(error)) from error
        if chunks:
            vectors = np.asarray(self._embedding.embed_documents(written), np.float32)
            self._store.upsert(chunks, vectors)
        return [chunk.id for chunk in chunks]

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool | None:
        """Delete by id; missing ids are silent. Without ids nothing is deleted."""
        self._store.delete(ids=ids or [])
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents in the order asked for; missing ones are left out."""
        return [_document(chunk) for chunk in self._store.get(ids)]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k nearest; `filter` is a filter in our language."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k nearest with their scores: higher is better, in every metric."""
        return self._nearest(self._embedding.embed_query(query), k, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """The k nearest to a vector."""
        return [document for document, _ in self._nearest(embedding, k, **kwargs)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """k of the `fetch_k` nearest that are near, yet unlike one another."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        from langchain_core.vectorstores.utils import maximal_marginal_relevance

        found = [document for document, _ in self._nearest(embedding, fetch_k, **kwargs)]
        vectors = self._embedding.embed_documents([document.page_content for document in found])
        chosen = maximal_marginal_relevance(np.asarray(embedding), vectors, lambda_mult, k)
        return [found[n] for n in chosen]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        store: VectorStore | None = None,
        **_: Any,
    ) -> RagVectorStore:
        """A vector store over `store` (in memory without one) with the texts in it."""
        if store is None:
            from rag.types import CollectionSpec
            from stores.memory import MemoryBackend

            dim = len(embedding.embed_query("size"))
            store = MemoryBackend().create(CollectionSpec("langchain", dim))
        made = cls(store, embedding)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    def _nearest(
        self, vector: Sequence[float], k: int, filter: dict[str, Any] | None = None, **_: Any
    ) -> list[tuple[Document, float]]:
        queries = np.asarray([vector], np.float32)
        hits = self._store.search(queries, k, renamed(parse(filter)))[0]
        return [(_document(hit.chunk), hit.score) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """From our score to 0 to 1."""
        match self._store.describe().metric:
            case "cosine":
                return lambda score: min(1.0, max(0.0, score))
            case "l2":
                return lambda score: 1.0 / (1.0 - score)
            case _:
                return lambda score: 1.0 / (1.0 + float(np.exp(-score)))


def _document(chunk: Chunk) -> Document:
    return Document(id=chunk.id, page_content=chunk.text, metadata=metadata_of(chunk))
