"""The catalogue of a Pinecone index: a record for each collection, as a namespace has none.

The record of a collection, by its name, has the namespace of its chunks, its embedder and notes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from pinecone import Vector

from rag.types import CollectionSpec, Fingerprint
from stores.pinecone_index import Connection

CATALOGUE = "rag.catalogue"
"""The namespace of these records."""

_BETWEEN = b"\xff"  # in no UTF-8


@dataclass(frozen=True)
class Entry:
    """A collection in the catalogue of an index; without a namespace it has gone.

    `generation` is what `stores.generation` keeps.
    """

    index: Connection
    namespace: str
    embedder: Fingerprint | None
    since: float
    notes: Mapping[str, str] = field(default_factory=dict)
    generation: str = ""

    def to_spec(self, name: str) -> CollectionSpec:
        """What the collection was made with; its name may be another now."""
        return CollectionSpec(name, self.index.dim, self.index.metric, self.embedder)

    def to_record(self, name: str) -> Vector:
        """The record that says this of the collection `name`."""
        embedder = json.dumps(asdict(self.embedder)) if self.embedder else ""
        metadata = {"namespace": self.namespace, "embedder": embedder, "since": self.since}
        metadata["generation"] = self.generation
        if self.notes:
            metadata["notes"] = _packed(self.notes)
        return Vector(id=name, values=self.index.probe, metadata=metadata)


def entries_of(index: Connection, names: Iterable[str]) -> dict[str, Entry]:
    """The entries of these collections in the catalogue of `index`, by name, where there are."""
    found = {}
    for name, record in index.fetch(CATALOGUE, names).items():
        metadata = record.metadata or {}
        made_by = json.loads(metadata["embedder"] or "null")
        found[name] = Entry(
            index,
            metadata["namespace"],
            Fingerprint(**made_by) if made_by else None,
            metadata["since"],
            _unpacked(metadata.get("notes", "")),
            metadata.get("generation", ""),
        )
    return found


def _packed(notes: Mapping[str, str]) -> str:
    """In base64, because JSON takes six bytes for some characters, and a record has 40 KB."""
    parts = [f"{name}={text}".encode() for name, text in notes.items()]
    return base64.b64encode(_BETWEEN.join(parts)).decode()


def _unpacked(packed: str) -> dict[str, str]:
    parts = base64.b64decode(packed).split(_BETWEEN)
    split = (part.decode().partition("=") for part in parts if part)
    return {name: text for name, _, text in split}
