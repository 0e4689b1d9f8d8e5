"""Evaluations that were asked for, and what came of them. `rag.service.evaluator` runs them."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

from rag.errors import NotFound, Overloaded
from rag.retrieve import Mode
from rag.service.database import Database

if TYPE_CHECKING:
    import sqlite3

    from rag.evaluation.metrics import PerQuery

State: TypeAlias = Literal["queued", "running", "done", "failed"]
Stage: TypeAlias = Literal["waiting", "reading", "indexing", "asking", "ended"]
Json: TypeAlias = dict[str, Any]

_KEPT = 100
_MOST_QUEUED = 100
_RETRY_S = 60.0
_LEFT = "its process ended; run it again"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    collection TEXT, dataset TEXT, modes TEXT NOT NULL, ks TEXT NOT NULL, "limit" INTEGER,
    state TEXT NOT NULL DEFAULT 'queued', stage TEXT NOT NULL DEFAULT 'waiting',
    done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '', settings TEXT NOT NULL DEFAULT '{}',
    results TEXT NOT NULL DEFAULT '[]', worst TEXT NOT NULL DEFAULT '[]', figures BLOB,
    added_at REAL NOT NULL, started_at REAL, ended_at REAL
);
CREATE INDEX IF NOT EXISTS evaluations_by_state ON evaluations (state);
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure.

    `dataset` None: questions are made out of the collection's documents. `collection` None: the
    dataset's own documents are searched, in a collection that is made for them.
    """

    collection: str | None
    dataset: str | None
    modes: tuple[Mode, ...]
    ks: tuple[int, ...]
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured, in `collection`. `figures` has those of each question, for each mode."""

    collection: str
    settings: Json
    results: list[Json]
    worst: list[Json]
    figures: Mapping[str, PerQuery]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation as it stands. Times are in seconds since the epoch, UTC.

    `done` of `total` are documents while the stage is "indexing", otherwise questions, over all
    modes. `error` is one line that says why it failed.
    """

    id: str
    collection: str | None
    dataset: str | None
    modes: list[Mode]
    ks: list[int]
    limit: int | None
    state: State
    stage: Stage
    done: int
    total: int
    error: str
    settings: Json
    added_at: float
    started_at: float | None
    ended_at: float | None
    results: list[Json] = field(default_factory=list)
    worst: list[Json] = field(default_factory=list)

    @property
    def wanted(self) -> Wanted:
        """What it is to measure."""
        modes, ks = tuple(self.modes), tuple(self.ks)
        return Wanted(self.collection, self.dataset, modes, ks, self.limit)

    def to_json(self) -> Json:
        """The evaluation as the service gives it."""
        return asdict(self)


_WHOLE = [f'"{name}"' for name in Evaluation.__dataclass_fields__]
_SUMMARY = ", ".join(_WHOLE[:-2])
_AS_JSON = ("modes", "ks", "settings", "results", "worst")


