"""The filter language as a condition on the tables of `stores.sqlite`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rag.filters import And, Compare, Filter, Not, Or, kind
from rag.types import Scalar

_TEXT = ("document_id", "version", "source", "title")
_NUMBER = ("position", "page", "ingested_at")
_SIGNS = {"eq": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def to_sql(where: Filter | None, *, each: bool = False) -> tuple[str, list[Any]]:
    """(condition, values) on a row of `chunks`; never NULL, so that NOT is plain negation.

    It looks up all that matches at once, or with `each` every row for itself: for few rows.
    """
    own = " AND fields.seq = chunks.seq" if each else ""
    match where:
        case None:
            return "1", []
        case Not(part):
            condition, values = to_sql(part, each=each)
            return f"NOT {condition}", values
        case And(parts) | Or(parts):
            word, empty = (" AND ", "1") if isinstance(where, And) else (" OR ", "0")
            pairs = [to_sql(part, each=each) for part in parts]
            condition = word.join(condition for condition, _ in pairs) or empty
            return f"({condition})", [value for _, values in pairs for value in values]
        case Compare(name, "exists", wanted):
            if name in _TEXT or name in _NUMBER:
                return f"({name} IS {'NOT ' if wanted else ''}NULL)", []
            found = f"seq IN (SELECT seq FROM fields WHERE key = ?{own})"
            return f"({'' if wanted else 'NOT '}{found})", [name]
        case Compare(name, op, value):
            among = value if isinstance(value, tuple) else (value,)
            return _any_of(name, op, among, own)


def one_of(values: Iterable[Scalar]) -> tuple[str, list[Any]]:
    """(condition, operands) to write behind a column: it is one of these, however many."""
    # json_each cuts a text at its first NUL, and would find another one.
    cut: list[Any] = []
    whole: list[Any] = []
    for value in values:
        (cut if isinstance(value, str) and "\0" in value else whole).append(value)
    more = f" UNION ALL VALUES {', '.join(['(?)'] * len(cut))}" if cut else ""
    return f"IN (SELECT value FROM json_each(?){more})", [json.dumps(whole), *cut]


def _any_of(name: str, op: str, among: tuple[Scalar, ...], own: str) -> tuple[str, list[Any]]:
    """`name op value` for one of the values, each compared with fields of its own kind only."""
    conditions, values = [], []
    for of_kind in ("text", "number", "bool"):
        same = [value for value in among if kind(value) == of_kind]
        if not same:
            continue
        if op == "in":
            test, operands = one_of(same)
        else:
            test, operands = f"{_SIGNS[op]} ?", same[:1]
        if name in _TEXT or name in _NUMBER:
            if of_kind == ("text" if name in _TEXT else "number"):
                conditions.append(f"({name} IS NOT NULL AND {name} {test})")
                values += operands
        else:
            conditions.append(
                f"seq IN (SELECT seq FROM fields WHERE key = ? AND kind = ? AND value {test}{own})"
            )
            values += [name, of_kind, *operands]
    return f"({' OR '.join(conditions) or '0'})", values
