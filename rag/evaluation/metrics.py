"""The figures, as the library ir-measures computes them from judgements and a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rag.errors import MissingExtra
from rag.evaluation.dataset import Qrels
from rag.evaluation.runs import Run

PerQuery = dict[str, dict[str, float]]
"""Query id -> name of a figure -> its value."""


def names(ks: Sequence[int]) -> list[str]:
    """The names of the figures for these k, in the order in which they are shown."""
    return list(_measures(ks))


def per_query(qrels: Qrels, run: Run, ks: Sequence[int]) -> PerQuery:
    """The figures of every judged query; all are 0 for one that the run does not hold."""
    import ir_measures

    named = {measure: name for name, measure in _measures(ks).items()}
    ranked = {
        # The rank decides: trec_eval, which counts here, orders equal scores by document id.
        query: {document: float(-rank) for rank, (document, _) in enumerate(found)}
        for query, found in run.items()
        if query in qrels
    }
    values: PerQuery = {query: dict.fromkeys(named.values(), 0.0) for query in qrels}
    for value in ir_measures.iter_calc(list(named), qrels, ranked):
        values[value.query_id][named[value.measure]] = value.value
    return values


def means(values: PerQuery) -> dict[str, float]:
    """The mean of each figure over the queries."""
    every = list(values.values())
    return {name: sum(one[name] for one in every) / len(every) for name in every[0]}


def _measures(ks: Sequence[int]) -> dict[str, Any]:
    try:
        from ir_measures import AP, RR, R, Success, nDCG
    except ImportError as error:
        raise MissingExtra(
            "evaluation needs ir-measures", "install it with: pip install 'ragline[eval]'"
        ) from error
    return {
        **{f"recall@{k}": R @ k for k in ks},
        **{f"hit_rate@{k}": Success @ k for k in ks},
        "ndcg@10": nDCG @ 10,
        "mrr@10": RR @ 10,
        "map@100": AP @ 100,
    }
