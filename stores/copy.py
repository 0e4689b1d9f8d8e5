"""Store -> store: a collection moves without being embedded again.

Streams `scan` into `upsert`. The chunks at position 0 go last, in a pass of their own, because
their presence says that a document is whole: a copy that was cut short looks unfinished to
ingestion too. What the target already holds is kept, so the same call goes on where one stopped.
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

    `progress` gets the number of chunks that are in the target. Memory does not grow with the
    collection. Raises StoreError when the target ends up with anything else, because it held
    something else before or the source changed meanwhile.
    """
    started = time.perf_counter()
    expected = Checksum()
    copied = 0
    fresh = target.count() == 0
    for first in (False, True):
        for chunks, vectors in _part(source, first=first):
            expected.add(chunks, vectors)
            there = {} if fresh else {chunk.id: chunk for chunk in target.get(_ids(chunks))}
            rows = [n for n, chunk in enumerate(chunks) if there.get(chunk.id) != chunk]
            if rows:
                target.upsert([chunks[n] for n in rows], vectors[rows])
                copied += len(rows)
            progress(expected.count)
    ended = time.perf_counter()
    found = Checksum()
    for chunks, vectors in target.scan(_BATCH):
        found.add(chunks, vectors)
    if (found.count, found.hexdigest()) != (expected.count, expected.hexdigest()):
        raise StoreError(
            f"the copy has {found.count} chunks and checksum {found.hexdigest()}, "
            f"not {expected.count} and {expected.hexdigest()}",
            "if the source changed meanwhile, run this again; otherwise delete the copy first",
        )
    return CopyReport(
        copied,
        expected.count - copied,
        found.hexdigest(),
        ended - started,
        time.perf_counter() - ended,
    )


def _part(store: VectorStore, *, first: bool) -> Iterator[tuple[list[Chunk], Vectors]]:
    """The chunks at position 0, or all others, with their vectors."""
    for chunks, vectors in store.scan(_BATCH):
        rows = [n for n, chunk in enumerate(chunks) if (chunk.position == 0) is first]
        if rows:
            yield [chunks[n] for n in rows], vectors[rows]


def _ids(chunks: list[Chunk]) -> list[str]:
    return [chunk.id for chunk in chunks]
