"""Requests to one Pinecone index: within its limits, eight at a time, errors in one line.

Threads and not asyncio: writing 10,000 vectors eight requests at a time takes 5.7 s with threads,
5.9 s with asyncio and 5.7 s with gRPC, by the SDK's own documentation, and threads do not mind an
event loop that runs already, as in a notebook.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from pinecone import (
    ApiError,
    ForbiddenError,
    Index,
    NotFoundError,
    PineconeConnectionError,
    PineconeError,
    PineconeTimeoutError,
    RateLimitError,
    ServiceError,
    UnauthorizedError,
    Vector,
)

from rag.errors import StoreError, StoreUnavailable
from rag.types import Metric
from stores.pinecone_records import Body, as_kept, json_size

if TYPE_CHECKING:
    from pinecone import FetchByMetadataResponse, ListResponse, ScoredVector

MOST_K = 10_000
METRICS: dict[str, Metric] = {"cosine": "cosine", "dotproduct": "ip", "euclidean": "l2"}

_AT_ONCE = 8
_MOST_RECORDS = 1_000  # of an upsert or a delete
_MOST_BYTES = 1_900_000  # of an upsert; Pinecone takes 2 MB
_FLOAT_BYTES = 25  # of a number in JSON, at most
_PAGE = 100  # ids that a list gives, and so those of a fetch
_MOST_URL = 6_000  # characters of ids in a fetch

T = TypeVar("T")
R = TypeVar("R")
P = TypeVar("P", "ListResponse", "FetchByMetadataResponse")


@dataclass(frozen=True)
class Waiting:
    """Whether a write waits until reads see it, and for how long anything is waited for."""

    visible: bool
    seconds: float


class Connection:
    """One index. `dim` and `metric` are what it says of itself. Safe to share between threads."""

    def __init__(
        self, name: str, host: str, index: Index, dim: int, metric: Metric, waiting: Waiting
    ) -> None:
        self.name, self.host, self.dim, self.metric = name, host, dim, metric
        self._waiting = waiting
        self._index = index
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="pinecone")
        # What records that are never searched have for a vector: Pinecone refuses zeros.
        self.probe = [1.0] + [0.0] * (dim - 1)

    @property
    def shows_writes(self) -> bool:
        """Whether reads see what was written once the write has returned."""
        return self._waiting.visible

    def upsert(self, namespace: str, *waves: Iterable[Vector]) -> None:
        """Write records, each wave after the one before, and wait until reads see them."""
        reached = 0
        parts = [list(_parts(wave, _MOST_RECORDS, _MOST_BYTES, self._bytes)) for wave in waves]
        # In the order of the log, the last of each request stands for the whole.
        last = {part[-1].id: as_kept(part[-1].metadata or {}) for some in parts for part in some}
        before = self._bodies(namespace, last) if self._waiting.visible else {}
        for batches in parts:
            answers = self._each(
                lambda batch: self._index.upsert(vectors=batch, namespace=namespace), batches
            )
            for answer in answers:
                info = answer.response_info
                reached = max(reached, (info and info.lsn_committed) or 0)
        if last and self._waiting.visible:
            self.wait(lambda: self._shows(namespace, last, before, reached))

    def delete(self, namespace: str, chunk_ids: Mapping[str, str]) -> None:
        """Delete the records that are keys, and wait until reads do not see them.

        The values are the ids of their chunks.
        """
        records = list(chunk_ids)
        self.delete_unseen(namespace, records)
        if records and self._waiting.visible:
            last = [some[-1] for some in _parts(records, _MOST_RECORDS)]
            where = {"id": {"$in": [chunk_ids[record] for record in last]}}
            self.wait(lambda: not self._shows_any(namespace, last, where))

    def delete_unseen(self, namespace: str, ids: Sequence[str]) -> None:
        """Delete records without waiting."""
        with suppress(_NoNamespace):
            self._each(
                lambda some: self._index.delete(ids=some, namespace=namespace),
                list(_parts(ids, _MOST_RECORDS)),
            )

    def fetch(self, namespace: str, ids: Iterable[str]) -> dict[str, Vector]:
        """The records that are there, by id."""
        found: dict[str, Vector] = {}
        for answer in self._each(
            lambda some: self._index.fetch(ids=some, namespace=namespace),
            list(_parts(ids, _PAGE, _MOST_URL, _url_length)),
        ):
            found |= answer.vectors
        return found

    def ids(self, namespace: str, prefix: str = "") -> Iterator[list[str]]:
        """The ids that begin with `prefix`, sorted, a page at a time."""
        for page in self._paged(
            lambda token: self._index.list_paginated(
                prefix=prefix, limit=_PAGE, pagination_token=token, namespace=namespace
            )
        ):
            yield [item.id for item in page.vectors if item.id is not None]

    def all_ids(self, namespace: str, prefixes: Sequence[str]) -> list[str]:
        """The ids that begin with one of these."""
        found = self._each(lambda prefix: list(self.ids(namespace, prefix)), prefixes)
        return [record for pages in found for page in pages for record in page]

    def has(self, namespace: str, prefix: str = "") -> bool:
        """Whether some id begins with `prefix`."""
        page = self._asked(
            lambda: self._index.list_paginated(prefix=prefix, limit=1, namespace=namespace)
        )
        return bool(page.vectors)

    def matching(self, namespace: str, where: Body) -> Iterator[dict[str, Vector]]:
        """The records that match a filter, a page at a time."""
        for page in self._paged(
            lambda token: self._index.fetch_by_metadata(
                filter=where, limit=_PAGE, pagination_token=token, namespace=namespace
            )
        ):
            yield page.vectors

    def query(
        self,
        namespace: str,
        vectors: Sequence[list[float]],
        n: int,
        where: Body | None = None,
        *,
        metadata: bool = False,
    ) -> list[list[ScoredVector]]:
        """The `n` nearest of each vector, in any order: Pinecone does not always sort them."""
        answers = self._each(
            lambda vector: self._index.query(
                vector=vector,
                top_k=n,
                namespace=namespace,
                filter=where,
                include_metadata=metadata,
            ),
            vectors,
        )
        return [answer.matches for answer in answers]

    def count(self, namespace: str) -> int:
        """How many records the namespace has; the figure may lag behind by seconds."""
        stats = self._asked(self._index.describe_index_stats)
        summary = stats.namespaces.get(namespace)
        return summary.vector_count if summary else 0

    def drop(self, namespace: str) -> None:
        """Delete a namespace, if it is there."""
        with suppress(_NoNamespace):
            self._asked(lambda: self._index.delete_namespace(name=namespace))

    def wait(self, holds: Callable[[], bool]) -> None:
        """Return as soon as `holds`. Raises StoreUnavailable if it does not in time."""
        end = time.monotonic() + self._waiting.seconds
        pause = 0.02
        while not holds():
            if time.monotonic() >= end:
                raise StoreUnavailable(
                    f"Pinecone took a write to index {self.name!r}, but does not show it "
                    f"after {self._waiting.seconds:g} s",
                    "run this again later, or raise stores.pinecone.wait_seconds",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def close(self) -> None:
        """Free the connections."""
        self._pool.shutdown()
        self._index.close()

    def _shows(
        self, namespace: str, last: dict[str, Body], before: dict[str, Body], reached: int
    ) -> bool:
        """Whether searches (by the number of the log) and fetches see the last records.

        Another writer may have changed one since: then it is neither this nor what was before.
        """
        if reached:
            answer = self._asked(
                lambda: self._index.query(vector=self.probe, top_k=1, namespace=namespace)
            )
            seen = answer.response_info.lsn_reconciled if answer.response_info else None
            if seen is not None and seen < reached:
                return False
        found = self._bodies(namespace, last)
        return all(found.get(i) == last[i] or found.get(i) != before.get(i) for i in last)

    def _bodies(self, namespace: str, ids: Iterable[str]) -> dict[str, Body]:
        found = self.fetch(namespace, ids)
        return {i: as_kept(record.metadata or {}) for i, record in found.items()}

    def _bytes(self, record: Vector) -> int:
        """At most the bytes of the record in an upsert."""
        return self.dim * _FLOAT_BYTES + json_size(record.metadata or {}) + len(record.id)

    def _shows_any(self, namespace: str, records: list[str], where: Body) -> bool:
        """Whether a search with this filter, or a fetch, sees one of the records."""
        # A chunk that moved has a record of another id.
        found = self.query(namespace, [self.probe], 2 * len(records), where)[0]
        return bool({match.id for match in found} & set(records) or self.fetch(namespace, records))

    def _each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """What the function returns for each item; several run at the same time."""
        if len(items) == 1:
            return [self._asked(lambda: function(items[0]))]
        return list(self._pool.map(lambda item: self._asked(lambda: function(item)), items))

    def _paged(self, ask: Callable[[str | None], P]) -> Iterator[P]:
        token: str | None = None
        while True:
            page = self._asked(partial(ask, token))
            yield page
            token = page.pagination.next if page.pagination else None
            if not token:
                return

    def _asked(self, call: Callable[[], R]) -> R:
        """What the call returns; it is made again while Pinecone says that there are too many.

        A namespace takes 100 queries and 100 writes a second, which eight threads can exceed for
        longer than the SDK is patient.
        """
        end = time.monotonic() + self._waiting.seconds
        pause = 0.25
        while True:
            with translated(self.host):
                try:
                    return call()
                except RateLimitError as error:
                    if time.monotonic() >= end:
                        raise
                    time.sleep(error.retry_after or pause)
                    pause = min(pause * 2, 8.0)
                except NotFoundError as error:
                    if "namespace" in error.message.lower():
                        raise _NoNamespace(f"Pinecone says: {error.message}") from error
                    raise


class _NoNamespace(StoreError):
    """Nothing was ever written to the namespace, or it was deleted."""


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Raise StoreError or StoreUnavailable, in one line, for what the SDK raises inside.

    The SDK has tried transient failures four times before it raises.
    """
    try:
        yield
    except UnauthorizedError as error:
        raise StoreUnavailable(
            f"Pinecone at {address} refuses the API key", "set stores.pinecone.api_key"
        ) from error
    except ForbiddenError as error:
        raise StoreUnavailable(
            f"Pinecone at {address} does not allow this ({error.message})",
            "check what the API key may do, and the limits of the plan",
        ) from error
    except NotFoundError as error:
        raise StoreUnavailable(
            f"Pinecone at {address} has no such index ({error.message})",
            "check stores.pinecone.index and stores.pinecone.host",
        ) from error
    except RateLimitError as error:
        raise StoreUnavailable(
            f"Pinecone at {address} has had too many requests", "wait a while and run this again"
        ) from error
    except (ServiceError, PineconeTimeoutError, PineconeConnectionError) as error:
        raise StoreUnavailable(
            f"Pinecone at {address} does not answer ({error})",
            "check the network and https://status.pinecone.io, then run this again",
        ) from error
    except ApiError as error:
        raise StoreError(f"Pinecone at {address} refuses a request ({error.message})") from error
    except PineconeError as error:
        raise StoreError(f"Pinecone at {address} failed ({error})") from error


def _url_length(record_id: str) -> int:
    return len(quote(record_id, safe="")) + len("ids=&")


def _parts(
    items: Iterable[T], most: int, room: int = 0, size: Callable[[T], int] = lambda _: 0
) -> Iterator[list[T]]:
    """The items in order, `most` in a part, and not larger than `room` but where one alone is."""
    part: list[T] = []
    left = room
    for item in items:
        left -= size(item)
        if part and (len(part) == most or left < 0):
            yield part
            part, left = [], room - size(item)
        part.append(item)
    if part:
        yield part
