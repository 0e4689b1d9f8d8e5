"""Collections that are held open, because opening one reads its index."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from rag import swap
from rag.app import App
from rag.errors import CollectionGone
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
        self.embedded = False
        """Whether the store is in this process: then its generation costs less than a thread."""
        self._open: dict[str, _Handle] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Opened]:
        """The collection as it is now. Raises UnknownCollection, StoreUnavailable."""
        handle, opened = await self._current(name)
        handle.users += 1
        try:
            yield opened
        except CollectionGone:
            self._leave(name, handle)
            raise
        finally:
            handle.users -= 1
            if handle.gone and not handle.users:
                await asyncio.to_thread(handle.store.close)

    async def aclose(self) -> None:
        """Close all of them."""
        while self._open:
            _, handle = self._open.popitem()
            await asyncio.to_thread(handle.store.close)

    async def _current(self, name: str) -> tuple[_Handle, Opened]:
        handle = self._open.get(name)
        if handle is not None:
            try:
                generation = (
                    _generation(handle.store)
                    if self.embedded
                    else await asyncio.to_thread(_generation, handle.store)
                )
            except CollectionGone:
                self._leave(name, handle)
            else:
                if generation == handle.seen.generation:
                    return handle, handle.seen
                if generation is None:
                    return handle, replace(handle.seen, generation=None)
        async with self._locks[name]:
            for last in (False, True):
                try:
                    return await self._refreshed(name)
                except CollectionGone:  # between its opening and its description
                    self._leave(name, self._open.get(name))
                    if last:
                        raise
        raise AssertionError("the second try returns or raises")

    async def _refreshed(self, name: str) -> tuple[_Handle, Opened]:
        handle = self._open.get(name)
        if handle is None:
            store = await asyncio.to_thread(swap.open_whole, self._app.backend, name)
            try:
                handle = _Handle(store, await asyncio.to_thread(self._described, store))
            except BaseException:
                store.close()
                raise
            self._open[name] = handle
        else:
            handle.seen = await asyncio.to_thread(self._described, handle.store)
        return handle, handle.seen

    def _described(self, store: VectorStore) -> Opened:
        generation = _generation(store)  # first: what is written meanwhile changes it again
        info = store.describe()
        retriever = self._app.retriever_over(store, info)
        about = repr((generation, info.embedder))
        return Opened(info, generation, retriever, self._app.calibration(info), about)

    def _leave(self, name: str, handle: _Handle | None) -> None:
        if handle is not None:
            handle.gone = True
            if self._open.get(name) is handle:
                del self._open[name]


def _generation(store: VectorStore) -> str | None:
    tell = getattr(store, "generation", None)  # a third party's store may not know
    return tell() if tell else None
