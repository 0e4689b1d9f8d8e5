"""Collection -> the same collection with other vectors, in a shadow beside it.

The texts are taken from the store, not from the files: what can be found stays the same, and
searches go on in the old collection until the new one is whole.
"""

from __future__ import annotations

from collections.abc import Callable

from ingest.embed import embed
from rag.errors import StoreError
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
        more = _embed_missing(source, shadow, embedder, progress)
        embedded += more
        if shadow.count() > source.count():
            _delete_surplus(source, shadow)
        # A pass that found every chunk as it is, and no more of them: nothing moved since.
        if not more and shadow.count() == source.count():
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
            vectors = embed(missing, embedder)
            shadow.upsert(missing, vectors)
        embedded += len(missing)
        done += len(chunks)
        progress(done, total)
    return embedded


def _delete_surplus(source: VectorStore, shadow: VectorStore) -> None:
    """Delete what an earlier run, or this one, took and the source no longer has."""
    for chunks, _ in shadow.scan():
        held = {chunk.id for chunk in source.get([chunk.id for chunk in chunks])}
        shadow.delete(ids=[chunk.id for chunk in chunks if chunk.id not in held])
