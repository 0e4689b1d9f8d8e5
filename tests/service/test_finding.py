"""What the searches of one process do to each other."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from embedders import WordEmbedder
from word_app import WordApp

from rag.breaker import Breaker
from rag.errors import CollectionGone, StoreUnavailable
from rag.evidence import Calibration
from rag.retrieve import Retriever, SearchOptions
from rag.service import answering
from rag.service.cache import CachedQueries
from rag.service.callers import ANYONE
from rag.service.collections import Opened
from rag.service.desk import Desk
from rag.service.finding import Finder
from rag.service.memory_cache import MemoryCache
from rag.service.schemas import SearchIn
from rag.types import Chunk, CollectionSpec, StoreInfo
from stores.memory import MemoryStore

WORDS = SearchOptions(mode="keyword", rerank=False)
RERANKED = SearchOptions(mode="keyword", rerank=True)
CHUNKS = [Chunk(f"c{n}", "d", "v", n, f"pump number {n}", "/pumps.txt", "Pumps") for n in range(3)]


class Reranker:
    """Waits until it is let; says how many read at a time, and what they were asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.asked: list[str] = []
        self.reading = self.most = 0
        self._error = error

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        self.asked.append(question)
        self.reading += 1
        self.most = max(self.most, self.reading)
        self.begun.set()
        assert self.go_on.wait(20)
        self.reading -= 1
        if self._error:
            raise self._error
        return [0.5] * len(texts)


def opened(store: MemoryStore | None = None, reranker: Any = None) -> Opened:
    embedder = WordEmbedder()
    store = store or MemoryStore(CollectionSpec("docs", 32, embedder=embedder.fingerprint))
    store.upsert(CHUNKS, embedder.embed_documents([chunk.text for chunk in CHUNKS]))
    breaker = Breaker(2, 60, error=StoreUnavailable, unless=(CollectionGone,))
    retriever = Retriever(store, embedder, reranker=reranker)
    return Opened(store.describe(), store.generation(), retriever, Calibration(), breaker)


def finder() -> Finder:
    return Finder(2, 60, CachedQueries(MemoryCache(0, 1)), reranks=True)


async def becomes(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


class Damaged(MemoryStore):
    def keyword_search(self, *_: Any) -> Any:
        raise StoreUnavailable("it is damaged")


async def test_a_damaged_collection_closes_no_other() -> None:
    finding, whole = finder(), opened()
    damaged = opened(Damaged(CollectionSpec("damaged", 32)))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="damaged"):
            await finding.find(damaged, "pump", 1, None, WORDS)
    with pytest.raises(StoreUnavailable, match="left alone"):
        await finding.find(damaged, "pump", 1, None, WORDS)
    assert len((await finding.find(whole, "pump", 1, None, WORDS)).hits) == 1


async def test_reranked_searches_take_turns_and_keep_no_other_waiting() -> None:
    reranker, finding = Reranker(), finder()
    collection = opened(reranker=reranker)
    slow = [
        asyncio.create_task(finding.find(collection, f"pump {n}", 1, None, RERANKED))
        for n in range(64)
    ]
    await becomes(reranker.begun.is_set)
    async with asyncio.timeout(10):
        await finding.find(collection, "pump", 1, None, WORDS)
    assert finding.depth == 63
    reranker.go_on.set()
    await asyncio.gather(*slow)
    assert reranker.most == 1


async def test_a_search_whose_caller_left_keeps_nothing() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def keyword_search(self, *given: Any) -> Any:
            entered.set()
            assert go_on.wait(20)
            return super().keyword_search(*given)

    finding, collection = finder(), opened(Slow(CollectionSpec("slow", 32)))
    kept = weakref.ref(collection.retriever)
    task = asyncio.create_task(finding.find(collection, "pump", 1, None, WORDS))
    await becomes(entered.is_set)
    task.cancel()
    del collection
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    go_on.set()

    def dropped() -> bool:
        gc.collect()
        return kept() is None

    await becomes(dropped)


async def test_one_question_that_fails_ends_the_others(tmp_path: Path) -> None:
    reranker = Reranker(ValueError("unreadable"))

    class Reranking(WordApp):
        def retriever_over(self, store: Any, info: StoreInfo) -> Retriever:
            return Retriever(store, self.embedder(info), reranker=reranker)

    app = Reranking(tmp_path)
    rerank = app.settings.rerank.model_copy(update={"kind": "cross-encoder"})
    app.settings = app.settings.model_copy(update={"rerank": rerank})
    embedder = app.embedder()
    store = app.backend.create(CollectionSpec("docs", 32, embedder=embedder.fingerprint))
    store.upsert(CHUNKS, embedder.embed_documents([chunk.text for chunk in CHUNKS]))
    store.close()
    desk = Desk(app)
    body = SearchIn(question=[f"pump {n}" for n in range(16)], mode="keyword")
    searching = asyncio.create_task(answering.search(desk, ANYONE, body, "id"))
    await becomes(lambda: desk.finder.depth == 15)
    reranker.go_on.set()
    with pytest.raises(ValueError, match="unreadable"):
        await searching
    await becomes(lambda: desk.finder.depth == 0)
    assert len(reranker.asked) <= 2
    await desk.aclose()
