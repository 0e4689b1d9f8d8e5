"""Any of our stores as a Haystack `DocumentStore`, and the retriever that goes with it.

    document_store = RagDocumentStore(store="faiss", collection="handbook", dim=384,
                                      options={"data_dir": "data"})
    pipeline.add_component("retriever", RagEmbeddingRetriever(document_store, top_k=5))

What finds documents by filter alone reads the collection: VectorStore finds by vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError

from rag import plugins
from rag.errors import InputError, InvalidFilter, UnknownCollection
from rag.filters import Filter, matches, parse
from rag.protocols import StoreBackend, VectorStore
from rag.types import Chunk, CollectionSpec, Metric
from stores.adapters.fields import chunk_of, metadata_of, renamed

_OPERATORS = {
    "==": "$eq",
    "!=": "$ne",
    ">": "$gt",
    ">=": "$gte",
    "<": "$lt",
    "<=": "$lte",
    "in": "$in",
    "not in": "$nin",
}
_JOINS: dict[str, str] = {"AND": "$and", "OR": "$or"}


class RagDocumentStore:
    """One collection of the store named `store`, made when it is not there.

    `options` are what the store's backend takes, such as `data_dir` or `uri`. Documents without an
    embedding get the first unit vector, which is not given back. Metadata is flat.
    """

    def __init__(
        self,
        store: str = "memory",
        collection: str = "haystack",
        dim: int = 768,
        metric: Metric = "cosine",
        options: dict[str, Any] | None = None,
    ) -> None:
        self._init = {
            "store": store,
            "collection": collection,
            "dim": dim,
            "metric": metric,
            "options": options or {},
        }
        values = dict(options or {})
        data_dir = Path(values.pop("data_dir", "."))
        self._backend: StoreBackend = plugins.load("store", store)(data_dir=data_dir, **values)
        self._spec = CollectionSpec(collection, dim, metric)
        self._opened: VectorStore | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same document store of. Secrets in `options` are in it."""
        return default_to_dict(self, **self._init)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RagDocumentStore:
        """The document store that `to_dict` describes."""
        made: RagDocumentStore = default_from_dict(cls, data)
        return made

    def count_documents(self) -> int:
        """How many documents there are."""
        return self._store.count()

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match. Raises FilterError."""
        return [_document(chunk, vector) for chunk, vector in self._matching(filters)]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents; NONE acts like FAIL. Returns how many were written.

        Raises DuplicateDocumentError, and ValueError for metadata that is not flat.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise ValueError("write_documents takes a list of Documents")
        if policy is not DuplicatePolicy.OVERWRITE:
            there = {chunk.id for chunk in self._store.get([each.id for each in documents])}
            if there and policy is not DuplicatePolicy.SKIP:
                raise DuplicateDocumentError(f"documents are there already: {sorted(there)[:5]}")
            documents = [each for each in documents if each.id not in there]
        try:
            chunks = [_chunk(document) for document in documents]
        except InputError as error:
            raise ValueError(str(error)) from error
        if chunks:
            vectors = np.asarray([self._vector(each) for each in documents], np.float32)
            self._store.upsert(chunks, vectors)
        return len(chunks)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete by id; missing ones are silent."""
        self._store.delete(ids=document_ids)

    def delete_all_documents(self, recreate_collection: bool = True) -> None:
        """Empty the collection: by making it anew, or else document by document."""
        if recreate_collection:
            self.close()
            with suppress(UnknownCollection):
                self._backend.drop(self._spec.name)
        else:
            self._store.delete(ids=[chunk.id for chunk, _ in self._matching(None)])

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete what matches; how many went."""
        condition = _condition(filters)
        if condition is None:
            count = self.count_documents()
            self.delete_all_documents()
            return count
        return self._store.delete(where=condition)

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set metadata of what matches; how many were changed."""
        found = list(self._matching(filters))
        chunks = [
            replace(
                chunk_of(c.id, c.text, metadata_of(c) | meta, c.version),
                position=c.position,
                ingested_at=c.ingested_at,
            )
            for c, _ in found
        ]
        if chunks:
            self._store.upsert(chunks, np.stack([vector for _, vector in found]))
        return len(chunks)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many documents match."""
        return self._store.count(_condition(filters))

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """For each field how many different values it has in what matches."""
        return {
            name.removeprefix("meta."): len(self._values(name, filters)) for name in metadata_fields
        }

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The type of each field: text, keyword for none, long, float or boolean."""
        types = {bool: "boolean", int: "long", float: "float", str: "text"}
        return {
            name: {"type": types[type(value)]}
            for chunk, _ in self._matching(None)
            for name, value in metadata_of(chunk).items()
        }

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The least and the greatest number of a field; None for both where there is none."""
        values = [v for v in self._values(metadata_field, None) if isinstance(v, int | float)]
        return {"min": min(values, default=None), "max": max(values, default=None)}

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """(a page of the different values of a field, how many there are), sorted as text."""
        term = (search_term or "").casefold()
        found = [v for v in self._values(metadata_field, filters) if term in str(v).casefold()]
        found.sort(key=lambda value: (str(value), type(value).__name__))
        return found[from_ : from_ + size], len(found)

    def embedding_retrieval(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int = 10
    ) -> list[Document]:
        """The nearest documents, with our score: higher is better."""
        queries = np.asarray([query_embedding], np.float32)
        hits = self._store.search(queries, top_k, _condition(filters))[0]
        return [replace(_document(hit.chunk, None), score=hit.score) for hit in hits]

    def close(self) -> None:
        """Let the collection go; it is opened again when needed."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _store(self) -> VectorStore:
        if self._opened is None:
            self._opened = self._backend.create(self._spec)
        return self._opened

    def _matching(self, filters: Mapping[str, Any] | None) -> Iterator[tuple[Chunk, Any]]:
        condition = _condition(filters)
        for chunks, vectors in self._store.scan():
            for chunk, vector in zip(chunks, vectors, strict=True):
                if condition is None or matches(condition, chunk.fields()):
                    yield chunk, vector

    def _values(self, name: str, filters: Mapping[str, Any] | None) -> list[Any]:
        found: dict[tuple[type, Any], Any] = {}
        for chunk, _ in self._matching(filters):
            value = metadata_of(chunk).get(name.removeprefix("meta."))
            if value is not None:
                found[type(value), value] = value
        return list(found.values())

    def _vector(self, document: Document) -> Sequence[float]:
        if document.embedding is not None:
            return document.embedding
        return [1.0] + [0.0] * (self._spec.dim - 1)


