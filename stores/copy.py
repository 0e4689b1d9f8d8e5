"""Store -> store: a collection moves without being embedded again.

Streams `scan` into `upsert`. The chunks at position 0 are left out and fetched at the end, because
their presence says that a document is whole: a copy that was cut short looks unfinished to
ingestion too. What the target already holds is kept, so the same call goes on where one stopped.
Notes go along once the copy is proven.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rag.errors import StoreError
from rag.protocols import VectorStore
from rag.types import Chunk

if TYPE_CHECKING:
    from rag.types import Vectors

_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class CopyReport:
    """`copied` chunks were written, `kept` were there already; both stores hash to `checksum`."""

    copied: int
    kept: int
    checksum: str
    copy_seconds: float
    verify_seconds: float


class Checksum:
    """The sum of the SHA-256 of each chunk and its vector: the same in any order of chunks."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, chunks: list[Chunk], vectors: Vectors | None = None) -> None:
        """Take in a batch; without vectors for collections of different embedders."""
        for number, chunk in enumerate(chunks):
            digest = hashlib.sha256(json.dumps(asdict(chunk), sort_keys=True).encode())
            if vectors is not None:
                digest.update(vectors[number].tobytes())
            self._sum += int.from_bytes(digest.digest()[:16])
        self.count += len(chunks)

    def hexdigest(self) -> str:
        """128 bits, in hexadecimal."""
        return f"{self._sum % 2**128:032x}"


def copy(
    source: VectorStore, target: VectorStore, progress: Callable[[int], None] = lambda _: None
) -> CopyReport:
    """Make `target` hold what `source` holds, and prove it by count and checksum.

    `progress` gets the number of chunks that are in the target. Memory grows with the number of
    documents alone, by an id each. Raises StoreError, before anything is written, when the target
    holds chunks that the source does not, and when it ends up with anything else because the source
    changed meanwhile.
    """
    started = time.perf_counter()
    expected = Checksum()
    copied = done = 0
    fresh = target.count() == 0
    its_own = target.describe().notes  # asked for before it is full, for this may make its index
    if not fresh:
        _refuse_others(source, target)
    for chunks, vectors in _first_ones_last(source, expected):
        there = {} if fresh else {chunk.id: chunk for chunk in target.get(_ids(chunks))}
        rows = [n for n, chunk in enumerate(chunks) if there.get(chunk.id) != chunk]
        if rows:
            target.upsert([chunks[n] for n in rows], vectors[rows])
        copied += len(rows)
        done += len(chunks)
        progress(done)
    ended = time.perf_counter()
    found = Checksum()
    for chunks, vectors in target.scan(_BATCH):
        found.add(chunks, vectors)
    if (found.count, found.hexdigest()) != (expected.count, expected.hexdigest()):
        raise StoreError(
            f"the copy has {found.count} chunks and checksum {found.hexdigest()}, "
            f"not {expected.count} and {expected.hexdigest()}",
            "the source changed meanwhile: run this again",
        )
    target.annotate({**dict.fromkeys(its_own, ""), **source.describe().notes})
    return CopyReport(
        copied,
        expected.count - copied,
        found.hexdigest(),
        ended - started,
        time.perf_counter() - ended,
    )


def _refuse_others(source: VectorStore, target: VectorStore) -> None:
    for chunks, _ in target.scan(_BATCH):
        others = len(chunks) - len(source.get(_ids(chunks)))
        if others:
            info = target.describe()
            raise StoreError(
                f"collection {info.collection!r} in {info.kind} holds other chunks already",
                "name a new one, or delete it first: "
                f"rag collections delete {info.collection} --store {info.kind}",
            )


def _first_ones_last(
    store: VectorStore, checksum: Checksum
) -> Iterator[tuple[list[Chunk], Vectors]]:
    """All chunks with their vectors, those at position 0 last; `checksum` takes them in."""
    first: list[str] = []
    for chunks, vectors in store.scan(_BATCH):
        checksum.add(chunks, vectors)
        first += [chunk.id for chunk in chunks if chunk.position == 0]
        rows = [n for n, chunk in enumerate(chunks) if chunk.position != 0]
        yield [chunks[n] for n in rows], vectors[rows]
    for start in range(0, len(first), _BATCH):
        ids = first[start : start + _BATCH]
        chunks, vectors = store.get(ids), store.vectors(ids)
        if len(chunks) == len(vectors):  # or else one went meanwhile, which the checksum will tell
            yield chunks, vectors


def _ids(chunks: list[Chunk]) -> list[str]:
    return [chunk.id for chunk in chunks]
