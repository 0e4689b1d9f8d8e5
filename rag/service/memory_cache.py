"""A cache in the memory of the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cachetools import TTLCache

from rag.breaker import State
from rag.service.cache import MAX_VALUE

# Bytes that an entry takes besides its value, at the peak of a full cache (tracemalloc).
_ENTRY = 600


class MemoryCache:
    """Keeps values in the memory of the process: the `size` bytes that were used last."""

    state: State = "closed"

    def __init__(self, size: int, ttl_s: float) -> None:
        """`size` 0 keeps nothing."""
        self.name = "memory" if size else "off"
        self._kept: TTLCache[str, bytes] = TTLCache(size, ttl_s, getsizeof=_size)

    async def get(self, key: str) -> bytes | None:
        return self._kept.get(key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [await self.get(key) for key in keys]

    async def set(self, key: str, value: bytes) -> None:
        if len(value) <= MAX_VALUE and _size(value) <= self._kept.maxsize:
            self._kept[key] = value

    async def set_many(self, values: Mapping[str, bytes]) -> None:
        for key, value in values.items():
            await self.set(key, value)

    async def claim(self, key: str, claim: str, seconds: float) -> bool:
        return True  # no other process sees what is kept here

    async def release(self, key: str, claim: str) -> None:
        pass

    async def check(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def _size(value: bytes) -> int:
    return len(value) + _ENTRY
