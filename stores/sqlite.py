"""Chunks, metadata and vectors of one collection in SQLite: what survives a crash.

Three tables: `chunks` is narrow, so that filters and listings do not read texts; `contents` holds
text, metadata and vector; `fields` has a row for each metadata value, indexed by key and value.
`seq` is never used again, so a replaced chunk has a new one and an index of vectors can tell.
Sound with several readers and one writer; who writes holds `write.lock` until `close`.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout

from rag.errors import StoreUnavailable
from rag.filters import Filter, kind
from rag.types import (
    Chunk,
    CollectionSpec,
    DocumentKey,
    DocumentRecord,
    Fingerprint,
    Hit,
    Scalar,
)
from stores import sql_documents
from stores.checks import check_notes, gone
from stores.facets import Counted
from stores.ranking import rank
from stores.records import holds
from stores.sql_filters import one_of, to_sql

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.types import Vectors

FILE = "chunks.sqlite3"
_RECENT = 20_000  # chunks, some 40 MB; a hybrid search looks at 200
_MAPPED = 2**34  # bytes; texts are read where the system has cached them, without a copy
_NEW = ".new-"  # begins the name of a collection that is being made, which takes milliseconds
_LEFT_S = 3_600  # so long after, it is what a dead process has left

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE chunks (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, document_id TEXT NOT NULL,
    version TEXT NOT NULL, position INTEGER NOT NULL, source TEXT NOT NULL, title TEXT NOT NULL,
    page INTEGER, ingested_at INTEGER NOT NULL);
CREATE INDEX chunks_of_document ON chunks (document_id, version, position);
CREATE TABLE contents (
    seq INTEGER PRIMARY KEY, text TEXT NOT NULL, metadata TEXT NOT NULL, vector BLOB NOT NULL);
CREATE TABLE fields (
    key TEXT NOT NULL, kind TEXT NOT NULL, value, seq INTEGER NOT NULL,
    PRIMARY KEY (key, kind, value, seq)) WITHOUT ROWID;
CREATE INDEX fields_of_chunk ON fields (seq);
INSERT INTO meta VALUES ('generation', 0);
"""
_CHUNK = (
    "c.id, c.document_id, c.version, c.position, t.text, c.source, c.title, c.page, "
    "c.ingested_at, t.metadata"
)


