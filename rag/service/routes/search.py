"""POST /search: passages, without an answer."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from rag.service import answering
from rag.service.access import DeskOf, Reader
from rag.service.errors import responses
from rag.service.replies import json_response
from rag.service.schemas import SearchIn, SearchOut
from rag.service.streaming import unless_gone

router = APIRouter(tags=["answers"])


@router.post("/search", responses={200: {"model": SearchOut}, **responses(404, 502)})
async def search(request: Request, body: SearchIn, desk: DeskOf, caller: Reader) -> Response:
    """The passages that are likeliest to answer a question, or each of several, best first."""
    request.state.collection = desk.collection(caller, body.collection)
    async with desk.admission.within_deadline():
        found = answering.search(desk, caller, body, request.state.id)
        return json_response(await unless_gone(request, found))
