"""Haystack's filters in our language, exactly or not at all.

Text, numbers and booleans never compare, as everywhere in our stores. Dates are text in ISO 8601;
beside each the adapter keeps its seconds since 1970, so that every store can order them, in
whatever notation they come. A date without a time zone is taken as UTC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from haystack import Document
from haystack.errors import FilterError

from rag.errors import InvalidFilter
from rag.filters import And, Compare, Filter, Not, Or, parse
from stores.adapters.fields import on_chunks

ID = "haystack_id"
"""Stands for a document's id. Chunks have no such field: only whoever has the chunk can tell."""

TIME = "haystack_time_"
"""What begins the key of a date's seconds since 1970."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?")
_ORDERS = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_OPERATORS = ("==", "!=", *_ORDERS, "in", "not in")
_OWN = {field.name for field in fields(Document)}


def to_filter(filters: Mapping[str, Any] | None) -> Filter | None:
    """The filter over chunks; None when there is nothing to filter. Raises FilterError."""
    if not filters:
        return None
    try:
        return on_chunks(parse(_translate(filters)))
    except InvalidFilter as error:
        raise FilterError(str(error)) from error


def seconds(value: object) -> float | None:
    """The date's seconds since 1970; None for what is no date."""
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        return None
    try:
        date = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def asks_for_id(condition: Filter | None) -> bool:
    """Whether the filter is about ids, so that no store can apply it."""
    return any(compare.field == ID for compare in _comparisons(condition))


def undated(condition: Filter | None) -> Iterator[tuple[str, Filter]]:
    """Each key whose dates are to be in order, and a filter for the chunks with none there."""
    for compare in _comparisons(condition):
        if compare.field.startswith(TIME) and compare.op != "in":
            key = compare.field.removeprefix(TIME)
            there, dated = {key: {"$exists": True}}, {compare.field: {"$exists": True}}
            without = on_chunks(parse({"$and": [there, {"$not": dated}]}))
            assert without is not None
            yield key, without


def _comparisons(condition: Filter | None) -> Iterator[Compare]:
    match condition:
        case Compare():
            yield condition
        case Not(part):
            yield from _comparisons(part)
        case And(parts) | Or(parts):
            for part in parts:
                yield from _comparisons(part)


def _translate(condition: Any) -> dict[str, Any]:
    if not isinstance(condition, Mapping):
        raise FilterError(f"a filter is a dictionary, not {condition!r}")
    for key in ("operator", *(("value",) if "field" in condition else ("conditions",))):
        if key not in condition:
            raise FilterError(f"{key!r} is missing in {dict(condition)}")
    operator = condition["operator"]
    if "field" in condition:
        return _comparison(_key(condition["field"]), operator, condition["value"])
    if not isinstance(condition["conditions"], list):
        raise FilterError(f"'conditions' is a list, not {condition['conditions']!r}")
    parts = [_translate(part) for part in condition["conditions"]]
    match operator:
        case "AND":
            return {"$and": parts}
        case "OR":
            return {"$or": parts}
        case "NOT":
            return {"$not": {"$and": parts}}
    raise FilterError(f"unknown operator {operator!r}, use AND, OR or NOT")


def _key(field: object) -> str:
    name = str(field)
    if name == "id":
        return ID
    if name in _OWN:
        raise FilterError(f"no filter can ask about {name!r}, only about metadata and ids")
    key = name.removeprefix("meta.")
    if "." in key:
        raise FilterError(f"nested metadata is kept, but no filter can ask about {name!r}")
    return key


def _comparison(key: str, operator: object, value: Any) -> dict[str, Any]:
    match operator:
        case "==":
            return _among(key, [value])
        case "!=":
            return {"$not": _among(key, [value])}
        case "in" | "not in" if not isinstance(value, list):
            raise FilterError(f"{operator!r} takes a list, not {value!r}")
        case "in":
            return _among(key, value)
        case "not in":
            return {"$not": _among(key, value)}
        case ">" | ">=" | "<" | "<=":
            return _order(key, _ORDERS[operator], value)
    raise FilterError(f"unknown operator {operator!r}, use one of {' '.join(_OPERATORS)}")


def _among(key: str, values: list[Any]) -> dict[str, Any]:
    values = [_as_text(value) for value in values]
    there = [value for value in values if value is not None]
    parts: list[dict[str, Any]] = [{key: {"$in": there}}]
    if dates := [date for date in map(seconds, there) if date is not None]:
        parts.append({TIME + key: {"$in": dates}})
    if None in values:
        parts.append({key: {"$exists": False}})
    return {"$or": parts}


def _order(key: str, operator: str, value: Any) -> dict[str, Any]:
    value = _as_text(value)
    if value is None:  # neither more nor less than anything, in Haystack
        return {key: {"$in": []}}
    if not isinstance(value, str):
        return {key: {operator: value}}
    date = seconds(value)
    if date is None:
        raise FilterError(f"{key!r} cannot be ordered by {value!r}: it is no date in ISO 8601")
    return {TIME + key: {operator: date}}


def _as_text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
