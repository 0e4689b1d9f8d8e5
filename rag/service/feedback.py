"""Answers that were given, and what people said of them.

Questions are kept for this alone: so that who rates an answer need not send it again, and so that
`rag feedback export` can make judgements of the ratings. Of each answer the question, the ids of
the passages and the model are kept, never its text: for a week, and the newest 500,000, in
`answers.sqlite3`. When it is rated that goes to `feedback.sqlite3`, with the rating and the
comment: the newest 100,000 until somebody deletes the file.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

from rag.errors import InputError, NotFound, RagError
from rag.service.database import Database

if TYPE_CHECKING:
    import sqlite3

ANSWERS, FEEDBACK = "answers.sqlite3", "feedback.sqlite3"
RATINGS: tuple[RatingName, ...] = ("up", "down")
RatingName: TypeAlias = Literal["up", "down"]

BATCH_S = 0.2  # how long an answer waits in memory
_WAITING = 4_096  # answers, some MB; more only while the disk does not keep up
_ANSWERS_S, _ANSWERS = 7 * 86_400, 500_000
_RATINGS = 100_000
_FORGET_S = 60.0
_COMMENT = 4_000  # characters

_ANSWERED = """request_id TEXT NOT NULL, tenant_key TEXT NOT NULL, collection TEXT NOT NULL,
    question TEXT NOT NULL, model TEXT NOT NULL, cited TEXT NOT NULL, found TEXT NOT NULL,
    at REAL NOT NULL"""
_ANSWERS_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, {_ANSWERED}, UNIQUE (request_id, tenant_key));
"""
_FEEDBACK_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS ratings (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, caller TEXT NOT NULL,
    rating TEXT NOT NULL, comment TEXT NOT NULL, rated_at REAL NOT NULL, {_ANSWERED},
    UNIQUE (request_id, tenant_key, caller));
