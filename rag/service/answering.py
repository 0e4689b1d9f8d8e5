"""What the doors to the answers share: /query, /v1/chat/completions, /search and the MCP tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from rag.service.asking import Asked
from rag.service.streaming import event_stream, unless_gone
from rag.types import Citation, Hit

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

    from rag.errors import RagError
    from rag.service.callers import Caller
    from rag.service.desk import Desk
    from rag.service.schemas import QueryIn, SearchIn

Json: TypeAlias = dict[str, Any]
Result = TypeVar("Result")
Events: TypeAlias = AsyncGenerator[tuple[str, Json]]


def asked(
    desk: Desk, caller: Caller, body: QueryIn, request_id: str, *, fresh: bool = False
) -> Asked:
    """The question of a request, within what the caller may see. Raises Forbidden, InputError."""
    return Asked(
        request_id=request_id,
        caller=caller,
        collection=desk.collection(caller, body.collection),
        question=body.question,
        k=body.top_k,
        where=caller.within(body.condition()),
        options=desk.app.search_options(**body.how()),
        history=body.turns(),
        sampling=body.sampling(),
        fresh=fresh,
    )


def asked_by(request: Request, desk: Desk, caller: Caller, body: QueryIn) -> Asked:
    """The same of a request that came over HTTP; `Cache-Control: no-cache` wants it anew."""
    fresh = "no-cache" in request.headers.get("cache-control", "")
    question = asked(desk, caller, body, request.state.id, fresh=fresh)
    request.state.collection = question.collection
    return question


async def answer(request: Request, desk: Desk, question: Asked) -> Json:
    """The whole answer, as POST /query gives it; no longer than the client is there."""
    found = await desk.asking.kept(question)  # first, for it takes no task and no turn
    if found is None:
        async with desk.admission.within_deadline():
            found = await unless_gone(request, desk.asking.answer(question))
    request.state.cached, request.state.degraded = found["cached"], found["degraded"]
    return found


async def stream(
    request: Request,
    desk: Desk,
    question: Asked,
    write: Callable[[Events], AsyncGenerator[bytes]],
    failed: Callable[[RagError, str], bytes] | None = None,
) -> StreamingResponse:
    """The answer as it is written, in the words of `write` and, for an error, of `failed`."""
    return await event_stream(
        request,
        write(desk.asking.stream(question)),
        desk.admission.within_deadline,
        desk.settings.heartbeat_s,
        failed,
    )


async def search(desk: Desk, caller: Caller, body: SearchIn, request_id: str) -> Json:
    """What was found, as POST /search gives it. Raises RagError."""
    collection = desk.collection(caller, body.collection)
    where = caller.within(body.condition())
    options = desk.app.search_options(**body.how())
    questions = body.questions()
    async with desk.admission.admitted(), desk.collections.using(collection) as opened:
        finding = [
            desk.finder.find(opened, question, body.top_k, where, options) for question in questions
        ]
        results = await _all(finding)
    for result in results:
        desk.metrics.stages(result.timings_ms)
        desk.tracing.stages(result.laps, collection=collection, k=body.top_k)
    return {
        "results": [
            {
                "question": question,
                "hits": [_hit(n, hit) for n, hit in enumerate(result.hits, start=1)],
                "degraded": result.degraded,
                "timings_ms": result.timings_ms,
            }
            for question, result in zip(questions, results, strict=True)
        ],
        "collection": collection,
        "collection_generation": opened.generation,
        "request_id": request_id,
    }


async def _all(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of all; where one raises, the others are ended, and that is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _hit(marker: int, hit: Hit) -> Json:
    legs = [
        {"name": leg.name, "rank": leg.rank, "score": leg.score, "weight": leg.weight}
        for leg in hit.legs
    ]
    return {**Citation.of(marker, hit).to_json(), "legs": legs}
