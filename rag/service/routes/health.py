"""Whether it lives, whether it works, and the figures of both."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from rag import __version__
from rag.service.access import DeskOf, Operator
from rag.service.errors import Failure, responses
from rag.service.health import HealthOut
from rag.service.replies import json_response

router = APIRouter(tags=["operation"])


@router.head("/health/live", include_in_schema=False)  # probes ask so
@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers. It needs no key."""
    return {"status": "ok", "version": __version__}


@router.head("/health/ready", include_in_schema=False)
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
async def health(desk: DeskOf, caller: Operator) -> HealthOut:
    """The same with the reasons; always 200. Not for keys of a tenant or of some collections."""
    return await desk.health.now()


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **responses()})
async def metrics(request: Request, desk: DeskOf, caller: Operator) -> Response:
    """The figures, for Prometheus. Not for keys of a tenant or of some collections."""
    accept = request.headers.get("accept", "")
    body, kind = await asyncio.to_thread(desk.metrics.render, accept)
    return Response(body, media_type=None, headers={"Content-Type": kind})
