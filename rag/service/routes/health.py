"""Whether it lives, whether it works, and the figures of both."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from rag import __version__
from rag.service.access import DeskOf, Reader
from rag.service.errors import Failure, responses
from rag.service.health import HealthOut
from rag.service.replies import json_response

router = APIRouter(tags=["operation"])


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers. It needs no key."""
    return {"status": "ok", "version": __version__}


@router.get(
    "/health/ready",
    response_model=HealthOut,
    responses={503: {"model": HealthOut}, 500: {"model": Failure}},
)
async def ready(desk: DeskOf) -> Response:
    """Whether requests can be served: 503 with the reason if not. It needs no key.

    With keys the reasons are left to /health, as they may name addresses.
    """
    found = await desk.health.now()
    if desk.guarded:
        parts = {
            name: part.model_copy(update={"detail": "" if part.ok else "see GET /health"})
            for name, part in found.parts.items()
        }
        found = found.model_copy(update={"parts": parts})
    headers = {} if found.ready else {"Retry-After": "5"}
    return json_response(found.model_dump(), 200 if found.ready else 503, headers)


@router.get("/health", responses=responses())
async def health(desk: DeskOf, caller: Reader) -> HealthOut:
    """The same with the reasons; always 200."""
    return await desk.health.now()


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **responses()})
async def metrics(request: Request, desk: DeskOf, caller: Reader) -> Response:
    """The figures, for Prometheus."""
    accept = request.headers.get("accept", "")
    body, kind = await asyncio.to_thread(desk.metrics.render, accept)
    return Response(body, media_type=None, headers={"Content-Type": kind})
