"""A collection's vectors made anew beside the old ones, and swapped in when they are whole.

Notes of the collections tell what they are, so that a run that died is gone on with, and a swap
that it began is finished by whoever opens the collection next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

from rag.errors import (
    DimensionMismatch,
    EmbedderMismatch,
    MetricMismatch,
    StoreError,
    UnknownCollection,
)
from rag.protocols import Embedder, StoreBackend, VectorStore
from rag.types import CollectionSpec, StoreInfo

# Notes: for which collection it gathers new vectors; which one it replaces, now that it is whole.
_SHADOW, _REPLACES = "shadow_of", "replaces"


def open_whole(backend: StoreBackend, name: str) -> VectorStore:
    """The collection; if a run died while it was being replaced, that is finished first.

    Raises UnknownCollection.
    """
    try:
        return backend.open(name)
    except UnknownCollection:
        for other in backend.collections():
            if other.startswith(f"{name[:55]}--") and _notes(backend, other).get(_REPLACES) == name:
                _replace(backend, name, other)
                return backend.open(name)
        raise


def reembed(
    backend: StoreBackend,
    name: str,
    embedder: Embedder,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> int:
    """Give a collection the vectors of `embedder`; returns how many chunks were embedded."""
    from ingest.reembed import reembed as embed_anew

    shadow_name = f"{name[:55]}--{'then' if name.endswith('--next') else 'next'}"
    embedded = 0
    # Twice: what is written while the shadow is closed, which indexes it, must come along.
    for whole in (False, True):
        with (
            closing(open_whole(backend, name)) as source,
            closing(_shadow(backend, shadow_name, source.describe(), embedder)) as shadow,
        ):
            embedded += embed_anew(source, shadow, embedder, progress)
            if whole:
                shadow.annotate({_REPLACES: name})
    _replace(backend, name, shadow_name)
    return embedded


def _replace(backend: StoreBackend, name: str, by: str) -> None:
    backend.replace(name, by=by)
    with closing(backend.open(name)) as store:
        store.annotate({_SHADOW: "", _REPLACES: ""})


def _notes(backend: StoreBackend, name: str) -> Mapping[str, str]:
    with closing(backend.open(name)) as store:
        return store.describe().notes


def _shadow(backend: StoreBackend, name: str, source: StoreInfo, embedder: Embedder) -> VectorStore:
    """The collection in which new vectors are gathered: made, or what an earlier run left."""
    if name in backend.collections() and not _is_shadow(backend, name, source.collection):
        raise StoreError(
            f"the collection {name!r} stands where the new vectors are to be gathered",
            "copy it to another name and delete it",
        )
    made_by = embedder.fingerprint
    spec = CollectionSpec(name, made_by.dim, source.metric, made_by)
    try:
        shadow = backend.create(spec)
    except (DimensionMismatch, MetricMismatch, EmbedderMismatch):  # of another run
        backend.drop(name)
        shadow = backend.create(spec)
    shadow.annotate({_SHADOW: source.collection})
    return shadow


def _is_shadow(backend: StoreBackend, name: str, of: str) -> bool:
    with closing(backend.open(name)) as store:
        info = store.describe()
        # A run that died just after it made the collection had not marked it.
        return info.notes.get(_SHADOW) == of or not (info.count or info.notes)
