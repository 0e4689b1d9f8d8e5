"""A SQLite file that threads and processes of one machine share."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from rag.errors import StoreUnavailable

_BUSY_S = 30  # another process' transactions take milliseconds


class Database:
    """What a transaction wrote is on the disk when it ends, whatever happens to the process.

    Synchronous, and safe to call from several threads. Raises StoreUnavailable.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._lock = threading.RLock()
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite does not wait for another process that turns on WAL at the same time.
            with FileLock(path.with_suffix(".lock")):
                self._db = sqlite3.connect(
                    path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
                )
                self._db.row_factory = sqlite3.Row
                self._db.executescript(
                    f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {schema}"
                )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done inside, or nothing of it; no other process writes meanwhile."""
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a SELECT finds."""
        with self._lock, self._translated():
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(
                f"{self._path} cannot be used ({error})",
                "check that it may be written and that the disk has room",
            ) from error
