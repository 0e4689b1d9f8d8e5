"""What the tables of `stores.sqlite` say of documents and their metadata."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from rag.filters import Filter
from rag.types import DocumentKey, DocumentRecord
from stores.facets import Counted
from stores.sql_filters import to_sql

Ask: TypeAlias = Callable[[str, Sequence[Any]], list[Any]]
"""Gives the rows of a query. `holds` in it is `stores.records.holds`."""

IN_ORDER = (
    "CREATE INDEX IF NOT EXISTS chunks_in_order "
    "ON chunks (source, version, document_id, position, title, ingested_at)"
)
"""The index of `documents`, which holds all that is asked for; without it all is read, and sorted.

It takes some 130 bytes a chunk.
"""

_PLACE = "source, version, document_id"
_FIRST = DocumentKey("", "", "")  # before all others, as no id is empty
_NEAR = 20_000  # chunks, which take some 25 ms
_FEW = 30_000  # chunks


def documents(
    ask: Ask, where: Filter | None, containing: str, after: DocumentKey | None, limit: int | None
) -> Iterator[DocumentRecord]:
    """See `rag.protocols.VectorStore.documents`."""
    start, folded, most = after or _FIRST, containing.casefold(), -1 if limit is None else limit
    rows = None
    if where is not None and limit is not None:
        # Where much matches, a page is near, and found long before all that matches.
        end = ask(
            f"SELECT {_PLACE} FROM chunks WHERE ({_PLACE}) > (?, ?, ?) "
            f"ORDER BY {_PLACE} LIMIT 1 OFFSET ?",
            [*start, _NEAR],
        )
        near = [(f"({_PLACE}) <= (?, ?, ?)", list(key)) for key in end]
        rows = _rows(ask, [to_sql(where, each=True), *near], folded, start, most)
        if near and len(rows) < limit:
            rows = None
    if rows is None:
        rows = _rows(ask, [to_sql(where)], folded, start, most)
    for row in rows:
        fields: list[Any] = [*row[:-1], bool(row[-1])]
        yield DocumentRecord(*fields)


def values(db: sqlite3.Connection, where: Filter | None) -> Iterator[Counted]:
    """Each value in the metadata of the chunks that match, and how many documents have it."""
    condition, operands = to_sql(where)
    db.execute("BEGIN")  # so that both look at the same
    db.execute("CREATE TEMP TABLE matching (seq INTEGER PRIMARY KEY, document INTEGER NOT NULL)")
    # Numbers are told apart in a third of the time that ids take.
    chunks = db.execute(
        "INSERT INTO temp.matching SELECT seq, dense_rank() OVER (ORDER BY document_id) "
        f"FROM chunks WHERE {condition}",
        operands,
    ).rowcount
    # The fields of many are read in the order of their values, to sort them would take longer.
    tables = ("fields", "temp.matching") if chunks > _FEW else ("temp.matching", "fields")
    rows = db.execute(
        "SELECT key, kind, value, count(DISTINCT document) "
        f"FROM {' CROSS JOIN '.join(tables)} USING (seq) GROUP BY key, kind, value"
    ).fetchall()
    db.execute("ROLLBACK")
    for name, kind, value, count in rows:
        yield Counted(name, kind, bool(value) if kind == "bool" else value, count)


def _rows(
    ask: Ask,
    conditions: list[tuple[str, list[Any]]],
    folded: str,
    start: DocumentKey,
    most: int,
) -> list[Any]:
    condition = " AND ".join(condition for condition, _ in conditions)
    operands = [operand for _, operands in conditions for operand in operands]
    having = "HAVING holds(?, source, title)" if folded else ""
    return ask(
        # SQLite fills bare columns from the row that has the minimum: the chunk nearest the start.
        "SELECT document_id, source, title, version, count(*), ingested_at, min(position) = 0 "
        f"FROM chunks WHERE ({_PLACE}) > (?, ?, ?) AND {condition} "
        f"GROUP BY {_PLACE} {having} ORDER BY {_PLACE} LIMIT ?",
        [*start, *operands, *([folded] if folded else []), most],
    )
