"""What an evaluation of the service measures, and what is kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rag.errors import InputError
from rag.evaluation.cloze import cloze
from rag.evaluation.corpus import Corpus
from rag.evaluation.dataset import Dataset, beir, judged_in, read
from rag.evaluation.evaluate import Evaluation
from rag.evaluation.files import one_of
from rag.evaluation.measure import ANN_RECALL, measure
from rag.evaluation.metrics import PerQuery
from rag.filters import parse
from rag.service.evaluations import Outcome, Stage, Wanted
from rag.types import Chunk, Hit, StoreInfo

if TYPE_CHECKING:
    from rag.app import App
    from rag.protocols import Embedder, VectorStore
    from rag.retrieve import Mode

Json: TypeAlias = dict[str, Any]
Tell: TypeAlias = Callable[[Stage, int, int], None]
"""Gets (stage, done, of); what it raises ends the evaluation."""

_WORST = 10
_FIGURE = "ndcg@10"
_SHOWN = 5  # of the passages found, and
_LENGTH = 1_000  # characters of each
_NAMED = 10  # of the documents that should have been found
_MADE = (
    "the questions are sentences out of the documents, searched for among {chunks} chunks in "
    "memory; latencies are of these"
)


def measured(app: App, wanted: Wanted, folder: Path | None, tell: Tell) -> Outcome:
    """The figures of each mode. `folder` is that of the dataset. Raises RagError.

    `app` need not be of the collection: its models are shared, and it is left as it is.
    """
    collection, dataset = _asked(app, wanted, folder, tell)
    with app.of_collection(collection).store() as store:
        info = store.describe()
        retriever = app.retriever_over(store, info)
        if dataset is None:
            dataset, name, part = _made_up(store, retriever.embedder)
            dataset, retriever = _limited(dataset, wanted), retriever.over(part)
        else:
            dataset, name = judged_in(_limited(dataset, wanted), store)
        found: dict[Mode, Evaluation] = {}
        for mode in wanted.modes:
            found[mode] = measure(
                retriever,
                dataset,
                wanted.ks,
                options=app.search_options(mode=mode, expand=0),
                name=name,
                progress=_asking(tell, len(found), len(wanted.modes)),
            )
            if retriever.store is not store:  # its index was not asked
                found[mode].metrics.pop(ANN_RECALL, None)
        return Outcome(
            collection,
            _settings(app, info, wanted, found),
            [{"mode": mode, **_result(one)} for mode, one in found.items()],
            _worst(found, name, retriever.store),
            {mode: _figures(one) for mode, one in found.items()},
        )


def _asked(app: App, wanted: Wanted, folder: Path | None, tell: Tell) -> tuple[str, Dataset | None]:
    """The collection to search, made if need be, and the judged questions if there are any."""
    if folder is None:
        return wanted.collection or app.settings.collection, None
    if wanted.collection is not None:
        queries = one_of(folder, "queries.jsonl", "queries.jsonl.gz")
        dataset = read(folder.name, queries, one_of(folder, "qrels/test.tsv"))
        return wanted.collection, replace(dataset, by_path=True)
    corpus = Corpus.open(folder)
    dataset = beir(corpus)
    indexed = app.of_corpus(corpus, lambda done, of: tell("indexing", done, of))
    return indexed.settings.collection, dataset


def _made_up(
    store: VectorStore, embedder: Embedder
) -> tuple[Dataset, Callable[[Chunk], str], VectorStore]:
    """Questions out of the documents, by what a chunk is judged, and what is searched for them."""
    part, dataset, name = cloze(store, embedder)
    if not dataset.queries:
        raise InputError(
            "no questions can be made out of the documents: no passage has a sentence to spare",
            "take in longer documents, or name a dataset",
        )
    return replace(dataset, remarks=(_MADE.format(chunks=part.count()),)), name, part


def _asking(tell: Tell, mode: int, modes: int) -> Callable[[int, int], None]:
    """What gets the progress of one mode, the first being 0, and tells that of all."""
    return lambda done, of: tell("asking", mode * of + done, modes * of)


def _limited(dataset: Dataset, wanted: Wanted) -> Dataset:
    return dataset.limited(wanted.limit) if wanted.limit else dataset


def _settings(app: App, info: StoreInfo, wanted: Wanted, found: Mapping[Mode, Evaluation]) -> Json:
    """What was measured with what, as `rag eval --json` says it, once for all modes."""
    said = [one.settings for one in found.values()]
    rerank = app.settings.rerank
    return {
        **said[0],
        "collection": info.collection,
        "store": info.kind,
        "index": info.index,
        "chunks": info.count,
        "search": {name: v for name, v in said[0]["search"].items() if name != "mode"},
        "fusion": next((one["fusion"] for one in said if one["fusion"]), None),
        "rerank": None if rerank.kind == "none" else rerank.model or rerank.kind,
        "where": None,
        "limit": wanted.limit,
    }


def _result(found: Evaluation) -> Json:
    return {name: value for name, value in found.to_json().items() if name != "settings"}


def _figures(found: Evaluation) -> PerQuery:
    """By the question itself, because two datasets may number theirs alike."""
    return {
        _key(query, found.dataset.queries.get(query, "")): {
            name: round(value, 6) for name, value in values.items()
        }
        for query, values in found.per_query.items()
    }


def _key(query: str, text: str) -> str:
    return hashlib.sha256(f"{query}\0{text}".encode()).hexdigest()[:16]


def _worst(
    found: Mapping[Mode, Evaluation], name: Callable[[Chunk], str], store: VectorStore
) -> list[Json]:
    """The questions of each mode with the least nDCG@10 under 1, with what was found."""
    asked = [
        (mode, one, query)
        for mode, one in found.items()
        for query in one.worst(_WORST)
        if one.per_query[query][_FIGURE] < 1
    ]
    wanted = {query: _relevant(one, query) for _, one, query in asked}
    by_path = any(one.dataset.by_path for one in found.values())
    ids = {document for some in wanted.values() for document in some[:_NAMED]}
    titles = {} if by_path else _titles(store, ids)
    return [
        {
            "mode": mode,
            "question": one.dataset.queries.get(query, query),
            "figure": _FIGURE,
            "value": round(one.per_query[query][_FIGURE], 6),
            "expected": [titles.get(document, document) for document in wanted[query][:_NAMED]],
            "found": [
                {**_passage(hit), "relevant": name(hit.chunk) in wanted[query]}
                for hit in one.passages.get(query, ())[:_SHOWN]
            ],
        }
        for mode, one, query in asked
    ]


def _relevant(found: Evaluation, query: str) -> list[str]:
    """The documents that should be found, those with the highest grade first."""
    grades = found.dataset.qrels[query]
    return sorted((d for d, grade in grades.items() if grade > 0), key=lambda d: -grades[d])


def _titles(store: VectorStore, ids: Iterable[str]) -> dict[str, str]:
    """What people call the documents, or the chunks, of these ids, as far as they are there."""
    asked = sorted(ids)
    if not asked:
        return {}
    titles = {chunk.id: chunk.title or chunk.source for chunk in store.get(asked)}
    records = store.documents(parse({"document_id": {"$in": asked}}))
    return titles | {record.id: record.title or record.source for record in records}


def _passage(hit: Hit) -> Json:
    chunk = hit.chunk
    return {
        "document_id": chunk.document_id,
        "source": chunk.source,
        "title": chunk.title,
        "page": chunk.page,
        "score": round(hit.score, 6),
        "text": chunk.text[:_LENGTH],
    }
