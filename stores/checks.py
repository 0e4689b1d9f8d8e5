"""What every store refuses, checked in one place so that every store refuses the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from pydantic import Field

from rag.errors import (
    CollectionGone,
    DimensionMismatch,
    EmbedderMismatch,
    InputError,
    MetricMismatch,
    UnknownCollection,
)
from rag.filters import check_metadata
from rag.types import Chunk, CollectionSpec, Fingerprint

if TYPE_CHECKING:
    from rag.types import Vectors

# Of settings, which `rag.plugins.options` holds them to.
Links: TypeAlias = Annotated[int, Field(ge=2, le=2_048)]
"""Of a node in a graph. With one, searches are wrong; FAISS and Chroma crash on none."""
Effort: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65_535)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]

GENERATION_NOTE = "rag_generation"
"""The note of `stores.generation`, which is no one else's and takes no room from theirs."""

# Small letters only: a name becomes a folder, and some file systems fold case. The length and the
# alphabet fit the names that Milvus, Chroma and Pinecone accept.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NOTE = re.compile(r"[a-z0-9_]{1,32}")
# As many as fit the metadata of one record in Pinecone, whatever the text.
_NOTES_BYTES = 16_384


def check_name(name: str) -> None:
    """Raise InputError unless `name` can name a collection in every store."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a collection",
            "use 1 to 63 small letters, digits, '-' and '_', beginning with a letter or digit",
        )


def check_chunks(chunks: Sequence[Chunk], vectors: Vectors, dim: int) -> Vectors:
    """The vectors as contiguous float32, shape (len(chunks), dim).

    Raises DimensionMismatch, or InputError for lengths that differ, NaN or infinity, ids or text
    that are not Unicode, NUL in ids, and metadata that is not flat.
    """
    vectors = check_vectors(vectors, dim)
    if len(vectors) != len(chunks):
        raise InputError(f"{len(chunks)} chunks came with {len(vectors)} vectors", "give one each")
    for chunk in chunks:
        if not chunk.id or not chunk.document_id:
            raise InputError("a chunk has an empty id or document id", "give every chunk both")
        if "\0" in chunk.id + chunk.document_id:
            raise InputError(f"chunk {chunk.id!r} has a NUL character in an id", "leave it out")
        try:
            (chunk.id + chunk.document_id + chunk.source + chunk.title + chunk.text).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"chunk {chunk.id!r} holds a lone surrogate", "clean the text"
            ) from error
        check_metadata(chunk.metadata)
    return vectors


def check_vectors(vectors: Vectors, dim: int) -> Vectors:
    """The vectors as contiguous float32, shape (n, dim). DimensionMismatch, InputError on NaN."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.size == 0:
        return vectors.reshape(0, dim)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise DimensionMismatch(
            f"the collection holds vectors of {dim} dimensions, not {vectors.shape[-1]}",
            "use the embedder that it was made with, or another collection",
        )
    if not np.isfinite(vectors).all():
        raise InputError("a vector holds NaN or infinity", "check the embedder that made it")
    return vectors


def check_notes(kept: Mapping[str, str], notes: Mapping[str, str]) -> dict[str, str]:
    """The notes of a collection that has `kept` once `notes` are written.

    Raises InputError for names that no note can have, and for more than a collection holds.
    """
    for name in notes:
        if not _NOTE.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a note", "use 1 to 32 small letters, digits and '_'"
            )
    together = {name: text for name, text in {**kept, **notes}.items() if text}
    counted = {name: text for name, text in together.items() if name != GENERATION_NOTE}
    try:
        size = len("".join([*counted, *counted.values()]).encode())
    except UnicodeEncodeError as error:
        raise InputError("a note holds a lone surrogate", "clean the text") from error
    if size > _NOTES_BYTES:
        raise InputError(
            f"the notes of a collection may take {_NOTES_BYTES} bytes together, not {size}",
            "shorten them, or remove one by giving it an empty text",
        )
    return together


def check_same(spec: CollectionSpec, live: CollectionSpec) -> None:
    """Raise the mismatch between what is asked for and what the collection is, if there is one."""
    if spec.embedder and live.embedder:
        check_embedder(live.name, asked=spec.embedder, live=live.embedder)
    if spec.dim != live.dim:
        raise DimensionMismatch(
            f"collection {live.name!r} holds vectors of {live.dim} dimensions, not {spec.dim}",
            "use the embedder that it was made with, or another --collection",
        )
    if spec.metric != live.metric:
        raise MetricMismatch(
            f"collection {live.name!r} has metric {live.metric}, not {spec.metric}",
            "ask for its own metric, or another --collection",
        )


def check_embedder(
    collection: str, *, asked: Fingerprint, live: Fingerprint, store: str = ""
) -> None:
    """Raise EmbedderMismatch, naming what differs, unless the two make comparable vectors.

    `store` is the kind of store, for the command that mends it.
    """
    if asked == live:
        return
    ours, theirs = asdict(asked), asdict(live)
    differs = [name for name in ours if ours[name] != theirs[name]]
    names = ["model"] if "model" in differs else differs
    raise EmbedderMismatch(
        f"collection {collection!r} was made with another embedder: "
        + ", ".join(f"{n} {theirs[n]!r}, not {ours[n]!r}" for n in names),
        f"set that back, or: rag collections reembed {collection} --model {asked.model!r}"
        + (f" --store {store}" if store else ""),
    )


def no_collection(kind: str, name: str) -> UnknownCollection:
    """The error for a collection that is not there."""
    return UnknownCollection(
        f"there is no collection {name!r} in {kind}",
        f"make it with: rag ingest PATH --collection {name} --store {kind.split()[0].lower()}, "
        "or see: rag collections list",
    )


def gone(name: str) -> CollectionGone:
    """The error for a handle whose collection was dropped, or replaced by another."""
    return CollectionGone(f"collection {name!r} was deleted or replaced", "open it again")
