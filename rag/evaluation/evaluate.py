"""Asks every question of a dataset, and measures what is found and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from rag.evaluation import metrics, runs
from rag.evaluation.dataset import Dataset, sample
from rag.types import Chunk, Hit

if TYPE_CHECKING:
    from rag.evaluation.metrics import PerQuery
    from rag.evaluation.runs import Run

Search: TypeAlias = Callable[[Sequence[str], int], list[list[Hit]]]
"""(questions, k) -> the k best chunks of each, best first."""

LATENCY_K = 10  # passages that people ask for, and with which time is measured
_BATCH = 64
_DEEPEST = 16  # times the documents wanted: so many chunks are asked for, at most
_SAMPLE = 200  # queries asked one by one for the latency

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured. `metrics` are means over the judged queries; `run` has what was found.

    `passages` has the best chunks of each query; `settings` say what was measured with what.
    """

    dataset: Dataset
    metrics: dict[str, float]
    latency_ms: dict[str, float]
    per_query: PerQuery
    run: Run
    passages: Mapping[str, Sequence[Hit]]
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def queries(self) -> int:
        """How many queries the means are over."""
        return len(self.per_query)

    def worst(self, n: int) -> list[str]:
        """The ids of the `n` queries with the least nDCG@10, the worst first."""

        def figures(query: str) -> tuple[float, float]:
            values = self.per_query[query]
            return values["ndcg@10"], values["map@100"]

        return sorted(self.per_query, key=figures)[:n]

    def to_json(self) -> dict[str, Any]:
        """The evaluation as `rag eval --json` prints it."""
        return {
            "metrics": {name: round(value, 6) for name, value in self.metrics.items()},
            "latency_ms": {name: round(value, 3) for name, value in self.latency_ms.items()},
            "queries": self.queries,
            "settings": dict(self.settings),
            "remarks": list(self.remarks),
        }


def evaluate(
    search: Search,
    dataset: Dataset,
    ks: Sequence[int],
    name: Callable[[Chunk], str] = lambda chunk: chunk.document_id,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Evaluation:
    """The figures of a search for a dataset; `name` gives the id by which a chunk is judged.

    `progress` gets (done, of) questions after each batch, and again after each that is timed; what
    it raises ends the evaluation.
    """
    run, passages = _ask(search, dataset.queries, max(*ks, 100), name, progress)
    values = metrics.per_query(dataset.qrels, run, ks)
    timed = sample(list(dataset.queries.values()), _SAMPLE)
    latency = _latency(search, timed, lambda: progress(len(run), len(run)))
    return Evaluation(dataset, metrics.means(values), latency, values, run, passages)


def _ask(
    search: Search,
    queries: Mapping[str, str],
    depth: int,
    name: Callable[[Chunk], str],
    progress: Callable[[int, int], None],
) -> tuple[Run, dict[str, list[Hit]]]:
    """The `depth` best documents of each query, and its ten best chunks.

    First as people ask, for ten; then for more until there are documents enough, for these have
    several chunks. What comes then stands below what came first: a deep search may order its first
    hits otherwise.
    """
    run: dict[str, dict[str, float]] = {query: {} for query in queries}
    passages: dict[str, list[Hit]] = {}
    for batch in _batches(list(queries), _BATCH):
        ids, k = batch, LATENCY_K
        while ids and k <= depth * _DEEPEST:
            lacking = []
            for query, hits in zip(ids, search([queries[q] for q in ids], k), strict=True):
                for document, score in runs.documents(hits, name):
                    run[query].setdefault(document, score)
                passages.setdefault(query, hits[:10])
                if len(run[query]) < depth and len(hits) == k:
                    lacking.append(query)
            ids, k = lacking, max(depth, k * 2)
        progress(len(passages), len(queries))
    return {query: list(found.items())[:depth] for query, found in run.items()}, passages


def _latency(
    search: Search, questions: Iterable[str], progress: Callable[[], None]
) -> dict[str, float]:
    took = []
    for question in questions:
        started = time.perf_counter()
        search([question], LATENCY_K)
        took.append((time.perf_counter() - started) * 1e3)
        progress()
    p50, p95 = np.percentile(took, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