class Evaluations:
    """The evaluations in `folder`/evaluations.sqlite3, which all processes of a machine share.

    Synchronous: call it in threads. Every method raises StoreUnavailable when the file cannot be
    used. The newest 100 are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._db = Database(folder / "evaluations.sqlite3", _SCHEMA)
        self.on_added: Callable[[], None] = lambda: None

    def add(self, wanted: Wanted) -> Evaluation:
        """Have something measured. Raises Overloaded."""
        values = {**asdict(wanted), "id": uuid4().hex, "added_at": time.time()}
        values |= {name: json.dumps(values[name]) for name in ("modes", "ks")}
        names = ", ".join(f'"{name}"' for name in values)
        with self._db.transaction() as db:
            queued = db.execute("SELECT count(*) FROM evaluations WHERE state = 'queued'")
            if queued.fetchone()[0] >= _MOST_QUEUED:
                raise Overloaded(
                    f"{_MOST_QUEUED} evaluations are waiting already",
                    "delete some, or try again in a while",
                    _RETRY_S,
                )
            places = ", ".join("?" * len(values))
            db.execute(
                f"INSERT INTO evaluations ({names}) VALUES ({places})", list(values.values())
            )
            db.execute(
                "DELETE FROM evaluations WHERE state IN ('done', 'failed') AND seq NOT IN "
                "(SELECT seq FROM evaluations ORDER BY seq DESC LIMIT ?)",
                [_KEPT],
            )
        self.on_added()
        return self.get(values["id"])

    def get(self, evaluation_id: str) -> Evaluation:
        """The evaluation. Raises NotFound."""
        columns = ", ".join(_WHOLE)
        rows = self._db.rows(f"SELECT {columns} FROM evaluations WHERE id = ?", [evaluation_id])
        if not rows:
            raise _unknown()
        return _evaluation(rows[0])

    def newest(self, limit: int, collections: Collection[str] | None = None) -> list[Evaluation]:
        """Up to `limit` of these collections (None: of all), without results, newest first."""
        names = None if collections is None else json.dumps(list(collections))
        rows = self._db.rows(
            f"SELECT {_SUMMARY} FROM evaluations WHERE ? IS NULL OR collection IN "
            "(SELECT value FROM json_each(?)) ORDER BY seq DESC LIMIT ?",
            [names, names, limit],
        )
        return [_evaluation(row) for row in rows]

    def figures(self, evaluation_id: str) -> dict[str, PerQuery]:
        """Of each mode the figures of each question; {} unless it is done."""
        rows = self._db.rows("SELECT figures FROM evaluations WHERE id = ?", [evaluation_id])
        packed = rows[0]["figures"] if rows else None
        return {} if packed is None else json.loads(zlib.decompress(packed))

    def delete(self, evaluation_id: str) -> None:
        """Forget an evaluation; one that runs is stopped. Raises NotFound."""
        with self._db.transaction() as db:
            if not db.execute("DELETE FROM evaluations WHERE id = ?", [evaluation_id]).rowcount:
                raise _unknown()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    def due(self) -> bool:
        """Whether there is one to run, or one that runs or was left."""
        return bool(
            self._db.rows("SELECT 1 FROM evaluations WHERE state IN ('queued', 'running') LIMIT 1")
        )

    def take(self) -> Evaluation | None:
        """The next to run, for the one who runs them: what is running now, its process left."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE evaluations SET state = 'failed', stage = 'ended', error = ?, ended_at = ? "
                "WHERE state = 'running'",
                [_LEFT, time.time()],
            )
            row = db.execute(
                "UPDATE evaluations SET state = 'running', stage = 'reading', started_at = ? "
                "WHERE seq = (SELECT min(seq) FROM evaluations WHERE state = 'queued') "
                f"RETURNING {_SUMMARY}",
                [time.time()],
            ).fetchone()
        return None if row is None else _evaluation(row)

    def note(self, evaluation_id: str, stage: Stage, done: int, total: int) -> bool:
        """Write down how far it is; whether to go on, as it is not deleted."""
        with self._db.transaction() as db:
            noted = db.execute(
                "UPDATE evaluations SET stage = ?, done = ?, total = ? WHERE id = ?",
                [stage, done, total, evaluation_id],
            )
            return bool(noted.rowcount)

    def finish(self, evaluation_id: str, outcome: Outcome) -> None:
        """It is done."""
        texts = [json.dumps(part) for part in (outcome.settings, outcome.results, outcome.worst)]
        packed = zlib.compress(json.dumps(outcome.figures).encode())
        with self._db.transaction() as db:
            db.execute(
                "UPDATE evaluations SET state = 'done', stage = 'ended', done = total, "
                "collection = ?, settings = ?, results = ?, worst = ?, figures = ?, ended_at = ? "
                "WHERE id = ?",
                [outcome.collection, *texts, packed, time.time(), evaluation_id],
            )

    def fail(self, evaluation_id: str, why: str) -> None:
        """It failed for good."""
        with self._db.transaction() as db:
            db.execute(
                "UPDATE evaluations SET state = 'failed', stage = 'ended', error = ?, "
                "ended_at = ? WHERE id = ?",
                [why, time.time(), evaluation_id],
            )


def _unknown() -> NotFound:
    return NotFound("there is no such evaluation", f"the newest {_KEPT} are kept")


def _evaluation(row: sqlite3.Row) -> Evaluation:
    values = dict(row)
    return Evaluation(**values | {n: json.loads(values[n]) for n in _AS_JSON if n in values})
