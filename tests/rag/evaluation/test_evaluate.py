"""What is asked, how documents are ranked, and what an index loses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rag.evaluation.ann import ann_recall
from rag.evaluation.dataset import Dataset
from rag.evaluation.evaluate import evaluate
from rag.filters import parse
from rag.types import Chunk, CollectionSpec, Hit, Metric
from stores.memory import MemoryBackend, MemoryStore


def chunk(document: str, position: int = 0, **metadata: int) -> Chunk:
    identifier = f"{document}:1:{position}"
    return Chunk(identifier, document, "1", position, "text", document, metadata=metadata)


class Engine:
    """Finds the same list for every question, and notes what it was asked."""

    def __init__(self, found: Sequence[Hit]) -> None:
        self.found = found
        self.asked: list[tuple[int, int]] = []

    def __call__(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append((len(questions), k))
        return [list(self.found[:k]) for _ in questions]


def dataset(queries: int, relevant: str) -> Dataset:
    names = [f"q{n}" for n in range(queries)]
    return Dataset("set", dict.fromkeys(names, "what?"), {n: {relevant: 1} for n in names})


def test_questions_are_asked_in_batches_and_for_the_latency_one_by_one() -> None:
    engine = Engine([Hit(chunk("a"), 1.0)])
    done = evaluate(engine, dataset(130, "a"), [1])
    assert engine.asked[:3] == [(64, 10), (64, 10), (2, 10)]
    assert engine.asked[3:] == [(1, 10)] * 130
    assert done.metrics["recall@1"] == 1.0
    assert 0 < done.latency_ms["p50"] <= done.latency_ms["p95"]
    assert done.queries == 130


def test_documents_of_many_chunks_do_not_crowd_out_the_others() -> None:
    hits = [Hit(chunk("long", n), 2.0) for n in range(250)]
    hits += [Hit(chunk(f"d{n}"), 1.0) for n in range(200)]
    engine = Engine(hits)
    done = evaluate(engine, dataset(1, "d98"), [100])
    assert [document for document, _ in done.run["q0"]] == ["long", *(f"d{n}" for n in range(99))]
    assert done.metrics["recall@100"] == 1.0
    assert [k for _, k in engine.asked[:-1]] == [10, 100, 200, 400]


def test_asking_deeper_never_moves_what_came_first() -> None:
    first = [Hit(chunk("a", n), 1.0) for n in range(99)] + [Hit(chunk("b"), 1.0)]

    def search(questions: Sequence[str], k: int) -> list[list[Hit]]:
        deep = [Hit(chunk("c"), 9.0), *first][:k]
        return [first[:k] if k <= 100 else deep for _ in questions]

    done = evaluate(search, dataset(1, "a"), [1])
    assert [document for document, _ in done.run["q0"]] == ["a", "b", "c"]


def test_a_judged_query_that_cannot_be_asked_counts_as_zero() -> None:
    judged = dataset(1, "a")
    judged.qrels["unasked"] = {"a": 1}
    done = evaluate(Engine([Hit(chunk("a"), 1.0)]), judged, [1])
    assert done.metrics["recall@1"] == 0.5
    assert done.to_json()["queries"] == 2


class Forgetful(MemoryStore):
    """An index that never finds two of the ten best, and fills up with worse ones."""

    def search(self, vectors: np.ndarray, k: int, where: object = None) -> list[list[Hit]]:
        return [hits[2:] for hits in super().search(vectors, k + 2, where)]


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_ann_recall_is_the_share_of_the_ten_best(metric: Metric) -> None:
    spec = CollectionSpec("ann", 8, metric)
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(2500, 8)).astype(np.float32)
    queries = chance.normal(size=(20, 8)).astype(np.float32)
    chunks = [chunk(f"d{n:04}", year=n % 4) for n in range(2500)]
    where = parse({"year": 3})
    for make, expected in ((MemoryStore, 1.0), (Forgetful, 0.8)):
        store = make(spec)
        store.upsert(chunks, vectors)
        assert ann_recall(store, queries) == pytest.approx(expected)
        assert ann_recall(store, queries, where) == pytest.approx(expected)


def test_ann_recall_counts_any_of_equals_and_few_chunks() -> None:
    store = MemoryBackend().create(CollectionSpec("ann", 2))
    queries = np.array([[1, 0], [0, 1]], np.float32)
    assert ann_recall(store, queries) == 1.0
    store.upsert([chunk("a"), chunk("b")], queries)
    assert ann_recall(store, queries) == 1.0
    store.upsert([chunk(f"e{n}") for n in range(30)], np.tile(queries[:1], (30, 1)))
    assert ann_recall(store, queries) == 1.0
