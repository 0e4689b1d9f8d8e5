"""Milvus: Lite on a folder of this machine, or a server, a cluster or Zilliz Cloud.

A collection `docs` is the alias `ragline_docs_e` in Milvus. It leads to a collection with a name of
its own, whose properties hold the description. So another one takes the name in one step, and
whoever still has the old one open never reads or writes the new one.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import Field

from rag.errors import ConfigError, InputError, MetricMismatch, StoreError, UnknownCollection
from rag.types import BackendInfo, CollectionSpec, Fingerprint
from stores.checks import Effort, Links, Seconds, check_name, check_same, no_collection
from stores.generation import fresh
from stores.milvus_collection import Collection
from stores.milvus_connection import Connection, milvus_name, our_name
from stores.milvus_rows import VECTOR, indexes, schema
from stores.milvus_search import METRICS
from stores.milvus_store import GENERATION, Live, MilvusStore

_PROPERTY = "ragline"
_LITE = "milvus.db"
_KEYWORDS_SINCE = (2, 5)
_PARTITIONS_SINCE = (2, 4)  # 2.3.5 chooses the partition of an upserted row by its id

Index = Literal["AUTOINDEX", "HNSW", "IVF_FLAT", "IVF_SQ8", "FLAT"]
Lists = Annotated[int, Field(ge=1, le=65_536)]
Consistency = Literal["Strong", "Session", "Bounded", "Eventually"]


class MilvusBackend:
    """The collections of a Milvus server, or of Milvus Lite in `data_dir`.

    `uri` is the address of a server (http, https), or a folder for Lite; `token` is user:password
    or a key. `index` with `M`, `ef_construction` and `nlist` shapes new collections, `ef` and
    `nprobe` every search. `consistency` says how far behind the writes of other programs a search
    may be; what this process wrote it sees at once. With `partition_key`, a metadata key such as
    "tenant", a server reads only the partition that a filter on this key names.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        uri: str = "",
        token: str = "",
        database: str = "",
        index: Index = "HNSW",
        M: Links = 16,
        ef_construction: Effort = 200,
        ef: Effort = 64,
        nlist: Lists = 128,
        nprobe: Lists = 16,
        consistency: Consistency = "Bounded",
        partition_key: str = "",
        timeout_s: Seconds = 30.0,
    ) -> None:
        folder = None if _is_server(uri) else (Path(uri).expanduser() if uri else data_dir / _LITE)
        self._milvus = Connection(
            folder=folder and folder.absolute(),
            uri=uri,
            token=token,
            database=database,
            timeout_s=timeout_s,
        )
        build = {"HNSW": {"M": M, "efConstruction": ef_construction}}
        build |= {kind: {"nlist": nlist} for kind in ("IVF_FLAT", "IVF_SQ8")}
        self._index, self._build = index, build.get(index, {})
        self._ef, self._nprobe = ef, nprobe
        self._consistency = consistency
        self._partition_key = partition_key

    def check(self) -> BackendInfo:
        version = self._milvus.version
        able = {"keyword_search", "hybrid_search"} if _has_keywords(version) else set[str]()
        if not self._milvus.is_lite:  # which takes one writer only
            able.add("server")
        return BackendInfo(self._milvus.location, version, frozenset(able))

    def collections(self) -> list[str]:
        names = map(our_name, self._milvus.aliases())
        return sorted(name for name in names if name is not None)

    def create(self, spec: CollectionSpec) -> MilvusStore:
        check_name(spec.name)
        try:
            store = self.open(spec.name)
        except UnknownCollection:
            self._create(spec)
            store = self.open(spec.name)
        check_same(spec, store.spec)
        return store

    def open(self, name: str) -> MilvusStore:
        live = self._live(name)
        collection = Collection(self._milvus, name, live.own_name, self._consistency)
        collection.properties()  # from now on a change of them is noticed
        collection.flush()  # what Lite recovers after a crash is in no segment yet
        return MilvusStore(collection, live, ef=self._ef, nprobe=self._nprobe)

    def drop(self, name: str) -> None:
        own_name, _ = self._described(name)
        self._milvus("drop_alias", milvus_name(name))
        self._drop_nameless(own_name)

    def replace(self, name: str, by: str) -> None:
        check_name(name)
        new, _ = self._described(by)
        if name == by:
            return
        try:
            old, _ = self._described(name)
        except UnknownCollection:
            self._milvus("create_alias", new, milvus_name(name))
        else:
            self._milvus("alter_alias", new, milvus_name(name))
            self._drop_nameless(old)
        self._milvus("drop_alias", milvus_name(by))

    def close(self) -> None:
        self._milvus.close()

    def _described(self, name: str) -> tuple[str, Any]:
        """Where the name leads to in Milvus, and what that is. Raises UnknownCollection."""
        try:
            check_name(name)
        except InputError as error:
            raise no_collection(self._place, name) from error
        described = self._milvus("describe_collection", milvus_name(name))
        if _PROPERTY not in described["properties"]:
            raise StoreError(
                f"collection {milvus_name(name)!r} of {self._place} is another program's",
                "use another --collection",
            )
        return described["collection_name"], described

    def _drop_nameless(self, own_name: str) -> None:
        """Delete a collection, unless another name leads to it: a crash may have left two."""
        if not self._milvus.aliases(own_name):
            self._milvus("drop_collection", own_name)

    def _live(self, name: str) -> Live:
        own_name, described = self._described(name)
        fields = json.loads(described["properties"][_PROPERTY])
        spec = CollectionSpec(
            name,
            fields["dim"],
            fields["metric"],
            Fingerprint(**fields["embedder"]) if fields["embedder"] else None,
        )
        words = bool(described["functions"])
        index = self._milvus("describe_index", own_name, VECTOR)
        if index is None:
            index = self._indexed(own_name, spec, words)
        if index["metric_type"] != METRICS[spec.metric]:
            raise MetricMismatch(
                f"collection {name!r} was made with metric {spec.metric}, but its index has "
                f"{index['metric_type']}",
                f"drop the index in Milvus and make one with {METRICS[spec.metric]}",
            )
        return Live(own_name, spec, index["index_type"], fields["partition_key"], words)

    def _create(self, spec: CollectionSpec) -> None:
        version = self._milvus.version
        if self._partition_key and _release(version) < _PARTITIONS_SINCE:
            raise ConfigError(
                f"stores.milvus.partition_key is set, but {self._place} has version {version}",
                "leave it out, or use Milvus 2.4 or later",
            )
        words = _has_keywords(version)
        description = asdict(spec) | {"partition_key": self._partition_key}
        del description["name"]  # it may change
        alias = milvus_name(spec.name)
        own_name = alias + uuid4().hex
        self._milvus(
            "create_collection",
            own_name,
            schema=schema(spec.dim, words=words, partition_key=bool(self._partition_key)),
            properties={_PROPERTY: json.dumps(description), GENERATION: fresh()},
            consistency_level="Bounded",
        )
        self._indexed(own_name, spec, words)
        self._milvus("load_collection", own_name, _async=True)  # who reads first waits for it
        try:
            self._milvus("create_alias", own_name, alias)
        except StoreError:
            self._milvus("drop_collection", own_name)
            if not self._milvus("has_collection", alias):  # otherwise someone was a moment faster
                raise

    def _indexed(self, own_name: str, spec: CollectionSpec, words: bool) -> Any:
        made = indexes(self._index, METRICS[spec.metric], self._build, words=words)
        self._milvus("create_index", own_name, made, sync=False)
        return self._milvus("describe_index", own_name, VECTOR)

    @property
    def _place(self) -> str:
        return f"Milvus at {self._milvus.location}"


def _is_server(uri: str) -> bool:
    """Whether this is an address, not a folder. Raises ConfigError for what is neither."""
    if "://" not in uri and not re.fullmatch(r"[\w.-]+:\d+", uri):
        return False
    with suppress(ValueError):
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return True
    raise ConfigError(
        f"stores.milvus.uri is {uri!r}",
        "use http://HOST:19530, https://HOST:19530, or a folder for Milvus Lite",
    )


def _has_keywords(version: str) -> bool:
    return _release(version) >= _KEYWORDS_SINCE


def _release(version: str) -> tuple[int, int]:
    """(2, 5) for "2.5.4"; (3, 2) for "milvus_lite-3.2.2", whose numbers are its own, but later."""
    found = re.search(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else _PARTITIONS_SINCE
