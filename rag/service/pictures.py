"""Pages of PDFs as pictures, drawn in a process that a hostile file may take along."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rag.errors import Overloaded, UnreadableFile

if TYPE_CHECKING:
    from rag.service.drawing import Picture
    from rag.service.originals import Original

_SECONDS = 10.0
_WAITING = 32
_RETRY_S = 2.0


class Pictures:
    """Draws one page after another, in a process that is kept warm. Belongs to one event loop."""

    def __init__(self, memory_mb: int, seconds: float) -> None:
        """What a page may cost; never more than ten seconds."""
        self._memory_mb = memory_mb
        self._seconds = min(seconds, _SECONDS)
        self._waiting = 0
        self._making = threading.Lock()
        self._pool: Any = None

    async def draw(self, original: Original, page: int, passages: Sequence[str]) -> Picture:
        """The page, from 1, with the passages marked. About 0.1 s, the first time a second.

        Raises NotFound for no such page or file, UnreadableFile for a page that cannot be drawn
        within the limits, Overloaded where too many wait already.
        """
        if self._waiting >= _WAITING:
            raise Overloaded(f"{_WAITING} pages are waiting already", "try again", _RETRY_S)
        self._waiting += 1
        try:
            future = await asyncio.to_thread(self._schedule, original, page, passages)
            return await self._drawn(asyncio.wrap_future(future), page)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process. Idempotent."""
        with self._making:
            if self._pool is not None:
                self._pool.stop()
                self._pool.join()
                self._pool = None

    def _schedule(self, *arguments: Any) -> Any:
        from ingest.read import processes
        from rag.service.drawing import draw

        with self._making:
            if self._pool is None or not self._pool.active:
                self._pool = processes(1, self._memory_mb)
            return self._pool.schedule(draw, args=arguments, timeout=self._seconds)

    async def _drawn(self, future: asyncio.Future[Picture], page: int) -> Picture:
        from pebble import ProcessExpired

        try:
            return await future
        except TimeoutError as error:
            reason = f"page {page} takes longer than {self._seconds:g} seconds to draw"
            raise UnreadableFile(reason, "re-export the PDF") from error
        except (MemoryError, ProcessExpired) as error:
            reason = f"page {page} takes more than {self._memory_mb} MB of memory, or is broken"
            raise UnreadableFile(reason, "re-export the PDF") from error
