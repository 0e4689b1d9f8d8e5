"""Collections that are held open, because opening one reads its index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from rag import swap
from rag.app import App
from rag.breaker import Breaker, State, worst
from rag.errors import CollectionGone, StoreUnavailable
from rag.evidence import Calibration
from rag.protocols import VectorStore
from rag.retrieve import Retriever
from rag.types import StoreInfo


@dataclass(frozen=True, slots=True)
class Opened:
    """A collection as it is in `generation`, and what searches it.

    `generation` is None while it cannot be told: what is found then must not be kept.
    """

    info: StoreInfo
    generation: str | None
    retriever: Retriever
    calibration: Calibration
    breaker: Breaker
    """Around calls of its store: a collection that is damaged closes no other."""
    about: str = ""
    """What answers from it depend on: its generation and its embedder."""


@dataclass(slots=True, eq=False)
class _Handle:
    store: VectorStore
    seen: Opened
    users: int = 0
    gone: bool = False


class Collections:
    """Opens each collection once, and anew when it was replaced. Belongs to one event loop."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.quick = False
        """Whether a generation costs less than a thread, and never waits."""
        self._open: dict[str, _Handle] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def state(self) -> State:
        """The worst that the breaker of a collection is in."""
        return worst(handle.seen.breaker.state for handle in list(self._open.values()))

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Opened]:
        """The collection as it is now. Raises UnknownCollection, StoreUnavailable."""
        handle, opened = await self._current(name)
        async with self._held(name, handle):
            yield opened

    async def aclose(self) -> None:
        """Close all of them."""
        while self._open:
            _, handle = self._open.popitem()
            await asyncio.to_thread(handle.store.close)

    @asynccontextmanager
    async def _held(self, name: str, handle: _Handle) -> AsyncIterator[None]:
        """Nobody closes it meanwhile; once it is gone, the last to leave does."""
        handle.users += 1
        try:
            yield
        except CollectionGone:
            handle.gone = True
            if self._open.get(name) is handle:
                del self._open[name]
            raise
        finally:
            handle.users -= 1
            if handle.gone and not handle.users:
                await asyncio.to_thread(handle.store.close)

    async def _current(self, name: str) -> tuple[_Handle, Opened]:
        lock = self._locks.setdefault(name, asyncio.Lock())  # kept while anybody holds it
        tries = 3
        while True:
            before = self._seen(name)
            try:
                if known := await self._known(name):
                    return known
                async with lock:
                    if self._seen(name) is before:  # else another has refreshed it: look again
                        return await self._refreshed(name)
            except CollectionGone:  # what took its place is opened
                tries -= 1
                if not tries:
                    raise

    def _seen(self, name: str) -> Opened | None:
        handle = self._open.get(name)
        return handle.seen if handle else None

    async def _known(self, name: str) -> tuple[_Handle, Opened] | None:
        """The collection, if it is open and nothing was written since it was described."""
        handle = self._open.get(name)
        if handle is None:
            return None
        async with self._held(name, handle):
            generation = (
                _generation(handle.store)
                if self.quick
                else await asyncio.to_thread(_generation, handle.store)
            )
        if generation is None:
            return handle, replace(handle.seen, generation=None)
        return (handle, handle.seen) if generation == handle.seen.generation else None

    async def _refreshed(self, name: str) -> tuple[_Handle, Opened]:
        handle = self._open.get(name)
        if handle is None:
            service = self._app.settings.service
            breaker = Breaker(
                service.store_failures,
                service.store_reset_s,
                error=StoreUnavailable,
                unless=(CollectionGone,),
            )
            store = await asyncio.to_thread(swap.open_whole, self._app.backend, name)
            try:
                handle = _Handle(store, await asyncio.to_thread(self._described, store, breaker))
            except BaseException:
                store.close()
                raise
            self._open[name] = handle
        else:
            async with self._held(name, handle):
                handle.seen = await asyncio.to_thread(
                    self._described, handle.store, handle.seen.breaker
                )
        return handle, handle.seen

    def _described(self, store: VectorStore, breaker: Breaker) -> Opened:
        generation = _generation(store)  # first: what is written meanwhile changes it again
        info = store.describe()
        retriever = self._app.retriever_over(store, info)
        about = repr((generation, info.embedder))
        return Opened(info, generation, retriever, self._app.calibration(info), breaker, about)


def _generation(store: VectorStore) -> str | None:
    tell = getattr(store, "generation", None)  # a third party's store may not know
    return tell() if tell else None
