"""POST /v1/chat/completions and GET /v1/models: the same answers for clients of OpenAI's API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from rag.errors import RagError, UnknownCollection
from rag.service.access import DeskOf, Reader
from rag.service.answering import Events, answer, asked_by, stream
from rag.service.callers import Caller
from rag.service.chat import ChatIn
from rag.service.completions import Completion, CompletionOut
from rag.service.desk import Desk
from rag.service.errors import problem, responses
from rag.service.replies import json_bytes, json_response
from rag.service.schemas import NAME

router = APIRouter(prefix="/v1", tags=["openai"])

_DEFAULTS = ("default", "rag")
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},  # JSON, and at the end [DONE]
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "model": CompletionOut,
        "description": "The answer; or with `stream` its chunks, the extensions in the last one.",
        "content": {"text/event-stream": {"itemSchema": _EVENT}},
    }
}


class ModelOut(BaseModel):
    """A collection, as a model. `created` is not known, and 0."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "rag"


class ModelsOut(BaseModel):
    """The models that the caller may ask."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


@router.post("/chat/completions", responses={**_STREAM, **responses(404, 502)})
async def chat(request: Request, body: ChatIn, desk: DeskOf, caller: Reader) -> Response:
    """Answer the last question of a conversation from the documents of a collection, `model`.

    The prompt is that of the service: messages with the role `system` or `developer` are accepted
    and not obeyed. The reply has the passages that the answer rests on in
    `choices[0].message.citations`, and what is known of it besides in `rag`. What the service
    cannot do (tools, several choices, JSON by a schema) is refused; fields that it does not know
    are ignored.
    """
    collection = await _collection(desk, caller, body.model)
    question = asked_by(request, desk, caller, body.query(collection))
    completion = Completion(question.request_id, collection)
    if not body.stream:
        return json_response(completion.whole(await answer(request, desk, question)))
    counted = bool(body.stream_options and body.stream_options.include_usage)
    written = partial(_written, completion=completion, counted=counted)
    return await stream(request, desk, question, written, _failed)


@router.get("/models", responses=responses())
async def models(desk: DeskOf, caller: Reader) -> ModelsOut:
    """The collections that the caller may ask, as models."""
    names = await asyncio.to_thread(desk.app.backend.collections)
    return ModelsOut(data=[ModelOut(id=name) for name in names if caller.sees(name)])


@router.get("/models/{model}", responses=responses(404))
async def model(model: str, desk: DeskOf, caller: Reader) -> ModelOut:
    """A collection as a model; `rag` is that of the settings."""
    name = desk.collection(caller, await _collection(desk, caller, model))
    if name not in await asyncio.to_thread(desk.app.backend.collections):
        raise _unknown(model)
    return ModelOut(id=name)


async def _collection(desk: Desk, caller: Caller, model: str) -> str:
    """The collection that a model is. One that is called as the default model goes before it."""
    default = desk.app.settings.collection
    if model in _DEFAULTS and model != default:
        names = await asyncio.to_thread(desk.app.backend.collections)
        if model not in names or not caller.sees(model):
            return default
    if not re.fullmatch(NAME, model):
        raise _unknown(model)
    return model


def _unknown(model: str) -> UnknownCollection:
    return UnknownCollection(f"there is no collection {model!r}", "see GET /v1/models")


async def _written(
    events: Events, *, completion: Completion, counted: bool
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for name, data in events:
            match name:
                case "sources":
                    yield _chunk(completion.piece({"role": "assistant", "content": ""}))
                case "token":
                    yield _chunk(completion.piece({"content": data["text"]}))
                case "done":
                    yield _chunk(completion.end(data))
                    if counted:
                        yield _chunk(completion.usage(data))
    yield b"data: [DONE]\n\n"


def _failed(error: RagError, request_id: str) -> bytes:
    return _chunk(problem(error, request_id))


def _chunk(data: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % json_bytes(data)
