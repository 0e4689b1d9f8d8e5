"""The HTTP client of a generator, kept as long as its event loop runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from functools import cache

import httpx2


class Clients:
    """A client for each event loop that asks for one, because connections belong to their loop.

    It is closed by `aclose`, or else when the loop ends: asyncio closes the async generators of a
    loop before the loop itself, and each client lives in one.
    """

    def __init__(self, key: str) -> None:
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._open: dict[
            asyncio.AbstractEventLoop, tuple[httpx2.AsyncClient, AsyncGenerator[None]]
        ] = {}

    async def get(self) -> httpx2.AsyncClient:
        """The client of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            for other in list(self._open):  # a copy: other threads have loops of their own
                if other.is_closed():
                    self._open.pop(other, None)
            client = self._made()
            lifetime = _lifetime(client)
            await anext(lifetime)
            self._open[loop] = client, lifetime
        return self._open[loop][0]

    async def aclose(self) -> None:
        """Close the connections of the running loop. The next request opens new ones."""
        _, lifetime = self._open.pop(asyncio.get_running_loop(), (None, None))
        if lifetime is not None:
            await lifetime.aclose()

    def _made(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            headers=self._headers,
            verify=_trusted(),
            # No read timeout: a server's pings would keep it from passing.
            timeout=httpx2.Timeout(None, connect=5.0),
            # uvicorn, under vLLM and TensorRT-LLM, closes what was idle for five seconds.
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=100, keepalive_expiry=4.0
            ),
        )


async def _lifetime(client: httpx2.AsyncClient) -> AsyncGenerator[None]:
    async with client:
        yield


@cache
def _trusted() -> ssl.SSLContext:
    """Made once: it reads all certificates, which takes some 20 ms."""
    return httpx2.create_ssl_context()
