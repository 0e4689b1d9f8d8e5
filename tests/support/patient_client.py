"""A client that comes again when it is told to, and counts what it is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import httpx2
from http_client import Event

_PATIENCE_S = 5  # the longest that it waits before it asks again
_GIVES_UP_S = 300


@dataclass
class Tally:
    """What clients saw, by kind of request. `wrong` has a line for what must never happen."""

    statuses: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class PatientClient:
    """Asks a service with a key.

    Wrong is every status but 2xx, and 429 or 503 with Retry-After, and a connection that breaks.
    """

    def __init__(self, url: str, key: str, timeout_s: float, tally: Tally) -> None:
        self._tally = tally
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout_s,
            limits=httpx2.Limits(keepalive_expiry=2),  # before the service closes idle ones
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(
        self, kind: str, path: str, method: str = "POST", **content: Any
    ) -> httpx2.Response | None:
        """The reply; None where there was none, after the time that the service says to wait."""
        started = time.perf_counter()
        try:
            reply = await self._http.request(method, path, **content)
        except httpx2.HTTPError as error:
            await self._lost(kind, error, started)
            return None
        return reply if await self._well(kind, reply, started) else None

    async def insist(
        self, kind: str, path: str, method: str = "POST", **content: Any
    ) -> httpx2.Response:
        """The first reply that there is. TimeoutError if there is none for minutes."""
        async with asyncio.timeout(_GIVES_UP_S):
            while (reply := await self.send(kind, path, method, **content)) is None:
                pass
        return reply

    async def events(self, kind: str, path: str, body: object) -> AsyncGenerator[Event]:
        """The server-sent events of a reply as they come; none where there was none."""
        started = time.perf_counter()
        try:
            async with self._http.stream("POST", path, json=body) as reply:
                if not reply.is_success:
                    await reply.aread()
                if not await self._well(kind, reply, started):
                    return
                name = ""
                async for line in reply.aiter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: "):
                        yield Event(name, json.loads(line[6:]))
        except httpx2.HTTPError as error:
            await self._lost(kind, error, started)

    async def _well(self, kind: str, reply: httpx2.Response, started: float) -> bool:
        self._count(kind, reply.status_code, started)
        if reply.is_success:
            return True
        wait = reply.headers.get("Retry-After", "")
        if reply.status_code not in (429, 503) or not wait.isdecimal():
            self._tally.wrong.append(
                f"{kind}: {reply.status_code}, Retry-After {wait!r}: {reply.text[:500]}"
            )
        await asyncio.sleep(min(int(wait) if wait.isdecimal() else 1, _PATIENCE_S))
        return False

    async def _lost(self, kind: str, error: Exception, started: float) -> None:
        self._count(kind, "none", started)
        self._tally.wrong.append(f"{kind}: the connection broke ({error!r})")
        await asyncio.sleep(1)

    def _count(self, kind: str, status: int | str, started: float) -> None:
        self._tally.statuses[kind][str(status)] += 1
        self._tally.seconds[kind].append(time.perf_counter() - started)
