"""What the requests of one process share."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from rag import plugins
from rag.app import App
from rag.errors import ModelUnavailable, StoreError, StoreUnavailable, UnknownCollection
from rag.service import cache, logs
from rag.service.admission import Admission
from rag.service.asking import Asked, Asking
from rag.service.authentication import Authentication
from rag.service.collections import Collections
from rag.service.datasets import Datasets
from rag.service.evaluations import Evaluations
from rag.service.evaluator import Evaluator
from rag.service.exposure import on_loopback
from rag.service.feedback import Answers, Feedback, Given
from rag.service.finding import Finder
from rag.service.health import Health
from rag.service.jobs import Jobs
from rag.service.keys import Keys
from rag.service.limits import RateLimits
from rag.service.memo import Memo
from rag.service.metrics import Metrics
from rag.service.oidc import Oidc
from rag.service.originals import Originals
from rag.service.pictures import Pictures
from rag.service.tracing import Tracing
from rag.service.uploads import Uploads
from rag.service.worker import Worker

if TYPE_CHECKING:
    from rag.service.callers import Caller, Scope

_STOP_S = 10.0
_LAST_WORDS_S = 0.5  # of service.shutdown_s, to send what went wrong
# Their generation is one read of memory or of SQLite. Other embedded stores may wait for another
# process' turn, or ask a server of theirs.
_QUICK = ("memory", "faiss")
_THREADS = 32  # stores, embedders and files; more would only take turns at the same cores


class Desk:
    """Made in a running event loop, by one application; `aclose` ends what it began."""

    def __init__(self, app: App, tracing: Tracing | None = None) -> None:
        self.app = app
        self.tracing = tracing or Tracing()
        settings = app.settings
        self.settings = settings.service
        folder = settings.data_dir / "service"
        folder.mkdir(parents=True, exist_ok=True)
        self.on_loopback = on_loopback(self.settings.host)
        self.keys = Keys(folder)
        oidc = Oidc(settings.oidc) if settings.oidc.jwks_url else None
        self.guarded = not self.settings.without_keys and (
            not self.on_loopback or oidc is not None or self.keys.any()
        )
        self.authentication = Authentication(self.keys, oidc, self.guarded)
        redis_url = settings.cache.url.get_secret_value()
        self.limits = RateLimits(
            self.settings.rate_limit,
            self.settings.address_limit,
            redis_url,
            settings.cache.timeout_s,
        )
        self.metrics = Metrics(self.settings)
        self.cache = cache.made(settings.cache)
        self.memo = Memo(self.cache)
        self.admission = Admission(
            self.settings.concurrency, self.settings.queue, self.settings.deadline_s
        )
        self.collections = Collections(app)
        self.collections.quick = settings.store in _QUICK
        self.finder = Finder(
            self.settings.store_failures,
            self.settings.store_reset_s,
            cache.CachedQueries(self.cache),
            reranks=settings.rerank.kind != "none",
            count=self.metrics.cached,
        )
        self.answers = Answers(folder)
        self.feedback = Feedback(folder)
        suffixes = plugins.names("reader")
        self.uploads = Uploads(folder / "uploads", self.settings.max_upload_mb, suffixes)
        self.originals = Originals(self.uploads, settings.ingest)
        self.pictures = Pictures(settings.ingest.parse_memory_mb, settings.ingest.parse_seconds)
        self.jobs = Jobs(folder, self.uploads, self.settings.max_jobs)
        self._worker = Worker(folder, self.jobs, self.uploads, app.of_collection, logs.say)
        self.datasets = Datasets(self.settings.datasets)
        self.evaluations = Evaluations(folder)
        self._evaluator = Evaluator(folder, self.evaluations, self.datasets, app, logs.say)
        self.asking = Asking(
            app,
            self.collections,
            self.finder,
            self.admission,
            self.metrics,
            self.tracing,
            self.memo,
            self._remember,
        )
        self.health = Health(
            {
                "store": self._check_store,
                "embedder": self._check_embedder,
                "generator": self._check_generator,
                "cache": self._check_cache,
            },
            frozenset(self.settings.ready_needs),
        )

    def collection(self, caller: Caller, asked_for: str | None, scope: Scope = "read") -> str:
        """The collection of a request. Raises Forbidden."""
        name = asked_for or self.app.settings.collection
        caller.require(scope, name)
        return name

    async def start(self, *, work: bool = True) -> None:
        """Load what the first request would wait for, and with `work` go on with the jobs."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        await asyncio.to_thread(lambda: self.app.generator)  # a wrong setting is told now
        with suppress(StoreUnavailable):  # it may come back
            await asyncio.to_thread(self.app.backend.check)
        self.metrics.gauges(
            {
                "in_flight": lambda: self.admission.working,
                "queue_depth": lambda: self.admission.waiting + self.finder.depth,
            }
        )
        self.metrics.breakers(
            {
                "store": lambda: self.collections.state,
                "embedder": lambda: self.finder.embedder_breaker.state,
                "generator": lambda: self.app.breaker.state,
                "cache": lambda: self.cache.state,
            }
        )
        self.metrics.jobs(lambda: {"queued": self.jobs.queued()})
        if work:
            self._worker.start()
            self._evaluator.start()

    def stop(self) -> None:
        """The process is told to end: what is not over in time says so, before it is cut off."""
        self.health.stopping = True
        self.admission.stop(max(_LAST_WORDS_S, self.settings.shutdown_s - _LAST_WORDS_S))

    async def aclose(self) -> None:
        """Finish what is being written, and close everything, whatever fails at that."""
        async with AsyncExitStack() as last:
            last.push_async_callback(asyncio.to_thread, self.app.close)
            parts = (self.tracing, self.metrics, self.keys, self.jobs, self.feedback, self.answers)
            for part in (*parts, self.pictures, self.evaluations):
                last.push_async_callback(asyncio.to_thread, part.close)
            last.push_async_callback(self.limits.close)
            last.push_async_callback(self.cache.aclose)
            last.push_async_callback(self.collections.aclose)
            last.push_async_callback(self._stop_working)

    async def _stop_working(self) -> None:
        threads = (self._worker, self._evaluator)
        await asyncio.gather(*(asyncio.to_thread(one.stop, _STOP_S) for one in threads))

    def _remember(self, asked: Asked, answer: dict[str, Any]) -> None:
        cited = tuple((one["document_id"], one["chunk_id"]) for one in answer["citations"])
        self.answers.remember(
            Given(
                request_id=asked.request_id,
                tenant_key=asked.caller.tenant_key,
                collection=asked.collection,
                question=answer["search"],
                model=answer["model"],
                cited=cited,
                found=cited,
                at=time.time(),
            )
        )

    async def _check_store(self) -> str:
        info = await asyncio.to_thread(self.app.backend.check)
        with suppress(UnknownCollection):  # the first upload makes it
            async with self.collections.using(self.app.settings.collection):
                pass
        return f"{self.app.settings.store}: {info.version}"

    async def _check_embedder(self) -> str:
        try:  # the one that is used: another would be a second copy in memory
            async with self.collections.using(self.app.settings.collection) as opened:
                embedder = opened.retriever.embedder
        except StoreError:
            embedder = await asyncio.to_thread(self.app.embedder)
        await asyncio.to_thread(embedder.embed_queries, ["ready"])
        return embedder.fingerprint.model

    async def _check_generator(self) -> str:
        generator = self.app.generator
        if generator is None:
            return "none: sentences are quoted"
        if self.app.breaker.state == "open":
            raise ModelUnavailable("it failed several times in a row", "look at its log")
        check = getattr(generator, "check", None)  # what runs in this process has none
        return await check() if check else generator.model

    async def _check_cache(self) -> str:
        await self.cache.check()
        return self.cache.name
