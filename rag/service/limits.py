"""How often: limits of rate by key and by address, counted in Redis or in this process.

Requests are counted in windows that begin at whole multiples of their length since the epoch. So
every process knows without asking when one ends, and a count costs one round trip.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from cachetools import LRUCache
from limits import RateLimitItem, parse_many
from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from rag.errors import ConfigError, TooManyRequests
from rag.service.callers import ANYONE

REDIS_AGAIN_S = 5.0
"""How long Redis is left alone after it failed."""
_MOST_COUNTS = 50_000  # in memory, a window; some 10 MB
_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of the limit that is nearest to its end.

    Of `limit` requests `remaining` are left for the next `reset_s` whole seconds.
    """

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """The headers that clients know it by; the times in seconds from now."""
        values = {"Limit": self.limit, "Remaining": self.remaining, "Reset": self.reset_s}
        return {f"{x}RateLimit-{k}": str(v) for x in ("", "X-") for k, v in values.items()}


class RateLimits:
    """`per_key` and `per_address` are limits like "600/minute;20/second"; "" is none.

    Counted at `redis_url` by all processes together; in this process where that is "", and while
    Redis does not answer within `timeout_s`: then `degraded` is true. One event loop uses it.
    Raises ConfigError for a limit or a URL that is none.
    """

    def __init__(
        self, per_key: str, per_address: str, redis_url: str = "", timeout_s: float = 0.25
    ) -> None:
        self._per_key = _parsed("service.rate_limit", per_key)
        self._per_address = _parsed("service.address_limit", per_address)
        self._timeout_s = timeout_s
        self._memory = _Memory()
        self._pool = _pool(redis_url, timeout_s) if redis_url else None
        self._redis = _storage(self._pool) if self._pool else None
        self._redis_again = 0.0
        self.degraded = False

    async def hit(self, caller_id: str, address: str) -> Allowance | None:
        """Count a request; None where there is no limit. Raises TooManyRequests.

        `address` is that of the client; IPv6 counts by /64, since that is what one client has.
        For a request with a wrong key give the id of `ANYONE`, as for one without: only the
        address counts then.
        """
        now = time.time()
        least: Allowance | None = None
        for whose, name, limit in self._counted(caller_id, address):
            seconds = limit.get_expiry()
            window = int(now // seconds)
            reset_s = math.ceil((window + 1) * seconds - now)
            left = limit.amount - await self._count(limit.key_for(whose, name), seconds, window)
            if left < 0:
                raise TooManyRequests(
                    f"this {whose} may ask {limit.amount} times in {seconds} s",
                    f"wait {reset_s} s",
                    retry_after=reset_s,
                )
            if least is None or left < least.remaining:
                least = Allowance(limit.amount, left, reset_s)
        return least

    async def close(self) -> None:
        """Close the connections to Redis. Idempotent."""
        if self._pool is not None:
            await self._pool.disconnect()

    def _counted(self, caller_id: str, address: str) -> Iterator[tuple[str, str, RateLimitItem]]:
        """Whose requests are limited. The key first: one that asks too often costs nobody else."""
        if caller_id != ANYONE.id:
            yield from (("key", caller_id, limit) for limit in self._per_key)
        if self._per_address:
            network = _network(address)
            yield from (("address", network, limit) for limit in self._per_address)

    async def _count(self, key: str, seconds: int, window: int) -> int:
        """How many requests there were in the window, this one included."""
        if self._redis is None or time.monotonic() < self._redis_again:
            return self._memory.count(key, seconds, window)
        if self.degraded:  # this request tries, the others go on without
            self._redis_again = time.monotonic() + REDIS_AGAIN_S
        try:
            async with asyncio.timeout(self._timeout_s):
                count = await self._redis.incr(f"{key}/{window}", seconds)
        except (RedisError, OSError):  # a TimeoutError is an OSError
            self.degraded = True
            self._redis_again = time.monotonic() + REDIS_AGAIN_S
            return self._memory.count(key, seconds, window)
        self.degraded, self._redis_again = False, 0.0
        return count


class _Memory:
    """The counts of this process. Not those of `limits`: they walk all keys at every request."""

    def __init__(self) -> None:
        self._windows: dict[int, tuple[int, LRUCache[str, int]]] = {}

    def count(self, key: str, seconds: int, window: int) -> int:
        current, counts = self._windows.get(seconds, (-1, None))
        if counts is None or current != window:
            counts = LRUCache(_MOST_COUNTS)
            self._windows[seconds] = window, counts
        counts[key] = count = counts.get(key, 0) + 1
        return count


def _pool(url: str, timeout_s: float) -> BlockingConnectionPool:
    try:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # a connection from before Redis was restarted
        )
    except ValueError as error:
        raise ConfigError(  # the address is left out, for it may hold a password
            "cache.url is no address of Redis", "write it like redis://localhost:6379/0"
        ) from error


def _storage(pool: BlockingConnectionPool) -> RedisStorage:
    return RedisStorage(
        "async+redis://",
        implementation="redispy",
        key_prefix="rag",
        connection_pool=pool,  # type: ignore[arg-type]
    )


def _parsed(setting: str, text: str) -> list[RateLimitItem]:
    try:
        limits = parse_many(text) if text.strip() else []
    except ValueError as error:
        raise ConfigError(
            f"{setting} is no limit: {text!r}", 'write it like "600/minute;20/second"'
        ) from error
    if any(limit.amount < 1 for limit in limits):
        raise ConfigError(f"{setting} lets nobody in: {text!r}", 'for no limit write ""')
    return limits


def _network(address: str) -> str:
    try:
        found = ip_address(address)
    except ValueError:
        return "unknown"  # all together: what a client made up must not give it a fresh limit
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ip_network((found.packed, 64), strict=False))
    return str(found)
