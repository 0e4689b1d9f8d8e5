"""How much is done at a time, and how long it may take: beyond that a request is told to wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rag.errors import Overloaded

_RETRY_S = 1.0


class Admission:
    """`concurrency` requests are worked on at a time, `queue` more wait their turn."""

    def __init__(self, concurrency: int, queue: int, deadline_s: float) -> None:
        self._free = asyncio.Semaphore(concurrency)
        self._most_waiting = queue
        self._deadline = deadline_s
        self._running: set[asyncio.Timeout] = set()
        self._stopping = False
        self.waiting = 0
        self.working = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """One's turn. Raises Overloaded at once where too many wait already."""
        if self._free.locked() and self.waiting >= self._most_waiting:
            raise Overloaded(
                "too many requests are waiting already", "try again in a moment", _RETRY_S
            )
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1
            self._free.release()

    @asynccontextmanager
    async def within_deadline(self) -> AsyncIterator[None]:
        """Raises Overloaded where what is inside takes longer than the deadline."""
        try:
            async with asyncio.timeout(self._deadline) as timeout:
                self._running.add(timeout)
                try:
                    yield
                finally:
                    self._running.discard(timeout)
        except TimeoutError as error:
            raise self._late() from error

    def stop(self, within_s: float) -> None:
        """Let all that is done end within so many seconds, as the process is about to."""
        self._stopping = True
        self._deadline = min(self._deadline, within_s)
        latest = asyncio.get_running_loop().time() + within_s
        for timeout in self._running:
            when = timeout.when()
            if when is not None and when > latest:
                timeout.reschedule(latest)

    def _late(self) -> Overloaded:
        if self._stopping:
            return Overloaded("the service stops", "try again in a moment", _RETRY_S)
        return Overloaded(
            f"there was no answer within {self._deadline:g} s",
            "try again, or raise service.deadline_s",
            _RETRY_S,
        )
