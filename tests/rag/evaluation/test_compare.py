"""Two runs compared query by query."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from rag.errors import InputError
from rag.evaluation.compare import against, compare
from rag.evaluation.dataset import Dataset
from rag.evaluation.evaluate import evaluate
from rag.types import Chunk, Hit


def values(*numbers: float) -> dict[str, dict[str, float]]:
    return {f"q{n}": {"recall@10": number} for n, number in enumerate(numbers)}


def test_wins_losses_and_ties_are_counted() -> None:
    found = compare(values(0, 1, 0.5, 0), values(1, 0, 0.5, 1))["recall@10"]
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert (found.baseline, found.value) == (0.375, 0.625)


def test_p_is_the_share_of_sign_changes_with_as_large_a_difference() -> None:
    before = [0.1, 0.4, 0.3, 0.9, 0.2, 0.5, 0.0, 0.3, 0.6, 0.1]
    after = [0.3, 0.5, 0.2, 0.9, 0.6, 0.8, 0.1, 0.5, 0.5, 0.4]
    differences = [b - a for a, b in zip(before, after, strict=True)]
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=10)
    ]
    exact = sum(s >= abs(sum(differences)) - 1e-9 for s in sums) / len(sums)
    found = compare(values(*before), values(*after))["recall@10"]
    assert found.p == pytest.approx(exact, abs=0.01)
    assert 0.01 < exact < 0.1
    assert compare(values(*after), values(*before))["recall@10"].p == found.p


def test_alike_runs_differ_by_chance() -> None:
    assert compare(values(0.5, 0.25), values(0.5, 0.25))["recall@10"].p == 1.0


def test_only_common_queries_are_compared_and_the_others_counted() -> None:
    hit = Hit(Chunk("c", "x", "1", 0, "text", "x"), 1.0)
    dataset = Dataset("set", {"1": "one", "2": "two"}, {"1": {"x": 1}, "2": {"x": 1}})
    done = evaluate(lambda questions, k: [[hit] for _ in questions], dataset, [1])
    old = {"1": [("y", 1.0)], "7": [("x", 1.0)]}
    found, remarks = against(Path("old.trec"), old, done, [1])
    assert (found["recall@1"].wins, found["recall@1"].ties) == (1, 0)
    assert remarks == (
        "judged queries that old.trec does not hold (left out of the comparison): 1",
    )
    with pytest.raises(InputError, match="other queries"):
        against(Path("old.trec"), {"7": [("x", 1.0)]}, done, [1])
