"""Document -> Chunk: pieces that the embedder reads whole, cut where a reader would pause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

from rag.errors import ConfigError
from rag.protocols import Embedder
from rag.types import Chunk, Document

SPLITTER_VERSION = 1
"""Raise it when the same settings cut differently, so that stored documents are cut again."""

# From the best place to cut to the worst. A heading begins a chunk; a mark ends one. Sentence
# marks come before line breaks, because PDF lines break in the middle of sentences.
SEPARATORS = (
    r"(?=\n#{1,6} )",
    r"\n\s*\n",
    r"[。！？｡…]+[”’」』）】]*\s*|[.!?]+[\"'”’)\]]*\s+",
    r"\n",
    r"[；;：:]\s*|[，、,]\s*",
    r"\s+",
    "",
)
# No tokenizer gives ordinary text more than 8 characters a token; a run without spaces can be one
# unknown token of any length, and would make a chunk that nobody can read.
_CHARACTERS_PER_TOKEN = 8


class Splitter:
    """Cuts pages into chunks of at most `tokens` of the embedder's own tokens."""

    def __init__(self, embedder: Embedder, tokens: int, overlap: int) -> None:
        """`tokens` and `overlap` without the special tokens that the embedder adds."""
        self._embedder = embedder
        self._special = embedder.count_tokens([""])[0]
        self._tokens = min(tokens, embedder.max_tokens - self._special)
        self._overlap = overlap
        if not 0 <= overlap <= self._tokens // 2:
            raise ConfigError(
                f"ingest.overlap_tokens is {overlap}", f"use 0 to {self._tokens // 2}, half a chunk"
            )
        self._length = lru_cache(maxsize=4096)(self._count)

    def split(self, document: Document, ingested_at: int) -> list[Chunk]:
        """The chunks of all pages, in order; each lies on one page. Empty for no text."""
        chunks: list[Chunk] = []
        for page in document.pages:
            for text in self.pieces(page.text):
                position = len(chunks)
                chunks.append(
                    Chunk(
                        id=f"{document.id}:{document.version}:{position}",
                        document_id=document.id,
                        version=document.version,
                        position=position,
                        text=text,
                        source=document.source,
                        title=document.title,
                        page=page.number,
                        ingested_at=ingested_at,
                        metadata=document.metadata,
                    )
                )
        return chunks

    def pieces(self, text: str) -> list[str]:
        """`text` cut up; no piece is over the limit, and nothing but white space is lost."""
        if self._length(text) <= self._tokens:
            return [text] if text.strip() else []
        return [part for piece in self._splitter.split_text(text) for part in self._fitting(piece)]

    def _fitting(self, piece: str) -> Iterator[str]:
        """The piece, halved until it fits: joined parts can have more tokens than their sum."""
        if self._length(piece) <= self._tokens or len(piece) < 2:
            yield piece
            return
        middle = len(piece) // 2
        spaces = [m.start() for m in re.finditer(r"\s", piece)]
        cut = min(spaces, key=lambda at: abs(at - middle)) if spaces else middle
        cut = cut if 0 < cut < len(piece) else middle
        for half in (piece[:cut], piece[cut:]):
            if half.strip():
                yield from self._fitting(half.strip())

    def _count(self, text: str) -> int:
        tokens = self._embedder.count_tokens([text])[0] - self._special
        return max(tokens, -(-len(text) // _CHARACTERS_PER_TOKEN))

    @cached_property
    def _splitter(self) -> Any:
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        return RecursiveCharacterTextSplitter(
            separators=list(SEPARATORS),
            is_separator_regex=True,
            keep_separator="end",
            chunk_size=self._tokens,
            chunk_overlap=self._overlap,
            length_function=self._length,
        )
