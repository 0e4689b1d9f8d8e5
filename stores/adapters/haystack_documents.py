"""Haystack's documents as chunks, and back; what a chunk has no place for is told in metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from haystack import Document

from rag.types import Chunk
from stores.adapters.fields import metadata_of, to_chunk
from stores.adapters.haystack_filters import TIME, seconds

if TYPE_CHECKING:
    from rag.types import Vectors

NO_EMBEDDING = "haystack_no_embedding"
"""Marks a document that is kept, but not to be found by embedding."""

_NO_CONTENT = "haystack_no_content"
_JSON = "haystack_json"
"""A list of the keys whose values are kept as JSON: those that are nested, None or long."""

_PIECE = "haystack_piece_"
_LONGEST = 2_000  # characters of text in metadata


def chunk_of(document: Document) -> Chunk:
    """The document as a chunk. Raises ValueError for what cannot be kept."""
    if document.blob is not None or document.sparse_embedding is not None:
        raise ValueError(
            f"document {document.id!r} has a blob or a sparse embedding, which is not kept; "
            "remove it, or keep a path to it in the metadata"
        )
    metadata: dict[str, Any] = {}
    as_json = []
    for key, value in document.meta.items():
        if not isinstance(key, str) or key.startswith("haystack_"):
            raise ValueError(
                f"metadata key {key!r} is not text or begins with 'haystack_'; rename it"
            )
        if value is None or isinstance(value, dict | list | tuple) or _is_long(value):
            as_json.append(key)
            metadata |= _pieces(key, value)
        else:
            metadata[key] = value
        if (date := seconds(value)) is not None:
            metadata[TIME + key] = date
    if as_json:
        metadata[_JSON] = json.dumps(as_json)
    if document.content is None:
        metadata[_NO_CONTENT] = True
    if document.embedding is None:
        metadata[NO_EMBEDDING] = True
    return to_chunk(document.id, document.content or "", metadata)


def vector_of(document: Document, dim: int) -> Vectors:
    """Its embedding as float32; without one the first unit vector, as Pinecone refuses zeros."""
    if document.embedding is None:
        first: Vectors = np.eye(1, dim, dtype=np.float32)[0]
        return first
    if len(document.embedding) != dim:
        raise ValueError(
            f"document {document.id!r} has an embedding of {len(document.embedding)} dimensions, "
            f"the collection of {dim}"
        )
    return np.array(document.embedding, np.float32)


def document_of(
    chunk: Chunk, vector: Vectors | None = None, score: float | None = None
) -> Document:
    """The document that `chunk_of` was given, with its embedding if the vector is given."""
    metadata = metadata_of(chunk)
    meta = {key: value for key, value in metadata.items() if not key.startswith("haystack_")}
    for key in json.loads(metadata.get(_JSON, "[]")):
        meta[key] = json.loads(_joined(key, metadata)) if key in metadata else None
    return Document(
        id=chunk.id,
        content=None if metadata.get(_NO_CONTENT) else chunk.text,
        meta=meta,
        score=score,
        embedding=None if vector is None or metadata.get(NO_EMBEDDING) else vector.tolist(),
    )


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > _LONGEST


def _pieces(key: str, value: Any) -> dict[str, str]:
    """The value as JSON, as many texts as it takes; nothing for None, as filters see it."""
    if value is None:
        return {}
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata {key!r} cannot be kept as JSON ({error})") from error
    pieces = [text[start : start + _LONGEST] for start in range(0, len(text), _LONGEST)]
    more = {f"{_PIECE}{number}_{key}": piece for number, piece in enumerate(pieces[1:], 1)}
    return {key: pieces[0], **more}


def _joined(key: str, metadata: dict[str, Any]) -> str:
    text, number = metadata[key], 1
    while (piece := metadata.get(f"{_PIECE}{number}_{key}")) is not None:
        text, number = text + piece, number + 1
    return str(text)
