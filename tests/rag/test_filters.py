from __future__ import annotations

from typing import Any

import pytest

from rag.errors import InvalidFilter
from rag.filters import matches, parse, parse_json

FIELDS: dict[str, Any] = {"year": 2024, "lang": "en", "draft": False, "score": 1.5}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"year": 2024}, True),
        ({"year": 2024.0}, True),
        ({"year": "2024"}, False),
        ({"draft": 0}, False),
        ({"draft": False}, True),
        ({"year": {"$gt": 2023, "$lt": 2024}}, False),
        ({"lang": {"$gte": "en"}}, True),
        ({"lang": {"$gt": 3}}, False),
        ({"missing": {"$ne": 1}}, True),
        ({"missing": {"$nin": [1]}}, True),
        ({"missing": {"$lt": 1}}, False),
        ({"missing": {"$exists": False}}, True),
        ({"year": {"$not": {"$gt": 2030}}}, True),
        ({"$not": {"year": 2024}}, False),
        ({"$or": [{"year": 1}, {"lang": "en"}]}, True),
        ({"$and": [{"year": 2024}, {"lang": "zh"}]}, False),
        ({"score": {"$in": [1.5, "x"]}}, True),
    ],
    ids=str,
)
def test_meaning(where: dict[str, Any], expected: bool) -> None:
    condition = parse(where)
    assert condition is not None
    assert matches(condition, FIELDS) is expected


@pytest.mark.parametrize("text", [None, "{}"])
def test_nothing_to_filter(text: str | None) -> None:
    assert parse_json(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "year=2024",
        "",
        "  ",
        "null",
        '{"a": "\\ud800"}',
        '{"\\ud800": 1}',
        '{"$or": [' + ", ".join(['{"a": 1}'] * 600) + "]}",
        "[1]",
        '"x"',
        "3",
        '{"$near": 1}',
        '{"year": {"$regex": "x"}}',
        '{"year": {"gt": 3}}',
        '{"year": {}}',
        '{"year": null}',
        '{"year": [2024]}',
        '{"year": {"$in": 2024}}',
        '{"year": {"$exists": 1}}',
        '{"year": {"$gt": true}}',
        '{"year": NaN}',
        '{"year": 1e999}',
        '{"year": 99999999999999999999}',
        '{"$and": []}',
        '{"$or": {"a": 1}}',
        '{"$not": 1}',
        '{"": 1}',
        "[" * 100_000,
        '{"$not":' * 50 + "{}" + "}" * 50,
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_filter_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        parse_json(text)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
