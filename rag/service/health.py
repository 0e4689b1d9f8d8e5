"""Whether each part of the service works, by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeAlias

from pydantic import BaseModel

from rag.errors import RagError
from rag.service import logs

Part: TypeAlias = Literal["store", "embedder", "generator", "cache"]

_LIMIT_S = 5.0
_FRESH_S = 1.0  # probes of several balancers are answered by one check


class PartOut(BaseModel):
    """A part, and why it does not work if it does not."""

    ok: bool
    detail: str


class HealthOut(BaseModel):
    """`ready`: what is needed works. "degraded": something else does not."""

    status: Literal["ok", "degraded", "unavailable"]
    ready: bool
    parts: dict[Part, PartOut]


class Health:
    """Checks the parts, at most once a second. Belongs to one event loop."""

    def __init__(
        self, checks: Mapping[Part, Callable[[], Awaitable[str]]], needed: frozenset[Part]
    ) -> None:
        """Each check says what it found, or raises."""
        self._checks = checks
        self._needed = needed
        self._known: HealthOut | None = None
        self._at = -_FRESH_S
        self._lock = asyncio.Lock()
        self.stopping = False

    async def now(self) -> HealthOut:
        """How the parts are."""
        async with self._lock:
            if self._known is None or time.monotonic() - self._at >= _FRESH_S:
                found = await asyncio.gather(*(_checked(c) for c in self._checks.values()))
                self._known = self._judged(dict(zip(self._checks, found, strict=True)))
                self._at = time.monotonic()
        if self.stopping:
            return self._known.model_copy(update={"status": "unavailable", "ready": False})
        return self._known

    def _judged(self, parts: dict[Part, PartOut]) -> HealthOut:
        down = {name for name, part in parts.items() if not part.ok}
        ready = not down & self._needed
        status: Literal["ok", "degraded", "unavailable"] = "unavailable"
        if ready:
            status = "degraded" if down else "ok"
        return HealthOut(status=status, ready=ready, parts=parts)


async def _checked(check: Callable[[], Awaitable[str]]) -> PartOut:
    try:
        async with asyncio.timeout(_LIMIT_S):
            return PartOut(ok=True, detail=await check())
    except RagError as error:
        return PartOut(ok=False, detail=str(error))
    except TimeoutError:
        return PartOut(ok=False, detail=f"it did not answer within {_LIMIT_S:g} s")
    except Exception as error:  # a third party's part may raise anything
        logs.failed()
        return PartOut(ok=False, detail=f"unexpected {type(error).__name__}; see the log")
