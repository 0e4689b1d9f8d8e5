"""How chunks lie in Pinecone: the ids of records, their metadata, and filters over it.

A record's id begins with its document's, so that a document is found by listing a prefix. Values
lie under keys that name their kind, such as `number:year`: kinds never compare, and what is
negated needs no knowledge of what Pinecone does with a missing field.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

from rag.errors import InputError, UnsupportedFilter
from rag.filters import And, Compare, Filter, Not, Op, Or, kind, normal
from rag.types import Chunk, Scalar

Body: TypeAlias = dict[str, Any]

FOREIGN = ":"
"""What begins the id of a record whose chunk's own id does not tell its document."""

# Pinecone takes 512 characters; but the ids of 10,000 hits must fit the 4 MB of an answer.
_LONGEST_ID = 200
# Pinecone takes 40,960 bytes of metadata. Counted here as JSON in ASCII, which no other way of
# counting exceeds.
_MOST_METADATA = 38_000
_PIECE = 3_000  # characters; 12 bytes each at most
_EXACT = 2**53  # integers from here on are not all 64-bit floats, which is what Pinecone compares
_MOST_VALUES = 10_000  # of one $in

_KINDS = ("bool", "number", "text")
_NEGATED: dict[Op, str] = {
    "eq": "$ne",
    "gt": "$lte",
    "gte": "$lt",
    "lt": "$gte",
    "lte": "$gt",
    "in": "$nin",
}


# --- ids


def record_id(chunk: Chunk) -> str:
    """The id of the record of a chunk."""
    if chunk.id == f"{chunk.document_id}:{chunk.version}:{chunk.position}":
        return own_id(chunk.id) or foreign_id(chunk.id)
    return foreign_id(chunk.id)


def own_id(chunk_id: str) -> str | None:
    """The record id of `document:version:position`, which ingestion makes; None for others."""
    parts = chunk_id.split(":")
    if len(parts) != 3 or not parts[0] or not parts[2].isdecimal() or not parts[2].isascii():
        return None
    found = ":".join(quote(part, safe="") for part in parts)
    return found if len(found) <= _LONGEST_ID else None


def foreign_id(chunk_id: str) -> str:
    """The record id of a chunk with any id; of a very long one, its hash."""
    quoted = FOREIGN + quote(chunk_id, safe="")
    if len(quoted) <= _LONGEST_ID:
        return quoted
    return f"{FOREIGN}={hashlib.sha256(chunk_id.encode()).hexdigest()}"


def document_prefix(document_id: str) -> str | None:
    """What begins the ids of a document's records; None if it is too long to be in one."""
    prefix = quote(document_id, safe="") + ":"
    return prefix if len(prefix) < _LONGEST_ID else None


def parts_of(own: str) -> tuple[str, str, int]:
    """Document, version and position out of the id of a record that is not foreign."""
    document, version, position = own.split(":")
    return unquote(document), unquote(version), int(position)


# --- metadata


def to_metadata(chunk: Chunk, record: str) -> tuple[Body, dict[str, str]]:
    """The metadata of a chunk's record, and pieces of its text by id if it is too long for one.

    Raises InputError if what is left is too long.
    """
    metadata: Body = {f"{kind(value)}:{name}": value for name, value in chunk.fields().items()}
    metadata |= {"id": chunk.id, "metadata": json.dumps(dict(chunk.metadata), ensure_ascii=False)}
    if record.startswith(FOREIGN):
        metadata["foreign"] = True
    whole = {**metadata, "text": chunk.text}
    if json_size(whole) <= _MOST_METADATA:
        return whole, {}
    # The digest keeps readers from joining pieces of two texts while one replaces the other.
    digest = hashlib.sha256(chunk.text.encode()).hexdigest()[:32]
    texts = [chunk.text[at : at + _PIECE] for at in range(0, len(chunk.text), _PIECE)]
    metadata |= {"pieces": len(texts), "digest": digest}
    if (size := json_size(metadata)) > _MOST_METADATA:
        raise InputError(
            f"the metadata of chunk {chunk.id!r} takes {size} bytes, more than Pinecone holds",
            "shorten it, or use another store",
        )
    return metadata, dict(zip(piece_ids(record, metadata), texts, strict=True))


