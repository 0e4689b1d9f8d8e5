"""GET /collections: what there is to ask."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path

from rag.service.access import DeskOf, Reader
from rag.service.errors import responses
from rag.service.schemas import NAME, CollectionOut, CollectionsOut

router = APIRouter(tags=["collections"])


@router.get("/collections", responses=responses())
async def collections(desk: DeskOf, caller: Reader) -> CollectionsOut:
    """The collections that the caller may see."""
    names = await asyncio.to_thread(desk.app.backend.collections)
    return CollectionsOut(collections=[name for name in names if caller.sees(name)])


@router.get("/collections/{name}", responses=responses(404))
async def collection(
    name: Annotated[str, Path(pattern=NAME)], desk: DeskOf, caller: Reader
) -> CollectionOut:
    """What a collection says of itself. `chunks` are those that the caller may see."""
    caller.require("read", name)
    where = caller.within(None)
    async with (
        desk.admission.within_deadline(),
        desk.admission.admitted(),
        desk.collections.using(name) as opened,
    ):
        info = opened.info
        chunks = await asyncio.to_thread(opened.retriever.store.count, where)
    return CollectionOut(
        name=info.collection,
        store=info.kind,
        dim=info.dim,
        metric=info.metric,
        index=info.index,
        embedder=info.embedder.model if info.embedder else None,
        chunks=chunks,
        generation=opened.generation,
    )
