"""POST /mcp: the tools of `rag.service.mcp` over streamable HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.service.access import Reader

router = APIRouter()


class _Delegated(Response):
    """A response that another ASGI application writes."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


@router.post("/mcp", include_in_schema=False)  # it has a description of its own
async def mcp(request: Request, caller: Reader) -> Response:
    """One message. Without sessions there is nothing to GET or DELETE."""
    request.state.asker = caller
    return _Delegated(request.app.state.mcp.handle_request)
