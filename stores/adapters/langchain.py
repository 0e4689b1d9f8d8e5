"""Any of our stores as a LangChain `VectorStore`.

    store = FaissBackend(data_dir=Path("data")).create(CollectionSpec("handbook", dim=384))
    vector_store = RagVectorStore(store, embeddings)
    vector_store.add_documents(documents)
    retriever = vector_store.as_retriever(search_kwargs={"k": 5, "filter": {"lang": "en"}})

Filters are in the language of `rag.filters`. What is found is exact: scores are the store's own,
higher is better in every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from rag import protocols
from rag.filters import parse
from rag.types import Chunk, Hit
from stores.adapters.fields import metadata_of, on_chunks, to_chunk
from stores.ranking import unit

if TYPE_CHECKING:
    from rag.types import Vectors


class RagVectorStore(VectorStore):
    """One collection, with LangChain's embeddings.

    A document is a chunk; `source`, `title`, `page` and `document_id` in its metadata become the
    chunk's own. Other metadata is flat: text, numbers, booleans. `embedding` has to be the model
    that the collection was made with.
    """

    def __init__(self, store: protocols.VectorStore, embedding: Embeddings) -> None:
        self._store = store
        self._embedding = embedding

    @property
    def embeddings(self) -> Embeddings:
        """What embeds documents and questions."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts, and return their ids; one without an id gets a new one.

        Raises ValueError for metadata that is not flat, naming the key.
        """
        _no_more(kwargs)
        texts = list(texts)
        metadatas = metadatas or [{}] * len(texts)
        ids = ids or [None] * len(texts)
        if not len(texts) == len(metadatas) == len(ids):
            raise ValueError(f"{len(texts)} texts, {len(metadatas)} metadatas and {len(ids)} ids")
        chunks = [
            to_chunk(chunk_id or str(uuid4()), text, metadata)
            for text, metadata, chunk_id in zip(texts, metadatas, ids, strict=True)
        ]
        if chunks:
            self._store.upsert(chunks, self._embed(texts))
        return [chunk.id for chunk in chunks]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete by id; missing ids are silent. As LangChain defines it, no list means all."""
        _no_more(kwargs)
        if ids is None:
            documents = {record.id for record in self._store.documents()}
            self._store.delete(document_ids=list(documents))
        else:
            self._store.delete(ids=ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents in the order asked for; missing ones are left out."""
        return [_document(chunk) for chunk in self._store.get(ids)]

    def similarity_search(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """The `k` nearest documents that match `filter`, best first."""
        found = self.similarity_search_with_score(query, k, filter, **kwargs)
        return [document for document, _ in found]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same with their scores: higher is better, in every metric."""
        hits = self._search(self._embedding.embed_query(query), k, filter, kwargs)
        return [(_document(hit.chunk), hit.score) for hit in hits]

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The `k` nearest to a vector."""
        return [_document(hit.chunk) for hit in self._search(embedding, k, filter, kwargs)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`k` of the `fetch_k` nearest, near to the query and unlike each other.

        `lambda_mult` is the weight of the first: 1 is the plain order. The candidates are embedded
        again, as stores do not give vectors with what they find.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The same for a vector."""
        hits = self._search(embedding, fetch_k, filter, kwargs)
        if not hits:
            return []
        candidates = self._embed([hit.chunk.text for hit in hits])
        rows = _diverse(np.array([embedding], np.float32), candidates, k, lambda_mult)
        return [_document(hits[row].chunk) for row in rows]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        store: protocols.VectorStore | None = None,
        **kwargs: Any,
    ) -> RagVectorStore:
        """The texts written to `store`, which has to be given."""
        _no_more(kwargs)
        if store is None:
            raise TypeError("from_texts needs the collection to write to: store=")
        made = cls(store, embedding)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    def _search(
        self,
        vector: list[float],
        k: int,
        where: Mapping[str, Any] | None,
        more: Mapping[str, Any],
    ) -> list[Hit]:
        _no_more(more)
        return self._store.search(np.array([vector], np.float32), k, on_chunks(parse(where)))[0]

    def _embed(self, texts: list[str]) -> Vectors:
        return np.array(self._embedding.embed_documents(texts), np.float32)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """(1 + cosine) / 2 in every metric, as far as vectors have length one.

        LangChain warns of what is not between 0 and 1. Rounded, as the cosine of a vector with
        itself may be a little over 1 in float32.
        """
        if self._store.describe().metric == "l2":
            return lambda score: round(1 + score / 4, 6)  # |a - b|² = 2 - 2 cos
        return lambda score: round((1 + score) / 2, 6)


def _document(chunk: Chunk) -> Document:
    return Document(id=chunk.id, page_content=chunk.text, metadata=metadata_of(chunk))


def _no_more(arguments: Mapping[str, Any]) -> None:
    """Refuse what LangChain's signatures let through: a filter misspelt must not be ignored."""
    if arguments:
        raise TypeError(f"unexpected arguments: {', '.join(arguments)}")


def _diverse(query: Vectors, candidates: Vectors, k: int, weight: float) -> list[int]:
    """Rows of `candidates` by maximal marginal relevance (Carbonell and Goldstein, 1998)."""
    candidates = unit(candidates)
    near = (candidates @ unit(query).T)[:, 0]
    alike = candidates @ candidates.T
    chosen: list[int] = []
    left = list(range(len(candidates)))
    while left and len(chosen) < k:
        redundant = alike[left][:, chosen].max(axis=1) if chosen else 0
        best = left[int(np.argmax(weight * near[left] - (1 - weight) * redundant))]
        chosen.append(best)
        left.remove(best)
    return chosen
