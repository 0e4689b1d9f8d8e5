from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.fusion import Fusion, fuse, single
from rag.types import Hit
from stores.contract import chunk

PLAIN = Fusion(neighbours=0)
scores = st.lists(st.floats(-1, 30, allow_nan=False), min_size=0, max_size=30)


def leg(values: list[float], first: int = 0, document: int | None = None) -> list[Hit]:
    """Hits of these scores, in documents of their own unless one is named."""
    made = [
        Hit(chunk(n, document=n if document is None else document), value)
        for n, value in enumerate(values, start=first)
    ]
    return sorted(made, key=lambda hit: -hit.score)


def order(hits: list[Hit]) -> list[int]:
    return [hit.chunk.position for hit in hits]


@given(scores, scores, st.floats(0, 1))
def test_every_hit_of_both_legs_is_there_once_best_first(
    dense: list[float], keyword: list[float], weight: float
) -> None:
    found = fuse(leg(dense), leg(keyword, first=5), weight, Fusion())
    assert sorted(order(found)) == sorted({*range(len(dense)), *range(5, 5 + len(keyword))})
    totals = [hit.score for hit in found]
    assert all(a >= b - 1e-6 for a, b in pairwise(totals))


@given(
    scores.filter(lambda values: max(values, default=0) - min(values, default=0) > 0.1),
    st.floats(0.1, 50),
    st.floats(-9, 9),
)
def test_the_scale_of_a_leg_does_not_matter(
    values: list[float], factor: float, shift: float
) -> None:
    words = leg([3.0, 1.0, 0.5])
    plain = fuse(leg(values), words, 0.5, PLAIN)
    scaled = fuse(leg([value * factor + shift for value in values]), words, 0.5, PLAIN)
    for a, b in zip(plain, scaled, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-3)


def test_a_leg_of_no_weight_only_orders_what_the_other_did_not_find() -> None:
    how = Fusion()
    weight = how.weight(legibility=0.2)  # a script that the embedder does not read
    dense, keyword = leg([0.9, 0.8, 0.7]), leg([5.0, 9.0], first=7)
    assert order(fuse(dense, keyword, weight, how)) == [8, 7, 0, 1, 2]
    assert how.weight(1.0) == how.dense
    assert how.weight(0.5) == weight


def test_both_legs_beat_one() -> None:
    dense = leg([0.9, 0.85, 0.3, 0.2])
    keyword = [Hit(chunk(1, document=1), 7.0), Hit(chunk(9, document=9), 6.9)]
    assert order(fuse(dense, keyword, 0.5, PLAIN))[0] == 1


def test_a_chunk_gains_from_its_neighbours_but_not_from_afar() -> None:
    near = [Hit(chunk(3, document=1), 0.9), Hit(chunk(0, document=2), 0.89)]
    near += [Hit(chunk(n, document=3), 0.1) for n in range(4)]
    words = [Hit(chunk(4, document=1), 9.0), Hit(chunk(9, document=2), 9.0)]
    words += [Hit(chunk(n, document=4), 1.0) for n in range(4)]
    found = {
        (hit.chunk.document_id, hit.chunk.position): hit.score
        for hit in fuse(near, words, 0.5, Fusion())
    }
    assert found["d1", 3] > found["d2", 0]
    assert found["d1", 4] > found["d2", 9]


def test_a_name_that_stands_in_one_chunk_only_leads_to_it() -> None:
    dense = leg([0.5 - n / 100 for n in range(40)])
    named = [Hit(chunk(35, document=35), 6.0)]
    assert order(fuse(dense, named, 0.5, Fusion()))[0] == 35


def test_legs_say_where_a_score_came_from() -> None:
    hits = fuse(leg([0.9, 0.1]), leg([4.0], first=1), 0.7, PLAIN)
    both = next(hit for hit in hits if hit.chunk.position == 1)
    dense, keyword = both.leg("dense"), both.leg("keyword")
    assert dense is not None
    assert keyword is not None
    assert (dense.rank, dense.score, dense.weight) == (2, 0.1, 0.7)
    assert (keyword.rank, keyword.score) == (1, 4.0)
    assert keyword.weight == pytest.approx(0.3)
    assert single(leg([0.5]), "dense")[0].leg("keyword") is None


def test_what_was_learnt_is_read_back() -> None:
    learnt = replace(Fusion(), dense=0.3, feedback=0.0)
    assert Fusion.from_json(learnt.to_json()) == learnt
    assert Fusion.from_json("{}") == Fusion()


@pytest.mark.parametrize(
    "note",
    ["", "[]", "[" * 16_000, '{"of": "another version"}', '{"dense": "nan"}', '{"dense": NaN}']
    + [f'{{"{name}": {value}}}' for name in ("feedback", "neighbours") for value in (-1, 1e308)]
    + [f'{{"candidates": {value}}}' for value in (0, -1, 2.5, "null", 10**9)],
)
def test_what_cannot_have_been_learnt_is_refused(note: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Fusion.from_json(note)


def test_chunks_of_one_place_are_hits_of_their_own() -> None:
    """As what came from elsewhere without positions."""
    same = [replace(chunk(n, document=0), position=0) for n in range(4)]
    found = fuse([Hit(one, 1.0 - n) for n, one in enumerate(same)], [], 1.0, PLAIN)
    assert [hit.chunk.id for hit in found] == [one.id for one in same]
    assert [hit.legs[0].rank for hit in found] == [1, 2, 3, 4]
