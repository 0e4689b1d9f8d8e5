"""The service, put together: `create` makes the ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from rag import __version__
from rag.app import App
from rag.service import logs, mcp
from rag.service.desk import Desk
from rag.service.envelope import Envelope
from rag.service.errors import answer_errors
from rag.service.openapi import describe
from rag.service.routes import (
    caller,
    collections,
    documents,
    evaluations,
    feedback,
    health,
    jobs,
    openai,
    pages,
    query,
    search,
)
from rag.service.routes.mcp import router as mcp_router
from rag.service.stopping import stopping
from rag.service.tracing import Tracing

if TYPE_CHECKING:
    from rag.settings import Settings

_DESCRIPTION = (
    "Answers questions from your own documents, and shows where each sentence comes from.\n\n"
    'Errors have one shape: `{"error": {code, message, hint, request_id}}`. '
    "Spans count code points; in JavaScript, take them of `Array.from(text)`."
)


def create(settings: Settings, app: App | None = None) -> FastAPI:
    """The application of one process; it opens what it needs when it starts, `app` too if none."""
    service = settings.service
    logs.configure(service.log_level, texts=service.log_texts)
    tracing = Tracing.of_environment()

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        desk = api.state.desk = Desk(app or App(settings, logs.say), tracing)
        await desk.start()
        try:
            async with mcp.running(api):
                with stopping(desk.stop):
                    yield
        finally:
            await desk.aclose()

    api = FastAPI(
        title="rag",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,  # it would send clients to whatever their Host header says
        telemetry=tracing.fastapi,
    )
    answer_errors(api)
    describe(api)
    if service.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=service.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "Cache-Control"],
            expose_headers=["X-Request-ID", "X-Marks-Found", "Retry-After"],
        )
    api.add_middleware(Envelope)
    for part in (
        *(query, search, documents, pages, jobs, collections),
        *(feedback, evaluations, openai, caller, health),
    ):
        api.include_router(part.router)
    if mcp.installed():
        api.include_router(mcp_router)
    return api
