"""A collection as a Haystack `DocumentStore`: see `stores.adapters.haystack`."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils import Secret

from rag import plugins
from rag.errors import UnsupportedFilter
from rag.filters import And, Compare, Filter, matches
from rag.protocols import StoreBackend, VectorStore
from rag.types import Chunk, CollectionSpec, Metric
from stores.adapters.haystack_documents import NO_EMBEDDING, chunk_of, document_of, vector_of
from stores.adapters.haystack_filters import ID, asks_for_id, to_filter, undated

if TYPE_CHECKING:
    from rag.types import Vectors

P = ParamSpec("P")
T = TypeVar("T")

_SECRETS = ("api_key", "token")
_BATCH = 1000  # documents written again at a time
_TYPES = {bool: "boolean", int: "int", float: "float"}


def _in_thread(method: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    @wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, *args, **kwargs)

    return run


class RagDocumentStore:
    """One collection of the store named `store`, opened when it is first used.

    It is made with `dim` and `metric` if it is not there; without `dim` it has to be, such as one
    that `rag ingest` filled. `options` are the settings of the store and its `data_dir`; a secret
    among them should be a Haystack Secret, as only that can be saved in a pipeline.

    Embeddings are kept as float32, nested metadata as JSON; scores are not kept. Documents without
    an embedding are kept, and never found by one. Protocol methods with a filter and documents as
    their result read the whole collection, as stores find by vector.
    """

    def __init__(
        self,
        store: str,
        collection: str,
        dim: int | None = None,
        metric: Metric = "cosine",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.collection = collection
        self.dim = dim
        self.metric = metric
        self.options = options or {}
        self._opening = threading.Lock()
        self._writing = threading.RLock()
        self._connection: tuple[StoreBackend, VectorStore] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What connects again. Raises ValueError if it holds a secret in plain text."""
        for name in _SECRETS:
            if isinstance(self.options.get(name), str) and self.options[name]:
                raise ValueError(
                    f"{name} would be saved as plain text; give it as Secret.from_env_var(...)"
                )
        options = {
            name: value.to_dict() if isinstance(value, Secret) else value
            for name, value in self.options.items()
        }
        return default_to_dict(
            self,
            store=self.store,
            collection=self.collection,
            dim=self.dim,
            metric=self.metric,
            options=options,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RagDocumentStore:
        """The document store that `to_dict` describes."""
        parameters = data["init_parameters"]
        options = {
            name: Secret.from_dict(value) if isinstance(value, dict) else value
            for name, value in parameters["options"].items()
        }
        init = {**parameters, "options": options}
        return default_from_dict(cls, {**data, "init_parameters": init})

    def count_documents(self) -> int:
        """How many documents there are."""
        return self._opened.count()

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many documents match."""
        with _told():
            return self._opened.count(self._where(filters))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, with their embeddings. Raises FilterError."""
        return [document_of(chunk, vector) for chunk, vector in self._matching(filters)]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents, and return how many; the policy NONE is FAIL.

        Raises DuplicateDocumentError before anything is written, and ValueError for what a
        collection cannot keep: blobs, sparse embeddings, metadata that is no JSON.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise ValueError("write_documents takes a list of documents")
        with self._writing:
            if policy is not DuplicatePolicy.OVERWRITE:
                documents = self._new(documents, fail=policy is not DuplicatePolicy.SKIP)
            if documents:
                dim = self._opened.describe().dim
                vectors = np.stack([vector_of(document, dim) for document in documents])
                self._opened.upsert([chunk_of(document) for document in documents], vectors)
        return len(documents)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete by id; missing ids are silent."""
        self._opened.delete(ids=document_ids)

    def delete_all_documents(self, recreate_collection: bool = False) -> None:
        """Delete everything. Making the collection anew is faster; no other may have it open."""
        with self._writing:
            if recreate_collection:
                info = self._opened.describe()
                spec = CollectionSpec(self.collection, info.dim, info.metric, info.embedder)
                backend = self._connected[0]
                self._opened.close()
                backend.drop(self.collection)
                self._connection = (backend, backend.create(spec))
            else:
                documents = {record.id for record in self._opened.documents()}
                self._opened.delete(document_ids=list(documents))

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete what matches; returns how many. Raises FilterError for an empty filter."""
        with _told():
            return self._opened.delete(where=self._where(_something(filters)))

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set metadata of what matches, other keys stay; returns how many documents."""
        with self._writing:
            found = list(self._matching(_something(filters)))
            for start in range(0, len(found), _BATCH):
                part = found[start : start + _BATCH]
                documents = [document_of(chunk, vector) for chunk, vector in part]
                chunks = [chunk_of(replace(d, meta={**d.meta, **meta})) for d in documents]
                self._opened.upsert(chunks, np.stack([vector for _, vector in part]))
        return len(found)

    def embedding_retrieval(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int = 10
    ) -> list[Document]:
        """The `top_k` nearest that match, best first, without their embeddings.

        The score is the store's: higher is better, in every metric.
        """
        where: Filter = Compare(NO_EMBEDDING, "exists", False)
        if (asked := self._where(filters)) is not None:
            where = And((asked, where))
        with _told():
            hits = self._opened.search(np.array([query_embedding], np.float32), top_k, where)[0]
        return [document_of(hit.chunk, score=hit.score) for hit in hits]

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """How many different values each field has in what matches."""
        metas = [document.meta for document in self.filter_documents(filters)]
        names = [name.removeprefix("meta.") for name in metadata_fields]
        return {name: len(_values(metas, name)) for name in names}

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The type of each field: keyword, int, float or boolean."""
        return {
            key: {"type": _TYPES.get(type(value), "keyword")}
            for document in self.filter_documents()
            for key, value in document.meta.items()
            if value is not None
        }

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The smallest and the largest value; None for both if there are none, or of two types."""
        name = metadata_field.removeprefix("meta.")
        values = _values([document.meta for document in self.filter_documents()], name)
        try:
            return {"min": min(values, default=None), "max": max(values, default=None)}
        except TypeError:
            return {"min": None, "max": None}

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """`size` of the different values from the `from_`-th on, ordered as text; and how many.

        With a `search_term` those that contain it, in small or capital letters.
        """
        metas = [document.meta for document in self.filter_documents(filters)]
        values = _values(metas, metadata_field.removeprefix("meta."))
        term = (search_term or "").lower()
        found = [value for value in values if term in str(value).lower()]
        found.sort(key=lambda value: (str(value), type(value).__name__))
        return found[from_ : from_ + size], len(found)

    count_documents_async = _in_thread(count_documents)
    count_documents_by_filter_async = _in_thread(count_documents_by_filter)
    filter_documents_async = _in_thread(filter_documents)
    write_documents_async = _in_thread(write_documents)
    delete_documents_async = _in_thread(delete_documents)
    delete_all_documents_async = _in_thread(delete_all_documents)
    delete_by_filter_async = _in_thread(delete_by_filter)
    update_by_filter_async = _in_thread(update_by_filter)
    embedding_retrieval_async = _in_thread(embedding_retrieval)
    count_unique_metadata_by_filter_async = _in_thread(count_unique_metadata_by_filter)
    get_metadata_fields_info_async = _in_thread(get_metadata_fields_info)
    get_metadata_field_min_max_async = _in_thread(get_metadata_field_min_max)
    get_metadata_field_unique_values_async = _in_thread(get_metadata_field_unique_values)

    def close(self) -> None:
        """Free connections and locks; used again, it connects again. Idempotent."""
        with self._opening:
            if self._connection is not None:
                backend, store = self._connection
                self._connection = None
                store.close()
                backend.close()

    @property
    def _connected(self) -> tuple[StoreBackend, VectorStore]:
        with self._opening:
            if self._connection is None:
                make = plugins.load("store", self.store)
                given = {
                    name: value.resolve_value() if isinstance(value, Secret) else value
                    for name, value in self.options.items()
                }
                data_dir = Path(str(given.pop("data_dir", ".")))
                values = plugins.options(make, f"stores.{self.store}", given, ("data_dir",))
                backend: StoreBackend = make(data_dir=data_dir, **values)
                if self.dim is None:
                    store = backend.open(self.collection)
                else:
                    spec = CollectionSpec(self.collection, self.dim, self.metric)
                    store = backend.create(spec)
                self._connection = (backend, store)
            return self._connection

    @property
    def _opened(self) -> VectorStore:
        return self._connected[1]

    def _new(self, documents: list[Document], *, fail: bool) -> list[Document]:
        """Those whose id is neither in the collection nor twice in the list."""
        there = {chunk.id for chunk in self._opened.get([document.id for document in documents])}
        found = []
        for document in documents:
            if document.id not in there:
                there.add(document.id)
                found.append(document)
            elif fail:
                raise DuplicateDocumentError(f"document {document.id!r} is there already")
        return found

    def _where(self, filters: Mapping[str, Any] | None) -> Filter | None:
        """The filter for the store. Raises FilterError for what no store can apply."""
        where = self._checked(filters)
        if asks_for_id(where):
            raise FilterError("only filter_documents can filter by id")
        return where

    def _checked(self, filters: Mapping[str, Any] | None) -> Filter | None:
        where = to_filter(filters)
        for key, without in undated(where):
            if self._opened.count(without):
                raise FilterError(f"{key!r} is no date in ISO 8601 in some documents")
        return where

    def _matching(self, filters: Mapping[str, Any] | None) -> Iterator[tuple[Chunk, Vectors]]:
        where = self._checked(filters)
        for chunks, vectors in self._opened.scan():
            for chunk, vector in zip(chunks, vectors, strict=True):
                if where is None or matches(where, {**chunk.fields(), ID: chunk.id}):
                    yield chunk, vector


def _something(filters: dict[str, Any]) -> dict[str, Any]:
    if not filters:
        raise FilterError("the filter is empty; for all documents use delete_all_documents")
    return filters


def _values(metas: list[dict[str, Any]], name: str) -> list[Any]:
    """The different values of a field; 1, 1.0, "1" and True are different."""
    found = {
        json.dumps(value, sort_keys=True): value for meta in metas for value in [meta.get(name)]
    }
    return [value for value in found.values() if value is not None]


@contextmanager
def _told() -> Iterator[None]:
    """Raise FilterError for a filter that the store cannot apply."""
    try:
        yield
    except UnsupportedFilter as error:
        raise FilterError(str(error)) from error
