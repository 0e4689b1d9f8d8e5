"""The filter language as a `where` of Chroma, and the metadata that it asks about.

Chroma has no $not, no $exists and no order of text; $ne and $nin match records without the key.
So a key that holds a number or text has a marker beside it, `rag:number:KEY`, true or false, and
`$ne` on it says "missing or no number". Booleans need none, as $in can name both; nor does the
page, whose absence has a key of its own. Each key costs time with each hit.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from rag.errors import UnsupportedFilter
from rag.filters import And, Compare, Filter, Not, Or, kind, normal
from rag.types import BUILT_IN_FIELDS, Chunk, Scalar

Where: TypeAlias = dict[str, Any]

VECTOR = "rag:vector"
"""The vector as it was given, in base64, where the index holds it scaled to length one."""

_FLOATS = "rag:floats"  # as they were given: Chroma changes the last digit of many (1.5.9)
_NUMBER = "rag:number:"
_NO_PAGE = "rag:no_page"
_ESCAPE = "rag:key:"
_RESERVED = ("rag:", "chroma:", "#")  # Chroma refuses keys that begin with "#"
_NUMBERS = ("position", "ingested_at")
_ALWAYS = ("document_id", "version", "source", "title", *_NUMBERS)
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_OPPOSITE = {"gt": "lte", "gte": "lt", "lt": "gte", "lte": "gt"}
_EXACT = 2**53  # up to here each whole number is a float, too


def to_metadata(chunk: Chunk) -> dict[str, Scalar]:
    """What Chroma keeps of a chunk beside its id and text."""
    found: dict[str, Scalar] = {name: getattr(chunk, name) for name in _ALWAYS}
    if chunk.page is None:
        found[_NO_PAGE] = True
    else:
        found["page"] = chunk.page
    for key, value in chunk.metadata.items():
        found[_stored(key)] = value
        if not isinstance(value, bool):
            found[_NUMBER + key] = not isinstance(value, str)
    floats = {key: value for key, value in chunk.metadata.items() if isinstance(value, float)}
    if floats:
        found[_FLOATS] = json.dumps(floats)
    return found


def to_chunk(chunk_id: str, text: str, metadata: Mapping[str, Scalar]) -> Chunk:
    """The chunk again."""
    own = {}
    for key, value in metadata.items():
        if key.startswith(_ESCAPE):
            own[key.removeprefix(_ESCAPE)] = value
        elif key not in BUILT_IN_FIELDS and not key.startswith("rag:"):
            own[key] = value
    own.update(json.loads(str(metadata.get(_FLOATS, "{}"))))
    built_in: dict[str, Any] = {name: metadata[name] for name in _ALWAYS}
    page: Any = metadata.get("page")
    return Chunk(id=chunk_id, text=text, page=page, metadata=own, **built_in)


def to_where(condition: Filter) -> Where | bool:
    """The filter for Chroma; True or False where it holds for all chunks, or for none.

    Raises UnsupportedFilter for an order of text.
    """
    return _translate(normal(condition))


def join(word: str, parts: Iterable[Where | bool]) -> Where | bool:
    """The parts under "$and" or "$or", which take two or more."""
    neutral = word == "$and"
    left = [part for part in parts if part is not neutral]
    if (not neutral) in left:
        return not neutral
    if not left:
        return neutral
    return left[0] if len(left) == 1 else {word: left}


def _translate(condition: Filter) -> Where | bool:
    match condition:
        case And(parts):
            return join("$and", map(_translate, parts))
        case Or(parts):
            return join("$or", map(_translate, parts))
        case Not(Compare(name, "in", tuple(values))):
            return join("$and", _among(_stored(name), values, "ne"))
        case Compare(name, "in", tuple(values)):
            return join("$or", _among(_stored(name), values, "eq"))
        case Compare(name, "exists", wanted):
            if name in _ALWAYS:
                return bool(wanted)
            if name == "page":
                return {_NO_PAGE: {"$ne" if wanted else "$eq": True}}
            either = {"$in" if wanted else "$nin": [True, False]}
            return {
                "$or" if wanted else "$and": [{_NUMBER + name: either}, {_stored(name): either}]
            }
        case Not(Compare(name, "eq", value)):
            return _compare(_stored(name), "ne", value)
        case Compare(name, "eq", value):
            return _compare(_stored(name), "eq", value)
        case Not(Compare(name, op, value)):
            return join("$or", [_range(name, _OPPOSITE[op], value), _no_number(name)])
        case Compare(name, op, value):
            return _range(name, op, value)
        case _:
            raise AssertionError("not in negation normal form")


def _among(key: str, values: tuple[Scalar, ...], op: str) -> list[Where | bool]:
    """A condition for each type, as Chroma's lists hold one type only."""
    lists: dict[type, list[Scalar]] = {}
    single: list[Where | bool] = []
    for value in map(_whole, values):
        if type(value) is float or (type(value) is int and abs(value) > _EXACT):
            single.append(_compare(key, op, value))
        else:
            lists.setdefault(type(value), []).append(value)
    return [*({key: {"$in" if op == "eq" else "$nin": same}} for same in lists.values()), *single]


def _range(name: str, op: str, value: Any) -> Where | bool:
    if kind(value) != "number":
        raise UnsupportedFilter(
            f"Chroma has no order of text: ${op} on {name!r} cannot be applied",
            "compare with a number, or use $eq and $in",
        )
    return _compare(_stored(name), op, value)


def _no_number(name: str) -> Where | bool:
    if name in _ALWAYS:
        return name not in _NUMBERS
    return {_NO_PAGE: True} if name == "page" else {_NUMBER + name: {"$ne": True}}


def _compare(key: str, op: str, value: Any) -> Where | bool:
    """`key op value`, exact for whole numbers and fractions alike.

    Chroma has a column for each, and casts the value for the other one: 2023.5 is 2023 where it
    is compared with whole numbers. That is wrong for one number only, which is put right here.
    """
    value = _whole(value)
    asked = {key: {f"${op}": value}}
    if kind(value) != "number":
        return asked
    if isinstance(value, int):
        cast: float = float(value)
        if abs(cast) >= 2**63:
            return asked
    else:
        cast = max(-(2**63), min(2**63 - 1, int(value)))
    test = _TESTS[op]
    if test(cast, value) == test(cast, cast):
        return asked
    if test(cast, value):
        return {"$or": [asked, {key: {"$eq": cast}}]}
    return {"$and": [asked, {key: {"$ne": cast}}]}


def _whole(value: Any) -> Any:
    """The same number as an int if it is whole."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value


def _stored(key: str) -> str:
    return _ESCAPE + key if key.startswith(_RESERVED) else key
