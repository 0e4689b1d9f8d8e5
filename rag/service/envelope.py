"""What surrounds every request: its id, headers, time, line in the log, and the last resort."""

from __future__ import annotations

import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.errors import Forbidden
from rag.service import logs
from rag.service.errors import problem, unexpected
from rag.service.replies import json_response

if TYPE_CHECKING:
    from rag.service.desk import Desk

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
# The pages at /docs load their script from elsewhere.
_PAGES = ("/docs", "/redoc")


class Envelope:
    """ASGI middleware. `scope["state"]` gets `id`, and what routes say of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        state["id"] = uuid4().hex
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-ID"] = state["id"]
                for name, value in _HEADERS.items():
                    if not (name == "Content-Security-Policy" and scope["path"] in _PAGES):
                        headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                headers.update(state.get("headers", {}))
                message["headers"] = headers.raw
            await send(message)

        with logs.request(state["id"]):
            try:
                if strange := self._stranger(scope):
                    reply = json_response(problem(strange, state["id"]), 403)
                    return await reply(scope, receive, send_with_headers)
                await self._app(scope, receive, send_with_headers)
            except Exception:
                logs.failed()
                if status:  # half a reply is out: the connection closes
                    raise
                await unexpected(state["id"])(scope, receive, send_with_headers)
            finally:
                self._tell(scope, status, time.perf_counter() - started)

    def _stranger(self, scope: Scope) -> Forbidden | None:
        """Why a browser sent this on behalf of a foreign page, if it did.

        Without keys, the address is all that keeps others out; a page of another site could have
        the browser of someone on this machine ask for it, under its own name or a foreign one.
        """
        desk: Desk = scope["app"].state.desk
        if desk.guarded or not desk.on_loopback:
            return None
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin and origin not in desk.settings.cors_origins and not _local(origin):
            return Forbidden("pages of other sites may not ask", "see service.cors_origins")
        if not _local(f"//{headers.get('host', '')}"):
            return Forbidden("the Host header names another machine", "use localhost or 127.0.0.1")
        return None

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path_format", "unknown")
        state = scope["state"]
        if isinstance(state, State):
            state = state._state
        known = {name: state[name] for name in _TOLD if name in state}
        scope["app"].state.desk.metrics.request(route, scope["method"], status, seconds)
        logs.access(scope["method"], route, status, seconds * 1000, **known)


_TOLD: Sequence[str] = ("caller", "collection", "failure", "cached", "degraded")


def _local(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
