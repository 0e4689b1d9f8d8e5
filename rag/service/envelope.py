"""What surrounds every request: its id, headers, time, line in the log, and the last resort."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders, State
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.errors import Forbidden, RequestRefused, TooLarge, TooSlow
from rag.service import logs
from rag.service.errors import problem, unexpected
from rag.service.replies import json_response
from rag.service.tracing import trace_id

if TYPE_CHECKING:
    from rag.service.desk import Desk

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
UPLOADS = "/documents"
_GRACE_S = 5.0
_FORM = 2**16  # bytes of a form besides its file
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

        with logs.request(state["id"], **_traced()):
            try:
                if refused := self._refused(scope):
                    reply = json_response(problem(refused, state["id"]), refused.http_status)
                    return await reply(scope, receive, send_with_headers)
                limited = _limited(receive, self._most_bytes(scope))
                # Routes keep the deadline themselves; this is for what waits on the client.
                async with asyncio.timeout(self._desk(scope).settings.deadline_s + _GRACE_S):
                    await self._app(scope, limited, send_with_headers)
            except TimeoutError:
                state["failure"] = "too_slow"
                if not status:
                    slow = TooSlow("the request was not done in time", "send it faster, or anew")
                    reply = json_response(problem(slow, state["id"]), slow.http_status)
                    await reply(scope, receive, send_with_headers)
            except Exception:
                logs.failed()
                if status:  # half a reply is out: the connection closes
                    raise
                await unexpected(state["id"])(scope, receive, send_with_headers)
            finally:
                self._tell(scope, status, time.perf_counter() - started)

    def _desk(self, scope: Scope) -> Desk:
        desk: Desk = scope["app"].state.desk
        return desk

    def _most_bytes(self, scope: Scope) -> int:
        settings = self._desk(scope).settings
        if scope["path"] == UPLOADS:
            return int(settings.max_upload_mb * 2**20 + _FORM)
        return int(settings.max_body_kb * 2**10)

    def _refused(self, scope: Scope) -> RequestRefused | None:
        """Why the request is not even read, if it is not."""
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._most_bytes(scope):
            return TooLarge("the body is over the limit", "send less at a time")
        return self._stranger(scope)

    def _stranger(self, scope: Scope) -> Forbidden | None:
        """Why a browser sent this on behalf of a foreign page, if it did.

        Without keys, the address is all that keeps others out; a page of another site could have
        the browser of someone on this machine ask for it, under its own name or a foreign one.
        """
        desk = self._desk(scope)
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
        self._desk(scope).metrics.request(route, scope["method"], status, seconds)
        logs.access(scope["method"], route, status, seconds * 1000, **known)


def _limited(receive: Receive, most: int) -> Receive:
    """`receive` that raises once a body of unknown length is over `most` bytes."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, "the body is over the limit")  # FastAPI lets no other pass
        return message

    return counted


def _traced() -> dict[str, str]:
    known = trace_id()
    return {"trace_id": known} if known else {}


_TOLD: Sequence[str] = ("caller", "collection", "failure", "cached", "degraded")


def _local(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
