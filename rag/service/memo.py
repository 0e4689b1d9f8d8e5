"""What is asked for by many at once is computed by one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from rag.service.cache import Cache, CacheDown

Compute: TypeAlias = Callable[[], Awaitable[tuple[bytes, bool]]]
"""Gives a value, and whether to keep it: a degraded answer goes to those who wait, no further."""

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """A value, and where it is from.

    `hit`: it was kept, or computed for another caller. `degraded`: the cache is down.
    """

    value: bytes
    hit: bool = False
    degraded: bool = False


@dataclass(slots=True, eq=False)
class _Flight:
    """A computation that goes on as long as somebody waits for it."""

    task: asyncio.Task[Found]
    waiting: int = 0


class Memo:
    """Values by key, computed once where several ask for one at a time. Belongs to one event loop.

    Processes that share a cache wait for each other as well, `wait_s` at most.
    """

    def __init__(self, cache: Cache, wait_s: float = 10.0) -> None:
        self._cache = cache
        self._wait = wait_s
        self._flights: dict[str, _Flight] = {}

    async def get(self, key: str, compute: Compute) -> Found:
        """What is kept under the key, or what `compute` gives. Raises what `compute` raises.

        `compute` runs in a task of its own. A caller who is cancelled leaves it to the others that
        wait; without any it is cancelled. Where it fails, those who waited compute for themselves,
        one after the other.
        """
        kept, down = await self.lookup(key)
        if kept is not None:
            return Found(kept, hit=True)
        while True:
            flight = self._flights.get(key)
            ours = flight is None
            if flight is None:
                task = asyncio.create_task(self._computed(key, compute))
                flight = self._flights[key] = _Flight(task)
            await self._landed(key, flight)
            task = flight.task
            if ours or not (task.cancelled() or task.exception()):
                found = task.result()
                return Found(found.value, found.hit or not ours, down or found.degraded)

    async def lookup(self, key: str) -> tuple[bytes | None, bool]:
        """What is kept under the key, None where nothing is, and whether the cache is down."""
        try:
            return await self._cache.get(key), False
        except CacheDown:
            return None, True

    async def store(self, key: str, value: bytes) -> bool:
        """Keep a value. Returns whether the cache is down."""
        try:
            await self._cache.set(key, value)
        except CacheDown:
            return True
        return False

    async def _landed(self, key: str, flight: _Flight) -> None:
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.waiting -= 1
            if self._flights.get(key) is flight and (flight.task.done() or not flight.waiting):
                del self._flights[key]
            if not flight.waiting:
                flight.task.cancel()

    async def _computed(self, key: str, compute: Compute) -> Found:
        claim = secrets.token_hex(8)
        try:
            other, down = await self._awaited(key, claim)
            if other is not None:
                return Found(other, hit=True)
            value, keep = await compute()
            lost = keep and await self.store(key, value)
            return Found(value, degraded=down or lost)
        finally:
            with suppress(CacheDown):
                await self._cache.release(key, claim)

    async def _awaited(self, key: str, claim: str) -> tuple[bytes | None, bool]:
        """What another process computes meanwhile, if one does, and whether the cache is down."""
        now = asyncio.get_running_loop().time
        end = now() + self._wait
        try:
            while True:
                ours = await self._cache.claim(key, claim, self._wait)
                # Again, for it may have been computed since it was looked up.
                value = await self._cache.get(key)
                if ours or value is not None or now() >= end:
                    return value, False
                await asyncio.sleep(_POLL_S)
        except CacheDown:
            return None, True
