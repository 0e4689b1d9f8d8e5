"""What a collection says of its documents, from their chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from rag.types import Chunk, DocumentKey, DocumentRecord


def page_of(
    records: Iterable[DocumentRecord], containing: str, after: DocumentKey | None, limit: int | None
) -> Iterator[DocumentRecord]:
    """Of records in order those that `rag.protocols.VectorStore.documents` is asked for."""
    folded = containing.casefold()
    found = (
        record
        for record in records
        if (after is None or record.key > after)
        and (not folded or holds(folded, record.source, record.title))
    )
    return islice(found, limit)


def holds(folded: str, source: str, title: str) -> bool:
    """Whether source or title contains a text, which is folded already, whatever the case."""
    return folded in source.casefold() or folded in title.casefold()


def records_of(chunks: Iterable[Chunk]) -> Iterator[DocumentRecord]:
    """A record for each version of each document, ordered by source, then version, then id."""
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
