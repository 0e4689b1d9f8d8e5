from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.postings import K1, B, Postings, search

WORDS = ["pump", "valve", "电池", "ivf_flat", "e-22", "oyster", "x"]
texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=12), max_size=25)


def by_definition(documents: list[list[str]], query: list[str]) -> dict[int, float]:
    """BM25 straight from the formula."""
    mean = sum(map(len, documents)) / len(documents) if documents else 1
    scores: dict[int, float] = {}
    for number, words in enumerate(documents):
        total = 0.0
        for word in set(query):
            holding = sum(word in other for other in documents)
            count = Counter(words)[word]
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            total += idf * count * (K1 + 1) / (count + K1 * (1 - B + B * len(words) / max(mean, 1)))
        if total > 0:
            scores[number] = total
    return scores


@given(texts, st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.integers(0, 25))
def test_scores_are_those_of_the_formula_however_the_index_came_about(
    documents: list[list[str]], query: list[str], cut: int
) -> None:
    rows = list(enumerate(documents))
    parts = [Postings.of(rows[:cut]), Postings.of(rows[cut:])]
    expected = by_definition(documents, query)
    for index in (parts, [Postings.joined(parts)], [Postings.of(rows)]):
        found = search(index, query, 100, [None] * len(index))
        assert {number: score for score, number in found} == pytest.approx(expected, rel=1e-4)


@given(texts, st.data())
def test_an_index_of_some_is_that_of_only_those(
    documents: list[list[str]], data: st.DataObject
) -> None:
    marks = data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    kept = [
        (n, words) for n, (words, mark) in enumerate(zip(documents, marks, strict=True)) if mark
    ]
    some = Postings.of(enumerate(documents)).only(np.array(marks, np.bool_))
    query = ["pump", "电池"]
    assert search([some], query, 50, [None]) == search([Postings.of(kept)], query, 50, [None])


def test_only_what_is_marked_is_found_and_ties_are_all_given() -> None:
    index = Postings.of([(n, ["pump"]) for n in range(10)] + [(10, ["pump", "pump"])])
    among = np.array([n != 10 for n in range(11)])
    assert [number for _, number in search([index], ["pump"], 3, [among])] == [*range(9, -1, -1)]
    assert search([index], ["pump"], 1, [None])[0][1] == 10
    assert search([index], ["none"], 1, [None]) == []
    assert search([], ["pump"], 1, []) == []


def test_a_file_gives_the_index_back_and_refuses_others(tmp_path: Path) -> None:
    index = Postings.of(enumerate([["pump"], [], ["valve", "pump", "pump"]]))
    path = tmp_path / "words.bin"
    index.save(path)
    query = ["pump", "valve"]
    assert search([Postings.load(path)], query, 5, [None]) == search([index], query, 5, [None])
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"x" * 500, b""):
        path.write_bytes(damaged)
        with pytest.raises((OSError, ValueError)):
            Postings.load(path)
    Postings.of([]).save(path)
    assert search([Postings.load(path)], query, 5, [None]) == []
