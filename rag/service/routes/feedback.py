"""POST /feedback: whether an answer was right."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from rag.errors import NotFound
from rag.service.access import DeskOf, Reader
from rag.service.errors import responses
from rag.service.feedback import BATCH_S
from rag.service.schemas import FeedbackIn, FeedbackOut

router = APIRouter(tags=["answers"])


@router.post("/feedback", status_code=201, responses=responses(404))
async def feedback(body: FeedbackIn, desk: DeskOf, caller: Reader) -> FeedbackOut:
    """Rate an answer, up or down; again to change it. `rag feedback export` makes judgements of it.

    An answer can be rated for a week.
    """
    asked_for = body.answer_id, caller.tenant_key
    try:
        answer = await asyncio.to_thread(desk.answers.get, *asked_for)
    except NotFound:
        if desk.settings.workers == 1:
            raise
        await asyncio.sleep(2 * BATCH_S)  # another worker may have given it just now
        answer = await asyncio.to_thread(desk.answers.get, *asked_for)
    caller.require("read", answer.collection)
    rated = await asyncio.to_thread(desk.feedback.add, answer, caller.id, body.rating, body.comment)
    return FeedbackOut(id=rated)
