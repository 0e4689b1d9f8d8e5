"""POST /query: an answer with its sources, whole or as it is written."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rag.service.access import Reader
from rag.service.answering import Events, answer, asked_by, stream
from rag.service.desk import Desk
from rag.service.errors import responses
from rag.service.replies import json_response, sse
from rag.service.schemas import AnswerOut, QueryIn

router = APIRouter(tags=["answers"])

_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["sources", "token", "citation", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnswerOut,
        "description": "The answer; or with `stream` or `Accept: text/event-stream` events: "
        "`sources` {citations}, `token` {text}, `citation`, `done` (the answer), `error`.",
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    }
}


@router.post("/query", responses={**_STREAM, **responses(404, 502)})
async def query(request: Request, body: QueryIn, caller: Reader) -> Response:
    """Answer a question from the documents, with the passages that each sentence rests on.

    `Cache-Control: no-cache` asks for an answer that is written anew.
    """
    desk: Desk = request.app.state.desk  # a dependency less, on the way that is gone most
    question = asked_by(request, desk, caller, body)
    if body.stream or "text/event-stream" in request.headers.get("accept", ""):
        return await stream(request, desk, question, _written)
    return json_response(await answer(request, desk, question))


async def _written(events: Events) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for name, data in events:
            yield sse(name, data)
