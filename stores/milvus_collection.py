"""Calls to one collection: loaded, read as recently as was promised, written by one at a time."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from rag.errors import UnknownCollection
from stores.checks import gone
from stores.milvus_connection import Connection, NotLoaded, TooLarge
from stores.milvus_filters import EVERY, both, literal, one_of

MOST = 16_384
"""The most rows that a server gives at once."""

MOST_IDS = 2_000
"""The most ids that an expression names."""

_SESSION_S = 60.0  # well over the bounded staleness of a server, 5 s by default
_FRESH = 1_000  # rows; 20,000 that are in no segment cost a search of Lite 0.7 s, otherwise 13 ms
_LOADED = ("query", "search", "hybrid_search")  # a new collection is loaded after 2 s on a server


@dataclass
class _Seen:
    """What this process knows of a collection.

    What others may have written is numbered by `stale`; up to `seen`, a read has waited for it.
    `fresh` rows of Lite are in no segment yet, and searched one by one; it takes one writer only.
    """

    stale: int = 1
    seen: int = 0
    written: float = -math.inf
    fresh: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)
    writing: threading.RLock = field(default_factory=threading.RLock)


_states: defaultdict[tuple[str, ...], _Seen] = defaultdict(_Seen)


class Collection:
    """What was the collection `name` when it was opened; in Milvus it is `own_name` for ever."""

    def __init__(self, milvus: Connection, name: str, own_name: str, consistency: str) -> None:
        self.milvus = milvus
        self._name = name
        self._own_name = own_name
        self._consistency = consistency
        self._loaded = False
        self._seen = _states[(*milvus.key, own_name)]

    def read(self, operation: str, *arguments: Any, **options: Any) -> Any:
        """A call that sees what this process wrote, and what others had written when it started."""
        if self._seen.fresh >= _FRESH:
            self.flush()
        stale = self._seen.stale
        level = options["consistency_level"] = self._level()
        found = self._call(operation, *arguments, **options)
        if level == "Strong":
            self._seen.seen = max(self._seen.seen, stale)
        return found

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        """Write rows; one of the same id is replaced."""
        lite = self.milvus.is_lite
        with self._writing():
            # Lite replaces in insert, and merges metadata in upsert; a server keeps both in insert.
            self._call("insert" if lite else "upsert", data=rows)
            self._seen.written = time.monotonic()
            self._seen.fresh += len(rows) if lite else 0

    def delete(self, condition: str) -> None:
        """Delete the rows that match."""
        with self._writing():
            self._call("delete", filter=condition)
            self._seen.written = time.monotonic()
            self._seen.stale += 1  # servers before 2.4 do not tell when: no session can wait for it

    def pages(self, condition: str, fields: list[str], size: int) -> Iterator[list[Any]]:
        """All rows that match, ordered by id. One that is written meanwhile comes at most once."""
        # Pages are read at the collection's own level: bounded. So wait here for what was promised.
        self.read("query", filter=EVERY, limit=1, output_fields=["id"])
        last = ""
        while True:
            try:
                rows = self._call(
                    "query",
                    filter=both(f"id > {literal(last)}", condition),
                    limit=size,
                    output_fields=fields,
                    # Ordered by id: without, neither Lite nor a newer server would be.
                    iterator="True",
                    reduce_stop_for_best="True",
                )
            except TooLarge:
                if size == 1:
                    raise
                size = (size + 1) // 2
                continue
            if not rows:
                return
            yield rows
            last = rows[-1]["id"]

    def rows(self, ids: Sequence[str], fields: list[str]) -> list[Any]:
        """The rows of these ids that are there, in any order."""
        most = MOST_IDS
        if 0 < len(ids) <= most:
            try:
                return list(self.read("query", filter=one_of("id", ids), output_fields=fields))
            except TooLarge:
                if len(ids) == 1:
                    raise
                most = (len(ids) + 1) // 2
        parts = [ids[start : start + most] for start in range(0, len(ids), most)]
        return [row for part in parts for row in self.rows(part, fields)]

    def count(self, condition: str) -> int:
        """How many rows match; an empty condition matches all."""
        found = self.read("query", filter=condition, output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def properties(self) -> Mapping[str, str]:
        """What is kept with the collection, by name.

        If others have changed it since the last time, the next read waits for what they wrote.
        """
        found: Mapping[str, str] = dict(self._call("describe_collection")["properties"])
        if found != self._seen.properties:
            self._seen.properties = found
            self._seen.stale += 1
        return found

    def set_property(self, name: str, value: str) -> None:
        """Keep a text with the collection; the other properties stay."""
        with self._writing():
            self._call("alter_collection_properties", {name: value})
            self._seen.properties = {**self._seen.properties, name: value}

    def flush(self) -> None:
        """Lite: put what was written into a segment with an index."""
        if self.milvus.is_lite:
            with self._writing():
                self._seen.fresh = 0
                self._call("flush")

    def _call(self, operation: str, *arguments: Any, **options: Any) -> Any:
        try:
            if not self._loaded and operation in _LOADED:
                self.milvus.load(self._own_name)
                self._loaded = True
            try:
                return self.milvus(operation, self._own_name, *arguments, **options)
            except NotLoaded:  # Lite was started again
                self.milvus.load(self._own_name)
                return self.milvus(operation, self._own_name, *arguments, **options)
        except UnknownCollection as error:
            raise gone(self._name) from error

    def _level(self) -> str:
        seen = self._seen
        if seen.seen < seen.stale or self._consistency == "Strong":
            return "Strong"
        if time.monotonic() - seen.written < _SESSION_S:
            return "Session"
        return self._consistency

    def _writing(self) -> AbstractContextManager[Any]:
        return self._seen.writing if self.milvus.is_lite else nullcontext()
