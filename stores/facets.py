"""Facets: the metadata that is really there, for filters that find something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from typing import Any, Literal, NamedTuple, TypeAlias

from rag.filters import Filter, kind, matches
from rag.protocols import VectorStore
from rag.types import Chunk, Facet, Facets, Scalar

CAPABILITY = "facets"

_VALUES = 50  # of a field
_FIELDS = 100  # whoever writes may give every document fields of its own
_CHUNKS = 20_000  # some seconds, from the slowest store

Kind: TypeAlias = Literal["bool", "text", "number"]


class Counted(NamedTuple):
    """A value of a field, its kind as in `rag.filters`, and how many documents have it."""

    name: str
    kind: Kind
    value: Scalar
    documents: int


def facets(store: VectorStore, where: Filter | None = None) -> Facets:
    """The metadata of the chunks that match, at most 100 fields and of each 50 values.

    Of a store without the capability "facets" up to 20,000 chunks are looked at.
    """
    if CAPABILITY in store.describe().capabilities:
        found: Facets = store.facets(where)  # type: ignore[attr-defined]
        return found
    return _of_the_first(store, where)


def facets_of(values: Iterable[Counted], *, complete: bool) -> Facets:
    """The facets that these values make; `complete` says whether they are all there are."""
    by_field: defaultdict[tuple[str, Kind], list[Counted]] = defaultdict(list)
    for value in values:
        by_field[value.name, value.kind].append(value)
    named = nsmallest(_FIELDS, by_field, key=lambda field: (-_documents(by_field[field]), field))
    fields = [_facet(*field, by_field[field]) for field in named]
    return Facets(
        tuple(sorted(fields, key=lambda field: (field.name, field.kind))),
        complete and len(named) == len(by_field),
    )


def counted(chunks: Iterable[Chunk]) -> Iterator[Counted]:
    """The values in the metadata of these chunks."""
    documents: defaultdict[tuple[str, Kind, Scalar], set[str]] = defaultdict(set)
    for chunk in chunks:
        for name, value in chunk.metadata.items():
            documents[name, kind(value), value].add(chunk.document_id)
    for key, ids in documents.items():
        yield Counted(*key, len(ids))


def _of_the_first(store: VectorStore, where: Filter | None) -> Facets:
    chunks: list[Chunk] = []
    seen, complete = 0, True
    for batch, _ in store.scan():
        if seen >= _CHUNKS:
            complete = False
            break
        seen += len(batch)
        chunks += (c for c in batch if where is None or matches(where, c.fields()))
    return facets_of(counted(chunks), complete=complete)


def _documents(values: Iterable[Counted]) -> int:
    return sum(value.documents for value in values)


def _facet(name: str, of: Kind, values: list[Counted]) -> Facet:
    frequent = nsmallest(_VALUES, values, key=lambda value: (-value.documents, value.value))
    numbers: list[Any] = [value.value for value in values] if of == "number" else []
    return Facet(
        name,
        "truth" if of == "bool" else of,
        tuple((value.value, value.documents) for value in frequent),
        len(values) > len(frequent),
        min(numbers, default=None),
        max(numbers, default=None),
    )
