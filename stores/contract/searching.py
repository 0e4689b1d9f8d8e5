"""Search: what a score means, order, ties, batches, recall."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rag.protocols import StoreBackend, VectorStore
from rag.types import CollectionSpec, Metric
from stores.contract.data import DIM, chunk, clustered_vectors, random_vectors
from stores.contract.setting import ContractSetting
from stores.ranking import scores


class SearchingTests(ContractSetting):
    """The nearest, best first."""

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_score_means_the_same_in_every_metric(
        self, backend: StoreBackend, spec: CollectionSpec, metric: Metric
    ) -> None:
        """Itself first, then what is orthogonal, then the opposite; of vectors of length 3."""
        store = backend.create(replace(spec, metric=metric))
        axis = np.eye(DIM, dtype=np.float32)
        vectors = np.stack([axis[0] * 3, axis[1] * 3, axis[0] * -3])
        store.upsert([chunk(i) for i in range(3)], vectors)
        found = store.search(axis[:1] * 3, 3)[0]
        expected = {"cosine": [1, 0, -1], "ip": [9, 0, -9], "l2": [0, -18, -36]}[metric]
        assert [hit.chunk.position for hit in found] == [0, 1, 2]
        assert [hit.score for hit in found] == pytest.approx(expected, abs=1e-4)
        assert store.describe().metric == metric
        store.close()

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_scores_are_those_of_the_formula(
        self, backend: StoreBackend, spec: CollectionSpec, metric: Metric
    ) -> None:
        store = backend.create(replace(spec, metric=metric))
        vectors, query = random_vectors(40, seed=1), random_vectors(1, seed=2)
        store.upsert([chunk(n) for n in range(40)], vectors)
        expected = scores(query, vectors, metric)[0]
        found = store.search(query, 10)[0]
        assert [h.score for h in found] == pytest.approx(
            sorted(expected.tolist(), reverse=True)[:10], rel=1e-4, abs=1e-4
        )
        for hit in found:
            assert hit.score == pytest.approx(expected[hit.chunk.position], rel=1e-4, abs=1e-4)
        store.close()

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_small_vectors_are_told_apart(
        self, backend: StoreBackend, spec: CollectionSpec, metric: Metric
    ) -> None:
        """Scores of l2 and ip have no scale of their own; by plain numpy, not by the reference."""
        store = backend.create(replace(spec, metric=metric))
        vectors = random_vectors(200, seed=1) * np.float32(1e-4)
        store.upsert([chunk(n) for n in range(200)], vectors)
        query, rows = vectors[150].astype(np.float64), vectors.astype(np.float64)
        products = rows @ query
        expected = {
            "cosine": products / np.linalg.norm(rows, axis=1) / np.linalg.norm(query),
            "ip": products,
            "l2": -((rows - query) ** 2).sum(1),
        }[metric]
        found = store.search(vectors[150:151], 10)[0]
        best = np.argsort(-expected)[:10].tolist()
        assert [hit.chunk.position for hit in found] == best
        assert [hit.score for hit in found] == pytest.approx(
            expected[best].tolist(), rel=1e-4, abs=1e-4 * float(np.abs(expected).max())
        )
        store.close()

    def test_batch_search_equals_single_searches(self, shelf: VectorStore) -> None:
        queries = random_vectors(5, seed=3)
        together = shelf.search(queries, 7)
        alone = [shelf.search(queries[i : i + 1], 7)[0] for i in range(5)]
        for left, right in zip(together, alone, strict=True):
            assert [hit.chunk for hit in left] == [hit.chunk for hit in right]
            assert [h.score for h in left] == pytest.approx([h.score for h in right], abs=1e-5)
            assert len(left) == 7
        assert shelf.search(np.zeros((0, DIM), np.float32), 7) == []

    def test_best_come_first_and_k_may_exceed_the_count(self, shelf: VectorStore) -> None:
        for k in (30, 100, 20_000):
            found = shelf.search(random_vectors(1, seed=4), k)[0]
            found_scores = [hit.score for hit in found]
            assert len(found) == 30
            assert found_scores == sorted(found_scores, reverse=True)
        assert shelf.search(random_vectors(1), 0) == [[]]

    def test_ties_are_ordered_by_id(self, store: VectorStore) -> None:
        vectors = np.repeat(random_vectors(1), 40, axis=0)
        numbers = np.random.default_rng(1).permutation(40).tolist()
        store.upsert([chunk(n) for n in numbers], vectors)
        found = store.search(vectors[:1], 5)[0]
        assert [hit.chunk.id for hit in found] == sorted(chunk(n).id for n in range(40))[:5]

    def test_recall_against_exact_search(self, backend: StoreBackend, spec: CollectionSpec) -> None:
        """recall@10 over 2,000 clustered vectors: 1 for an exact store, otherwise 0.95."""
        store = backend.create(replace(spec, dim=32, embedder=None))
        vectors = clustered_vectors(2_000, 32)
        store.upsert([chunk(n, document=n // 50) for n in range(2_000)], vectors)
        queries = clustered_vectors(100, 32, draw=1)
        best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10].tolist()
        found = store.search(queries, 10)
        shared = [
            len({hit.chunk.position for hit in hits} & set(row)) / 10
            for hits, row in zip(found, best, strict=True)
        ]
        assert np.mean(shared) >= (1.0 if self.exact else 0.95)
        store.close()
