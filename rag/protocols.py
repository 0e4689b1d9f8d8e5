"""What a backend must offer. A plug-in implements one of these and nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rag.errors import ModelError
from rag.types import (
    BackendInfo,
    Chunk,
    CollectionSpec,
    DocumentKey,
    DocumentRecord,
    Facets,
    Fingerprint,
    Hit,
    Prompt,
    StoreInfo,
    Usage,
)

if TYPE_CHECKING:
    from rag.filters import Filter
    from rag.types import Vectors


class Embedder(Protocol):
    """Turns text into vectors. Synchronous; safe to call from several threads."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What identifies the vectors. Cheap: does not load the model."""

    @property
    def max_tokens(self) -> int:
        """The longest text that is embedded whole, in the model's tokens, special ones included."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document, prefix and special tokens included."""

    def legibility(self, text: str) -> float:
        """How much of the text the model can read, 0 to 1: its script may be none of the model's.

        1 where that cannot be known.
        """

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """float32, shape (len(texts), dim), unit rows. ContextTooLong if a text would be cut."""

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """float32, shape (len(texts), dim), unit rows. A query over the limit is cut."""


class VectorStore(Protocol):
    """One collection of chunks with their vectors. Its contract is `stores.contract`.

    Synchronous; safe for concurrent readers with one writer. What a call acknowledged is there
    after a crash of the process, for stores that persist.
    """

    def describe(self) -> StoreInfo:
        """Kind, collection, dim, metric, index, embedder and count, read from the live store."""

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        """Write chunks; one of the same id is replaced, of duplicates in a call the last stays.

        Raises DimensionMismatch, InputError (NaN, lengths that differ, metadata that is not
        scalar), StoreUnavailable. All or nothing where the engine has transactions.
        """

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        """Delete what matches every argument that is given; returns how many chunks went.

        Missing ids are silent. With no argument nothing is deleted.
        """

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        """The chunks in the order asked for; missing ones are left out."""

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """The vectors of these chunks as they were given to `upsert`, in the order asked.

        Missing ones are left out. float32, shape (n, dim).
        """

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        """The `k` best of the chunks that match `where`, best first, a list a row of `vectors`.

        Ties are ordered by chunk id. Always k hits when k chunks match (exact indexes).
        """

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        """A record for each version of each document, ordered by source, then version, then id.

        With `where` only of chunks that match: a record counts these, and is complete if the one
        at position 0 is among them. With `containing` only those whose source or title contains
        it, compared by `str.casefold`; with `after` only those behind that key, which need not be
        there; and `limit` at most. Raises UnsupportedFilter, with the first record at the latest.
        """

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        """Everything, in batches, with the vectors as they were given to `upsert`."""

    def count(self, where: Filter | None = None) -> int:
        """How many chunks match."""

    def annotate(self, notes: Mapping[str, str]) -> None:
        """Keep texts with the collection, by name: they are in `StoreInfo.notes` from then on.

        Those of other names stay; an empty text removes one. Up to 16 KB of UTF-8 together.
        """

    def close(self) -> None:
        """Free files, locks and connections. Idempotent."""


class KeywordSearch(Protocol):
    """What a store offers besides when its capabilities name "keyword_search"."""

    def keyword_search(
        self, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """The `k` best by BM25 of the chunks that match `where`, a list a text. Scores are > 0."""


class Generations(Protocol):
    """What a store offers besides when its capabilities name "generation"."""

    def generation(self) -> str | None:
        """A text for what the collection now holds, its notes included, the same in each process.

        After any write that was acknowledged it is another one, whoever wrote, and it never comes
        back, even if the collection is dropped and made anew, or replaced. What is read after it
        is at least as new. None while it cannot be told: in some stores, from a handle's first
        write until its `close`; after a writer has died, until another one has written and closed.
        Raises CollectionGone, StoreUnavailable.
        """


class FacetCounts(Protocol):
    """What a store offers besides when its capabilities name "facets"."""

    def facets(self, where: Filter | None = None) -> Facets:
        """The metadata of the chunks that match; see `stores.facets`, for any store."""


class HybridSearch(Protocol):
    """What a store offers besides when its capabilities name "hybrid_search"."""

    def hybrid_search(
        self, vectors: Vectors, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[Hit]]:
        """Vector and keyword search in one round trip, fused by reciprocal rank (k=60)."""


class StoreBackend(Protocol):
    """A kind of store: makes, opens, lists and deletes collections. What the registry names."""

    def check(self) -> BackendInfo:
        """Connect, and say to what. Raises StoreUnavailable.

        The capability "server" says that any number of processes may use it at once.
        """

    def collections(self) -> list[str]:
        """The names of the collections, sorted."""

    def create(self, spec: CollectionSpec) -> VectorStore:
        """Make a collection, or open it if one of the same dim, metric and embedder is there.

        Raises DimensionMismatch, MetricMismatch or EmbedderMismatch if it is another.
        """

    def open(self, name: str) -> VectorStore:
        """Open a collection. Raises UnknownCollection."""

    def drop(self, name: str) -> None:
        """Delete a collection and all that it holds. Raises UnknownCollection."""

    def replace(self, name: str, by: str) -> None:
        """Let the collection `by` take the name `name`; what had it is dropped.

        Raises UnknownCollection if there is no `by`.
        """

    def close(self) -> None:
        """Free connections and locks. Idempotent; a closed backend connects again when used."""


class Reranker(Protocol):
    """Reads a question and a passage together, which is slower and better than comparing vectors.

    Synchronous; safe to call from several threads.
    """

    @property
    def model(self) -> str:
        """The name of the model."""

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the question; higher is better, the scale is the model's.

        Raises ModelUnavailable.
        """


class Generator(Protocol):
    """Writes the answer to a prompt. One object serves one event loop at a time."""

    @property
    def model(self) -> str:
        """The name of the model, as answers report it."""

    @property
    def notice(self) -> str:
        """What a reader of its answers should know; empty for a language model."""

    def stream(self, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        """Pieces of text as they come, and once the Usage. Markers [n] name passages.

        Raises ModelUnavailable or ContextTooLong. Closing it stops the generation.
        """


@runtime_checkable
class LanguageModel(Protocol):
    """What a generator offers besides when it is a model with a window. Raises ModelUnavailable."""

    async def window(self) -> int:
        """The tokens that prompt and answer may take together; 0 where that cannot be known."""

    async def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int | None:
        """The tokens of chat messages as the model gets them, its chat template included.

        None where the model's tokenizer cannot be asked.
        """


@runtime_checkable
class BatchGenerator(Protocol):
    """What a generator offers besides when it answers many prompts at once, faster."""

    def generate(self, prompts: Sequence[Prompt]) -> list[tuple[str, Usage] | ModelError]:
        """For each prompt, in order, the whole text, or why there is none.

        Raises ModelUnavailable if the engine fails.
        """
