"""What a collection of Chroma says of itself: name, metric, embedder and notes."""

from __future__ import annotations

import json

from chromadb.api.models.Collection import Collection

from rag.errors import MetricMismatch, StoreUnavailable
from rag.types import CollectionSpec, Fingerprint

DESCRIPTION = "rag"
"""The key of the description in the metadata."""

GENERATION = "rag.generation"
"""The key of what `stores.generation` keeps."""

_NOTES = "rag.notes"

SPACES = {"cosine": "ip", "ip": "ip", "l2": "l2"}
"""What the index measures for each metric. Cosine is the inner product of vectors of length one:
Chroma's own gives vectors back that differ in the last digit."""


def their_name(name: str) -> str:
    """The name in Chroma, which wants three characters and a letter or digit at the end."""
    return f"rag.{name}.chunks"


def described(collection: Collection, name: str) -> CollectionSpec:
    """The description in its metadata, the metric compared with that of the live index.

    Raises MetricMismatch, or StoreUnavailable if it has none.
    """
    try:
        values = json.loads(collection.metadata[DESCRIPTION])
        embedder = values.pop("embedder")
        values["name"] = name  # it may have taken the place of another
        spec = CollectionSpec(**values, embedder=Fingerprint(**embedder) if embedder else None)
        index = collection.configuration_json
        space = (index.get("hnsw") or index["spann"])["space"]
        wanted = SPACES[spec.metric]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreUnavailable(
            f"collection {name!r} in Chroma has a malformed description",
            f"run: rag collections delete {name}, then ingest again",
        ) from error
    if space != wanted:
        raise MetricMismatch(
            f"collection {name!r} has metric {spec.metric}, for which its index should measure "
            f"{wanted!r}, not {space!r}",
            f"run: rag collections delete {name}, then ingest again",
        )
    return spec


def notes_of(collection: Collection) -> dict[str, str]:
    """The notes in its metadata."""
    found: dict[str, str] = json.loads((collection.metadata or {}).get(_NOTES, "{}"))
    return found


def generation_of(collection: Collection) -> str:
    """What `stores.generation` has kept in its metadata; empty if nothing."""
    found: str = (collection.metadata or {}).get(GENERATION, "")
    return found


def set_notes(collection: Collection, notes: dict[str, str], mark: str) -> None:
    """Write the notes.

    Chroma takes the metadata whole: what is left out would be gone. So the writer's mark goes
    along, lest an earlier generation come back.
    """
    _set(collection, {_NOTES: json.dumps(notes), GENERATION: mark})


def set_generation(collection: Collection, text: str) -> None:
    """Write what `stores.generation` keeps."""
    _set(collection, {GENERATION: text})


def _set(collection: Collection, more: dict[str, str]) -> None:
    collection.modify(metadata={**(collection.metadata or {}), **more})
