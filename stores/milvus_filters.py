"""Filters as Milvus expressions, exact on Milvus Lite and on a server alike.

A metadata key is a dynamic field whose name also tells the kind of the value, so that kinds never
compare: `year` is `n_year` where it holds a number and `s_year` where it holds text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from rag.filters import And, Compare, Filter, Not, Op, Or, kind, normal
from rag.types import Scalar

MISSING = 1 - 2**63
"""The page of a chunk that has none, because servers before 2.6 have no null."""
PARTITION = "partition"
"""The field of the metadata key that the collection is partitioned by."""
EVERY = 'id != ""'
"""What holds for every chunk: a server takes neither true nor false alone."""

_NONE = 'id == ""'
_SIGNS = {"eq": "==", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_PREFIXES = {"text": "s_", "number": "n_", "bool": "b_"}
_COLUMNS = {
    **dict.fromkeys(("document_id", "version", "source", "title"), "text"),
    **dict.fromkeys(("position", "page", "ingested_at"), "number"),
}
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


@lru_cache(4096)
def dynamic_field(key: str, of: str) -> str:
    """The field for a metadata key with values of this kind: an identifier, whatever the key.

    Its second character is "_", as of no other field.
    """
    return _PREFIXES[of] + re.sub(r"[^a-zA-Z0-9]", _escape, key)


@lru_cache(4096)
def metadata_key(field: str) -> str:
    """The metadata key that a dynamic field is for."""
    return re.sub(r"_(_|[0-9a-f]+_)", _unescape, field[2:])


def literal(value: Scalar) -> str:
    """The value as expressions write it. Lite knows no other escapes than these."""
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def one_of(field: str, values: Iterable[Scalar]) -> str:
    """The expression for a field that has one of these values."""
    return f"{field} in [{', '.join(map(literal, values))}]"


def both(*conditions: str) -> str:
    """The expression that holds when all of these do; empty ones are left out."""
    return " and ".join(f"({condition})" for condition in conditions if condition)


def expression(condition: Filter | None, partition_key: str = "") -> str:
    """The filter as an expression; empty for none. Chunks without a key match as everywhere."""
    return "" if condition is None else _write(normal(condition), partition_key)


def _write(condition: Filter, tenant: str) -> str:
    match condition:
        case And(parts):
            return both(*(_write(part, tenant) for part in parts)) or EVERY
        case Or(parts):
            return _either(_write(part, tenant) for part in parts)
        case Compare(name, "exists", wanted):
            return _present(name) if wanted else f"not ({_present(name)})"
        case Not(Compare() as compare):
            return both(*(_denied(*found) for found in _alternatives(compare, tenant))) or EVERY
        case Compare():
            return _either(found for found, _ in _alternatives(condition, tenant))
        case Not():
            raise AssertionError("rag.filters.normal leaves Not around comparisons only")


def _either(conditions: Iterable[str]) -> str:
    return " or ".join(f"({condition})" for condition in conditions) or _NONE


def _denied(found: str, field: str) -> str:
    # A server calls a comparison with a missing field false, Lite unknown: and its negation too.
    return f"(not ({found})) or (not (exists {field}))" if field else f"not ({found})"


def _present(name: str) -> str:
    if name in _COLUMNS:
        return f"page > {MISSING}" if name == "page" else EVERY
    return _either(f"exists {dynamic_field(name, of)}" for of in _PREFIXES)


def _alternatives(compare: Compare, tenant: str) -> Iterator[tuple[str, str]]:
    """What the comparison is for each kind of its values, and the field that may be missing."""
    name, op = compare.field, compare.op
    values = compare.value if isinstance(compare.value, tuple) else (compare.value,)
    for of in _PREFIXES:
        some = [value for value in values if kind(value) == of]
        if not some:
            continue
        if name in _COLUMNS:
            if _COLUMNS[name] == of:
                yield (_text if of == "text" else _whole)(name, op, some), ""
        elif name == tenant and of == "text" and op in ("eq", "in") and "" not in some:
            yield _text(PARTITION, op, some), ""  # so that a server reads one partition only
        else:
            field = dynamic_field(name, of)
            yield (_number if of == "number" else _text)(field, op, some), field


def _text(field: str, op: Op, values: Sequence[Scalar]) -> str:
    return one_of(field, values) if op == "in" else f"{field} {_SIGNS[op]} {literal(values[0])}"


def _number(field: str, op: Op, values: Sequence[Scalar]) -> str:
    if op != "in":
        return _text(field, op, [_exact(values[0])])
    # A server takes no list of both; an integer also matches the float that equals it.
    exact = [_exact(value) for value in values]
    lists = [[v for v in exact if isinstance(v, of)] for of in (int, float)]
    return _either(one_of(field, some) for some in lists if some)


def _whole(field: str, op: Op, values: Sequence[Scalar]) -> str:
    """A comparison with a field of integers, which a server compares with integers only."""
    if op in ("eq", "in"):
        whole = [value for value in map(_exact, values) if isinstance(value, int)]
        found = one_of(field, whole) if whole else _NONE
    else:
        up = op in ("gte", "lt")
        bound = math.ceil(values[0]) if up else math.floor(values[0])  # type: ignore[arg-type]
        found = f"{field} {_SIGNS[op]} {max(MISSING, min(-MISSING, bound))}"
    return f"{found} and page > {MISSING}" if field == "page" else found


def _exact(value: Scalar) -> Scalar:
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**63
    return int(value) if whole else value


def _escape(match: re.Match[str]) -> str:
    return "__" if match[0] == "_" else f"_{ord(match[0]):x}_"


def _unescape(match: re.Match[str]) -> str:
    return "_" if match[1] == "_" else chr(int(match[1][:-1], 16))
