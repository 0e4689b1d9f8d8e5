"""Free metadata of other frameworks, as a chunk's own fields and metadata, and back.

`document_id`, `source`, `title` and `page` become the chunk's own where they fit, so that citations
show them; other metadata of a name that the chunk itself has is kept under "meta.NAME".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rag.filters import And, Compare, Filter, Not, Or, check_metadata
from rag.types import BUILT_IN_FIELDS, Chunk

_OWN = ("document_id", "source", "title", "page")
_KEPT = "meta."


def chunk_of(chunk_id: str, text: str, metadata: Mapping[str, Any], version: str = "") -> Chunk:
    """A chunk at position 0, by default of a document of its own.

    Raises InputError for metadata that is not flat.
    """
    own: dict[str, Any] = {"document_id": chunk_id, "source": ""}
    free: dict[str, Any] = {}
    for name, value in metadata.items():
        if name in _OWN and _fits(name, value) and (name, value) != ("document_id", chunk_id):
            own[name] = value
        else:
            free[f"{_KEPT}{name}" if name in BUILT_IN_FIELDS else name] = value
    check_metadata(free)
    return Chunk(id=chunk_id, version=version, position=0, text=text, metadata=free, **own)


def metadata_of(chunk: Chunk) -> dict[str, Any]:
    """The metadata that `chunk_of` was given."""
    own = {name: value for name in _OWN if (value := getattr(chunk, name))}
    if chunk.document_id == chunk.id:
        del own["document_id"]
    return own | {name.removeprefix(_KEPT): value for name, value in chunk.metadata.items()}


def renamed(where: Filter | None) -> Filter | None:
    """A filter on metadata as a filter on chunks that `chunk_of` made."""
    match where:
        case And(parts):
            return And(tuple(part for each in parts if (part := renamed(each))))
        case Or(parts):
            return Or(tuple(part for each in parts if (part := renamed(each))))
        case Not(part):
            inner = renamed(part)
            return inner and Not(inner)
        case Compare(name, "exists", wanted) if name in BUILT_IN_FIELDS:
            either = Or(tuple(Compare(each, "exists", True) for each in _places(name)))
            return either if wanted else Not(either)
        case Compare(name, op, value) if name in BUILT_IN_FIELDS:
            return Or(tuple(Compare(each, op, value) for each in _places(name)))
        case _:
            return where


def _places(name: str) -> tuple[str, ...]:
    return (name, _KEPT + name) if name in _OWN else (_KEPT + name,)


def _fits(name: str, value: object) -> bool:
    if name == "page":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return isinstance(value, str) and bool(value)
