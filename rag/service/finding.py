"""question -> Retrieved, together with the other questions of the moment.

The questions of all requests are embedded in one call, and those that are searched alike are
searched in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from rag.breaker import Breaker
from rag.filters import Filter
from rag.laps import Laps
from rag.protocols import Embedder
from rag.retrieve import Retrieved, Retriever, SearchOptions, check_question
from rag.service.batching import Batcher

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.service.cache import CachedQueries
    from rag.service.collections import Opened

    Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sought:
    """A question and how to search for it; its vector, unless only words are compared."""

    question: str
    vector: Vector | None
    k: int
    where: Filter | None
    options: SearchOptions

    @property
    def alike(self) -> object:
        """The same of those that may be searched for in one call. 1 and True are not the same."""
        return self.k, repr(self.where), self.options, self.vector is None


class Finder:
    """Finds the passages of requests, in batches. Belongs to one event loop."""

    def __init__(
        self,
        failures: int,
        reset_s: float,
        queries: CachedQueries,
        *,
        reranks: bool,
        count: Callable[[str, str], None] = lambda _cache, _result: None,
    ) -> None:
        """After `failures` in a row the embedder is left alone for `reset_s` seconds.

        With `reranks`, searches that rerank go one by one: a reranker reads question by question,
        and would keep the threads from those that wait for no model.
        `count` is told "vectors" and whether the cache had one: "hit", "miss" or "down".
        """
        self._count = count
        self._queries = queries
        self._reranks = reranks
        self.embedder_breaker = Breaker(failures, reset_s)
        self._embedding: dict[Embedder, Batcher[str, Vector]] = {}  # few: applications share them
        self._searching: dict[Retriever, Batcher[Sought, Retrieved]] = {}
        self._reranking: Batcher[tuple[Opened, Sought], Retrieved] = Batcher(self._rerank, most=1)

    @property
    def depth(self) -> int:
        """How many questions wait for a batch."""
        embedding = sum(batcher.depth for batcher in list(self._embedding.values()))
        searching = sum(batcher.depth for batcher in list(self._searching.values()))
        return embedding + searching + self._reranking.depth

    async def find(
        self,
        opened: Opened,
        question: str,
        k: int,
        where: Filter | None,
        options: SearchOptions,
    ) -> Retrieved:
        """As `Retriever.search`. Raises InputError, StoreUnavailable, ModelError."""
        check_question(question)
        laps = Laps()
        vector, degraded = None, False
        if options.mode != "keyword":
            vector, degraded = await self._vector(opened.retriever.embedder, question)
        laps.lap("embed")
        sought = Sought(question, vector, k, where, options)
        if self._reranks and options.rerank:
            found = await self._reranking((opened, sought))
        else:
            found = await self._together(opened, sought)
        # New lists, for the results of a batch share theirs.
        return replace(
            found,
            degraded=[*found.degraded, *(["cache"] if degraded else [])],
            timings_ms=found.timings_ms | laps.timings_ms,
            laps=[*laps.laps, *found.laps],
        )

    async def _vector(self, embedder: Embedder, question: str) -> tuple[Vector, bool]:
        """Of the question, and whether the cache was down."""
        batcher = self._embedding.get(embedder)
        if batcher is None:
            batcher = self._embedding[embedder] = Batcher(partial(self._embed, embedder))
        kept = True

        async def embed(text: str) -> Vector:
            nonlocal kept
            kept = False
            return await batcher(text)

        vector, down = await self._queries.vector(embedder.fingerprint, question, embed)
        self._count("vectors", "down" if down else "hit" if kept else "miss")
        return vector, down

    def _embed(self, embedder: Embedder, texts: Sequence[str]) -> Sequence[Vector]:
        with self.embedder_breaker.calling():
            return list(embedder.embed_queries(texts))

    async def _together(self, opened: Opened, sought: Sought) -> Retrieved:
        retriever = opened.retriever
        batcher = self._searching.get(retriever)
        if batcher is None:
            # Dropped when idle: a collection that was written has another retriever from then on.
            batcher = self._searching[retriever] = Batcher(
                partial(self._search, opened), on_idle=partial(self._searching.pop, retriever)
            )
        return await batcher(sought)

    def _rerank(self, sought: Sequence[tuple[Opened, Sought]]) -> Sequence[Retrieved | Exception]:
        return [found for opened, one in sought for found in self._search_alike(opened, [one])]

    def _search(self, opened: Opened, sought: Sequence[Sought]) -> Sequence[Retrieved | Exception]:
        groups: dict[object, list[int]] = {}
        for n, one in enumerate(sought):
            groups.setdefault(one.alike, []).append(n)
        found: dict[int, Retrieved | Exception] = {}
        for rows in groups.values():
            results = self._search_alike(opened, [sought[n] for n in rows])
            found.update(zip(rows, results, strict=True))
        return [found[n] for n in range(len(sought))]

    def _search_alike(
        self, opened: Opened, sought: Sequence[Sought]
    ) -> Sequence[Retrieved | Exception]:
        how = sought[0]
        questions = [one.question for one in sought]
        given = [one.vector for one in sought if one.vector is not None]
        vectors = np.stack(given) if given else None
        try:
            with opened.breaker.calling():
                return opened.retriever.search_many(
                    questions, how.k, how.where, how.options, vectors=vectors
                )
        except Exception as error:  # of these alone
            return [error] * len(sought)
