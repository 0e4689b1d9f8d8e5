"""What is to be ingested or deleted: a queue on the disk. `rag.service.worker` works on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

from rag.errors import NotFound, Overloaded, RagError
from rag.service.database import Database
from rag.service.uploads import Upload, Uploads
from rag.types import Metadata

if TYPE_CHECKING:
    import sqlite3

Kind: TypeAlias = Literal["ingest", "delete"]
State: TypeAlias = Literal["queued", "running", "done", "failed"]
Stage: TypeAlias = Literal["waiting", "reading", "writing", "ended"]

_DEATHS = 5  # so often a job may take its process along
_KEPT_S = 7 * 86_400
_RETRY_S = 10.0
_REPEATED = "null"  # as metadata: the document's own, when the job is done
_DELETED = "the document was deleted before it was taken in; upload it again"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    collection TEXT NOT NULL, tenant_key TEXT NOT NULL, source TEXT NOT NULL,
    document_id TEXT NOT NULL, path TEXT NOT NULL, metadata TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued', stage TEXT NOT NULL DEFAULT 'waiting',
    files INTEGER NOT NULL DEFAULT 0, chunks INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    worker TEXT, report TEXT NOT NULL DEFAULT 'null', error TEXT NOT NULL DEFAULT '',
    added_at REAL NOT NULL, started_at REAL, ended_at REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, collection);
CREATE INDEX IF NOT EXISTS jobs_by_document ON jobs (collection, document_id);
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. Times are in seconds since the epoch, UTC.

    `error` is one line that says why it failed, or while it is queued, what it waits for. `report`
    is what `rag ingest --json` prints.
    """

    id: str
    kind: Kind
    collection: str
    source: str
    document_id: str
    state: State
    stage: Stage
    files: int
    chunks: int
    attempts: int
    report: dict[str, Any] | None
    error: str
    added_at: float
    started_at: float | None
    ended_at: float | None

    def to_json(self) -> dict[str, Any]:
        """The job as the service gives it."""
        return asdict(self)


