"""Pinecone's metadata filters, with what the service refuses and the words in which it does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Metadata: TypeAlias = Mapping[str, Any]
Test: TypeAlias = Callable[[Metadata], bool]

MOST_VALUES = 10_000  # of one $in or $nin
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "$gt": lambda actual, value: actual > value,
    "$gte": lambda actual, value: actual >= value,
    "$lt": lambda actual, value: actual < value,
    "$lte": lambda actual, value: actual <= value,
}


class Refused(Exception):
    """What Pinecone answers with status 400."""


def compiled(where: Any, *, ne_matches_missing: bool) -> Test:
    """The filter as a test of a record's metadata. Raises Refused.

    Pinecone documents neither that `$ne` and `$nin` match records without the field nor that they
    do not: `ne_matches_missing` chooses.
    """
    if not isinstance(where, dict):
        raise Refused("filter must be an object")
    tests = [_clause(key, value, ne_matches_missing) for key, value in where.items()]
    return lambda metadata: all(test(metadata) for test in tests)


def _clause(key: str, value: Any, missing: bool) -> Test:
    if key in ("$and", "$or"):
        if not isinstance(value, list) or not value:
            raise Refused(f"the {key} operator must be followed by a non-empty list of objects")
        parts = [compiled(part, ne_matches_missing=missing) for part in value]
        together = all if key == "$and" else any
        return lambda metadata: together(part(metadata) for part in parts)
    if key.startswith("$"):
        raise Refused(f"{key} is not a valid operator at the top level")
    operators = value if isinstance(value, dict) else {"$eq": value}
    tests = [_comparison(op, operand, missing) for op, operand in operators.items()]
    return lambda metadata: all(test(metadata.get(key)) for test in tests)


def _comparison(op: str, operand: Any, missing: bool) -> Callable[[Any], bool]:
    """A test of the value of one field, None where the record has none."""
    match op:
        case "$eq" | "$ne":
            if not _is_number(operand) and not isinstance(operand, (str, bool)):
                _refuse(op, "a string, boolean or a number", operand)
            negated = op == "$ne"
            return lambda actual: (
                missing and negated if actual is None else _equals(actual, operand) != negated
            )
        case "$gt" | "$gte" | "$lt" | "$lte":
            if not _is_number(operand):
                _refuse(op, "a number", operand)
            return lambda actual: _is_number(actual) and _ORDER[op](actual, operand)
        case "$in" | "$nin":
            if not isinstance(operand, list) or not (
                all(isinstance(item, str) for item in operand) or all(map(_is_number, operand))
            ):
                _refuse(op, "a list of strings or a list of numbers", operand)
            if len(operand) > MOST_VALUES:
                raise Refused(f"the {op} operator takes at most {MOST_VALUES} values")
            wanted, negated = set(operand), op == "$nin"
            return lambda actual: (
                missing and negated if actual is None else _is_in(actual, wanted) != negated
            )
        case "$exists":
            if not isinstance(operand, bool):
                _refuse(op, "a boolean", operand)
            return lambda actual: (actual is not None) == operand
        case _:
            raise Refused(f"{op} is not a valid operator")


def _equals(actual: Any, operand: Any) -> bool:
    if isinstance(actual, list):
        return operand in actual
    return isinstance(actual, bool) == isinstance(operand, bool) and bool(actual == operand)


def _is_in(actual: Any, wanted: set[Any]) -> bool:
    if isinstance(actual, list):
        return not wanted.isdisjoint(actual)
    return not isinstance(actual, bool) and actual in wanted


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse(op: str, wanted: str, operand: Any) -> None:
    got = json.dumps(operand)
    raise Refused(f"the {op} operator must be followed by {wanted}, got {got} instead")