class ChunkTable:
    """The SQLite file of one collection. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        """Open the collection in `folder`. Raises StoreUnavailable."""
        self.folder = folder
        self._path = folder / FILE
        self._idle: list[sqlite3.Connection] = []
        self._lock = write_lock(folder)
        self._writing = threading.RLock()
        self._recent: dict[int, Sequence[Any]] = {}  # rows, as a chunk's metadata can be changed
        try:
            self._inode = self._path.stat().st_ino
            values = json.loads(self._one("SELECT value FROM meta WHERE key = 'spec'"))
            embedder = values.pop("embedder")
            values["name"] = folder.name  # it may have taken the place of another
            self.spec = CollectionSpec(
                **values, embedder=Fingerprint(**embedder) if embedder else None
            )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _unavailable(folder, "malformed description") from error

    @classmethod
    def create(cls, folder: Path, spec: CollectionSpec) -> ChunkTable:
        """Make the collection unless it is there, and open it."""
        if not (folder / FILE).exists():
            with _translated(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
                for left in folder.parent.glob(f"{_NEW}*"):
                    if time.time() - left.stat().st_mtime > _LEFT_S:
                        rmtree(left, ignore_errors=True)
                # Made aside and moved into place: no crash leaves half a collection.
                part = Path(mkdtemp(prefix=_NEW, dir=folder.parent))
                try:
                    with closing(sqlite3.connect(part / FILE, isolation_level=None)) as db:
                        db.executescript("PRAGMA journal_mode = WAL;" + _SCHEMA)
                        db.execute(sql_documents.IN_ORDER)
                        values = json.dumps(asdict(spec))
                        db.execute("INSERT INTO meta VALUES ('spec', ?)", [values])
                        db.execute("INSERT INTO meta VALUES ('state', ?)", [uuid4().hex])
                    part.rename(folder)
                except (OSError, sqlite3.DatabaseError):
                    rmtree(part)
                    if not (folder / FILE).exists():  # otherwise another process was first
                        raise
        return cls(folder)

    @property
    def generation(self) -> int:
        """A number that grows with every write, whichever process made it."""
        return int(self._one("SELECT value FROM meta WHERE key = 'generation'"))

    def state(self) -> str:
        """A text for what is held now, notes included: every write gives it a random one."""
        rows = self._all("SELECT value FROM meta WHERE key = 'state'")
        if not rows:  # made before there were any
            self._all("INSERT OR IGNORE INTO meta VALUES ('state', ?)", [uuid4().hex])
            return self.state()
        return str(rows[0][0])

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        """Write chunks in one transaction; the last of a repeated id stays."""
        rows = {chunk.id: (chunk, vector) for chunk, vector in zip(chunks, vectors, strict=True)}
        if not rows:
            return
        with self._transaction() as db:
            condition, ids = one_of(rows)
            self._delete(db, f"id {condition}", ids)
            for chunk, vector in rows.values():
                seq = db.execute(
                    "INSERT INTO chunks VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        chunk.id,
                        chunk.document_id,
                        chunk.version,
                        chunk.position,
                        chunk.source,
                        chunk.title,
                        chunk.page,
                        chunk.ingested_at,
                    ],
                ).lastrowid
                metadata = dict(chunk.metadata)
                db.execute(
                    "INSERT INTO contents VALUES (?, ?, ?, ?)",
                    [seq, chunk.text, json.dumps(metadata, ensure_ascii=False), vector.tobytes()],
                )
                db.executemany(
                    "INSERT INTO fields VALUES (?, ?, ?, ?)",
                    [(key, kind(value), value, seq) for key, value in metadata.items()],
                )

    def delete(
        self,
        ids: Sequence[str] | None,
        document_ids: Sequence[str] | None,
        where: Filter | None,
    ) -> int:
        """Delete what matches every argument that is not None; how many chunks went."""
        conditions, values = [], []
        for column, wanted in (("id", ids), ("document_id", document_ids)):
            if wanted is not None:
                condition, operands = one_of(wanted)
                conditions.append(f"{column} {condition}")
                values += operands
        if where is not None:
            condition, operands = to_sql(where)
            conditions.append(condition)
            values += operands
        if not conditions:
            return 0
        with self._transaction() as db:
            return self._delete(db, " AND ".join(conditions), values)

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        """The chunks in the order asked for; missing ones left out."""
        condition, values = one_of(ids)
        rows = self._all(
            f"SELECT {_CHUNK} FROM chunks c JOIN contents t USING (seq) WHERE c.id {condition}",
            values,
        )
        found = {row[0]: _chunk(row) for row in rows}
        return [found[chunk_id] for chunk_id in ids if chunk_id in found]

    def vectors_of(self, ids: Sequence[str]) -> Vectors:
        """The vectors of the chunks in the order asked for; missing ones left out."""
        condition, values = one_of(ids)
        rows = self._all(
            f"SELECT id, vector FROM chunks JOIN contents USING (seq) WHERE id {condition}", values
        )
        found = dict(rows)
        return self._array(found[chunk_id] for chunk_id in ids if chunk_id in found)

    def chunks(self, seqs: Sequence[int]) -> dict[int, Chunk]:
        """The chunks by seq; missing ones left out. One that was read before may have gone since.

        A row never changes under its seq, so that those of late searches need not be read again.
        """
        recent = self._recent
        unread = [seq for seq in seqs if seq not in recent]
        rows: list[Any] = []
        if unread:
            rows = self._all(
                f"SELECT c.seq, {_CHUNK} FROM chunks c JOIN contents t USING (seq) "
                "WHERE c.seq IN (SELECT value FROM json_each(?))",
                [json.dumps(unread)],
            )
        new = {row[0]: row[1:] for row in rows}
        found = {seq: recent[seq] for seq in seqs if seq in recent} | new
        if len(recent) + len(new) > _RECENT:
            self._recent = {}
        self._recent.update(new)
        return {seq: _chunk(row) for seq, row in found.items()}

    def hits(
        self, find: Callable[[], Sequence[Sequence[tuple[float, int]]]], k: int
    ) -> list[list[Hit]]:
        """The `k` best hits of each row of (score, seq) pairs that `find` gives."""
        while True:
            generation = self.generation
            found = find()
            seqs = {seq for row in found for _, seq in row}
            chunks = self.chunks(sorted(seqs))
            # A chunk that went between the steps would leave fewer than k: look again.
            if len(chunks) == len(seqs) or generation == self.generation:
                return [rank(((s, chunks[q]) for s, q in row if q in chunks), k) for row in found]

    def seqs(self, where: Filter | None = None) -> NDArray[np.int64]:
        """The seq of every chunk that matches, ascending."""
        condition, values = to_sql(where)
        with self._connection() as db:
            rows = db.execute(f"SELECT seq FROM chunks WHERE {condition} ORDER BY seq", values)
            # A list of them would take 80 bytes each.
            return np.fromiter((row[0] for row in rows), np.int64)

    def vectors(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], Vectors]:
        """(seqs, vectors) of the chunks that are still there, ordered by seq."""
        rows = self._all(
            "SELECT seq, vector FROM contents WHERE seq IN (SELECT value FROM json_each(?)) "
            "ORDER BY seq",
            [json.dumps(seqs.tolist())],
        )
        return np.array([row[0] for row in rows], np.int64), self._array(row[1] for row in rows)

    def count(self, where: Filter | None = None) -> int:
        """How many chunks match."""
        condition, values = to_sql(where)
        return int(self._one(f"SELECT count(*) FROM chunks WHERE {condition}", values))

    def ids(self, batch: int = 1_000) -> Iterator[list[str]]:
        """Every id, in batches; what is deleted meanwhile disturbs nothing."""
        last = 0
        while rows := self._all(
            "SELECT seq, id FROM chunks WHERE seq > ? ORDER BY seq LIMIT ?", [last, batch]
        ):
            last = rows[-1][0]
            yield [row[1] for row in rows]

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        """See `rag.protocols.VectorStore.documents`."""
        return sql_documents.documents(self._all, where, containing, after, limit)

    def values(self, where: Filter | None = None) -> Iterator[Counted]:
        """Each value in the metadata of the chunks that match, and how many documents have it."""
        with self._connection() as db:
            yield from sql_documents.values(db, where)

    def scan(self, batch: int) -> Iterator[tuple[list[Chunk], Vectors]]:
        """Everything in batches, with vectors, in the order of writing."""
        last = 0
        while rows := self._all(
            f"SELECT c.seq, t.vector, {_CHUNK} FROM chunks c JOIN contents t USING (seq) "
            "WHERE c.seq > ? ORDER BY c.seq LIMIT ?",
            [last, batch],
        ):
            last = rows[-1][0]
            yield [_chunk(row[2:]) for row in rows], self._array(row[1] for row in rows)

    def notes(self) -> dict[str, str]:
        """The notes by name."""
        rows = self._all("SELECT value FROM meta WHERE key = 'notes'")
        return json.loads(rows[0][0]) if rows else {}

    def annotate(self, notes: Mapping[str, str]) -> None:
        """Write notes. The generation stays, as no index has to follow."""
        with self.exclusive():
            kept = json.dumps(check_notes(self.notes(), notes))
            self._all(
                "INSERT OR REPLACE INTO meta VALUES ('notes', ?), ('state', ?)", [kept, uuid4().hex]
            )

    @contextmanager
    def exclusive(self, *, keep: bool = False) -> Iterator[None]:
        """Be the only writer inside, and with `keep` until `close`.

        Raises StoreUnavailable if another process is.
        """
        with self._writing:
            self._check_there()  # before too, as to take the lock makes the folder
            if not (keep and self._lock.is_locked):
                acquire(self._lock, self.folder)
            try:
                self._check_there()
            except StoreUnavailable:  # and the lock is that of the collection there now
                self._lock.release(force=True)
                raise
            try:
                yield
            finally:
                if not keep:
                    self._lock.release()

    def close(self) -> None:
        """Close every connection and give the writer's lock back. Idempotent."""
        while self._idle:
            self._idle.pop().close()
        self._lock.release(force=True)

    def _check_there(self) -> None:
        try:
            same = self._path.stat().st_ino == self._inode
        except OSError:
            same = False
        if not same:
            raise gone(self.folder.name)

    def _array(self, blobs: Iterator[bytes]) -> Vectors:
        return np.frombuffer(b"".join(blobs), np.float32).reshape(-1, self.spec.dim)

    def _delete(self, db: sqlite3.Connection, condition: str, values: list[Any]) -> int:
        db.execute("CREATE TEMP TABLE IF NOT EXISTS doomed (seq INTEGER PRIMARY KEY)")
        db.execute("DELETE FROM temp.doomed")
        found = db.execute(
            f"INSERT INTO temp.doomed SELECT seq FROM chunks WHERE {condition}", values
        )
        if found.rowcount:
            for table in ("fields", "contents", "chunks"):
                db.execute(f"DELETE FROM {table} WHERE seq IN (SELECT seq FROM temp.doomed)")
        return found.rowcount

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One that no other thread uses meanwhile. Raises StoreUnavailable."""
        with _translated(self.folder):
            self._check_there()
            try:
                db = self._idle.pop()
            except IndexError:
                db = self._connect()
            try:
                yield db
            except BaseException:
                db.close()  # which rolls back
                raise
            self._idle.append(db)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
        # A commit is acknowledged only once it is on the disk.
        db.executescript("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;")
        db.execute(f"PRAGMA mmap_size = {_MAPPED}")
        db.create_function("holds", 3, holds, deterministic=True)
        return db

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._connection() as db:
            return db.execute(sql, values).fetchall()

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        with self._connection() as db:
            return db.execute(sql, values).fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self.exclusive(keep=True), self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(sql_documents.IN_ORDER)  # of files that were made before there was one
            yield db
            db.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
            db.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", [uuid4().hex])
            db.execute("COMMIT")


def write_lock(folder: Path) -> FileLock:
    """What the one writer of the collection in `folder` holds; the system frees it at a crash."""
    return FileLock(folder / "write.lock", timeout=0, thread_local=False)


def acquire(lock: FileLock, folder: Path) -> None:
    """Take the write lock. Raises StoreUnavailable if another process has it."""
    with _translated(folder):
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreUnavailable(
                f"collection {folder.name!r} is being written by another process",
                "wait until it is done, then run this again",
            ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of the collection inside. Raises StoreUnavailable, also for OSError."""
    lock = write_lock(folder)
    acquire(lock, folder)
    try:
        with _translated(folder):
            yield
    finally:
        lock.release()


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _unavailable(folder, str(error)) from error
    except OSError as error:
        raise _unavailable(folder, error.strerror or str(error)) from error


def _unavailable(folder: Path, reason: str) -> StoreUnavailable:
    if "full" in reason or "No space" in reason:
        hint = "free some space there and run this again; what was written before is kept"
    elif re.search("malformed|not a database|no such table", reason):
        hint = "the file is damaged: restore it, or delete the collection and ingest again"
    else:
        hint = "check that the folder exists and may be written"
    return StoreUnavailable(f"the store in {folder} failed ({reason})", hint)


def _chunk(row: Sequence[Any]) -> Chunk:
    values: list[Any] = [*row[:-1], dict(_metadata(row[-1]))]
    return Chunk(*values)


@lru_cache(maxsize=4096)
def _metadata(text: str) -> Mapping[str, Scalar]:
    """Parsed once: all chunks of a document have the same."""
    parsed: dict[str, Scalar] = json.loads(text)
    return parsed