_COLUMNS = ", ".join(Job.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Task:
    """A job that a worker has taken. `attempts` counts this one too.

    `metadata` None: the document is there, is taken in again from a file that stays where it is,
    and keeps the metadata that it was given.
    """

    seq: int
    id: str
    kind: Kind
    upload: Upload
    metadata: Metadata | None
    attempts: int


class Jobs:
    """The queue in `folder`/jobs.sqlite3, which all processes of a machine share.

    Synchronous: call it in threads. Every method raises StoreUnavailable when the file cannot be
    used.
    """

    def __init__(self, folder: Path, uploads: Uploads, max_jobs: int) -> None:
        """Up to `max_jobs` may wait."""
        self._uploads = uploads
        self._max_jobs = max_jobs
        self._db = Database(folder / "jobs.sqlite3", _SCHEMA)
        self.on_added: Callable[[], None] = lambda: None

    def check_room(self) -> None:
        """Raise Overloaded if the queue is full: before a file is received, so not in vain."""
        if self.queued() >= self._max_jobs:
            raise Overloaded(
                f"{self._max_jobs} jobs are waiting already", "try again in a while", _RETRY_S
            )

    def add(self, upload: Upload, tenant_key: str, metadata: Metadata) -> Job:
        """Have a file ingested; the job is on the disk when this returns.

        `metadata` is that of `uploads.stamped`. Raises Overloaded; then the file is dropped.
        """
        try:
            return self._add("ingest", upload, tenant_key, metadata)
        except RagError:
            self._uploads.discard(upload.path)
            raise

    def repeat(self, upload: Upload, tenant_key: str) -> Job:
        """Have a document taken in again, from a file that is never moved or dropped.

        Raises Overloaded.
        """
        return self._add("ingest", upload, tenant_key, None)

    def delete(self, collection: str, document_id: str, source: str, tenant_key: str) -> Job:
        """Have a document deleted, and its file, before anything that is added later.

        What is in the queue and would bring it back is cancelled. Raises Overloaded.
        """
        return self._add("delete", Upload(collection, source, document_id, Path()), tenant_key, {})

    def coming(self, collection: str, document_id: str, tenant_key: str) -> str | None:
        """The source of a document that is being taken in; None if it is not, or of another tenant.

        "" sees those of all tenants.
        """
        rows = self._db.rows(
            "SELECT source FROM jobs WHERE collection = ? AND document_id = ? "
            "AND ? IN ('', tenant_key) AND kind = 'ingest' AND state IN ('queued', 'running') "
            "AND NOT cancelled LIMIT 1",
            [collection, document_id, tenant_key],
        )
        return rows[0]["source"] if rows else None

    def get(self, job_id: str, tenant_key: str) -> Job:
        """The job. Raises NotFound if it is forgotten or of another tenant; "" sees all."""
        rows = self._db.rows(
            f"SELECT {_COLUMNS} FROM jobs WHERE id = ? AND ? IN ('', tenant_key)",
            [job_id, tenant_key],
        )
        if not rows:
            raise NotFound("there is no such job", "jobs are forgotten a week after they end")
        return _job(rows[0])

    def newest(
        self,
        tenant_key: str,
        limit: int,
        collections: Collection[str] | None = None,
        state: State | None = None,
    ) -> list[Job]:
        """Up to `limit` jobs of the tenant, of these collections, the one added last first.

        None are those of all collections, and in all states; "" is every tenant.
        """
        rows = self._db.rows(
            f"SELECT {_COLUMNS} FROM jobs WHERE ? IN ('', tenant_key) "
            "AND (? IS NULL OR collection IN (SELECT value FROM json_each(?))) "
            "AND state = coalesce(?, state) ORDER BY seq DESC LIMIT ?",
            [tenant_key, *[_json_list(collections)] * 2, state, limit],
        )
        return [_job(row) for row in rows]

    def queued(self) -> int:
        """How many jobs wait."""
        return int(self._db.rows("SELECT count(*) FROM jobs WHERE state = 'queued'")[0][0])

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    def due(self) -> list[str]:
        """The collections with jobs to try now or in work, the one that waits longest first."""
        rows = self._db.rows(
            "SELECT collection FROM jobs WHERE (state = 'queued' AND not_before <= ?) "
            "OR state = 'running' GROUP BY collection ORDER BY min(seq)",
            [time.time()],
        )
        return [row["collection"] for row in rows]

    def take(self, collection: str, worker: str) -> Task | None:
        """The next job of a collection on which nobody else works: what runs, its worker left.

        Deletions go first: what they could meet of their document is cancelled. Otherwise the jobs
        of a document are done in the order in which they came.
        """
        with self._db.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', stage = 'waiting', "
                "deaths = deaths + (worker != ?) WHERE collection = ? AND state = 'running'",
                [worker, collection],
            )
            dropped = _cancel(db, collection) + _end(
                db,
                f"its process died {_DEATHS} times; send the file in another format",
                f"collection = ? AND state = 'queued' AND deaths >= {_DEATHS}",
                [collection],
            )
            row = db.execute(
                "SELECT * FROM jobs j WHERE collection = ? AND state = 'queued' "
                "AND not_before <= ? AND NOT EXISTS (SELECT 1 FROM jobs e WHERE e.seq < j.seq "
                "AND e.collection = j.collection AND e.document_id = j.document_id "
                "AND e.state = 'queued') ORDER BY kind = 'delete' DESC, seq LIMIT 1",
                [collection, time.time()],
            ).fetchone()
            if row is not None:
                db.execute(
                    "UPDATE jobs SET state = 'running', stage = 'reading', error = '', worker = ?, "
                    "attempts = attempts + 1, started_at = coalesce(started_at, ?) WHERE seq = ?",
                    [worker, time.time(), row["seq"]],
                )
        self._discard(dropped)
        return None if row is None else _task(row)

    def note(self, task: Task, files: int, chunks: int) -> bool:
        """Write down how far the task is; whether to go on, as its document is not deleted."""
        with self._db.transaction() as db:
            rows = db.execute(
                "UPDATE jobs SET files = ?, chunks = ?, stage = ? WHERE seq = ? "
                "RETURNING cancelled",
                [files, chunks, "writing" if chunks else "reading", task.seq],
            ).fetchall()
        return not rows[0]["cancelled"]

    def done(self, task: Task, report: dict[str, Any] | None) -> None:
        """The task is done."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'done', stage = 'ended', report = ?, ended_at = ? "
                "WHERE seq = ?",
                [json.dumps(report), time.time(), task.seq],
            )

    def again(self, task: Task, why: str, wait_s: float) -> None:
        """The task goes back into the queue, for not before so many seconds."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', stage = 'waiting', error = ?, not_before = ? "
                "WHERE seq = ?",
                [why, time.time() + wait_s, task.seq],
            )

    def fail(self, task: Task, why: str) -> None:
        """The task failed for good; its file is dropped."""
        with self._db.transaction() as db:
            dropped = _end(db, why, "seq = ?", [task.seq])
        self._discard(dropped)

    def sweep(self) -> None:
        """Forget the jobs that ended a week ago, and delete the new files that no job names."""
        with self._db.transaction() as db:
            db.execute("DELETE FROM jobs WHERE ended_at < ?", [time.time() - _KEPT_S])
        rows = self._db.rows("SELECT path FROM jobs WHERE state IN ('queued', 'running')")
        self._uploads.sweep({Path(row["path"]) for row in rows})

    def _add(self, kind: Kind, upload: Upload, tenant_key: str, metadata: Metadata | None) -> Job:
        job_id = uuid4().hex
        dropped: list[sqlite3.Row] = []
        with self._db.transaction() as db:
            self.check_room()
            if kind == "delete":
                db.execute(
                    "UPDATE jobs SET cancelled = 1 WHERE collection = ? AND document_id = ? "
                    "AND kind = 'ingest' AND state IN ('queued', 'running')",
                    [upload.collection, upload.document_id],
                )
                dropped = _cancel(db, upload.collection)
            db.execute(
                "INSERT INTO jobs (id, kind, collection, tenant_key, source, document_id, path, "
                "metadata, added_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    *(job_id, kind, upload.collection, tenant_key, upload.source),
                    *(upload.document_id, str(upload.path), _json(metadata)),
                    time.time(),
                ],
            )
        self._discard(dropped)
        self.on_added()
        return self.get(job_id, tenant_key)

    def _discard(self, rows: list[sqlite3.Row]) -> None:
        for row in rows:
            if row["kind"] == "ingest" and row["metadata"] != _REPEATED:
                self._uploads.discard(Path(row["path"]))


def _cancel(db: sqlite3.Connection, collection: str) -> list[sqlite3.Row]:
    """End the queued jobs of documents that were deleted meanwhile."""
    where = "collection = ? AND state = 'queued' AND cancelled"
    return _end(db, _DELETED, where, [collection])


def _end(db: sqlite3.Connection, why: str, where: str, values: list[Any]) -> list[sqlite3.Row]:
    """Let jobs have failed; gives their kinds, files and metadata."""
    return db.execute(
        "UPDATE jobs SET state = 'failed', stage = 'ended', error = ?, ended_at = ? "
        f"WHERE {where} RETURNING kind, path, metadata",
        [why, time.time(), *values],
    ).fetchall()


def _json(metadata: Metadata | None) -> str:
    return _REPEATED if metadata is None else json.dumps(dict(metadata))


def _json_list(names: Collection[str] | None) -> str | None:
    return None if names is None else json.dumps(list(names))


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "report": json.loads(row["report"])})


def _task(row: sqlite3.Row) -> Task:
    upload = Upload(row["collection"], row["source"], row["document_id"], Path(row["path"]))
    metadata = json.loads(row["metadata"])
    return Task(row["seq"], row["id"], row["kind"], upload, metadata, row["attempts"] + 1)