@component
class RagEmbeddingRetriever:
    """The documents nearest to an embedding."""

    def __init__(
        self,
        document_store: RagDocumentStore,
        top_k: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> None:
        self.document_store = document_store
        self.top_k = top_k
        self.filters = filters

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """`filters` and `top_k` stand in for those of the component."""
        found = self.document_store.embedding_retrieval(
            query_embedding, filters or self.filters, top_k or self.top_k
        )
        return {"documents": found}

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same retriever of."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            top_k=self.top_k,
            filters=self.filters,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RagEmbeddingRetriever:
        """The retriever that `to_dict` describes."""
        values = data["init_parameters"]
        values["document_store"] = RagDocumentStore.from_dict(values["document_store"])
        made: RagEmbeddingRetriever = default_from_dict(cls, data)
        return made


def _chunk(document: Document) -> Chunk:
    """What a document lacks is kept in the chunk's version, so that it comes back without it."""
    if document.blob is not None or document.sparse_embedding is not None:
        raise InputError("a document has a blob or a sparse embedding", "keep those elsewhere")
    lacks = [name for name in ("content", "embedding") if getattr(document, name) is None]
    meta = {name: value for name, value in document.meta.items() if value is not None}
    return chunk_of(document.id, document.content or "", meta, ",".join(lacks))


def _document(chunk: Chunk, vector: Any) -> Document:
    lacks = chunk.version.split(",")
    return Document(
        id=chunk.id,
        content=None if "content" in lacks else chunk.text,
        meta=metadata_of(chunk),
        embedding=None if vector is None or "embedding" in lacks else vector.tolist(),
    )


def _condition(filters: Mapping[str, Any] | None) -> Filter | None:
    if not filters:
        return None
    try:
        return renamed(parse(_translated(filters)))
    except InvalidFilter as error:
        raise FilterError(str(error)) from error


def _translated(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Haystack's filter in our language."""
    if "field" in filters:
        return _comparison(filters)
    if "operator" not in filters or "conditions" not in filters:
        raise FilterError("a filter has a field, an operator and a value, or conditions")
    parts = [_translated(part) for part in filters["conditions"]]
    operator = filters["operator"]
    if operator == "NOT":
        return {"$not": {"$and": parts}}
    if operator not in _JOINS:
        raise FilterError(f"unknown operator {operator!r}: use AND, OR or NOT")
    return {_JOINS[operator]: parts}


def _comparison(filters: Mapping[str, Any]) -> dict[str, Any]:
    if "operator" not in filters or "value" not in filters:
        raise FilterError("a comparison has a field, an operator and a value")
    name = str(filters["field"]).removeprefix("meta.")
    operator, value = filters["operator"], filters["value"]
    if operator not in _OPERATORS:
        raise FilterError(f"unknown operator {operator!r}: use one of {' '.join(_OPERATORS)}")
    ours = _OPERATORS[operator]
    if operator in ("in", "not in"):
        if not isinstance(value, list):
            raise FilterError(f"{operator!r} takes a list, not {type(value).__name__}")
        return {name: {ours: value}}
    if operator not in ("==", "!=") and (isinstance(value, str) or value is None):
        return _date(name, ours, value)
    if value is None:
        return {name: {"$exists": operator == "!="}}
    return {name: {ours: value}}


def _date(name: str, ours: str, value: str | None) -> dict[str, Any]:
    """Dates in ISO 8601 are ordered as text is. Nothing is above or below nothing."""
    if value is None:
        return {name: {"$in": []}}
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise FilterError(f"{name!r} is compared with text that is no date in ISO 8601") from error
    return {name: {ours: value}}
