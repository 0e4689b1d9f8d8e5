"""Chunk -> vector. A chunk is embedded under its document's title, which tells what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag.protocols import Embedder
from rag.types import Chunk

if TYPE_CHECKING:
    from rag.types import Vectors

EMBED_VERSION = 1
_TITLE = 90  # characters of a title; more would drown the text


def embed(chunks: Sequence[Chunk], embedder: Embedder) -> Vectors:
    """float32, shape (len(chunks), dim). ContextTooLong if a text alone is too long.

    Where both do not fit, the text is embedded without the title.
    """
    titled = [_titled(chunk) for chunk in chunks]
    counts = embedder.count_tokens(titled)
    return embedder.embed_documents(
        [
            text if count <= embedder.max_tokens else chunk.text
            for chunk, text, count in zip(chunks, titled, counts, strict=True)
        ]
    )


def _titled(chunk: Chunk) -> str:
    title = " ".join(chunk.title.split())[:_TITLE]
    if not title or title in " ".join(chunk.text[: 2 * _TITLE].split()):
        return chunk.text
    return f"{title}\n{chunk.text}"
