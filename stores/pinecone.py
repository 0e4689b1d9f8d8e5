"""Pinecone serverless: a collection is a namespace of an index.

An index has one dimension and metric, so by default each pair gets an index of its own, such as
`rag-384-cosine`. A namespace can hold no description; so a namespace `rag.catalogue` of each index
has a record for each of its collections, which names the namespace where its chunks are, and a
collection takes the name of another by one write.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pinecone
from pinecone import (
    ConflictError,
    DenseVectorField,
    Index,
    Pinecone,
    PineconeValueError,
)

from rag.errors import ConfigError, DimensionMismatch, MetricMismatch, StoreUnavailable
from rag.types import BackendInfo, CollectionSpec
from stores.checks import Seconds, check_name, check_same, no_collection
from stores.generation import fresh
from stores.pinecone_catalogue import CATALOGUE, Entry, entries_of
from stores.pinecone_index import METRICS, Connection, Waiting, translated
from stores.pinecone_store import TEXTS, PineconeStore

if TYPE_CHECKING:
    from pinecone import IndexModel

_DERIVED = re.compile("rag-[0-9]+-(cosine|ip|l2)")
_ANOTHER = (
    "set stores.pinecone.index to another name, or leave it out: then each dimension and metric "
    "gets an index of its own"
)


class PineconeBackend:
    """Collections in the indexes of a Pinecone project, or in one index."""

    def __init__(
        self,
        *,
        data_dir: Path = Path(),
        api_key: str = "",
        index: str = "",
        host: str = "",
        cloud: str = "aws",
        region: str = "us-east-1",
        wait_visible: bool = True,
        wait_seconds: Seconds = 60.0,
        timeout_s: Seconds = 15.0,
        controller_host: str = "https://api.pinecone.io",
    ) -> None:
        """`index` is the name of the one index to use, `host` its address, which may be local.

        Without both, each dimension and metric gets an index; one that is missing is made in
        `cloud` and `region`. Pinecone shows what was written after a while: with `wait_visible`
        a write returns when it is seen. The SDK sends a request that gets no answer in `timeout_s`
        four times in all. `controller_host` is where indexes are made.
        """
        if not api_key:
            raise ConfigError(
                "Pinecone needs an API key", "set RAG_STORES_PINECONE_API_KEY in the environment"
            )
        if not re.match(r"https?://[\w.-]", controller_host):
            raise ConfigError(
                f"stores.pinecone.controller_host is {controller_host!r}", "use https://HOST"
            )
        self._api_key = api_key
        self._name = index
        self._host = host
        self._deployment = {"deployment_type": "managed", "cloud": cloud, "region": region}
        self._waiting = Waiting(wait_visible, wait_seconds)
        self._timeout_s = timeout_s
        self._controller_host = controller_host
        self._client: Pinecone | None = None
        self._connections: dict[tuple[str, int, str], Connection] = {}
        self._lock = threading.RLock()

    def check(self) -> BackendInfo:
        found = self._indexes()
        where = self._host or self._controller_host
        names = ", ".join(index.name for index in found) or "none yet"
        version = f"SDK {pinecone.__version__}, indexes: {names}"
        return BackendInfo(where, version, frozenset({"server"}))

    def collections(self) -> list[str]:
        return sorted(self._entries())

    def create(self, spec: CollectionSpec) -> PineconeStore:
        check_name(spec.name)
        entry = self._entries().get(spec.name)
        if entry is None:
            index = self._index_for(spec)
            namespace = f"{spec.name}.{uuid4().hex[:12]}"  # never one that is being deleted
            entry = Entry(index, namespace, spec.embedder, time.time(), generation=fresh())
            index.upsert(CATALOGUE, [entry.to_record(spec.name)])
            index.wait(lambda: spec.name in self._entries())
            entry = self._entries()[spec.name]  # another process may have been a moment later
        live = entry.to_spec(spec.name)
        check_same(spec, live)
        return PineconeStore(live, entry.index, entry.namespace)

    def open(self, name: str) -> PineconeStore:
        entry = self._existing(name, self._entries())
        return PineconeStore(entry.to_spec(name), entry.index, entry.namespace)

    def drop(self, name: str) -> None:
        entry = self._existing(name, self._entries())
        for index in self._indexes():
            index.delete_unseen(CATALOGUE, [name])
        entry.index.wait(lambda: name not in self._entries())
        self._drop_namespace(entry)

    def replace(self, name: str, by: str) -> None:
        check_name(name)
        entries = self._entries()
        new, old = self._existing(by, entries), entries.get(name)
        if name == by:
            return
        # The later entry of a name counts, so this one write is the change, in any index.
        since = max(time.time(), *(entry.since + 0.001 for entry in (new, old) if entry))
        moved = replace(new, since=since)
        gone = replace(moved, namespace="")
        new.index.upsert(CATALOGUE, [moved.to_record(name), gone.to_record(by)])
        new.index.wait(lambda: self._is_at(name, new.namespace) and by not in self._entries())
        others = [index for index in self._indexes() if index is not new.index]
        for index in others:
            index.delete_unseen(CATALOGUE, [name, by])
        new.index.delete_unseen(CATALOGUE, [by])
        if old is not None:
            self._drop_namespace(old)

    def close(self) -> None:
        with self._lock:
            while self._connections:
                self._connections.popitem()[1].close()
            if self._client is not None:
                self._client.close()
                self._client = None

    def _entries(self) -> dict[str, Entry]:
        """The collections by name; of a name in two indexes the later entry."""
        latest: dict[str, Entry] = {}
        for index in self._indexes():
            for page in index.ids(CATALOGUE):
                for name, entry in entries_of(index, page).items():
                    if name not in latest or entry.since > latest[name].since:
                        latest[name] = entry
        return {name: entry for name, entry in latest.items() if entry.namespace}

    def _existing(self, name: str, entries: dict[str, Entry]) -> Entry:
        check_name(name)
        if name not in entries:
            raise no_collection("pinecone", name)
        return entries[name]

    def _is_at(self, name: str, namespace: str) -> bool:
        entry = self._entries().get(name)
        return entry is not None and entry.namespace == namespace

    @staticmethod
    def _drop_namespace(entry: Entry) -> None:
        for namespace in (entry.namespace, entry.namespace + TEXTS):
            entry.index.drop(namespace)

    def _indexes(self) -> list[Connection]:
        """The indexes that are there and ready, of those that are the backend's to use."""
        if self._host:
            return [self._connect_to_host()]
        with translated(self._controller_host):
            models = list(self._controller().indexes.list())
        wanted = re.compile(re.escape(self._name)) if self._name else _DERIVED
        return [
            self._connect(model)
            for model in models
            if wanted.fullmatch(model.name) and model.host and model.status.ready
        ]

    def _index_for(self, spec: CollectionSpec) -> Connection:
        """The index for such a collection, made if it is missing. Raises the mismatch."""
        name = self._name or f"rag-{spec.dim}-{spec.metric}"
        for index in self._indexes():
            if self._host or index.name == name:
                _check_index(spec, index)
                return index
        metric = {ours: theirs for theirs, ours in METRICS.items()}[spec.metric]
        # `_values` is the name that makes it an index of vectors and not of documents.
        values = {"type": "dense_vector", "dimension": spec.dim, "metric": metric}
        with translated(self._controller_host):
            try:
                model = self._controller().indexes.create(
                    name=name,
                    schema={"fields": {"_values": values}},
                    deployment=self._deployment,
                    timeout=int(self._waiting.seconds),
                )
            except ConflictError as error:
                raise StoreUnavailable(
                    f"index {name!r} of Pinecone is being made or deleted by someone else",
                    "wait a minute and run this again",
                ) from error
        return self._connect(model)

    def _connect(self, model: IndexModel) -> Connection:
        values = model.schema.fields.get("_values")
        if not isinstance(values, DenseVectorField) or not model.host:
            raise ConfigError(f"index {model.name!r} of Pinecone does not hold vectors", _ANOTHER)
        return self._connected(model.name, model.host, values.dimension, values.metric)

    def _connect_to_host(self) -> Connection:
        known = next(iter(self._connections.values()), None)
        if known is not None:
            return known
        with (
            translated(self._host),
            _configured(),
            Index(host=self._host, api_key=self._api_key, timeout=self._timeout_s) as index,
        ):
            stats = index.describe_index_stats()
        if not stats.dimension or not stats.metric:
            raise ConfigError(f"the index at {self._host} does not hold dense vectors", _ANOTHER)
        return self._connected(self._host, self._host, stats.dimension, stats.metric)

    def _connected(self, name: str, host: str, dim: int, metric: str) -> Connection:
        key = host, dim, metric  # an index that was deleted and made anew keeps its host
        with self._lock, _configured():
            if key not in self._connections:
                index = Index(host=host, api_key=self._api_key, timeout=self._timeout_s)
                self._connections[key] = Connection(
                    name, host, index, dim, METRICS[metric], self._waiting
                )
            return self._connections[key]

    def _controller(self) -> Pinecone:
        with self._lock, _configured():
            if self._client is None:
                self._client = Pinecone(
                    api_key=self._api_key, host=self._controller_host, timeout=self._timeout_s
                )
            return self._client


def _check_index(spec: CollectionSpec, index: Connection) -> None:
    if spec.dim != index.dim:
        raise DimensionMismatch(
            f"index {index.name!r} of Pinecone holds vectors of {index.dim} dimensions, "
            f"not {spec.dim}",
            _ANOTHER,
        )
    if spec.metric != index.metric:
        raise MetricMismatch(
            f"index {index.name!r} of Pinecone has metric {index.metric}, not {spec.metric}",
            _ANOTHER,
        )


@contextmanager
def _configured() -> Iterator[None]:
    """Raise ConfigError for what the SDK refuses before it sends anything."""
    try:
        yield
    except PineconeValueError as error:
        raise ConfigError(f"Pinecone's client refuses a setting ({error})") from error
