"""Collection -> the same collection with other vectors, in a shadow beside it.

The texts are taken from the store, not from the files: what can be found stays the same, and
searches go on in the old collection until the new one is whole.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.pipeline import embedding_text
from rag.errors import StoreError
from rag.filters import And, Compare
from rag.protocols import Embedder, VectorStore

_BATCH = 128
_ROUNDS = 5


def reembed(
    source: VectorStore,
    shadow: VectorStore,
    embedder: Embedder,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> int:
    """Make `shadow` hold the chunks of `source` with vectors of `embedder`; how many it embedded.

    What the shadow holds from an earlier run is kept. When the source is written to meanwhile, the
    difference is made up. Raises ContextTooLong when a chunk is too long for the embedder, and
    StoreError when the source does not come to rest.
    """
    embedded = 0
    for _ in range(_ROUNDS):
        embedded += _embed_missing(source, shadow, embedder, progress)
        _delete_surplus(source, shadow)
        if _contents(source) == _contents(shadow):
            return embedded
    raise StoreError(
        "the collection is being written to all the time", "run this again when it is at rest"
    )


def _embed_missing(
    source: VectorStore,
    shadow: VectorStore,
    embedder: Embedder,
    progress: Callable[[int, int], None],
) -> int:
    done, embedded, total = 0, 0, source.count()
    for chunks, _ in source.scan(_BATCH):
        there = {chunk.id: chunk for chunk in shadow.get([chunk.id for chunk in chunks])}
        missing = [chunk for chunk in chunks if there.get(chunk.id) != chunk]
        if missing:
            vectors = embedder.embed_documents([embedding_text(chunk) for chunk in missing])
            shadow.upsert(missing, vectors)
        embedded += len(missing)
        done += len(chunks)
        progress(done, total)
    return embedded


def _delete_surplus(source: VectorStore, shadow: VectorStore) -> None:
    """Delete what an earlier run, or this one, took from versions that are gone since."""
    kept = {(record.id, record.version) for record in source.documents()}
    for record in list(shadow.documents()):
        if (record.id, record.version) not in kept:
            version = And(
                (Compare("document_id", "eq", record.id), Compare("version", "eq", record.version))
            )
            shadow.delete(where=version)


def _contents(store: VectorStore) -> list[tuple[str, str, int]]:
    """What the store holds, as far as a write to it would show."""
    return sorted((record.id, record.version, record.chunks) for record in store.documents())
