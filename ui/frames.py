"""What comes piece by piece, in steps of a fixed time: Streamlit sees a click between two steps."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def frames(stream: AsyncGenerator[Item], seconds: float) -> Generator[list[Item], None, None]:
    """What came in each step, at least one of which ends every `seconds`; [] where nothing did.

    A step ends as soon as something comes. What `stream` raises is raised. Closing this closes
    `stream`, at whatever it is waiting.
    """
    came: queue.SimpleQueue[object] = queue.SimpleQueue()
    following = _Following(stream, came)
    following.start()
    try:
        while True:
            items: list[Item] = []
            try:
                item = came.get(timeout=seconds)
                while item is not _END:
                    items.append(item)  # type: ignore[arg-type]  # the queue has nothing else
                    item = came.get_nowait()
            except queue.Empty:
                yield items
                continue
            if items:
                yield items
            following.join()
            if following.error:
                raise following.error
            return
    finally:
        following.cancel()


class _Following(threading.Thread):
    """Puts the items of a stream into a queue, in an event loop of its own."""

    def __init__(self, stream: AsyncGenerator[Item], came: queue.SimpleQueue[object]) -> None:
        super().__init__(name="answer", daemon=True)
        self.error: Exception | None = None
        self._stream = stream
        self._came = came
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._follow())

    def run(self) -> None:
        try:
            self._loop.run_until_complete(asyncio.wait([self._task]))
            if not self._task.cancelled():
                error = self._task.exception()
                self.error = error if isinstance(error, Exception) else None
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._came.put(_END)

    def cancel(self) -> None:
        """End it, if it goes on."""
        if self.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._task.cancel)
            except RuntimeError:  # the loop was closed meanwhile
                return

    async def _follow(self) -> None:
        async with aclosing(self._stream) as items:
            async for item in items:
                self._came.put(item)
