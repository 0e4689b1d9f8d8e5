"""Calls that come while one is running are made together by the next one.

So a batch is as large as the load makes it: a lone caller waits for nobody, and nobody waits longer
than for the batch before its own. No clock decides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls a function with many items at a time, in a thread. Belongs to one event loop."""

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        most: int = 32,
        on_idle: Callable[[], object] = lambda: None,
    ) -> None:
        """`call` gives for each item, in order, its result or why there is none.

        `most` items go into a call. An exception that `call` raises is that of all its items.
        `on_idle` is told each time that nobody waits any more.
        """
        self._call = call
        self._most = most
        self._on_idle = on_idle
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running: asyncio.Task[None] | None = None

    @property
    def depth(self) -> int:
        """How many items wait for their batch."""
        return len(self._waiting)

    async def __call__(self, item: Item) -> Result:
        """The result for one item. A caller that is cancelled before its batch costs nothing."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                count = min(self._most, len(self._waiting))
                batch = [self._waiting.popleft() for _ in range(count)]
                await self._made([one for one in batch if not one[1].done()])
        finally:
            self._running = None
            self._on_idle()

    async def _made(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results = await asyncio.to_thread(self._call, [item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # its caller went away meanwhile
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