"""

Passage: TypeAlias = tuple[str, str]
"""Ids: of a document, and of the chunk in it."""


@dataclass(frozen=True, slots=True)
class Given:
    """An answer that was given: to what, and from what. `at` is in seconds since the epoch.

    `question` should be the one that was searched for, as it stands alone. `found` has every
    passage that the model saw, `cited` those that the answer names.
    """

    request_id: str
    tenant_key: str
    collection: str
    question: str
    model: str
    cited: tuple[Passage, ...]
    found: tuple[Passage, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Rating:
    """What somebody said of an answer. `rated_at` is in seconds since the epoch."""

    id: str
    caller: str
    rating: RatingName
    comment: str
    rated_at: float
    answer: Given


_COLUMNS = ", ".join(field.name for field in fields(Given))
_MARKS = ", ".join("?" for _ in fields(Given))


class Answers:
    """The answers that can be rated, in `folder`/answers.sqlite3, for all processes of a machine.

    `remember` takes microseconds and may be called in an event loop; the others are for threads.
    """

    def __init__(self, folder: Path) -> None:
        self._db = Database(folder / ANSWERS, _ANSWERS_SCHEMA)
        self._waiting: deque[Given] = deque()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._some = threading.Event()
        self._closed = threading.Event()
        self._forgotten = 0.0
        self.dropped = 0
        """How many answers cannot be rated, because the disk did not keep up or failed."""
        self._thread = threading.Thread(target=self._write, name="answers", daemon=True)
        self._thread.start()

    def remember(self, answer: Given) -> None:
        """Keep an answer, from within a fraction of a second on. Never fails, never waits."""
        with self._lock:
            self._waiting.append(answer)
            if len(self._waiting) > _WAITING:
                self._waiting.popleft()
                self.dropped += 1
        self._some.set()

    def get(self, request_id: str, tenant_key: str) -> Given:
        """The answer. Raises NotFound if it is not known, or of another tenant.

        One that another process gave is known after `BATCH_S`.
        """
        self.flush()
        rows = self._db.rows(
            f"SELECT {_COLUMNS} FROM answers WHERE request_id = ? AND tenant_key = ?",
            [request_id, tenant_key],
        )
        if not rows:
            raise NotFound("there is no such answer", "answers can be rated for a week")
        return _given(rows[0])

    def flush(self) -> None:
        """Have what was remembered on the disk. What cannot be written is dropped, and counted."""
        with self._flushing:
            with self._lock:
                batch, self._waiting = list(self._waiting), deque()
            try:
                if batch:
                    self._insert(batch)
            except RagError:
                with self._lock:
                    self.dropped += len(batch)
                raise

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._closed.set()
        self._some.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._db.close()

    def _insert(self, batch: Sequence[Given]) -> None:
        with self._db.transaction() as db:
            db.executemany(
                f"INSERT OR REPLACE INTO answers ({_COLUMNS}) VALUES ({_MARKS})",
                map(_row, batch),
            )
            if time.monotonic() - self._forgotten > _FORGET_S:
                self._forgotten = time.monotonic()
                db.execute(
                    "DELETE FROM answers WHERE at < ? OR seq <= (SELECT max(seq) FROM answers) - ?",
                    [time.time() - _ANSWERS_S, _ANSWERS],
                )

    def _write(self) -> None:
        while not self._closed.is_set():
            self._some.wait()
            self._closed.wait(BATCH_S)
            self._some.clear()
            try:
                self.flush()
            except RagError:  # counted; a rating of one of them will say that it is not known
                continue


class Feedback:
    """The ratings in `folder`/feedback.sqlite3. Synchronous; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._db = Database(folder / FEEDBACK, _FEEDBACK_SCHEMA)

    def add(self, answer: Given, caller: str, rating: RatingName, comment: str = "") -> str:
        """Keep a rating; it is on the disk when this returns. Gives its id.

        One by the same caller of the same answer is replaced. Raises InputError.
        """
        _check(rating, comment)
        with self._db.transaction() as db:
            row = db.execute(
                "INSERT INTO ratings (id, caller, rating, comment, rated_at, "
                f"{_COLUMNS}) VALUES (?, ?, ?, ?, ?, {_MARKS}) "
                "ON CONFLICT (request_id, tenant_key, caller) DO UPDATE SET "
                "rating = excluded.rating, comment = excluded.comment, "
                "rated_at = excluded.rated_at RETURNING id",
                [uuid4().hex, caller, rating, comment, time.time(), *_row(answer)],
            ).fetchone()
            db.execute(
                "DELETE FROM ratings WHERE seq <= (SELECT max(seq) FROM ratings) - ?", [_RATINGS]
            )
        return str(row["id"])

    def ratings(self, collection: str | None = None) -> list[Rating]:
        """Those of a collection, or all of them, in the order in which they first came."""
        rows = self._db.rows(
            "SELECT * FROM ratings WHERE ? IS NULL OR collection = ? ORDER BY seq",
            [collection, collection],
        )
        return [
            Rating(
                *(row["id"], row["caller"], row["rating"], row["comment"], row["rated_at"]),
                answer=_given(row),
            )
            for row in rows
        ]

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()


def _check(rating: str, comment: str) -> None:
    if rating not in RATINGS:
        raise InputError(f"the rating is {rating[:20]!r}", "use up or down")
    if len(comment) > _COMMENT:
        raise InputError(f"the comment is over {_COMMENT} characters", "send a shorter one")
    try:
        comment.encode()
    except UnicodeEncodeError as error:
        raise InputError("the comment is not valid Unicode", "send it again") from error


def _row(answer: Given) -> tuple[Any, ...]:
    """The columns of an answer."""
    cited = json.dumps(answer.cited)
    found = cited if answer.found == answer.cited else json.dumps(answer.found)
    return (
        *(answer.request_id, answer.tenant_key, answer.collection, answer.question),
        *(answer.model, cited, found, answer.at),
    )


def _given(row: sqlite3.Row) -> Given:
    values = {field.name: row[field.name] for field in fields(Given)}
    for name in ("cited", "found"):
        values[name] = tuple((document, chunk) for document, chunk in json.loads(values[name]))
    return Given(**values)
