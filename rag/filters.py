"""The one filter language: `{"year": {"$gte": 2024}, "lang": "en"}`.

A filter is parsed once into a small tree (And, Or, Not, Compare) that every store translates.
The logic has two values: a comparison is true or false, and it is false when the field is missing
or of another type (text is never compared with numbers, nor truth values with either). `$ne` and
`$nin` are the negations of `$eq` and `$in`, so they match chunks without the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard

from rag.errors import InputError, InvalidFilter
from rag.types import BUILT_IN_FIELDS, Scalar

Op: TypeAlias = Literal["eq", "gt", "gte", "lt", "lte", "in", "exists"]

OPERATORS = ("$eq $ne $gt $gte $lt $lte $in $nin $exists $and $or $not").split()

_HINT = "operators are " + " ".join(OPERATORS)
_MAX_DEPTH = 32
_MAX_PARTS = 500  # SQLite takes expressions up to 1,000 deep, and a chain of AND counts as depth
_MAX_TEXT = 2000  # characters; every chunk of a document carries its metadata


@dataclass(frozen=True, slots=True)
class Compare:
    """`field op value`; `value` is a tuple for "in" and a bool for "exists"."""

    field: str
    op: Op
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class And:
    """True when every part is; so an empty And is true."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True when some part is; so an empty Or is false."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True when its part is false."""

    part: Filter


Filter: TypeAlias = Compare | And | Or | Not


def parse_json(text: str | None) -> Filter | None:
    """The filter written in JSON; None for nothing. Raises InvalidFilter."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFilter(
            f"the filter is not JSON ({error})", """write it like '{"lang": "en"}'"""
        ) from error
    if value is None:  # an empty variable in a script must not search unfiltered
        raise InvalidFilter("the filter is null", """write it like '{"lang": "en"}'""")
    return parse(value)


def parse(where: Mapping[str, Any] | None) -> Filter | None:
    """The filter as a tree; None when there is nothing to filter. Raises InvalidFilter."""
    if where is None:
        return None
    parsed = _parse_object(where, 0)
    if _size(parsed) > _MAX_PARTS:
        raise InvalidFilter(
            f"the filter has more than {_MAX_PARTS} parts", "use $in for many values"
        )
    return None if parsed == And(()) else parsed


def matches(condition: Filter, fields: Mapping[str, Scalar]) -> bool:
    """Whether a chunk with these fields satisfies the filter: the meaning that stores follow."""
    match condition:
        case And(parts):
            return all(matches(part, fields) for part in parts)
        case Or(parts):
            return any(matches(part, fields) for part in parts)
        case Not(part):
            return not matches(part, fields)
        case Compare(name, "exists", wanted):
            return (name in fields) == wanted
        case Compare(name, op, value):
            return name in fields and _holds(op, fields[name], value)


def normal(condition: Filter) -> Filter:
    """The same filter in negation normal form: Not stands only directly around a comparison.

    For engines without negation, or where a missing field is neither true nor false: an adapter
    writes `Not(Compare)` as "compares the other way, or the field is missing or of another kind".
    """
    match condition:
        case And(parts):
            return And(tuple(map(normal, parts)))
        case Or(parts):
            return Or(tuple(map(normal, parts)))
        case Not(And(parts)):
            return Or(tuple(normal(Not(part)) for part in parts))
        case Not(Or(parts)):
            return And(tuple(normal(Not(part)) for part in parts))
        case Not(Not(part)):
            return normal(part)
        case Not(Compare(name, "exists", wanted)):
            return Compare(name, "exists", not wanted)
        case _:
            return condition


def kind(value: Scalar) -> Literal["bool", "text", "number"]:
    """The type of a value as filters see it; values of different kinds never compare."""
    if isinstance(value, bool):
        return "bool"
    return "text" if isinstance(value, str) else "number"


