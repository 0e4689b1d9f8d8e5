"""The figures against their definitions, computed here on their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.evaluation import metrics

KS = [1, 3, 10]
DOCUMENTS = [f"d{n}" for n in range(14)]
# Few different scores, so that many tie: the order of the list decides then.
FOUND = st.permutations(DOCUMENTS).flatmap(
    lambda order: st.tuples(
        st.integers(0, len(order)), st.lists(st.sampled_from([0.1, 0.5]), min_size=14, max_size=14)
    ).map(lambda cut: list(zip(order, sorted(cut[1], reverse=True), strict=True))[: cut[0]])
)
JUDGED = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3), min_size=1).filter(
    lambda judged: any(judged.values())
)
QUERIES = ["q1", "q2", "q3"]


def by_definition(judged: dict[str, int], ranking: list[str]) -> dict[str, float]:
    relevant = {document for document, grade in judged.items() if grade > 0}
    values: dict[str, float] = {}
    for k in KS:
        found = relevant & set(ranking[:k])
        values[f"recall@{k}"] = len(found) / len(relevant)
        values[f"hit_rate@{k}"] = float(bool(found))
    gains = [judged.get(document, 0) for document in ranking[:10]]
    ideal = sorted(judged.values(), reverse=True)[:10]
    values["ndcg@10"] = dcg(gains) / dcg(ideal)
    firsts = [n for n, document in enumerate(ranking[:10], start=1) if document in relevant]
    values["mrr@10"] = 1 / firsts[0] if firsts else 0.0
    places = [n for n, document in enumerate(ranking[:100], start=1) if document in relevant]
    precisions = [count / n for count, n in enumerate(places, start=1)]
    values["map@100"] = sum(precisions) / len(relevant)
    return values


def dcg(gains: list[int]) -> float:
    return sum(gain / math.log2(n + 1) for n, gain in enumerate(gains, start=1))


@given(
    st.fixed_dictionaries(dict.fromkeys(QUERIES, JUDGED)),
    st.dictionaries(st.sampled_from([*QUERIES, "unjudged"]), FOUND),
)
def test_figures_are_those_of_the_definitions(
    qrels: dict[str, dict[str, int]], run: dict[str, Any]
) -> None:
    values = metrics.per_query(qrels, run, KS)
    assert set(values) == set(QUERIES)
    for query in QUERIES:
        ranking = [document for document, _ in run.get(query, [])]
        expected = by_definition(qrels[query], ranking)
        assert values[query] == pytest.approx(expected, abs=1e-9)
    for name, mean in metrics.means(values).items():
        assert mean == pytest.approx(sum(values[q][name] for q in QUERIES) / 3)


def test_a_query_without_results_counts_as_zero() -> None:
    values = metrics.per_query({"a": {"x": 1}, "b": {"x": 1}}, {"a": [("x", 1.0)]}, [1])
    assert metrics.means(values) == dict.fromkeys(metrics.names([1]), 0.5)


def test_recall_is_not_hit_rate() -> None:
    values = metrics.per_query({"a": {"x": 1, "y": 1}}, {"a": [("x", 1.0), ("z", 0.9)]}, [2])
    assert (values["a"]["recall@2"], values["a"]["hit_rate@2"]) == (0.5, 1.0)
