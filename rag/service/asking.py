"""question -> answer, once for all who ask the same at a time: cached, admitted, counted."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from rag.answer import Done, Event, Sources, Token, last
from rag.filters import Filter
from rag.retrieve import SearchOptions
from rag.service.cache import cache_key
from rag.service.replies import json_bytes
from rag.types import Sampling, Turn

if TYPE_CHECKING:
    from rag.app import App
    from rag.service.admission import Admission
    from rag.service.callers import Caller
    from rag.service.collections import Collections, Opened
    from rag.service.finding import Finder
    from rag.service.memo import Memo
    from rag.service.metrics import Metrics
    from rag.service.tracing import Tracing

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, by whom, and how it is to be answered.

    `where` is within the caller's tenant already. `fresh`: not from the cache.
    """

    request_id: str
    caller: Caller
    collection: str
    question: str
    k: int
    where: Filter | None
    options: SearchOptions
    history: tuple[Turn, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    fresh: bool = False


class Asking:
    """Answers questions. Belongs to one event loop."""

    def __init__(
        self,
        app: App,
        collections: Collections,
        finder: Finder,
        admission: Admission,
        metrics: Metrics,
        tracing: Tracing,
        memo: Memo,
        remember: Callable[[Asked, Json], None],
    ) -> None:
        """`remember` is told of each answer, so that it can be rated later."""
        self._app = app
        self._collections = collections
        self._finder = finder
        self._admission = admission
        self._metrics = metrics
        self._tracing = tracing
        self._memo = memo
        self._remember = remember
        # What shapes an answer and is the same for every request. Secrets come masked.
        settings = app.settings
        shape = [settings.store, settings.generator, settings.answer, settings.rerank]
        self._shape = hashlib.sha256(repr(shape).encode()).hexdigest()

    async def kept(self, asked: Asked) -> Json | None:
        """The answer as POST /query gives it, if it is in the cache. Raises RagError."""
        if asked.fresh:
            return None
        started = time.perf_counter()
        async with self._collections.using(asked.collection) as opened:
            key = self._key(asked, opened)
            value = (await self._memo.lookup(key))[0] if key is not None else None
            if value is None:
                return None
            self._count(hit=True, down=False)
            return self._again(asked, opened, value, started)

    async def answer(self, asked: Asked) -> Json:
        """The answer as POST /query gives it. Raises RagError."""
        started = time.perf_counter()
        async with self._collections.using(asked.collection) as opened:

            async def written() -> tuple[bytes, bool]:
                answer = await last(self._events(asked, opened))
                return json_bytes(answer.to_json()), not answer.degraded

            key = self._key(asked, opened)
            if key is None or asked.fresh:
                value, keep = await written()
                down = key is not None and keep and await self._memo.store(key, value)
                return self._whole(asked, opened, json.loads(value), cache_down=down)
            found = await self._memo.get(key, written)
            self._count(hit=found.hit, down=found.degraded)
            if found.hit:
                return self._again(asked, opened, found.value, started, found.degraded)
            answer = json.loads(found.value)
            return self._whole(asked, opened, answer, cache_down=found.degraded)

    async def stream(self, asked: Asked) -> AsyncGenerator[tuple[str, Json]]:
        """Typed events: "sources", "token"s, the "citation"s that hold, and "done".

        The data of "done" is what `answer` gives. Closing it stops the generation. Raises RagError.
        """
        started = time.perf_counter()
        async with self._collections.using(asked.collection) as opened:
            key, down = self._key(asked, opened), False
            if key is not None and not asked.fresh:
                value, down = await self._memo.lookup(key)
                self._count(hit=value is not None, down=down)
                if value is not None:
                    whole = self._again(asked, opened, value, started)
                    for kept in _as_events(whole):
                        yield kept
                    return
            async with aclosing(self._events(asked, opened)) as events:
                async for event in events:
                    match event:
                        case Sources(citations):
                            yield "sources", {"citations": [c.to_json() for c in citations]}
                        case Token(text):
                            yield "token", {"text": text}
                        case Done(done):
                            answer = done
            if key is not None and not answer.degraded:
                down = await self._memo.store(key, json_bytes(answer.to_json())) or down
            whole = self._whole(asked, opened, answer.to_json(), cache_down=down)
            for citation in whole["citations"]:
                yield "citation", citation
            yield "done", whole

    async def _events(self, asked: Asked, opened: Opened) -> AsyncGenerator[Event]:
        """What the answerer gives, in its turn."""

        def find(*given: Any) -> Any:
            return self._finder.find(opened, *given)

        async with self._admission.admitted():
            answerer = self._app.answerer_over(
                opened.retriever, opened.calibration, asked.options, asked.sampling, find
            )
            stream = answerer.stream(asked.question, asked.k, asked.where, asked.history)
            async with aclosing(stream) as events:
                async for event in events:
                    yield event
        if isinstance(event, Done):
            self._metrics.answered(event.answer)
            self._tracing.stages(
                event.laps,
                collection=asked.collection,
                k=asked.k,
                embedder=opened.info.embedder.model if opened.info.embedder else "",
                answer=event.answer,
            )

    def _key(self, asked: Asked, opened: Opened) -> str | None:
        """What this answer is kept under; None where it must not be kept."""
        if opened.generation is None:
            return None
        generator = self._app.generator
        parts = (
            self._shape,
            self._app.templates.stamp,
            generator.model if generator else "extractive",
            opened.about,
            asked.caller.tenant_key,
            asked.collection,
            asked.question,
            asked.history,
            asked.k,
            asked.where,
            asked.options,
            asked.sampling,
        )
        return cache_key("answer", parts=repr(parts))  # in which 1, 1.0 and True differ

    def _count(self, *, hit: bool, down: bool) -> None:
        self._metrics.cached("answers", "hit" if hit else "down" if down else "miss")

    def _again(
        self, asked: Asked, opened: Opened, value: bytes, started: float, cache_down: bool = False
    ) -> Json:
        """An answer that was kept; its time is that of finding it."""
        answer = json.loads(value)
        answer["timings_ms"] = {"total": round((time.perf_counter() - started) * 1000, 2)}
        return self._whole(asked, opened, answer, cached=True, cache_down=cache_down)

    def _whole(
        self,
        asked: Asked,
        opened: Opened,
        answer: Json,
        *,
        cached: bool = False,
        cache_down: bool = False,
    ) -> Json:
        if cache_down and "cache" not in answer["degraded"]:
            answer["degraded"].append("cache")
        answer |= {
            "collection": asked.collection,
            "collection_generation": opened.generation,
            "cached": cached,
            "request_id": asked.request_id,
        }
        self._remember(asked, answer)
        return answer


def _as_events(answer: Json) -> list[tuple[str, Json]]:
    """An answer from the cache, as events."""
    citations = answer["citations"]
    return [
        ("sources", {"citations": citations}),
        ("token", {"text": answer["answer"]}),
        *(("citation", citation) for citation in citations),
        ("done", answer),
    ]
