"""What surrounds every request: its id, headers, time, line in the log, and the last resort."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, State
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.errors import Forbidden, Overloaded, RequestRefused, TooLarge, TooManyRequests, TooSlow
from rag.service import logs
from rag.service.callers import ANYONE
from rag.service.errors import code_of, problem, unexpected
from rag.service.replies import json_response
from rag.service.tracing import trace_id

if TYPE_CHECKING:
    from rag.service.desk import Desk

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
_NO_SCRIPTS = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
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
                message["headers"] = _enclosed(message["headers"], scope)
            await send(message)

        body = _Body(scope, receive, self._most_bytes(scope))
        with logs.request(state["id"], **_traced()):
            try:
                if refused := self._refused(scope):
                    reply = json_response(problem(refused, state["id"]), refused.http_status)
                    return await reply(scope, receive, send_with_headers)
                # Routes keep the deadline themselves; this is for what waits on the client.
                async with asyncio.timeout(self._desk(scope).settings.deadline_s + _GRACE_S):
                    await self._app(scope, body, send_with_headers)
                    if status in (400, 413):
                        await self._count(scope)
            except (TimeoutError, asyncio.CancelledError) as error:
                late = _late(error, body)
                state["failure"] = code_of(late)
                if not status:
                    more = {"Retry-After": "1"} if late.retry_after else {}
                    reply = json_response(problem(late, state["id"]), late.http_status, more)
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
        """Why the request is not even read, if it is not.

        Without keys, the address is all that keeps others out; a page of another site could have
        the browser of someone on this machine ask for it, under its own name or a foreign one.
        """
        host = origin = announced = ""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"content-length":
                announced = value.decode("latin-1")
        if announced.isdecimal() and int(announced[:20]) > self._most_bytes(scope):
            return TooLarge("the body is over the limit", "send less at a time")
        desk = self._desk(scope)
        if desk.guarded or not desk.on_loopback:
            return None
        if origin and origin not in desk.settings.cors_origins and not _local(origin):
            return Forbidden("pages of other sites may not ask", "see service.cors_origins")
        if not _local(f"//{host}"):
            return Forbidden("the Host header names another machine", "use localhost or 127.0.0.1")
        return None

    async def _count(self, scope: Scope) -> None:
        """Count a request against its address whose body failed before its key was looked at."""
        desk = self._desk(scope)
        if desk.guarded and "caller" not in _state(scope):
            with suppress(TooManyRequests):
                await desk.limits.hit(ANYONE.id, (scope["client"] or [""])[0])

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path_format", "unknown")
        state = _state(scope)
        known = {name: state[name] for name in _TOLD if name in state}
        self._desk(scope).metrics.request(route, scope["method"], status, seconds)
        logs.access(scope["method"], route, status, seconds * 1000, **known)


def _state(scope: Scope) -> dict[str, Any]:
    state = scope["state"]
    known: dict[str, Any] = state._state if isinstance(state, State) else state
    return known


def _enclosed(headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of a reply and ours; those that it has itself stay."""
    given = dict(headers)
    whole = {**_HEADERS, **given, b"x-request-id": scope["state"]["id"].encode()}
    more = scope["state"].get("headers", {})
    whole |= {name.lower().encode(): value.encode() for name, value in more.items()}
    if scope["path"] not in _PAGES:
        whole.setdefault(*_NO_SCRIPTS)
    return list(whole.items())


class _Body:
    """`receive` that raises once a body of unknown length is over `most` bytes."""

    def __init__(self, scope: Scope, receive: Receive, most: int) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._most = most
        self._seen = 0
        self.whole = (
            "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        )
        """Whether the client has sent all of it."""

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            raise HTTPException(413, "the body is over the limit")  # FastAPI lets no other pass
        self.whole = self.whole or not message.get("more_body", False)
        return message


def _late(error: BaseException, body: _Body) -> RequestRefused:
    if isinstance(error, asyncio.CancelledError):  # uvicorn stops, and has waited long enough
        return Overloaded("the service stops", "try again in a moment", 1)
    if body.whole:
        return Overloaded("there was no answer in time", "try again in a moment", 1)
    return TooSlow("the request was not done in time", "send it faster, or anew")


def _traced() -> dict[str, str]:
    known = trace_id()
    return {"trace_id": known} if known else {}


_TOLD: Sequence[str] = ("caller", "collection", "failure", "cached", "degraded")


@lru_cache(maxsize=256)
def _local(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
