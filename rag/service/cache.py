"""Where answers and the vectors of questions are kept: in memory, or in Redis.

What is kept is bytes under a key that says everything the bytes depend on, so nothing is ever
deleted: what no longer holds is no longer asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from rag import __version__
from rag.breaker import State
from rag.errors import RagError
from rag.settings import CacheSettings
from rag.types import Fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.float32]

MAX_VALUE = 1_000_000  # bytes


class CacheDown(RagError):
    """The cache cannot be used now. What it would have spared is done."""

    http_status = 503


class Cache(Protocol):
    """Bytes by key, for a time. Belongs to one event loop.

    A value over MAX_VALUE bytes is not kept, and what cannot be read counts as missing. Each method
    that asks it something raises CacheDown.
    """

    @property
    def name(self) -> str:
        """What it is: "memory", "redis" or "off"."""

    @property
    def state(self) -> State:
        """What its breaker is now; "open": it failed, and is left alone for a moment."""

    async def get(self, key: str) -> bytes | None:
        """What is kept under the key; None where nothing is."""

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The same for each key, in order, in one round trip."""

    async def set(self, key: str, value: bytes) -> None:
        """Keep a value for the seconds of the settings."""

    async def set_many(self, values: Mapping[str, bytes]) -> None:
        """The same for each key, in one round trip."""

    async def claim(self, key: str, claim: str, seconds: float) -> bool:
        """Whether this process alone computes what belongs under the key, for so many seconds.

        `claim` tells this claim from others. Not, where another process has claimed the key.
        """

    async def release(self, key: str, claim: str) -> None:
        """End that claim; that of another, and one that has ended, is left as it is."""

    async def check(self) -> None:
        """Ask whether it is there, even while it is left alone."""

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""


def made(settings: CacheSettings) -> Cache:
    """The cache that the settings name. Raises ConfigError for what is no address of a Redis.

    It does not connect: a Redis that is down now may come back.
    """
    url = settings.url.get_secret_value()
    if settings.enabled and url:
        from rag.service.redis_cache import RedisCache

        return RedisCache(url, settings.ttl_s, settings.timeout_s)
    from rag.service.memory_cache import MemoryCache

    return MemoryCache(settings.size_mb * 2**20 if settings.enabled else 0, settings.ttl_s)


def cache_key(kind: str, **parts: object) -> str:
    """The key of what depends on the parts: text, numbers, truth values, None, lists, mappings.

    Two keys are equal if all parts are: 1, 1.0 and True are not, a tuple and a list are. Raises
    TypeError for other parts. Each version of this program has keys of its own.
    """
    return _digest(kind, _canonical(parts))


class CachedQueries:
    """The vectors of questions, kept under the fingerprint of their embedder."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def vector(
        self, embedder: Fingerprint, text: str, embed: Callable[[str], Awaitable[Vector]]
    ) -> tuple[Vector, bool]:
        """The vector of a question, float32, shape (dim,), and whether the cache was down."""

        async def alone(texts: list[str]) -> Vector:
            return np.stack([await embed(text) for text in texts])

        vectors, degraded = await self.vectors(embedder, [text], alone)
        return vectors[0], degraded

    async def vectors(
        self,
        embedder: Fingerprint,
        texts: Sequence[str],
        embed: Callable[[list[str]], Awaitable[Vector]],
    ) -> tuple[Vector, bool]:
        """The vectors of questions, float32, shape (n, dim), and whether the cache was down.

        One round trip; `embed` gets those that are missing, each once, and only if there are any.
        """
        keys = {text: _query_key(embedder, text) for text in texts}
        degraded = False
        try:
            kept = await self._cache.get_many(list(keys.values()))
        except CacheDown:
            degraded, kept = True, [None] * len(keys)
        known = {text: _vector(value, embedder.dim) for text, value in zip(keys, kept, strict=True)}
        missing = [text for text, vector in known.items() if vector is None]
        if missing:
            new = dict(zip(missing, await embed(missing), strict=True))
            known |= new
            try:
                await self._cache.set_many(
                    {keys[text]: vector.astype("<f4").tobytes() for text, vector in new.items()}
                )
            except CacheDown:
                degraded = True
        found = [vector for text in texts if (vector := known[text]) is not None]
        return np.stack(found) if found else np.empty((0, embedder.dim), np.float32), degraded


def _query_key(embedder: Fingerprint, text: str) -> str:
    return _digest("query", f"{_canonical_fingerprint(embedder)}{text}")


@lru_cache(maxsize=64)
def _canonical_fingerprint(embedder: Fingerprint) -> str:
    """Kept, because it takes longer than all the rest of a key."""
    return _canonical(asdict(embedder))


def _vector(value: bytes | None, dim: int) -> Vector | None:
    """The vector in these bytes; None if it is none of that dimension."""
    if value is None or len(value) != 4 * dim:
        return None
    vector = np.frombuffer(value, "<f4")
    return vector.astype(np.float32, copy=False) if np.isfinite(vector).all() else None


def _digest(kind: str, text: str) -> str:
    # A lone surrogate is no Unicode, but two of them must not pass for the character they make.
    data = f"{__version__}\n{text}".encode("utf-8", "surrogatepass")
    return f"rag:{kind}:{hashlib.sha256(data).hexdigest()}"


def _canonical(parts: Mapping[str, object]) -> str:
    return json.dumps(_plain(parts), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _plain(value: object) -> object:
    """As JSON knows it, and nothing that JSON would take for something else."""
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("a mapping in a key has names that are no text")
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
