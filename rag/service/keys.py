"""API keys: made, listed and revoked by `rag keys`, looked up at every request.

A key is `rag_ID_SECRET`. What is kept is its SHA-256, not a slow hash: those protect words that
people choose, and a secret of 256 random bits cannot be guessed at any speed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from rag.errors import InputError, NotFound, StoreUnavailable
from rag.filters import parse
from rag.service.callers import SCOPES, Caller, Scope
from stores.checks import check_name

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL, scopes TEXT NOT NULL,
    collections TEXT, tenant TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER
)"""
_COLUMNS = "id, name, scopes, collections, tenant, created_at, expires_at, revoked_at"
_PRESENTED = re.compile(r"rag_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NOBODY = bytes(32)
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. Times are in seconds since the epoch, UTC.

    `collections` None are all. `tenant` is a `where` that holds for all that the key sees.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    collections: tuple[str, ...] | None
    tenant: Mapping[str, Any]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    @property
    def usable(self) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at or time.time() + 1) > time.time()

    def caller(self) -> Caller:
        """Who asks with this key."""
        collections = None if self.collections is None else frozenset(self.collections)
        return Caller(self.id, frozenset(self.scopes), collections, self.tenant)


class Keys:
    """The keys in `folder`/keys.sqlite3, which all processes of a machine share.

    What another process does to a key counts at the next call. Safe to call from several threads.
    `find` takes some 10 microseconds and may be called in an event loop; the others write, or read
    a file. Every method raises StoreUnavailable when the file cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "keys.sqlite3"
        self._lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._version = -1
        self._known: dict[str, tuple[bytes, Key, Caller]] = {}
        with self._translated(), closing(self._connect()):
            pass

    def create(
        self,
        name: str,
        scopes: Iterable[str] = ("read",),
        collections: Iterable[str] | None = None,
        tenant: Mapping[str, Any] | None = None,
        expires_at: int | None = None,
    ) -> tuple[Key, str]:
        """A new key, and what its holder has to present, which cannot be read again.

        Raises InputError, and InvalidFilter for a `tenant` that is no filter.
        """
        key = Key(
            id=secrets.token_hex(8),
            name=_checked_name(name),
            scopes=_checked_scopes(scopes),
            collections=None if collections is None else _checked_collections(collections),
            tenant=_checked_tenant(tenant or {}),
            created_at=int(time.time()),
            expires_at=expires_at,
        )
        if not key.usable:
            raise InputError("the key would have expired already", "give a time to come")
        presented = f"rag_{key.id}_{secrets.token_urlsafe(32)}"
        row = (
            *(key.id, key.name, _digest(presented), " ".join(key.scopes)),
            None if key.collections is None else " ".join(key.collections),
            *(json.dumps(key.tenant), key.created_at, key.expires_at),
        )
        with self._translated(), closing(self._connect()) as db:
            db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
        return key, presented

    def list(self) -> list[Key]:
        """Every key, the revoked and expired ones too, in the order of their creation."""
        with self._translated(), closing(self._connect()) as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, rowid")
            return [_key(row) for row in rows]

    def revoke(self, key_id: str) -> None:
        """Let the key count no more. One that is revoked stays so. Raises NotFound."""
        with self._translated(), closing(self._connect()) as db:
            found = db.execute(
                "UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?",
                (int(time.time()), key_id),
            )
        if not found.rowcount:
            raise NotFound(f"there is no key {key_id!r}", "see: rag keys list")

    def any(self) -> bool:
        """Whether there is a key that is neither revoked nor expired."""
        return any(key.usable for _, key, _ in self._current().values())

    def find(self, presented: str) -> Caller | None:
        """Who presents this; None unless it is a usable key, whatever else it is."""
        match = _PRESENTED.fullmatch(presented)
        if match is None:
            return None
        found = self._current().get(match[1])
        # Compared for an unknown id too, so that the time does not tell which ids there are.
        same = hmac.compare_digest(_digest(presented), found[0] if found else _NOBODY)
        return found[2] if found and same and found[1].usable else None

    def close(self) -> None:
        """Free the file. Idempotent; a closed one opens it again when used."""
        with self._lock:
            self._forget()

    def _current(self) -> dict[str, tuple[bytes, Key, Caller]]:
        """The keys as they are in the file now, read only if another connection changed it."""
        with self._lock, self._translated():
            if self._reader is None or self._identity() != self._file:
                self._forget()  # the file was deleted, or replaced by a backup
                self._reader = self._connect()
                self._file = self._identity()
            (version,) = self._reader.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                rows = self._reader.execute(f"SELECT digest, {_COLUMNS} FROM keys").fetchall()
                keys = [(row[0], _key(row[1:])) for row in rows]
                self._known = {key.id: (digest, key, key.caller()) for digest, key in keys}
                self._version = version
            return self._known

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._version, self._known = None, -1, {}

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116  a third of the time of Path.stat
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o600)  # SQLite would let others read it; its log gets the same mode
        db = sqlite3.connect(self._path, 5, isolation_level=None, check_same_thread=False)
        try:
            # SQLite waits for no other process that switches to WAL, it fails.
            with FileLock(self._path.with_suffix(".lock"), timeout=5):
                db.execute("PRAGMA journal_mode = WAL")
                db.execute(_SCHEMA)
        except (sqlite3.Error, OSError):
            db.close()
            raise
        return db

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(
                f"the keys in {self._path} cannot be used ({error})",
                "check that the user who runs this may write there",
            ) from error


def _key(row: tuple[Any, ...]) -> Key:
    key_id, name, scopes, collections, tenant, *times = row
    return Key(
        *(key_id, name, tuple(scopes.split())),
        None if collections is None else tuple(collections.split()),
        *(json.loads(tenant), *times),
    )


def _digest(presented: str) -> bytes:
    return hashlib.sha256(presented.encode()).digest()


def _checked_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise InputError(
            "a key needs a name that can be shown",
            f"use up to {_LONGEST_NAME} letters, such as the name of the application",
        )
    return name


def _checked_scopes(scopes: Iterable[str]) -> tuple[Scope, ...]:
    asked = set(scopes)
    known = tuple(scope for scope in SCOPES if scope in asked)
    if not known or len(known) < len(asked):
        wrong = ", ".join(sorted(asked - set(known))) or "none"
        raise InputError(f"these are no scopes of a key: {wrong}", f"use {', '.join(SCOPES)}")
    return known


def _checked_collections(collections: Iterable[str]) -> tuple[str, ...]:
    names = tuple(sorted(set(collections)))
    if not names:
        raise InputError("the key would be for no collection", "name some, or leave them out")
    for name in names:
        check_name(name)
    return names


def _checked_tenant(tenant: Mapping[str, Any]) -> Mapping[str, Any]:
    parse(tenant)
    return tenant