def piece_ids(record: str, metadata: Body) -> list[str]:
    """The ids of the pieces of a text that is too long for its record, in order."""
    count = int(metadata.get("pieces", 0))
    return [f"{record}#{metadata['digest']}#{number}" for number in range(count)]


def to_chunk(metadata: Body, text: str) -> Chunk:
    """The chunk of a record; every number in its metadata has become a float."""
    page = metadata.get("number:page")
    return Chunk(
        id=metadata["id"],
        document_id=metadata["text:document_id"],
        version=metadata["text:version"],
        position=int(metadata["number:position"]),
        text=text,
        source=metadata["text:source"],
        title=metadata["text:title"],
        page=None if page is None else int(page),
        ingested_at=int(metadata["number:ingested_at"]),
        metadata=json.loads(metadata["metadata"]),
    )


def as_kept(metadata: Body) -> Body:
    """The metadata as Pinecone gives it back: every number is a 64-bit float."""
    return {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in metadata.items()
    }


def json_size(metadata: Body) -> int:
    """Bytes of it as JSON in ASCII."""
    return len(json.dumps(metadata))


# --- filters


def to_filter(condition: Filter) -> Body:
    """The filter as Pinecone takes it. Raises UnsupportedFilter."""
    return _translated(normal(condition))


def _translated(condition: Filter) -> Body:
    match condition:
        case And(parts):
            return _all_of([_translated(part) for part in parts])
        case Or(parts):
            return _any_of([_translated(part) for part in parts])
        case Compare(name, "exists", wanted):
            joined = _any_of if wanted else _all_of
            return joined([{f"{each}:{name}": {"$exists": wanted}} for each in _KINDS])
        case Compare(name, op, value):
            return _any_of([{key: {f"${o}": v}} for key, o, v in _operands(name, op, value)])
        case Not(Compare(name, op, value)):
            # Whether Pinecone's own $ne and $nin match records without the field is not documented.
            return _all_of(
                [
                    _any_of([{key: {"$exists": False}}, {key: {_NEGATED[o]: v}}])
                    for key, o, v in _operands(name, op, value)
                ]
            )
        case Not():
            raise AssertionError("not in negation normal form")


def _all_of(parts: list[Body]) -> Body:
    return {"$and": parts} if parts else {"id": {"$exists": True}}


def _any_of(parts: list[Body]) -> Body:
    return {"$or": parts} if parts else {"id": {"$exists": False}}


def _operands(name: str, op: Op, value: Any) -> list[tuple[str, Op, Any]]:
    """(key, operator, operand) for each kind that is asked for.

    Pinecone refuses `$in` with values of several kinds, or with truth values.
    """
    if op != "in":
        return [(_key(name, op, value), op, value)]
    if len(value) > _MOST_VALUES:
        raise UnsupportedFilter(
            f"Pinecone takes {_MOST_VALUES} values in $in and $nin, not {len(value)} for {name!r}",
            "ask in several searches",
        )
    lists: dict[str, list[Scalar]] = {}
    single: list[tuple[str, Op, Any]] = []
    for each in value:
        key = _key(name, op, each)
        if isinstance(each, bool):
            single.append((key, "eq", each))
        else:
            lists.setdefault(key, []).append(each)
    return [*single, *((key, op, some) for key, some in lists.items())]


def _key(name: str, op: Op, value: Any) -> str:
    if op not in ("eq", "in") and kind(value) != "number":
        raise UnsupportedFilter(
            f"Pinecone has no order of text, so ${op} on {name!r} takes a number",
            "compare with a number, or use $eq or $in",
        )
    if kind(value) == "number" and abs(value) >= _EXACT:
        raise UnsupportedFilter(
            f"Pinecone keeps numbers as 64-bit floats, so {name!r} cannot be compared with {value}",
            "keep large numbers as text",
        )
    return f"{kind(value)}:{name}"
