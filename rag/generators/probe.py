"""Asks a server what it is and what it can take, and remembers it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import httpx2

from rag.errors import ModelUnavailable
from rag.generators.clients import Clients
from rag.generators.concessions import Concession, concession
from rag.generators.servers import Server, recognised
from rag.generators.wire import Messages, Models
from rag.model_server import TRANSPORT_ERRORS, Refused, translated

T = TypeVar("T")

_READY_S = 5.0
_TELL_S = 2.0  # an answer waits for no more than this
_UNTOLD_S = 30.0  # how long a server that did not tell in time is not asked again


class Probe:
    """Of the server at `url`; `server` is its kind where it is known.

    What it tells is worth no error: `window` and `count` give 0 and None where it does not answer.
    """

    def __init__(
        self,
        url: str,
        clients: Clients,
        conceded: list[Concession],
        server: type[Server] | None = None,
    ) -> None:
        """`conceded` is shared: messages that the server refuses once are not sent again."""
        self._url = url
        self._clients = clients
        self._conceded = conceded
        self._fixed = server() if server else None
        self._server = self._fixed
        self._window = 0
        self._doubted = False
        self._silent_until = 0.0

    async def listed(self) -> list[str]:
        """The names of the served models. Raises Refused, ModelUnavailable, TRANSPORT_ERRORS."""
        response = await self._sent("GET", f"{self._url}/models")
        if response.status_code >= 400:
            raise Refused(response)
        names = [model.id for model in Models.model_validate_json(response.content).data]
        if not names:
            raise ModelUnavailable(f"{self._url} serves no model", "set generator.model")
        return names

    async def ready(self, model: str) -> str:
        """The served model's name, as in `OpenAIGenerator.check`."""
        try:
            async with asyncio.timeout(_READY_S):
                health = await self._sent("GET", self._path("/health"))
                if health.status_code >= 500:
                    raise Refused(health)
                listed = await self.listed()
        except TimeoutError as error:
            raise ModelUnavailable(
                f"{self._url} did not answer in {_READY_S:g} s", "look at the server's log"
            ) from error
        except (Refused, *TRANSPORT_ERRORS) as error:
            failure = translated(error, "generator", self._url)
            raise ModelUnavailable(failure.message, failure.hint) from error
        return model if model in listed else listed[0]

    async def window(self, model: str) -> int:
        """As in `Server`."""
        if (self._doubted or not self._window) and (server := await self._recognised()):
            told = await self._told(server.window(self._ask, model))
            if told is not None:
                self._window, self._doubted = told, False
        return self._window

    def doubt(self) -> None:
        """Another server or model may answer by now: what it tells takes the place of the old."""
        self._server, self._doubted = self._fixed, True

    async def count(self, model: str, messages: Messages) -> int | None:
        """As in `Server`."""
        server = await self._recognised()
        return await self._told(server.count(self._ask, model, messages)) if server else None

    async def _recognised(self) -> Server | None:
        if self._server is None:
            self._server = await self._told(recognised(self._ask))
        return self._server

    async def _told(self, asking: Coroutine[Any, Any, T]) -> T | None:
        """What comes of asking; None if that takes too long or is not to be understood."""
        if time.monotonic() < self._silent_until:
            asking.close()
            return None
        try:
            async with asyncio.timeout(_TELL_S):
                return await asking
        except httpx2.ConnectError:  # refused at once, and may be there in a moment
            return None
        except (*TRANSPORT_ERRORS, AttributeError, KeyError, TypeError):
            self._silent_until = time.monotonic() + _UNTOLD_S
            return None

    async def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        while True:
            made = list(self._conceded)
            if body and "messages" in body:
                for known in made:
                    body = known.change(body)
            response = await self._sent("POST" if body else "GET", self._path(path), body)
            if response.status_code < 400:
                told = response.json()
                return told if isinstance(told, dict) else {}
            refused = Refused(response)
            more = concession(refused.status, refused.said, made)
            if more is None or not body or "messages" not in body:
                return {}
            self._conceded.append(more)

    async def _sent(
        self, method: str, url: str, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        client = await self._clients.get()
        try:
            return await client.request(method, url, json=body)
        except (httpx2.NetworkError, httpx2.RemoteProtocolError):
            # The server may close a connection that was kept just as it is used again.
            return await client.request(method, url, json=body)

    def _path(self, path: str) -> str:
        return self._url.removesuffix("/v1") + path
