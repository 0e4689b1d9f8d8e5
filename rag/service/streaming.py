"""Streams that begin only when there is something to send, and stop when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse

from rag.errors import RagError, RequestRefused
from rag.service.errors import code_of, problem
from rag.service.replies import HEARTBEAT, STREAM_HEADERS, sse

T = TypeVar("T")

_MOMENT_S = 0.02  # so soon nobody leaves, and what is in the cache is there
_AHEAD = 64  # events that wait for a slow reader


class ClientGone(RequestRefused):
    """Who asked has closed the connection: nobody reads the reply."""

    http_status = 499  # as nginx logs it


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives. If the client goes away it is cancelled, and ClientGone raised.

    The body of the request must have been read.
    """
    working = asyncio.ensure_future(work)
    leaving: asyncio.Task[None] | None = None
    try:
        await asyncio.wait({working}, timeout=_MOMENT_S)
        if not working.done():
            leaving = asyncio.create_task(_left(request))
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone("the client closed the connection")
    finally:
        if leaving:
            leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})  # what it held is free before the reply is


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Pump:
    """Runs an async generator in a task of its own, so that one can wait for it with a limit."""

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        within: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        """`within` bounds the time of the whole."""
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(_AHEAD)
        self._task = asyncio.create_task(self._run(events, within))

    async def next(self) -> bytes | None:
        """The next event; None at the end. Raises what the generator raises."""
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def aclose(self) -> None:
        """Close the generator, wherever it is."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(
        self,
        events: AsyncGenerator[bytes],
        within: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        try:
            async with within(), aclosing(events):
                async for event in events:
                    await self._queue.put(event)
        except Exception as error:
            await self._queue.put(error)
        else:
            await self._queue.put(None)


async def event_stream(
    request: Request,
    events: AsyncGenerator[bytes],
    within: Callable[[], AbstractAsyncContextManager[None]],
    heartbeat_s: float,
    failed: Callable[[RagError, str], bytes] | None = None,
) -> StreamingResponse:
    """The events as a reply, a heartbeat in each silence.

    What fails before the first event is raised, so that it has its own status; what fails later is
    the last event, as `failed` writes it: by default a server-sent "error".
    """
    pump = Pump(events, within)
    try:
        first = await unless_gone(request, pump.next())
    except BaseException:
        await pump.aclose()
        raise
    write = failed or (lambda error, known: sse("error", problem(error, known)))

    async def body() -> AsyncIterator[bytes]:
        event = first
        try:
            while event is not None:
                yield event
                event = await _next(pump, heartbeat_s)
        except RagError as error:
            request.state.failure = code_of(error)
            yield write(error, request.state.id)
        finally:
            await pump.aclose()

    return StreamingResponse(body(), headers=STREAM_HEADERS, media_type="text/event-stream")


async def _next(pump: Pump, heartbeat_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(heartbeat_s):
            return await pump.next()
    except TimeoutError:
        return HEARTBEAT
