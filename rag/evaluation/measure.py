"""One collection, as it is searched for people, measured on one dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from rag.evaluation.ann import QUERIES, ann_recall
from rag.evaluation.dataset import Dataset, judged_in, sample
from rag.evaluation.evaluate import Evaluation, evaluate
from rag.evaluation.files import counted
from rag.filters import Filter
from rag.retrieve import Retriever, SearchOptions
from rag.types import Chunk, Hit

ANN_RECALL = "ann_recall@10"


def measure(
    retriever: Retriever,
    dataset: Dataset,
    ks: Sequence[int],
    *,
    options: SearchOptions,
    where: Filter | None = None,
    name: Callable[[Chunk], str] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Evaluation:
    """The figures of a retriever, of its index too where vectors are searched.

    `name` gives the id by which a chunk is judged, where the dataset has been checked against the
    collection already. What failed on the way is told in `remarks`. For `progress` see `evaluate`.
    """
    if name is None:
        dataset, name = judged_in(dataset, retriever.store)
    degraded: Counter[str] = Counter()

    def search(questions: Sequence[str], k: int) -> list[list[Hit]]:
        found = retriever.search_many(questions, k, where, options)
        degraded.update(part for one in found for part in one.degraded)
        return [one.hits for one in found]

    done = evaluate(search, dataset, ks, name, progress)
    if options.mode != "keyword":
        asked = sample(list(dataset.queries.values()), QUERIES)
        vectors = retriever.embedder.embed_queries(asked)
        done.metrics[ANN_RECALL] = ann_recall(retriever.store, vectors, where)
    info = retriever.store.describe()
    settings = {
        "dataset": dataset.name,
        "collection": info.collection,
        "store": info.kind,
        "index": info.index,
        "metric": info.metric,
        "chunks": info.count,
        "embedder": retriever.embedder.fingerprint.model,
        "k": list(ks),
        "search": asdict(options),
        "fusion": asdict(retriever.fusion) if options.mode == "hybrid" else None,
    }
    failed = {f"searches that went on without {part}": n for part, n in degraded.items()}
    return replace(done, settings=settings, remarks=(*dataset.remarks, *counted(failed)))
