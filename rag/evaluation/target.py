"""A dataset's corpus in a collection of its own, which is kept and reused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from ingest.embed import EMBED_VERSION
from ingest.pipeline import Options, ingest_documents
from ingest.split import SPLITTER_VERSION
from rag.evaluation.corpus import Corpus
from rag.protocols import Embedder, StoreBackend, VectorStore
from rag.types import CollectionSpec, Metric
from stores.copy import copy


def indexed(
    corpus: Corpus,
    backend: StoreBackend,
    embedder: Embedder,
    *,
    metric: Metric,
    options: Options,
    index: str = "",
    like: VectorStore | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> str:
    """The name of the collection that holds the corpus, made as ingestion would make it.

    The name tells all that shapes the collection, `index` (the store's kind of index) too. `like`
    is the same collection in another store, from which vectors are taken. `progress` gets (done,
    of) documents.
    """
    made_by = embedder.fingerprint
    name = corpus.collection(
        made_by,
        options.tokens,
        options.overlap,
        SPLITTER_VERSION,
        EMBED_VERSION,
        metric,
        index,
    )
    with closing(backend.create(CollectionSpec(name, made_by.dim, metric, made_by))) as store:
        total = len(corpus.ids)
        info = store.describe()
        if like is not None and not info.count:
            copy(like, store)
        say(
            f"{'using' if info.count else 'indexing'} collection {name} of {info.kind}, "
            f"{total} documents"
        )
        ingest_documents(
            corpus.documents(),
            store=store,
            embedder=embedder,
            options=options,
            progress=lambda now: progress(now.files, total),
        )
    return name