def check_metadata(metadata: Mapping[str, object]) -> None:
    """Raise InputError unless keys are plain names and values text, finite numbers or booleans."""
    for key, value in metadata.items():
        if not isinstance(key, str) or not key or key.startswith("$") or not _is_text(key):
            raise InputError(f"metadata key {_show(key)} is not a plain name", "rename it")
        if key in BUILT_IN_FIELDS:
            raise InputError(
                f"metadata key {_show(key)} is one of the chunk's own fields", "rename it"
            )
        if not _is_scalar(value) or (isinstance(value, str) and len(value) > _MAX_TEXT):
            raise InputError(
                f"metadata {_show(key)} cannot be {_show(value)}",
                f"use text of up to {_MAX_TEXT} characters, a finite 64-bit number or true/false",
            )


def _holds(op: Op, actual: Scalar, value: Any) -> bool:
    if op == "in":
        return any(_holds("eq", actual, item) for item in value)
    if kind(actual) != kind(value):
        return False
    left: Any = actual
    match op:
        case "eq":
            return bool(left == value)
        case "gt":
            return bool(left > value)
        case "gte":
            return bool(left >= value)
        case "lt":
            return bool(left < value)
        case _:
            return bool(left <= value)


def _parse_object(where: object, depth: int) -> Filter:
    if not isinstance(where, Mapping):
        raise InvalidFilter(f"a filter is an object, not {_show(where)}", _HINT)
    if depth > _MAX_DEPTH:
        raise InvalidFilter(f"the filter is nested more than {_MAX_DEPTH} deep", "flatten it")
    parts: list[Filter] = []
    for key, value in where.items():
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise InvalidFilter(f"{key} takes a list of filters, not {_show(value)}", _HINT)
            inner = tuple(_parse_object(item, depth + 1) for item in value)
            parts.append(And(inner) if key == "$and" else Or(inner))
        elif key == "$not":
            parts.append(Not(_parse_object(value, depth + 1)))
        elif not isinstance(key, str) or not key or key.startswith("$") or not _is_text(key):
            raise InvalidFilter(f"unknown operator {_show(key)}", _HINT)
        else:
            parts.append(_parse_field(key, value, depth + 1))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _parse_field(name: str, value: object, depth: int) -> Filter:
    if not isinstance(value, Mapping):
        return Compare(name, "eq", _scalar(name, value))
    if not value:
        raise InvalidFilter(f"no operator for field {_show(name)}", _HINT)
    if depth > _MAX_DEPTH:
        raise InvalidFilter(f"the filter is nested more than {_MAX_DEPTH} deep", "flatten it")
    parts = [_parse_operator(name, str(op), operand, depth) for op, operand in value.items()]
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _parse_operator(name: str, op: str, operand: object, depth: int) -> Filter:
    match op:
        case "$eq":
            return Compare(name, "eq", _scalar(name, operand))
        case "$ne":
            return Not(Compare(name, "eq", _scalar(name, operand)))
        case "$gt" | "$gte" | "$lt" | "$lte":
            value = _scalar(name, operand)
            if isinstance(value, bool):
                raise InvalidFilter(f"{op} on {_show(name)} takes a number or text", "use $eq")
            ordered: dict[str, Op] = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
            return Compare(name, ordered[op], value)
        case "$in" | "$nin":
            if not isinstance(operand, list):
                raise InvalidFilter(
                    f"{op} on {_show(name)} takes a list, not {_show(operand)}", _HINT
                )
            among = Compare(name, "in", tuple(_scalar(name, item) for item in operand))
            return among if op == "$in" else Not(among)
        case "$exists":
            if not isinstance(operand, bool):
                raise InvalidFilter(f"$exists on {_show(name)} takes true or false", _HINT)
            return Compare(name, "exists", operand)
        case "$not":
            return Not(_parse_field(name, operand, depth + 1))
        case _:
            raise InvalidFilter(f"unknown operator {_show(op)} on field {_show(name)}", _HINT)


def _scalar(name: str, value: object) -> Scalar:
    if _is_scalar(value):
        return value
    raise InvalidFilter(
        f"field {_show(name)} cannot be compared with {_show(value)}",
        "compare with text, a finite number or true/false",
    )


def _is_scalar(value: object) -> TypeGuard[Scalar]:
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: a lone surrogate cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _size(condition: Filter) -> int:
    match condition:
        case And(parts) | Or(parts):
            return 1 + sum(map(_size, parts))
        case Not(part):
            return 1 + _size(part)
        case _:
            return 1


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
