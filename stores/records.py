"""What a collection says of its documents, from their chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rag.types import Chunk, DocumentRecord


def records_of(chunks: Iterable[Chunk]) -> Iterator[DocumentRecord]:
    """A record for each version of each document, ordered by source, then version."""
    first: dict[tuple[str, str, str], Chunk] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for chunk in chunks:
        key = (chunk.source, chunk.version, chunk.document_id)
        counts[key] += 1
        if key not in first or chunk.position < first[key].position:
            first[key] = chunk
    for key in sorted(first):
        yield record_of(first[key], counts[key])


def record_of(first: Chunk, chunks: int) -> DocumentRecord:
    """The record of a version of which there are so many chunks, this one nearest its start."""
    return DocumentRecord(
        id=first.document_id,
        source=first.source,
        title=first.title,
        version=first.version,
        chunks=chunks,
        ingested_at=first.ingested_at,
        complete=first.position == 0,
    )
