"""A cache in Redis, which several processes share. Down, it costs a request next to nothing."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from rag.breaker import Breaker, State
from rag.errors import ConfigError
from rag.service.cache import MAX_VALUE, CacheDown

Result = TypeVar("Result")

_CONNECTIONS = 32  # a command takes some 0.2 ms, nearly all of it in this process
_ALONE_S = 1.0
_FORM = b"rag1"
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"


class RedisCache:
    """Keeps values in Redis, which bounds its memory itself (maxmemory).

    After a failure Redis is left alone for a second; then one request tries it again. Each value
    has a checksum, so what something else wrote under a key counts as missing.
    """

    name = "redis"

    def __init__(self, url: str, ttl_s: float, timeout_s: float) -> None:
        """`timeout_s` bounds a whole round trip, connecting included. Raises ConfigError."""
        self._ttl = _milliseconds(ttl_s)
        self._timeout = timeout_s
        self._breaker = Breaker(1, _ALONE_S, error=CacheDown)
        self._redis = Redis.from_pool(_pool(url))

    @property
    def state(self) -> State:
        return self._breaker.state

    async def get(self, key: str) -> bytes | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if not keys:
            return []
        # MGET, for one key too: to GET something else than text under the key is an error.
        return [_unpacked(value) for value in await self._asked(lambda: self._redis.mget(keys))]

    async def set(self, key: str, value: bytes) -> None:
        await self.set_many({key: value})

    async def set_many(self, values: Mapping[str, bytes]) -> None:
        kept = {key: value for key, value in values.items() if len(value) <= MAX_VALUE}
        if not kept:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in kept.items():
            pipeline.set(key, _packed(value), px=self._ttl)
        await self._asked(pipeline.execute)

    async def claim(self, key: str, claim: str, seconds: float) -> bool:
        px = _milliseconds(seconds)
        return bool(
            await self._asked(lambda: self._redis.set(_claimed(key), claim, nx=True, px=px))
        )

    async def release(self, key: str, claim: str) -> None:
        await self._asked(lambda: self._redis.eval(_RELEASE, 1, _claimed(key), claim))

    async def check(self) -> None:
        await self._answered(self._redis.ping)

    async def aclose(self) -> None:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._redis.aclose()

    async def _asked(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer. Raises CacheDown, at once while Redis is left alone."""
        try:
            with self._breaker.calling():
                return await self._answered(ask)
        except ResponseError as error:  # it answers: where it is too full to write it can be read
            raise CacheDown(f"Redis refuses ({error})", "look at its maxmemory") from error

    async def _answered(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                return await ask()
        except ResponseError:
            raise
        except TimeoutError as error:
            raise CacheDown(
                f"Redis did not answer within {self._timeout:g} s", "see cache.timeout_s"
            ) from error
        except Exception as error:  # uvloop raises RuntimeError on connections that were closed
            raise CacheDown(f"Redis failed ({error})", "see that it runs at cache.url") from error


def _pool(url: str) -> BlockingConnectionPool:
    """Connections to that address. No timeouts of theirs: `_answered` bounds all of it."""
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 1),  # a connection may have been closed while nobody used it
            protocol=2,
            driver_info=None,
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # shows unknown options in the address
    except (ValueError, TypeError, RedisError):
        raise ConfigError(
            "cache.url is no address of a Redis", "write it like redis://:PASSWORD@HOST:6379/0"
        ) from None  # its words may hold the password
    return pool


def _claimed(key: str) -> str:
    return f"{key}:claim"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _packed(value: bytes) -> bytes:
    return _FORM + zlib.crc32(value).to_bytes(4) + value


def _unpacked(kept: object) -> bytes | None:
    """The value; None for what `_packed` did not make."""
    if not isinstance(kept, bytes) or not kept.startswith(_FORM):
        return None
    start = len(_FORM) + 4
    value = kept[start:]
    return value if kept[len(_FORM) : start] == zlib.crc32(value).to_bytes(4) else None
