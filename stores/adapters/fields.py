"""The free metadata of other frameworks as the fields of a chunk, and back; and filters on it.

A chunk has `source`, `title`, `page` and the like of its own, which citations show. Metadata of
such a name goes there if it fits; what does not (a page "iv", an empty title) is kept in the
chunk's metadata as `meta.NAME`. So what comes back is what went in, and filters ask both places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rag.errors import InputError, InvalidFilter
from rag.filters import And, Compare, Filter, Not, Or, check_metadata, matches
from rag.types import BUILT_IN_FIELDS, Chunk, Scalar

_ASIDE = {name: f"meta.{name}" for name in BUILT_IN_FIELDS}
_INGESTED = ("version", "position", "ingested_at")
"""A chunk has all of these from its metadata, or none: then its version is empty."""

_NOTHING: dict[str, Scalar] = {"source": "", "title": "", "version": "", "position": 0}
_NOTHING["ingested_at"] = 0
"""What a field is where the metadata says nothing. A page is missing then."""

_LONGEST = 2_000  # characters, as for metadata
_LARGEST = 2**53  # the largest integer that every store keeps and compares exactly


def to_chunk(chunk_id: str, text: str, metadata: Mapping[str, Any]) -> Chunk:
    """A chunk with this metadata; without a `document_id` it is a document of its own.

    Raises ValueError for metadata that is not flat, naming the key.
    """
    ingested = all(_fits(name, metadata.get(name)) for name in _INGESTED)
    default = ("document_id", chunk_id)
    own: dict[str, Any] = {"document_id": chunk_id, "version": "", "position": 0, "source": ""}
    rest: dict[str, Any] = {}
    for key, value in metadata.items():
        if key in _ASIDE.values():
            raise ValueError(f"metadata key {key!r} is taken; rename it")
        if key not in _ASIDE:
            rest[key] = value
        elif ingested if key in _INGESTED else _fits(key, value) and (key, value) != default:
            own[key] = value
        else:
            rest[_ASIDE[key]] = value
    try:
        check_metadata(rest)
    except InputError as error:
        raise ValueError(str(error)) from error
    return Chunk(id=chunk_id, text=text, metadata=rest, **own)


def metadata_of(chunk: Chunk) -> dict[str, Any]:
    """The metadata that `to_chunk` was given; of a chunk that `rag ingest` made, all fields."""
    found: dict[str, Any] = {}
    for name in BUILT_IN_FIELDS:
        value = getattr(chunk, name)
        told = chunk.version if name in _INGESTED else value
        if told and not (name == "document_id" and value == chunk.id):
            found[name] = value
    for key, value in chunk.metadata.items():
        name = key.removeprefix("meta.")
        found[name if name in _ASIDE and name not in found else key] = value
    return found


def on_chunks(where: Filter | None) -> Filter | None:
    """A filter on metadata as a filter on the chunks that hold it."""
    return None if where is None else _on_chunks(where)


def _on_chunks(where: Filter) -> Filter:
    match where:
        case And(parts):
            return And(tuple(map(_on_chunks, parts)))
        case Or(parts):
            return Or(tuple(map(_on_chunks, parts)))
        case Not(part):
            return Not(_on_chunks(part))
        case Compare(name, "exists", wanted) if name in _ASIDE:
            there = Or((_told(name), Compare(_ASIDE[name], "exists", True)))
            return there if wanted else Not(there)
        case Compare(name) if name in _ASIDE:
            aside = replace(where, field=_ASIDE[name])
            if name in _NOTHING and matches(where, {name: _NOTHING[name]}):
                return Or((And((where, _told(name))), aside))
            return Or((where, aside))
        case _:
            return where


def _told(name: str) -> Filter:
    """Whether a chunk has its field of this name from the metadata."""
    if name == "document_id":
        raise InvalidFilter(
            "it cannot be asked whether document_id exists", "it is the id where none was given"
        )
    if name == "page":
        return Compare("page", "exists", True)
    return Not(Compare("version" if name in _INGESTED else name, "eq", ""))


def _fits(name: str, value: object) -> bool:
    if name in ("page", "position", "ingested_at"):
        least = 1 if name == "page" else 0
        return type(value) is int and least <= value < _LARGEST
    return isinstance(value, str) and 0 < len(value) <= _LONGEST
