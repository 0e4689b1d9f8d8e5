"""A connection to Milvus: a server, or Milvus Lite, which runs in this process on a folder.

Errors of the client become those of `rag.errors`, in one line and without a word on stderr.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC starts: it writes to stderr

import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from rag.errors import MissingExtra, StoreError, StoreUnavailable
from stores.checks import no_collection

for name in ("pymilvus", "pymilvus.milvus_client", "milvus_lite"):
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # each error is raised and told by us

PREFIX = "ragline_"
# So that no alias begins with another: with one, 2.3.5 also deletes those that begin with it, which
# shows when it is started again.
_END = "_e"
_CONNECT_S = 5.0
_LOAD_S = 600.0  # an index of millions of vectors is read into memory
_CONNECT_FAILED, _NOT_FOUND, _NOT_FOUND_OLD, _NOT_LOADED, _NO_DATABASE = 2, 100, 4, 101, 800
_TOO_LARGE = re.compile(r"larger than max|maxOutputSize|exceeds? the limit size", re.IGNORECASE)


class TooLarge(StoreError):
    """What was asked for does not fit into one message: ask for less at a time."""


class NotLoaded(StoreError):
    """The collection has to be loaded before it is read."""


@dataclass
class _Lite:
    """A Milvus Lite that runs in this process."""

    server: Any
    database: Any
    uri: str
    users: int = 0


_running: dict[Path, _Lite] = {}
_starting = threading.Lock()


def milvus_name(name: str) -> str:
    """The name in Milvus, which knows no "-". One to one, on file systems that fold case too."""
    return PREFIX + name.replace("_", "__").replace("-", "_d") + _END


def our_name(name: str) -> str | None:
    """The name of the collection that Milvus has under this name; None for a foreign one."""
    within = name[len(PREFIX) : -len(_END)]
    ours = re.sub(r"_(.?)", lambda m: {"_": "_", "d": "-"}.get(m[1], "?"), within)
    return ours if ours and milvus_name(ours) == name else None


class Connection:
    """Connects when it is first used, and again after `close`."""

    def __init__(
        self, *, folder: Path | None, uri: str, token: str, database: str, timeout_s: float
    ) -> None:
        self.location = str(folder) if folder else uri
        self._folder, self._uri, self._token = folder, uri, token
        self._database, self._timeout_s = database, timeout_s
        self._lock = threading.Lock()
        self._client: MilvusClient | None = None
        self._version = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells this server and database from others."""
        return self.location, self._database

    def __call__(self, operation: str, *arguments: Any, **options: Any) -> Any:
        """Call the client's method. Raises StoreError, StoreUnavailable or UnknownCollection."""
        client = self._connected()
        options.setdefault("timeout", self._timeout_s)
        try:
            return getattr(client, operation)(*arguments, **options)
        except (MilvusException, grpc.RpcError) as error:
            raise self._told(error, str(arguments[0]) if arguments else "") from error

    @property
    def version(self) -> str:
        """That of a server, such as "2.5.4", or of Lite: "milvus_lite-3.2.2"."""
        self._connected()
        return self._version

    @property
    def is_lite(self) -> bool:
        """Whether it is Milvus Lite, in this process or behind an address: it differs."""
        return self.version.startswith("milvus_lite")

    def load(self, collection: str) -> None:
        """Have the collection in memory, ready to be searched."""
        if self("get_load_state", collection)["state"].name == "Loaded":
            return
        self("load_collection", collection, timeout=_LOAD_S, _async=True)
        deadline = time.monotonic() + _LOAD_S
        # The client's own wait looks every 200 ms only.
        while self("get_load_state", collection)["state"].name != "Loaded":
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"Milvus at {self.location} did not load the collection in {_LOAD_S:.0f} s",
                    "look into its log, and whether its memory suffices",
                )
            time.sleep(0.02)

    def aliases(self, collection: str = "") -> list[str]:
        """Those of a collection, or all of the database."""
        # Which is named, as 2.3.5 would take the default one here.
        found: list[str] = self("list_aliases", collection, db_name=self._database)["aliases"]
        return found

    def close(self) -> None:
        """Free the connection, and the folder of Lite once nothing in this process uses it."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
                if self._folder:
                    _release(self._folder)

    def _connected(self) -> MilvusClient:
        with self._lock:
            if self._client is None:
                uri = _acquire(self._folder) if self._folder else self._uri
                options = {"token": self._token, "db_name": self._database}
                seconds = min(_CONNECT_S, self._timeout_s)
                try:
                    # Dedicated: otherwise close() would keep the channel.
                    client = MilvusClient(uri, **options, timeout=seconds, dedicated=True)
                    self._version = client.get_server_version(timeout=seconds)
                except (MilvusException, grpc.RpcError) as error:
                    if self._folder:
                        _release(self._folder)
                    raise self._told(error, "") from error
                self._client = client
            return self._client

    def _told(self, error: Exception, collection: str) -> StoreError:
        """The error of the client as one of ours."""
        place = f"Milvus at {self.location}"
        code, reason = _code(error), _reason(error)
        if code in (_NOT_FOUND, _NOT_FOUND_OLD) and collection.startswith(PREFIX):
            return no_collection(place, our_name(collection) or collection)
        if code == _NO_DATABASE or (reason.startswith("database ") and "exist" in reason):
            return StoreError(
                f"{place} has no database {self._database!r}",
                "make it there, or set stores.milvus.database",
            )
        if code == _NOT_LOADED:
            return NotLoaded(f"{place} has the collection not loaded", "load it")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED or _TOO_LARGE.search(reason):
            return TooLarge(f"{place}: {reason}", "ask for less at a time")
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return StoreUnavailable(
                f"{place} refused the token", "set stores.milvus.token to user:password or a key"
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return StoreUnavailable(
                f"{place} did not answer in time",
                "look whether it is overloaded, or raise stores.milvus.timeout_s",
            )
        if code == _CONNECT_FAILED or isinstance(code, grpc.StatusCode):
            return StoreUnavailable(
                f"{place} cannot be reached",
                "start it, or set stores.milvus.uri; without one Milvus Lite is used",
            )
        return StoreError(f"{place} refused: {reason}", "look into its log")


def _acquire(folder: Path) -> str:
    """The address of Lite on the folder, started if it does not run yet."""
    with _starting:
        lite = _running.get(folder)
        if lite is None:
            lite = _running[folder] = _start(folder)
        lite.users += 1
        return lite.uri


def _release(folder: Path) -> None:
    with _starting:
        lite = _running[folder]
        lite.users -= 1
        if not lite.users:
            del _running[folder]
            lite.server.stop(grace=2).wait()
            lite.database.close()


def _start(folder: Path) -> _Lite:
    if find_spec("milvus_lite") is None:
        raise MissingExtra(
            "Milvus without a server needs milvus_lite",
            "install it with: pip install 'ragline[milvus]', or set stores.milvus.uri",
        )
    from milvus_lite.adapter.grpc.server import start_server_in_thread
    from milvus_lite.exceptions import DataDirLockedError, MilvusLiteError

    try:
        server, database, port = start_server_in_thread(str(folder))
    except DataDirLockedError as error:
        raise StoreUnavailable(
            f"the Milvus Lite folder {folder} is in use by another process",
            f"close that one, or run: milvus-lite server --host 127.0.0.1 --data-dir {folder}, "
            "and set stores.milvus.uri to http://127.0.0.1:19530",
        ) from error
    except (MilvusLiteError, OSError, ValueError) as error:
        raise StoreUnavailable(
            f"the Milvus Lite folder {folder} cannot be opened ({error})",
            "check the path, or restore the folder from a backup",
        ) from error
    return _Lite(server, database, f"http://127.0.0.1:{port}")


def _code(error: BaseException) -> Any:
    """Milvus's number or gRPC's status: that of the cause, where the client hides it."""
    cause = error.__cause__ if isinstance(error.__cause__, grpc.RpcError) else error
    return cause.code() if isinstance(cause, grpc.RpcError) else getattr(error, "code", None)


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.RpcError):
        return str(error.details())
    return str(getattr(error, "message", error))
