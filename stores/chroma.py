"""Chroma: embedded on a folder of its own, or a server that several programs share.

A collection `docs` is Chroma's `rag.docs.chunks`, with its description in the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chromadb.api.models.Collection import Collection
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT
from chromadb.errors import ChromaError, NotFoundError

from rag.errors import ConfigError
from rag.types import BackendInfo, CollectionSpec
from stores.checks import Effort, Links, Port, Seconds, check_name, check_same, no_collection
from stores.chroma_connection import ChromaServer, Connection
from stores.chroma_description import DESCRIPTION, GENERATION, SPACES, described, their_name
from stores.chroma_folder import ChromaFolder
from stores.chroma_store import ChromaStore
from stores.generation import fresh

_OURS = re.compile(r"rag\.(.+)\.chunks")


class ChromaBackend:
    """Collections in the folder `path`, by default `data_dir`/chroma, or of the server at `host`.

    `ef_construction`, `max_neighbors` and `ef_search` are those of HNSW, for new collections.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        path: str = "",
        host: str = "",
        port: Port = 8000,
        ssl: bool = False,
        token: str = "",
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
        timeout_s: Seconds = 120,
        ef_construction: Effort = 200,
        max_neighbors: Links = 32,
        ef_search: Effort = 64,
    ) -> None:
        self._hnsw: Any = {
            "ef_construction": ef_construction,
            "max_neighbors": max_neighbors,
            "ef_search": ef_search,
        }
        self._connection: Connection
        server_only = ssl or token or (tenant, database) != (DEFAULT_TENANT, DEFAULT_DATABASE)
        if server_only and not host:
            raise ConfigError("ssl, token, tenant and database are of a server", "set its host")
        if host:
            if re.search(r"[/:\s]", host):
                raise ConfigError(
                    f"stores.chroma.host is {host!r}",
                    "give the name or address alone, and set port, and ssl for https",
                )
            if path:
                raise ConfigError("Chroma has a path and a host", "set one of them")
            self._connection = ChromaServer(
                host=host,
                port=port,
                ssl=ssl,
                token=token,
                tenant=tenant,
                database=database,
                timeout_s=timeout_s,
            )
        else:
            self._connection = ChromaFolder.at(Path(path) if path else data_dir / "chroma")

    def check(self) -> BackendInfo:
        with self._connection.use() as client:
            version = f"Chroma {client.get_version()}"
        is_server = isinstance(self._connection, ChromaServer)
        return BackendInfo(
            self._connection.location, version, frozenset({"server"} if is_server else ())
        )

    def collections(self) -> list[str]:
        with self._connection.use() as client:
            names = [collection.name for collection in client.list_collections()]
        return sorted(found[1] for found in map(_OURS.fullmatch, names) if found)

    def create(self, spec: CollectionSpec) -> ChromaStore:
        store = self._find(spec.name)
        if store is None:
            with self._connection.use() as client, self._connection.writing():
                try:
                    client.create_collection(
                        their_name(spec.name),
                        configuration={"hnsw": {"space": SPACES[spec.metric], **self._hnsw}},
                        metadata={DESCRIPTION: json.dumps(asdict(spec)), GENERATION: fresh()},
                        embedding_function=None,
                    )
                except ChromaError as error:
                    if "already exists" not in str(error):
                        raise
            store = self.open(spec.name)
        check_same(spec, store.spec)
        return store

    def open(self, name: str) -> ChromaStore:
        store = self._find(name)
        if store is None:
            raise no_collection("chroma", name)
        return store

    def drop(self, name: str) -> None:
        with self._changing(name) as (client, collection):
            client.delete_collection(collection.name)

    def replace(self, name: str, by: str) -> None:
        check_name(name)
        with self._changing(by) as (client, new):
            if name == by:
                return
            # Set aside first, as deleting takes longer than the moment without a collection.
            theirs = {collection.name: collection for collection in client.list_collections()}
            aside = f"rag.{name}.old"
            if aside in theirs:  # from a crash
                client.delete_collection(aside)
            if their_name(name) in theirs:
                theirs[their_name(name)].modify(name=aside)
            new.modify(name=their_name(name))
            if their_name(name) in theirs:
                client.delete_collection(aside)

    def close(self) -> None:
        self._connection.close()

    def _find(self, name: str) -> ChromaStore | None:
        check_name(name)
        with self._connection.use() as client:
            try:
                collection = client.get_collection(their_name(name), None)
            except NotFoundError:
                return None
        return ChromaStore(self._connection, described(collection, name), collection.id)

    @contextmanager
    def _changing(self, name: str) -> Iterator[tuple[Any, Collection]]:
        """The collection, to be dropped or renamed."""
        check_name(name)
        owner = object()
        self._connection.claim(owner)
        try:
            with self._connection.use() as client:
                try:
                    collection = client.get_collection(their_name(name), None)
                except NotFoundError as error:
                    raise no_collection("chroma", name) from error
                with self._connection.writing():
                    yield client, collection
        finally:
            self._connection.release(owner)
